//! Leases: which manifests sandboxes use, out of which root.
//!
//! A lease is an object that is put again and again; it is live for its time from when the store last took it, so that no clock but
//! the store's matters. What is leased is live, whether a name stands for it or not.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use snowmelt_chunk::{ManifestId, check_tenant};

use crate::intents::whoami;
use crate::objects::Listed;
use crate::roots::{random_hex, seconds};
use crate::{Alarm, Error, RootState, Store};

/// Added to a lease's time: putting it again may take that long.
const MARGIN: Duration = Duration::from_secs(30);

/// The longest that a lease lives without being put again. What is listed may say anything: one lease must not keep a root for ever.
pub const MOST_LIFETIME: Duration = Duration::from_hours(7 * 24);
/// The shortest: it is renewed three times as often, by every sandbox.
pub const LEAST_LIFETIME: Duration = Duration::from_secs(3);

/// A lease as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose image.
    pub tenant: String,
    /// The image's manifest.
    pub manifest: ManifestId,
    /// How long it is live from when it was last put.
    pub lifetime: Duration,
    /// When it was last put, by the store's clock.
    pub renewed: SystemTime,
}

impl Lease {
    /// Whether it counts at that time, by the store's clock.
    pub fn is_live(&self, now: SystemTime) -> bool {
        now.duration_since(self.renewed).map_or(true, |age| age < self.lifetime + MARGIN)
    }
}

/// A lease of this process: on one manifest in one root.
#[derive(Debug)]
pub struct OwnLease {
    path: String,
}

impl Store {
    /// `PutLease`: says that a manifest in a root is in use, for `lifetime` from now, a week at most.
    ///
    /// # Errors
    /// Those of putting an object.
    pub fn put_lease(
        &self,
        root: &str,
        tenant: &str,
        manifest: &ManifestId,
        lifetime: Duration,
    ) -> Result<OwnLease, Error> {
        let id = random_hex()?;
        let lifetime = lifetime.min(MOST_LIFETIME);
        let path = format!("roots/{root}/leases/{tenant}/{manifest}/{id}-{}", lifetime.as_secs());
        let lease = OwnLease { path };
        self.renew_lease(&lease)?;
        Ok(lease)
    }

    /// Puts a lease again.
    ///
    /// # Errors
    /// Those of putting an object.
    pub fn renew_lease(&self, lease: &OwnLease) -> Result<(), Error> {
        self.objects().put(&lease.path, "a lease", &Bytes::from(whoami()))
    }

    /// Removes a lease; one that stays ends by itself.
    pub fn remove_lease(&self, lease: &OwnLease) {
        if let Err(error) = self.objects().delete(&lease.path, "a lease") {
            tracing::info!(path = lease.path, %error, "a lease stays until its time is over");
        }
    }

    /// All leases of a root, live or not.
    ///
    /// # Errors
    /// Those of listing.
    pub fn list_leases(&self, root: &str) -> Result<Vec<Lease>, Error> {
        let prefix = format!("roots/{root}/leases");
        let parse = |listed: &Listed| parse(listed.path.strip_prefix(&prefix)?, listed.modified);
        Ok(self.objects().list(&prefix)?.iter().filter_map(parse).collect())
    }
}

/// The lease at a path below the folder of leases, which may be any: `/<tenant>/<manifest>/<chance>-<seconds>`.
pub(crate) fn parse(path: &str, renewed: SystemTime) -> Option<Lease> {
    let mut parts = path.trim_start_matches('/').split('/');
    let (tenant, manifest, id) = (parts.next()?, parts.next()?, parts.next()?);
    check_tenant(tenant).ok()?;
    let (_, lifetime) = id.split_once('-')?;
    Some(Lease {
        tenant: tenant.into(),
        manifest: manifest.parse().ok()?,
        lifetime: Duration::from_secs(lifetime.parse().ok()?).min(MOST_LIFETIME),
        renewed,
    })
}

