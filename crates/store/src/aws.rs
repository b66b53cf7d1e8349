//! What the AWS configuration says: environment, shared files and profiles, single sign-on, web identity, containers, instances.
//! The SDK's own chain finds it, so that credentials work here as in every other AWS tool.

use std::sync::Arc;

use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};

use crate::location::S3Options;

/// Where an S3 server is, and who asks it.
pub(crate) struct Settings {
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) credentials: AwsCredentialProvider,
}

/// What is set here, over what the environment and the AWS configuration files say.
pub(crate) fn settings(options: &S3Options) -> Settings {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let chain = Arc::new(Chain::default());
    let first = |given: &Option<String>, names: &[&str], file: fn(&aws_config::SdkConfig) -> Option<String>| {
        // The files are only read where nothing else says it: most starts need not wait for them.
        given.clone().or_else(|| names.iter().find_map(|name| variable(name))).or_else(|| file(chain.config_blocking()))
    };
    Settings {
        endpoint: first(&options.endpoint, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], |config| {
            config.endpoint_url().map(str::to_owned)
        }),
        region: first(&options.region, &["AWS_REGION", "AWS_DEFAULT_REGION"], |config| {
            config.region().map(ToString::to_string)
        }),
        credentials: chain,
    }
}

/// The SDK's chain of credentials, found when first asked.
#[derive(Debug, Default)]
struct Chain {
    config: std::sync::OnceLock<aws_config::SdkConfig>,
}

impl Chain {
    /// Reads configuration files. In a thread of its own, since a caller may be within a runtime already.
    fn config_blocking(&self) -> &aws_config::SdkConfig {
        self.config.get_or_init(|| {
            let load = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
                Some(runtime.block_on(aws_config::load_defaults(aws_config::BehaviorVersion::latest())))
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
        let unauthenticated = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Unauthenticated {
            path: "the AWS configuration".into(),
            source,
        };
        let provider = self
            .config_blocking()
            .credentials_provider()
            .ok_or_else(|| unauthenticated("nothing there says how to find credentials".into()))?;
        // The provider caches what it found until that expires.
        let found = provider.provide_credentials().await.map_err(|error| unauthenticated(Box::new(error)))?;
        Ok(Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        }))
    }
}
