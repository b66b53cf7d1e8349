//! Key rotation: manifests are sealed again under the tenant's present key. No chunk is touched.

use snowmelt_chunk::KeyService;

use crate::intents::OwnIntent;
use crate::publish::commit;
use crate::readback::{Opening, open_manifest};
use crate::{Error, ImageName, RootState, Store};

/// What became of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrapped {
    /// Its manifest is sealed under the present key now.
    Done,
    /// It was already.
    AlreadyCurrent,
}

/// Seals the manifest of an image again, if its data key is not wrapped by the key that `is_current` accepts, and makes its name stand
/// for the new manifest. The old one stays where it is until its root goes, for sandboxes that use it.
///
/// # Errors
/// Those of opening the image, of the keys and of the store.
pub fn rewrap(
    store: &Store,
    tenant: &str,
    name: &ImageName,
    keys: &dyn KeyService,
    is_current: &dyn Fn(&str) -> bool,
) -> Result<Rewrapped, Error> {
    let record = store.read_name(tenant, name)?;
    let id = record.manifest_id()?;
    let manifest = store.read_manifest(&record.root, tenant, &id)?;
    if is_current(manifest.key_id()) {
        return Ok(Rewrapped::AlreadyCurrent);
    }
    if store.read_state()?.state_of(&record.root).is_some_and(|state| state != RootState::Active) {
        // It is moved first, so that it is published to an active root like everything else.
        return Err(Error::RootClosed { root: record.root });
    }
    let at_root = store.at_root(&record.root)?;
    let mut intent = OwnIntent::put(&at_root, &record.root, tenant, name)?;
    let image = open_manifest(store, name, record, &manifest, &Opening { tenant, keys, seen: None })?;
    let committed = commit(&at_root, &mut intent, tenant, name, &mut |binding| {
        if binding.generation != image.record.generation + 1 {
            // Published meanwhile, under whatever key its publisher has.
            return Err(Error::Busy { subject: format!("image {name} of tenant {tenant:?}") });
        }
        image.reseal(tenant, binding, at_root.root(), keys)
    })?;
    // What starts read is the same: advice goes along, if it can.
    if let Ok(logs) = at_root.list_start_logs(tenant, &id) {
        let path = |id| Store::starts_path(at_root.root(), tenant, id);
        let (from, to) = (path(&id), path(&committed.manifest.id()));
        let pairs: Vec<_> = logs.iter().map(|log| (format!("{from}/{log}"), format!("{to}/{log}"))).collect();
        let _ = at_root.objects().copy_all(&pairs, &|_| {});
    }
    Ok(Rewrapped::Done)
}
