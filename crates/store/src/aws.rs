//! What the AWS configuration says: environment, shared files and profiles, single sign-on, web identity, containers, instances.
//! The SDK's own chain finds it, so that credentials work here as in every other AWS tool.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};
use tokio::sync::Mutex;

use crate::location::S3Options;

/// Where an S3 server is, and who asks it.
pub(crate) struct Settings {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) credentials: AwsCredentialProvider,
}

/// What is set here, over what the environment and the AWS configuration files say.
pub(crate) fn settings(options: &S3Options) -> Settings {
    let variable =
        |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let endpoint = options.endpoint.clone().or_else(|| variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let region = options.region.clone().or_else(|| variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    // The metadata of an instance is asked for a region only where AWS is what is wanted: elsewhere that waits for nobody.
    let chain = Arc::new(Chain {
        region: region.clone(),
        asks_instance: endpoint.is_none(),
        config: OnceLock::new(),
        found: Mutex::default(),
    });
    Settings {
        // The files are only read where nothing else says it: most starts need not wait for them.
        region: region.or_else(|| chain.config_blocking().region().map(ToString::to_string)),
        endpoint: endpoint.or_else(|| chain.config_blocking().endpoint_url().map(str::to_owned)),
        credentials: chain,
    }
}

/// The SDK's chain of credentials, found when first asked.
#[derive(Debug)]
struct Chain {
    region: Option<String>,
    asks_instance: bool,
    config: OnceLock<aws_config::SdkConfig>,
    /// What was found last. Held while it is looked for, so that of many requests one does so.
    found: Mutex<Option<Found>>,
}

/// Credentials, and when they end, if they do.
#[derive(Debug)]
struct Found {
    credential: Arc<AwsCredential>,
    expiry: Option<SystemTime>,
}

/// So long before their end credentials are looked for again.
const EARLY: Duration = Duration::from_mins(5);

impl Found {
    fn lasts(&self, longer_than: Duration) -> bool {
        self.expiry.is_none_or(|expiry| SystemTime::now() + longer_than < expiry)
    }
}

impl Chain {
    /// Reads configuration files. In a thread of its own, since a caller may be within a runtime already.
    fn config_blocking(&self) -> &aws_config::SdkConfig {
        self.config.get_or_init(|| {
            let load = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
                Some(runtime.block_on(async {
                    let defaults = aws_config::defaults(aws_config::BehaviorVersion::latest());
                    let files = aws_config::profile::ProfileFileRegionProvider::new();
                    let defaults = match &self.region {
                        Some(region) => defaults.region(aws_config::Region::new(region.clone())),
                        None if self.asks_instance => defaults,
                        None => defaults.region(files),
                    };
                    defaults.load().await
                }))
            };
            std::thread::scope(|scope| scope.spawn(load).join().ok().flatten())
                .unwrap_or_else(|| aws_config::SdkConfig::builder().build())
        })
    }
}

#[async_trait::async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        use aws_credential_types::provider::ProvideCredentials as _;
        use aws_credential_types::provider::error::CredentialsError;
        let unauthenticated = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Unauthenticated {
            path: "the AWS configuration".into(),
            source,
        };
        // The chain itself keeps nothing: each time it would ask a token service or the instance, or start a program.
        let mut found = self.found.lock().await;
        if let Some(found) = found.as_ref().filter(|found| found.lasts(EARLY)) {
            return Ok(Arc::clone(&found.credential));
        }
        let provider = self
            .config_blocking()
            .credentials_provider()
            .ok_or_else(|| unauthenticated("nothing there says how to find credentials".into()))?;
        match provider.provide_credentials().await {
            Ok(new) => {
                let credential = Arc::new(AwsCredential {
                    key_id: new.access_key_id().to_owned(),
                    secret_key: new.secret_access_key().to_owned(),
                    token: new.session_token().map(str::to_owned),
                });
                *found = Some(Found { credential: Arc::clone(&credential), expiry: new.expiry() });
                Ok(credential)
            }
            Err(error) => match found.as_ref() {
                // Whoever gives them has a bad moment: they are asked again for the next request.
                Some(before) if before.lasts(Duration::ZERO) => Ok(Arc::clone(&before.credential)),
                Some(_) => Err(object_store::Error::Generic { store: "S3", source: Box::new(error) }),
                // It never worked, so something is not set up.
                None if matches!(error, CredentialsError::ProviderTimedOut(_)) => {
                    Err(object_store::Error::Generic { store: "S3", source: Box::new(error) })
                }
                None => Err(unauthenticated(Box::new(error))),
            },
        }
    }
}
