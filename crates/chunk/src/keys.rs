//! Tenant keys: who can open a manifest.
//!
//! A *data key* seals one manifest; a key service wraps it under the tenant's own key and unwraps it again. [`KeyService`]
//! is the seam: [`LocalKeys`] keeps keys in files on this machine, the crate `snowmelt-keys` asks services over the network,
//! and a [`KeyRing`] puts a new service in front of the ones that older manifests still need.

mod local;
mod ring;

use std::fmt;

pub use local::{LocalKeys, Rotated};
pub use ring::KeyRing;
use zeroize::Zeroizing;

use crate::Error;
use crate::secret_bytes::SecretBytes;

/// The key that seals one manifest: 32 bytes, in memory that is not swapped or dumped, zeroised when dropped, never shown.
pub struct DataKey(SecretBytes);

impl DataKey {
    /// A fresh key from the system's random generator, for services that have none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the system gives no random bytes.
    pub fn random() -> Result<Self, Error> {
        let mut key = SecretBytes::zeroed(32);
        fill_random(&mut key)?;
        Ok(Self(key))
    }

    /// The key that a service gave.
    pub fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(SecretBytes::copy_of(bytes.as_slice()))
    }

    /// The key's bytes, for a service to wrap. They are secret.
    pub fn expose(&self) -> &[u8; 32] {
        (&*self.0).try_into().expect("a data key is made of 32 bytes")
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(secret)")
    }
}

/// A data key encrypted under a tenant's key, as a manifest carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Names the tenant's key: the service's prefix, such as `awskms:`, then the service's name for it; at most 65,535 bytes.
    pub key_id: String,
    /// The service's ciphertext; at most 65,535 bytes.
    pub bytes: Vec<u8>,
}

/// What a data key is for. Services bind a wrapped key to it as far as they can, so that it is of no use for anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse<'a> {
    /// Who owns the image.
    pub tenant: &'a str,
    /// The image's full name, with its tag.
    pub image: &'a str,
}

/// Where tenants' keys are kept. Each tenant key stays with its service; only data keys come out of it.
///
/// Calls block. Wrapped keys come from manifests, so a service takes them as bytes from a stranger, and never uses another
/// tenant key for them than the ones that it was set up with.
pub trait KeyService: Send + Sync + fmt::Debug {
    /// Makes a fresh data key, and the form of it that a manifest may carry.
    ///
    /// # Errors
    /// [`Error::NoKey`], [`Error::KeyServiceUnavailable`], [`Error::KeyService`].
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error>;

    /// Gets a data key back.
    ///
    /// # Errors
    /// As [`KeyService::generate_data_key`], and [`Error::Unauthentic`] for a key that was wrapped for another use, or damaged.
    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, Error>;

    /// Whether a tenant key with this id may be one of this service's.
    fn owns(&self, key_id: &str) -> bool;

    /// The service for messages, as its setting names it: `awskms:alias/images`.
    fn describe(&self) -> String;
}

/// Fills `bytes` from the system's random generator.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(|error| Error::Invalid(format!("the system gives no random bytes: {error}")))
}

/// Names of tenants are parts of paths and of object names, so they are kept plain.
///
/// # Errors
/// [`Error::Invalid`] for anything but 1 to 64 of a-z, 0-9, '-', '_', beginning with a letter or digit.
pub fn check_tenant(tenant: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_name = (1..=64).contains(&tenant.len())
        && tenant.bytes().next().is_some_and(plain)
        && tenant.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'_');
    if is_name {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{tenant:?} is not a tenant's name: 1 to 64 of a-z, 0-9, '-', '_', beginning with a letter or digit"
    )))
}
