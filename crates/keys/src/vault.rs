//! The transit engine of HashiCorp Vault, or of OpenBao.
//!
//! The data key is made here and encrypted there, with tenant and image as associated data, since that is the one way of
//! binding that servers of both kinds have had for long: `datakey` takes associated data only in some of them, and one that
//! passes over it gives a wrapped key that is bound to nothing. A key that was made with `derived` needs a context as well; it
//! gets the same bytes.

mod access;
mod server;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use snowmelt_chunk::{DataKey, Error, KeyService, KeyUse, WrappedKey};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

pub use self::access::{Login, VaultAccess};
use self::server::{Refusal, Server};
use crate::blocking::Requests;
use crate::{Options, binding};

/// A key of a transit engine.
#[derive(Debug)]
pub struct Vault {
    mount: String,
    key: String,
    options: Options,
    requests: Requests,
    server: Server,
    /// Set once it is known that the key is there: encrypting would otherwise make one, for a token that may.
    checked: OnceCell<()>,
}

impl Vault {
    /// Uses the key `key` of the engine at `mount`. Nobody is asked yet.
    ///
    /// # Errors
    /// [`Error::KeyService`] for an address that cannot be used.
    pub fn new(access: VaultAccess, mount: &str, key: &str, options: Options) -> Result<Self, Error> {
        let server = Server::new(access, format!("vault:{mount}/{key}"), &options)?;
        let (mount, key) = (mount.to_owned(), key.to_owned());
        Ok(Self { mount, key, options, requests: Requests::default(), server, checked: OnceCell::new() })
    }

    /// Whether the key is there and can bind. A token that may not look is not held up.
    async fn check(&self, use_: &KeyUse<'_>) -> Result<(), Error> {
        let name = self.describe();
        let no_key = |reason: String| Err(Error::NoKey { tenant: use_.tenant.into(), reason });
        match self.server.get(&format!("{}/keys/{}", self.mount, self.key)).await {
            Ok(answer) => {
                let kind = answer["data"]["type"].as_str().unwrap_or_default();
                if !["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"].contains(&kind) {
                    return Err(self.unusable(format!(
                        "the key is of type {kind}, which cannot bind a data key to its image: use one of type aes256-gcm96"
                    )));
                }
                Ok(())
            }
            Err(Refusal::NotThere { no_engine: false, .. }) => {
                no_key(format!("{name} is not there: make it with `vault write -f {}/keys/{}`", self.mount, self.key))
            }
            Err(refusal @ Refusal::NotThere { .. }) => Err(self.error(use_, None, refusal).await),
            Err(Refusal::Failed(error)) => Err(error),
            Err(Refusal::Denied(_) | Refusal::Said(_)) => Ok(()),
        }
    }

    async fn generate(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
        self.checked.get_or_try_init(|| self.check(use_)).await?;
        let key = DataKey::random()?;
        let plaintext = Zeroizing::new(BASE64_STANDARD.encode(key.expose()));
        let answer = self.ask("encrypt", use_, None, ("plaintext", &plaintext)).await?;
        let ciphertext = answer["data"]["ciphertext"].as_str().unwrap_or_default();
        let version = version(ciphertext.as_bytes());
        let version = version.ok_or_else(|| self.unusable("its answer holds no ciphertext".into()))?;
        let key_id = format!("{}:v{version}", self.describe());
        Ok((key, WrappedKey { key_id, bytes: ciphertext.as_bytes().to_vec() }))
    }

    async fn unwrap(&self, use_: &KeyUse<'_>, ciphertext: &str, key_id: &str) -> Result<DataKey, Error> {
        let mut answer = self.ask("decrypt", use_, Some(key_id), ("ciphertext", ciphertext)).await?;
        let plaintext = match answer["data"]["plaintext"].take() {
            serde_json::Value::String(text) => Zeroizing::new(text),
            _ => return Err(self.unusable("its answer holds no plaintext".into())),
        };
        let mut key = Zeroizing::new([0; 32]);
        match BASE64_STANDARD.decode_slice(plaintext.as_bytes(), key.as_mut_slice()) {
            Ok(32) => Ok(DataKey::from_bytes(&key)),
            _ => Err(self.unusable("its data key does not have 32 bytes".into())),
        }
    }

