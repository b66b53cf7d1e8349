//! The salt secret in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use snowmelt_chunk::{DataKey, Error as ChunkError, KeyService, KeyUse, WrappedKey};

use crate::captured_log::spellings;
use crate::world::*;

/// A key service that does what those over the network do: what it wraps is bound to key, tenant and image.
#[derive(Clone, Debug)]
struct Kms {
    key_id: &'static str,
    wrapped: Arc<Mutex<Wrapped>>,
}

/// By wrapped key: under which key, for which tenant and image, and which data key it is.
type Wrapped = HashMap<Vec<u8>, (&'static str, String, String, [u8; 32])>;

impl Kms {
    fn new(key_id: &'static str) -> Self {
        Self { key_id, wrapped: Arc::default() }
    }

    /// Another key of the same service.
    fn with(&self, key_id: &'static str) -> Self {
        Self { key_id, ..self.clone() }
    }
}

impl KeyService for Kms {
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), ChunkError> {
        let (key, name) = (DataKey::random()?, DataKey::random()?);
        let entry = (self.key_id, use_.tenant.to_owned(), use_.image.to_owned(), *key.expose());
        self.wrapped.lock().unwrap().insert(name.expose().to_vec(), entry);
        Ok((key, WrappedKey { key_id: format!("kms:{}", self.key_id), bytes: name.expose().to_vec() }))
    }

    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, ChunkError> {
        let found = self.wrapped.lock().unwrap().get(&wrapped.bytes).cloned();
        match found {
            Some((key_id, tenant, image, key))
                if (key_id, tenant.as_str(), image.as_str()) == (self.key_id, use_.tenant, use_.image) =>
            {
                Ok(DataKey::from_bytes(&zeroize::Zeroizing::new(key)))
            }
            _ => Err(ChunkError::Unauthentic { tenant: use_.tenant.into() }),
        }
    }

    fn owns(&self, key_id: &str) -> bool {
        key_id.starts_with("kms:")
    }

    fn describe(&self) -> String {
        format!("kms:{}", self.key_id)
    }
}

#[test]
fn a_salt_secret_of_somebody_else_is_refused() {
    use base64::Engine as _;
    let world = World::in_memory();
    let kms = Kms::new("deployment");
    let secret = world.store.salt_secret(&kms).unwrap();
    let path = "salt/secret";
    let good = world.get(path);
    assert!(spellings(&*secret).iter().all(|secret| !contains(&good, secret)));
    let put = |wrapped: &WrappedKey| {
        let wrapped_bytes = base64::prelude::BASE64_STANDARD.encode(&wrapped.bytes);
        let record = serde_json::json!({ "version": 1, "key_id": wrapped.key_id, "wrapped": wrapped_bytes });
        world.put(path, &serde_json::to_vec(&record).unwrap());
    };
    // Wrapped under a key of the attacker, which may say that it is the deployment's; and a data key of a manifest that she may open.
    let use_ = KeyUse { tenant: "-", image: "salt secret" };
    let (_, mut wrapped) = kms.with("mallory").generate_data_key(&use_).unwrap();
    put(&wrapped);
    assert!(world.store.salt_secret(&kms).is_err());
    wrapped.key_id = "kms:deployment".into();
    put(&wrapped);
    assert!(world.store.salt_secret(&kms).is_err());
    let (_, wrapped) = kms.generate_data_key(&KeyUse { tenant: TENANTS[1], image: "salt secret" }).unwrap();
    put(&wrapped);
    assert!(world.store.salt_secret(&kms).is_err());
    for bytes in [&b""[..], b"{}", b"null", &vec![b'['; 100_000], &vec![b' '; 300 << 10]] {
        world.put(path, bytes);
        assert!(world.store.salt_secret(&kms).is_err());
    }
    world.put(path, &good);
    assert_eq!(*world.store.salt_secret(&kms).unwrap(), *secret);
    // Where it is removed another is made: less is shared from then on, and nothing is given away.
    world.delete(path);
    assert_ne!(*world.store.salt_secret(&kms).unwrap(), *secret);
    // Keys in files do not wrap it: no tenant has its name.
    world.delete(path);
    assert!(world.store.salt_secret(&world.keys[0]).is_err());
}
