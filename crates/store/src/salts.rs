//! Which salt new chunks get: with whom they are shared, and for how long.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use snowmelt_chunk::{KeyService, KeyUse, Salt, SaltDomain, Scope, WrappedKey};
use zeroize::Zeroizing;

use crate::roots::{SaltEpoch, seconds};
use crate::{Change, Error, Store};

const SECRET_PATH: &str = "salt/secret";
const SECRET_SUBJECT: &str = "the salt secret (salt/secret)";
const MOST_BYTES: u64 = 256 << 10;
/// What the salt secret is wrapped for: no tenant may have a name like this.
const SECRET_USE: KeyUse<'static> = KeyUse { tenant: "-", image: "salt secret" };

/// What a publisher says about sharing; root and epoch come from the store.
#[derive(Clone)]
pub struct Sharing<'a> {
    /// The deployment's salt secret.
    pub secret: &'a [u8; 32],
    /// Who may share chunks.
    pub scope: Scope,
    /// The zone that the image is for; empty where chunks of all zones are shared.
    pub zone: String,
    /// Images of one popularity class share chunks with each other alone; empty where there are no classes.
    pub class: String,
}

impl Sharing<'_> {
    /// The domain whose salt chunks get in a root at an epoch.
    pub fn domain(&self, root: &str, epoch: u32) -> SaltDomain {
        let class = match (self.zone.as_str(), self.class.as_str()) {
            ("", class) => class.to_owned(),
            (zone, class) => format!("{zone}/{class}"),
        };
        SaltDomain { root: root.into(), epoch, class, scope: self.scope.clone() }
    }

    pub(crate) fn salt(&self, root: &str, epoch: u32) -> Salt {
        Salt::derive(self.secret, &self.domain(root, epoch))
    }
}

impl std::fmt::Debug for Sharing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sharing").field("scope", &self.scope).field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// The salt secret as a store keeps it.
#[derive(Serialize, Deserialize)]
struct WrappedSecret {
    version: u32,
    key_id: String,
    wrapped: String,
}

/// Reads the salt secret's object, which may hold anything.
pub(crate) fn decode(bytes: &[u8]) -> Result<WrappedKey, Error> {
    let corrupt = |reason: &str| Error::corrupt(SECRET_SUBJECT, reason);
    let secret: WrappedSecret = serde_json::from_slice(bytes).map_err(|error| corrupt(&error.to_string()))?;
    if secret.version != 1 {
        return Err(corrupt("its version is not known: upgrade snowmelt"));
    }
    let bytes = BASE64.decode(&secret.wrapped).map_err(|error| corrupt(&error.to_string()))?;
    Ok(WrappedKey { key_id: secret.key_id, bytes })
}

impl Store {
    /// The deployment's salt secret as it lies in the store, wrapped by a key service; made on first use. For publishers on several
    /// machines that share no files.
    ///
    /// # Errors
    /// Those of the key service and of the store; [`Error::Corrupt`].
    pub fn salt_secret(&self, keys: &dyn KeyService) -> Result<Zeroizing<[u8; 32]>, Error> {
        let (bytes, _) = self.objects().get_version(SECRET_PATH, SECRET_SUBJECT, MOST_BYTES)?;
        let bytes = if let Some(bytes) = bytes {
            bytes
        } else {
            let (_, wrapped) = keys.generate_data_key(&SECRET_USE)?;
            let wrapped = WrappedSecret { version: 1, key_id: wrapped.key_id, wrapped: BASE64.encode(wrapped.bytes) };
            let bytes = Bytes::from(serde_json::to_vec(&wrapped).expect("plain fields are JSON"));
            if self.objects().put_if_absent(SECRET_PATH, SECRET_SUBJECT, &bytes)? {
                bytes
            } else {
                // Somebody else's was first.
                self.objects().get(SECRET_PATH, SECRET_SUBJECT, MOST_BYTES)?
            }
        };
        let wrapped = decode(&bytes)?;
        Ok(Zeroizing::new(*keys.unwrap_data_key(&SECRET_USE, &wrapped)?.expose()))
    }

    /// Begins a new epoch of salts: chunks that are published from now on are shared with none that were before. Images stay
    /// readable, since manifests carry keys.
    ///
    /// # Errors
    /// Those of changing the state.
    pub fn rotate_salt(&self) -> Result<SaltEpoch, Error> {
        let now = seconds(self.now()?);
        self.change_state(|state| {
            state.salt = SaltEpoch { epoch: state.salt.epoch + 1, since: now };
            Ok(Change::Put(state.salt))
        })
    }
}
