//! AWS KMS, by AWS's own client: credentials, region, endpoints and profiles are found as its other tools find them.
//!
//! `GenerateDataKey` and `Decrypt` carry an encryption context that names tenant and image: KMS binds the wrapped key to it, a
//! key policy may ask for it, and CloudTrail shows it.

mod failure;
mod no_plain_http;

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use snowmelt_chunk::{DataKey, Error, KeyService, KeyUse, WrappedKey};
use tokio::sync::OnceCell;
use zeroize::{Zeroize as _, Zeroizing};

use self::failure::Failure;
use self::no_plain_http::NoPlainHttp;
use crate::blocking::Requests;
use crate::{Options, binding};

/// What every key id of this service begins with; the ARN of the key follows.
const PREFIX: &str = "awskms:";

/// How long one try of a request may take. KMS answers within tens of milliseconds.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A key in AWS KMS.
#[derive(Debug)]
pub struct AwsKms {
    key: String,
    options: Options,
    requests: Requests,
    client: OnceCell<Client>,
}

impl AwsKms {
    /// Uses a key by its id, ARN, alias (`alias/<name>`) or alias' ARN. Nobody is asked yet.
    pub fn new(key: impl Into<String>, options: Options) -> Self {
        Self { key: key.into(), options, requests: Requests::default(), client: OnceCell::new() }
    }

    /// The client, as the environment, profiles and the machine's role set it up.
    async fn client(&self) -> Result<&Client, Error> {
        self.client.get_or_try_init(|| self.set_up()).await
    }

    async fn set_up(&self) -> Result<Client, Error> {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(TRY_TIMEOUT)
            .operation_timeout(self.options.patience)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(3).with_max_backoff(Duration::from_secs(1)));
        // A key is in one region, and its ARN says which.
        if let Some(region) = arn_fields(&self.key).map(|fields| fields[3]) {
            loader = loader.region(Region::new(region.to_owned()));
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            return Err(self.unusable("no region is set: set AWS_REGION, or name the key by its ARN"));
        }
        let mut config = aws_sdk_kms::config::Builder::from(&shared);
        if !self.options.allow_http {
            config = config.interceptor(NoPlainHttp);
        }
        Ok(Client::from_conf(config.build()))
    }

    async fn generate(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
        let mut request = self.client().await?.generate_data_key().key_id(&self.key).key_spec(DataKeySpec::Aes256);
        for (name, value) in binding(use_) {
            request = request.encryption_context(name, value);
        }
        let answer = request.send().await.map_err(|error| self.error(use_, None, &Failure::of(&error)))?;
        let key = self.data_key(answer.plaintext)?;
        let arn = answer.key_id.ok_or_else(|| self.unusable("it does not say which key it used"))?;
        let bytes = answer.ciphertext_blob.ok_or_else(|| self.unusable("it gave no wrapped key"))?.into_inner();
        Ok((key, WrappedKey { key_id: format!("{PREFIX}{arn}"), bytes }))
    }

    async fn unwrap(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        // The key is named, although KMS would find it by the wrapped key: who can write to the store could otherwise bring
        // in manifests that are sealed under a key of their own.
        let mut request =
            self.client().await?.decrypt().key_id(&self.key).ciphertext_blob(Blob::new(wrapped.bytes.clone()));
        for (name, value) in binding(use_) {
            request = request.encryption_context(name, value);
        }
        let answer = request.send().await;
        let answer = answer.map_err(|error| self.error(use_, Some(&wrapped.key_id), &Failure::of(&error)))?;
        self.data_key(answer.plaintext)
    }

    /// The data key of an answer, whose own memory is wiped.
    fn data_key(&self, plaintext: Option<Blob>) -> Result<DataKey, Error> {
        let mut bytes = plaintext.map(Blob::into_inner).unwrap_or_default();
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new);
        bytes.zeroize();
        Ok(DataKey::from_bytes(&key.map_err(|_| self.unusable("its data key does not have 32 bytes"))?))
    }

    fn unusable(&self, reason: impl Into<String>) -> Error {
        Error::KeyService { service: self.describe(), reason: reason.into() }
    }

    /// What a failure means. `sealed_under` is the id of the key that a manifest names, where one was to be opened.
    fn error(&self, use_: &KeyUse<'_>, sealed_under: Option<&str>, failure: &Failure) -> Error {
        let key = self.describe();
        let (tenant, image) = (use_.tenant.to_owned(), use_.image);
        let no_key = |reason: String| Error::NoKey { tenant: use_.tenant.into(), reason };
        match failure {
            Failure::NotThere => {
                no_key(format!("{key} is not there: AWS KMS has no such key in this account and region"))
            }
            Failure::Disabled(reason) => no_key(format!("{key} is disabled or about to be deleted: {reason}")),
            Failure::Denied(reason) => no_key(format!(
                "{key} may not be used for {image}{}: the caller needs {} with the encryption context snowmelt:tenant, \
                 snowmelt:image ({reason})",
                sealed_under.map(|id| format!(", which is sealed under {}", id.escape_debug())).unwrap_or_default(),
                if sealed_under.is_some() { "kms:Decrypt" } else { "kms:GenerateDataKey" },
            )),
            Failure::OtherKey => no_key(format!(
                "{image} is sealed under {}, which is not {key}: add it to `previous_keys`",
                sealed_under.unwrap_or_default().escape_debug()
            )),
            Failure::Unauthentic => Error::Unauthentic { tenant },
            Failure::Unavailable(reason) => Error::KeyServiceUnavailable { service: key, reason: reason.clone() },
            Failure::Credentials(reason) => {
                self.unusable(format!("its credentials are missing or not accepted: {reason}"))
            }
            Failure::Other(reason) => self.unusable(reason),
        }
    }
}