    /// Asks for an operation on the key with one value, bound to the use.
    async fn ask(
        &self,
        operation: &str,
        use_: &KeyUse<'_>,
        sealed_under: Option<&str>,
        (name, value): (&str, &str),
    ) -> Result<serde_json::Value, Error> {
        let bound = BASE64_STANDARD.encode(associated_text(use_));
        // Made by hand, so that the one copy of the value is wiped. None of the three needs escaping: see `version`.
        let body = Zeroizing::new(format!(r#"{{"{name}":"{value}","associated_data":"{bound}","context":"{bound}"}}"#));
        let path = format!("{}/{operation}/{}", self.mount, self.key);
        match self.server.post(&path, &body).await {
            Ok(answer) => Ok(answer),
            Err(refusal) => Err(self.error(use_, sealed_under, refusal).await),
        }
    }

    fn unusable(&self, reason: String) -> Error {
        Error::KeyService { service: self.describe(), reason }
    }

    /// What a refusal means. `sealed_under` is the id of the key that a manifest names, where one was to be opened.
    async fn error(&self, use_: &KeyUse<'_>, sealed_under: Option<&str>, refusal: Refusal) -> Error {
        let name = self.describe();
        let no_key = |reason: String| Error::NoKey { tenant: use_.tenant.into(), reason };
        match refusal {
            Refusal::Failed(error) => error,
            Refusal::NotThere { reason, .. } => self.unusable(format!(
                "there is no transit engine at {} on {}: {reason}",
                self.mount,
                self.server.address()
            )),
            // The same answer is given to a token that is not known and to one whose policy does not allow it.
            Refusal::Denied(reason) => match self.server.knows_token().await {
                Ok(false) => self.unusable(format!("its token is not valid, or has expired: {reason}")),
                _ => no_key(format!(
                    "{name} may not be used: the token's policy needs update on {}/{}/{} ({reason})",
                    self.mount,
                    if sealed_under.is_some() { "decrypt" } else { "encrypt" },
                    self.key
                )),
            },
            // Texts of Vault's and OpenBao's sdk/helper/keysutil/policy.go and builtin/logical/transit.
            Refusal::Said(reason) => {
                let says = |text: &str| reason.contains(text);
                if says("key not found") {
                    no_key(format!("{name} is not there: {reason}"))
                } else if says("soft-deleted") || says("disallowed by policy") {
                    no_key(format!("{} is out of use: {reason}", sealed_under.unwrap_or(&name)))
                } else if sealed_under.is_some()
                    && (says("authentication failed") || says("invalid ciphertext") || says("unable to decrypt"))
                {
                    Error::Unauthentic { tenant: use_.tenant.into() }
                } else {
                    self.unusable(reason)
                }
            }
        }
    }
}

impl KeyService for Vault {
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
        self.requests.wait(&self.describe(), self.options.patience, self.generate(use_))
    }

    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        // Nothing but what encrypting can have given is sent: it comes from a manifest.
        let ciphertext = std::str::from_utf8(&wrapped.bytes).ok().filter(|text| version(text.as_bytes()).is_some());
        let ciphertext = ciphertext.ok_or_else(|| Error::Unauthentic { tenant: use_.tenant.into() })?;
        if !self.owns(&wrapped.key_id) {
            let reason = format!("{} is not {}", wrapped.key_id.escape_debug(), self.describe());
            return Err(Error::NoKey { tenant: use_.tenant.into(), reason });
        }
        self.requests.wait(&self.describe(), self.options.patience, self.unwrap(use_, ciphertext, &wrapped.key_id))
    }

    fn owns(&self, key_id: &str) -> bool {
        let version = key_id.strip_prefix(&self.describe()).and_then(|rest| rest.strip_prefix(":v"));
        version.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    }

    fn describe(&self) -> String {
        format!("vault:{}/{}", self.mount, self.key)
    }
}

/// What a wrapped key is bound to, as docs/format.md has it: JSON without spaces.
fn associated_text(use_: &KeyUse<'_>) -> String {
    let values = binding(use_).into_iter().map(|(name, value)| (name.to_owned(), value.into()));
    serde_json::Value::Object(values.collect()).to_string()
}

/// A wrapped key from anywhere: what is sent on needs no escaping in JSON.
pub(crate) fn fuzz_ciphertext(bytes: &[u8]) {
    if version(bytes).is_some() {
        let text = std::str::from_utf8(bytes).expect("it was read as text");
        assert_eq!(serde_json::Value::from(text).to_string(), format!("\"{text}\""));
    }
}

/// The key's version in a ciphertext, `vault:v<version>:<base64>`; `None` for anything else.
fn version(ciphertext: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(ciphertext).ok()?;
    let (version, sealed) = text.strip_prefix("vault:v")?.split_once(':')?;
    let digits = (1..=9).contains(&version.len()) && version.bytes().all(|byte| byte.is_ascii_digit());
    let base64 = sealed.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    (digits && base64 && !sealed.is_empty()).then(|| version.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
