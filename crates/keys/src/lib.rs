//! Tenants' keys in key services over the network: AWS KMS and Vault's transit engine.
//!
//! A tenant's key never leaves its service. For each manifest the service wraps one data key, bound to the tenant and the
//! image, and whoever may not use the tenant's key gets no data key and so no chunk key. [`Service`] is a key service as a
//! setting names it; [`open`] makes the [`KeyRing`] of a tenant from such settings, without asking any service yet.
//!
//! Calls block, and end within [`Options::patience`]. What is needed to ask is only set up at the first question, so that
//! keys in files cost nothing more.

#[cfg(feature = "aws")]
mod aws;
mod blocking;
#[doc(hidden)]
pub mod fuzz;
mod service;
mod vault;

use std::path::Path;
use std::time::Duration;

#[cfg(feature = "aws")]
pub use aws::AwsKms;
pub use service::Service;
use snowmelt_chunk::{Error, KeyRing, KeyService, KeyUse, LocalKeys};
pub use vault::{Login, Vault, VaultAccess};

/// How services are asked.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether a service may be asked without TLS. Data keys are then readable on the way.
    pub allow_http: bool,
    /// How long one call may take, with everything that is tried again.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { allow_http: false, patience: Duration::from_secs(15) }
    }
}

/// The keys of a tenant: new manifests are sealed with `current`; `previous` are the services that older ones were sealed
/// with. `keys_dir` is where [`Service::Local`] has its files. No service is asked yet.
///
/// # Errors
/// [`Error::Invalid`] for a tenant's name, [`Error::KeyService`] for a service that cannot be used as it is set up.
pub fn open(
    current: &Service,
    previous: &[Service],
    tenant: &str,
    keys_dir: &Path,
    options: &Options,
) -> Result<KeyRing, Error> {
    let open = |service: &Service| open_one(service, tenant, keys_dir, options);
    Ok(KeyRing::new(open(current)?, previous.iter().map(open).collect::<Result<_, _>>()?))
}

fn open_one(service: &Service, tenant: &str, keys_dir: &Path, options: &Options) -> Result<Box<dyn KeyService>, Error> {
    Ok(match service.for_tenant(tenant)? {
        Service::Local => Box::new(LocalKeys::new(keys_dir)),
        #[cfg(feature = "aws")]
        Service::AwsKms { key } => Box::new(AwsKms::new(key, *options)),
        #[cfg(not(feature = "aws"))]
        Service::AwsKms { .. } => {
            let reason = "this program was built without it (the feature `aws`)".into();
            return Err(Error::KeyService { service: service.to_string(), reason });
        }
        Service::Vault { address, mount, key } => {
            let access = VaultAccess::from_environment(address.as_deref())?;
            Box::new(Vault::new(access, &mount, &key, *options)?)
        }
    })
}

/// What a wrapped key is bound to, as names and values. Services keep them in their audit logs.
fn binding<'a>(use_: &KeyUse<'a>) -> [(&'static str, &'a str); 2] {
    // In the order of names, which makes the JSON of it canonical.
    [("snowmelt:image", use_.image), ("snowmelt:tenant", use_.tenant)]
}