/// Keeps an image that is in use from being collected, and says where to read it from.
#[derive(Debug)]
pub struct ImageLease {
    store: Store,
    root: String,
    tenant: String,
    manifest: ManifestId,
    lifetime: Duration,
    /// Who uses it, for alarms.
    by: String,
    own: Option<OwnLease>,
}

impl ImageLease {
    /// A lease on a manifest in the store's root. Nothing is put yet: most sandboxes end before anything could be collected, see
    /// [`ImageLease::AFTER`].
    pub fn new(store: &Store, tenant: &str, manifest: ManifestId, lifetime: Duration, by: &str) -> Self {
        Self {
            root: store.root().into(),
            store: store.clone(),
            tenant: tenant.into(),
            manifest,
            lifetime: lifetime.clamp(LEAST_LIFETIME, MOST_LIFETIME),
            by: format!("{by}, {}", whoami()),
            own: None,
        }
    }

    /// How long after it has read a name a sandbox needs its lease. Expired roots are kept for much longer.
    pub const AFTER: Duration = Duration::from_secs(30);

    /// Puts the lease (`PutLease`), then looks at the root (`CheckRoot`). A root that is not active is left for its successor if the
    /// image was copied there: the store to read from is then given. To be called again within a third of the lease's lifetime.
    ///
    /// Reading from an expired root is an alarm.
    ///
    /// # Errors
    /// Those of the store. The lease is as it was, and may be tried again.
    pub fn keep(&mut self) -> Result<Option<Store>, Error> {
        match &self.own {
            Some(own) => self.store.renew_lease(own)?,
            None => self.own = Some(self.store.put_lease(&self.root, &self.tenant, &self.manifest, self.lifetime)?),
        }
        let state = self.store.read_state()?;
        match state.state_of(&self.root) {
            None | Some(RootState::Active) => return Ok(None),
            Some(RootState::Retired) => {}
            Some(RootState::Expired) => {
                let alarm = Alarm {
                    at: seconds(SystemTime::now()),
                    tenant: self.tenant.clone(),
                    manifest: self.manifest.to_string(),
                    by: self.by.clone(),
                };
                // Where it may not be raised it is in the log; leaving the root matters more.
                if let Err(error) = self.store.raise_alarm(&self.root, &alarm) {
                    tracing::error!(%error, "the alarm was not recorded");
                }
            }
            Some(RootState::Deleted) => {
                tracing::error!(root = self.root, manifest = %self.manifest, "the root of an image in use is deleted");
            }
        }
        let Some(heir) = state.heir_of(&self.root) else { return Ok(None) };
        if !self.store.has_manifest(&heir, &self.tenant, &self.manifest)? {
            return Ok(None);
        }
        // `Relocate`: leased there before it is known to be active, so that whoever retires it sees the lease.
        let own = self.store.put_lease(&heir, &self.tenant, &self.manifest, self.lifetime)?;
        if !self.store.check_root_is_active(&heir)? {
            self.store.remove_lease(&own);
            return Ok(None);
        }
        tracing::info!(from = self.root, to = heir, manifest = %self.manifest, "an image in use is read from another root");
        if let Some(old) = self.own.replace(own) {
            self.store.remove_lease(&old);
        }
        self.root.clone_from(&heir);
        self.store = self.store.at_root(&heir)?;
        Ok(Some(self.store.clone()))
    }

    /// The same through another connection to the store.
    ///
    /// # Errors
    /// As [`ImageLease::keep`].
    pub fn keep_in(&mut self, store: &Store) -> Result<Option<Store>, Error> {
        self.store = store.at_root(&self.root)?;
        self.keep()
    }

    /// The root that the image is read from.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// How long until it is to be kept again.
    pub fn keep_again_after(&self) -> Duration {
        if self.own.is_none() { Self::AFTER.min(self.lifetime / 3) } else { self.lifetime / 3 }
    }

    /// The image is not in use any more.
    pub fn end(self) {
        if let Some(own) = &self.own {
            self.store.remove_lease(own);
        }
    }
}