impl KeyService for AwsKms {
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
        self.requests.wait(&self.describe(), self.options.patience, self.generate(use_))
    }

    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        // KMS refuses longer ones too, but as a mistake of the caller.
        if wrapped.bytes.is_empty() || wrapped.bytes.len() > 6144 {
            return Err(Error::Unauthentic { tenant: use_.tenant.into() });
        }
        self.requests.wait(&self.describe(), self.options.patience, self.unwrap(use_, wrapped))
    }

    /// Which key an alias stands for only KMS knows, so any of its keys may be this one.
    fn owns(&self, key_id: &str) -> bool {
        let Some(arn) = key_id.strip_prefix(PREFIX) else { return false };
        if self.key.contains("alias/") {
            return true;
        }
        let id = |text| arn_fields(text).and_then(|fields| fields[5].strip_prefix("key/"));
        match (arn_fields(&self.key), arn_fields(arn)) {
            // The copies of a multi-region key have one id, in every region.
            (Some(ours), Some(theirs)) if id(&self.key).is_some_and(|id| id.starts_with("mrk-")) => {
                (ours[1], ours[4], ours[5]) == (theirs[1], theirs[4], theirs[5])
            }
            (Some(_), _) => arn == self.key,
            (None, _) => id(arn) == Some(self.key.as_str()),
        }
    }

    fn describe(&self) -> String {
        format!("{PREFIX}{}", self.key)
    }
}

/// `arn`, partition, service, region, account and resource of an ARN of KMS.
fn arn_fields(text: &str) -> Option<[&str; 6]> {
    let fields: Vec<&str> = text.splitn(6, ':').collect();
    let fields: [&str; 6] = fields.try_into().ok()?;
    (fields[0] == "arn" && fields[2] == "kms" && !fields[3].is_empty()).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_knows_which_ids_may_be_its_own() {
        let arn = |region: &str, id: &str| format!("arn:aws:kms:{region}:111122223333:key/{id}");
        let id = |region: &str, key: &str| format!("awskms:{}", arn(region, key));
        let key = |name: &str| AwsKms::new(name, Options::default());
        assert!(key("1234-56").owns(&id("eu-west-1", "1234-56")));
        assert!(!key("1234-56").owns(&id("eu-west-1", "9999-56")));
        assert!(key(&arn("eu-west-1", "1")).owns(&id("eu-west-1", "1")));
        assert!(!key(&arn("eu-west-1", "1")).owns(&id("eu-west-2", "1")));
        assert!(key(&arn("eu-west-1", "mrk-1")).owns(&id("us-east-1", "mrk-1")), "a multi-region key");
        assert!(!key(&arn("eu-west-1", "mrk-1")).owns(&id("us-east-1", "mrk-2")));
        assert!(key("alias/x").owns(&id("eu-west-1", "1")));
        assert!(key("arn:aws:kms:eu-west-1:111122223333:alias/x").owns(&id("eu-west-1", "1")));
        for foreign in ["local:0123456789abcdef", "vault:transit/x:v1", "awskms", ""] {
            assert!(!key("alias/x").owns(foreign), "{foreign}");
        }
        assert!(!key("1234-56").owns("awskms:garbage"));
    }
}
