//! Intents: who is about to make a name stand for something in a root.
//!
//! A publisher reads a name, checks that its root is active, and swaps the name. Between the two it may sleep for a week. Its intent,
//! put before, tells whoever retires the root which name to *fence*: to change, so that the swap fails when the sleeper wakes up.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use snowmelt_chunk::check_tenant;

use crate::objects::{Objects, Swapped};
use crate::roots::random_hex;
use crate::{Error, ImageName, Store};

const MOST_BYTES: u64 = 64 << 10;

/// An intent as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// Whose name.
    pub tenant: String,
    /// Which name; `None` where it cannot be read, which keeps its root from expiring until somebody looks.
    pub name: Option<ImageName>,
    pub(crate) path: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    name: String,
    by: String,
}

/// An intent of this process. It is removed when it is dropped: whatever was to be done is done, or will not be. It stays where that
/// is not known: then the next retirement of its root fences the name.
pub(crate) struct OwnIntent {
    objects: Objects,
    path: String,
    stays: bool,
}

impl OwnIntent {
    /// `Intend`.
    ///
    /// # Errors
    /// Those of putting an object.
    pub(crate) fn put(store: &Store, root: &str, tenant: &str, name: &ImageName) -> Result<Self, Error> {
        let path = format!("roots/{root}/intents/{tenant}/{}", random_hex()?);
        let body = Body { name: name.to_string(), by: whoami() };
        let bytes = Bytes::from(serde_json::to_vec(&body).expect("plain fields are JSON"));
        let objects = store.objects().clone();
        objects.put(&path, &format!("the intent to publish {name}"), &bytes)?;
        Ok(Self { objects, path, stays: false })
    }

    /// Takes note of what became of a swap; whether it was done. A swap without an answer may be carried out at any later time.
    pub(crate) fn watch(&mut self, swap: Result<Swapped, Error>) -> Result<bool, Error> {
        self.stays |= !matches!(swap, Ok(Swapped::Done | Swapped::Conflict));
        let done = swap?.is_done();
        // From now on the name is another, so that nothing that is on its way can be carried out.
        self.stays &= !done;
        Ok(done)
    }
}

impl Drop for OwnIntent {
    /// `RemoveIntent`. One that stays is removed when its root is retired.
    fn drop(&mut self) {
        if self.stays || std::thread::panicking() {
            return;
        }
        if let Err(error) = self.objects.delete(&self.path, "an intent") {
            tracing::info!(path = self.path, %error, "an intent stays until its root is retired");
        }
    }
}

impl Store {
    /// All intents of a root.
    ///
    /// # Errors
    /// Those of listing and reading.
    pub fn list_intents(&self, root: &str) -> Result<Vec<Intent>, Error> {
        let prefix = format!("roots/{root}/intents");
        let mut intents = Vec::new();
        for listed in self.objects().list(&prefix)? {
            let mut parts = listed.path[prefix.len()..].trim_start_matches('/').split('/');
            let (Some(tenant), Some(_), None) = (parts.next(), parts.next(), parts.next()) else { continue };
            let (Some(bytes), _) = self.objects().get_version(&listed.path, "an intent", MOST_BYTES)? else {
                // Done since it was listed.
                continue;
            };
            let name = name_of(tenant, &bytes);
            intents.push(Intent { tenant: tenant.into(), name, path: listed.path });
        }
        Ok(intents)
    }
}

/// The name that an intent of a tenant is about. What is fenced is put at a path that is made of both.
pub(crate) fn name_of(tenant: &str, body: &[u8]) -> Option<ImageName> {
    check_tenant(tenant).ok()?;
    serde_json::from_slice::<Body>(body).ok()?.name.parse().ok()
}

/// Who does something, for people.
pub(crate) fn whoami() -> String {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("process {} on {host}", std::process::id())
}
