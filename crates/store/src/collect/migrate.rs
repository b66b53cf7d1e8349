//! `Migrate`: what is live in a retired root is copied to its successor.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use snowmelt_chunk::{ChunkId, ManifestId};

use super::in_state;
use crate::intents::OwnIntent;
use crate::names::Entry;
use crate::{Error, ImageName, RootState, Store};

/// What migrating did.
#[derive(Debug, Default)]
pub struct Migrated {
    /// The root that images were copied to.
    pub successor: String,
    /// Names that stand for the copy now.
    pub names: u64,
    /// Manifests that were copied, those that only sandboxes use included.
    pub manifests: u64,
    /// Chunks that were copied, each once.
    pub chunks: u64,
    /// Chunks that the successor had already, or that an image before had brought, counted for each image.
    pub present_chunks: u64,
    /// Names that publishers were kept from swapping.
    pub fenced: u64,
    /// What could not be copied, as `tenant/name:tag` or `tenant/manifest`, and why. It keeps the root from expiring.
    pub failed: Vec<(String, Error)>,
}

/// How far migrating is.
#[derive(Clone, Copy, Debug)]
pub struct MigrateProgress {
    /// Images that are done.
    pub done: usize,
    /// Images in all.
    pub total: usize,
}

/// Copies every image that a name stands for, or that a sandbox uses, from a retired root to its successor; from an expired one too,
/// so that a sandbox that came late can leave it. What is there already is
/// not copied again, so that it may be cut off and repeated. `threads` images are worked on at once.
///
/// # Errors
/// [`Error::Invalid`] where the root is not retired, or where no root behind it is active; [`Error::Unavailable`] and
/// [`Error::Refused`]. What is wrong with one image is in [`Migrated::failed`].
pub fn migrate(
    store: &Store,
    root: &str,
    threads: usize,
    progress: &(dyn Fn(MigrateProgress) + Sync),
) -> Result<Migrated, Error> {
    let state = store.read_state()?;
    let was = state.state_of(root);
    if was != Some(RootState::Expired) {
        in_state(&state, root, RootState::Retired)?;
    }
    let heir = state
        .heir_of(root)
        .ok_or_else(|| Error::Invalid(format!("no active root follows root {root}: `snowmelt gc rotate` makes one")))?;
    // Intents before names: a publisher that is done removes its intent after its name was swapped.
    let intents = store.list_intents(root)?;
    let mut work: BTreeMap<(String, ManifestId), Vec<ImageName>> = BTreeMap::new();
    let mut failed = Vec::new();
    for tenant in store.list_tenants()? {
        for (name, entry) in store.list_entries(&tenant)? {
            match entry {
                Entry::Image(record) if record.root == root => {
                    work.entry((tenant.clone(), record.manifest_id()?)).or_default().push(name);
                }
                Entry::Damaged(reason) => {
                    let error = Error::corrupt("its record", reason);
                    failed.push((format!("{tenant}/{name}"), error));
                }
                _ => {}
            }
        }
    }
    let now = store.now()?;
    for lease in store.list_leases(root)? {
        if lease.is_live(now) {
            work.entry((lease.tenant, lease.manifest)).or_default();
        }
    }
    let work: Vec<_> = work.into_iter().collect();
    let to = store.at_root(&heir)?;
    let mut known = HashSet::new();
    if !work.is_empty() && !store.is_local() {
        to.each_chunk(&mut |id, _| {
            known.insert(id);
        })?;
    }
    let job = Migration {
        from: store.at_root(root)?,
        to,
        chunks_there: ChunksThere {
            state: Mutex::new(Known { there: known, claimed: HashSet::new() }),
            changed: Condvar::new(),
        },
        done: Mutex::new(Migrated { successor: heir, failed, ..Migrated::default() }),
        chunks: AtomicU64::new(0),
        present: AtomicU64::new(0),
    };
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stopped = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(((tenant, manifest), names)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = job.image(tenant, manifest, names) {
                        next.store(work.len(), Ordering::Relaxed);
                        lock(&stopped).get_or_insert(error);
                    }
                    let done = finished.fetch_add(1, Ordering::Relaxed) + 1;
                    progress(MigrateProgress { done, total: work.len() });
                }
            });
        }
    });
    if let Some(error) = stopped.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    // What another collector took on, and perhaps removed, while this one slept is not missing.
    in_state(&store.read_state()?, root, was.unwrap_or(RootState::Retired))?;
    let mut migrated = job.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    migrated.chunks = job.chunks.into_inner();
    migrated.present_chunks = job.present.into_inner();
    for intent in intents {
        let Some(name) = &intent.name else {
            let error = Error::corrupt(&intent.path, "it is no intent: look at it, and remove it");
            migrated.failed.push((intent.path.clone(), error));
            continue;
        };
        let (entry, _) = store.read_entry(&intent.tenant, name)?;
        if matches!(&entry, Entry::Image(record) if record.root == root) {
            // Published since the names were listed: the next time.
            continue;
        }
        match store.fence_name(&intent.tenant, name, root) {
            Ok(()) => {
                store.objects().delete_all(vec![intent.path])?;
                migrated.fenced += 1;
            }
            Err(error @ (Error::Corrupt { .. } | Error::Busy { .. })) => {
                migrated.failed.push((format!("{}/{name}", intent.tenant), error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(migrated)
}

struct Migration {
    from: Store,
    to: Store,
    chunks_there: ChunksThere,
    done: Mutex<Migrated>,
    chunks: AtomicU64,
    present: AtomicU64,
}

impl Migration {
    /// One manifest and the names that stand for it. Only what stops everything is an error.
    fn image(&self, tenant: &str, manifest: &ManifestId, names: &[ImageName]) -> Result<(), Error> {
        let label = |name: Option<&ImageName>| match name {
            Some(name) => format!("{tenant}/{name}"),
            None => format!("{tenant}/{manifest}"),
        };
        match self.copy(tenant, manifest) {
            Ok(()) => lock(&self.done).manifests += 1,
            Err(error @ (Error::Unavailable { .. } | Error::Refused { .. })) => return Err(error),
            Err(error) => {
                lock(&self.done).failed.push((label(names.first()), error));
                return Ok(());
            }
        }
        for name in names {
            match self.move_name(tenant, name, manifest) {
                Ok(moved) => lock(&self.done).names += u64::from(moved),
                Err(error @ (Error::Unavailable { .. } | Error::Refused { .. } | Error::RootClosed { .. })) => {
                    return Err(error);
                }
                Err(error) => lock(&self.done).failed.push((label(Some(name)), error)),
            }
        }
        Ok(())
    }

    /// Chunks first, then the logs of starts, the manifest last: where the manifest is, all of it is.
    fn copy(&self, tenant: &str, id: &ManifestId) -> Result<(), Error> {
        let manifest = self.from.read_manifest(self.from.root(), tenant, id)?;
        let (from, to) = (self.from.root(), self.to.root());
        let wanted: BTreeSet<ChunkId> = manifest.records().map(|record| record.id).collect();
        let mut copied = 0;
        while let Some(claim) = self.chunks_there.claim(&wanted) {
            let path = |id| (Store::chunk_path(from, id), Store::chunk_path(to, id));
            let pairs: Vec<_> = claim.chunks.iter().map(path).collect();
            self.from.objects().copy_all(&pairs, &|_| {
                self.chunks.fetch_add(1, Ordering::Relaxed);
            })?;
            copied += pairs.len();
            claim.fulfil();
        }
        self.present.fetch_add((wanted.len() - copied) as u64, Ordering::Relaxed);
        // Advice: what cannot be copied of it is left behind.
        if let Ok(logs) = self.from.list_start_logs(tenant, id) {
            let (from, to) = (Store::starts_path(from, tenant, id), Store::starts_path(to, tenant, id));
            let pairs: Vec<_> = logs.iter().map(|log| (format!("{from}/{log}"), format!("{to}/{log}"))).collect();
            let _ = self.from.objects().copy_all(&pairs, &|_| {});
        }
        self.to.sync()?;
        self.to.put_manifest(&manifest)?;
        Ok(())
    }

    /// A publish by reference: an intent at the successor, the name's version, the successor's state, the swap. Whether the name still
    /// stood for that manifest.
    fn move_name(&self, tenant: &str, name: &ImageName, manifest: &ManifestId) -> Result<bool, Error> {
        let mut intent = OwnIntent::put(&self.to, self.to.root(), tenant, name)?;
        // Somebody else changed it: whatever it stands for now is found by the next migration, or is not in this root.
        let (Entry::Image(mut record), version) = self.to.read_entry(tenant, name)? else { return Ok(false) };
        if record.root != self.from.root() || record.manifest_id()? != *manifest {
            return Ok(false);
        }
        if !self.to.check_root_is_active(self.to.root())? {
            return Err(Error::RootClosed { root: self.to.root().into() });
        }
        record.root = self.to.root().into();
        intent.watch(self.to.swap_name(tenant, name, &record, &version))
    }
}

/// Which chunks the successor has, so that images that are worked on at once copy a chunk once.
struct ChunksThere {
    state: Mutex<Known>,
    /// Told whenever a claim ends.
    changed: Condvar,
}

struct Known {
    there: HashSet<ChunkId>,
    /// Those that somebody is copying.
    claimed: HashSet<ChunkId>,
}

/// Chunks that its holder copies. Whoever needs them too waits for its end; dropped unfulfilled, others may claim them.
struct Claim<'a> {
    on: &'a ChunksThere,
    chunks: Vec<ChunkId>,
}

impl ChunksThere {
    /// Those of the wanted that nobody has copied or copies; `None` once all are there. Nobody holds a claim while waiting here, so
    /// nobody waits for who waits.
    fn claim(&self, wanted: &BTreeSet<ChunkId>) -> Option<Claim<'_>> {
        let mut state = lock(&self.state);
        loop {
            let missing = || wanted.iter().filter(|id| !state.there.contains(id));
            let chunks: Vec<ChunkId> = missing().filter(|id| !state.claimed.contains(id)).copied().collect();
            if !chunks.is_empty() {
                state.claimed.extend(&chunks);
                return Some(Claim { on: self, chunks });
            }
            missing().next()?;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Claim<'_> {
    fn fulfil(self) {
        lock(&self.on.state).there.extend(&self.chunks);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.on.state);
        for id in &self.chunks {
            state.claimed.remove(id);
        }
        self.on.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ids(numbers: std::ops::Range<u8>) -> BTreeSet<ChunkId> {
        numbers.map(|number| ChunkId([number; 32])).collect()
    }

    #[test]
    fn what_one_claims_and_does_not_bring_another_may_claim() {
        let chunks = ChunksThere {
            state: Mutex::new(Known { there: ids(0..2).into_iter().collect(), claimed: HashSet::new() }),
            changed: Condvar::new(),
        };
        let first = chunks.claim(&ids(1..4)).unwrap();
        assert_eq!(first.chunks.iter().copied().collect::<BTreeSet<_>>(), ids(2..4));
        let second = chunks.claim(&ids(0..5)).unwrap();
        assert_eq!(second.chunks, [ChunkId([4; 32])]);
        second.fulfil();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let claim = chunks.claim(&ids(0..5)).unwrap();
                assert_eq!(claim.chunks.iter().copied().collect::<BTreeSet<_>>(), ids(2..4));
                claim.fulfil();
            });
            drop(first);
            waiting.join().unwrap();
        });
        assert!(chunks.claim(&ids(0..5)).is_none());
    }
}
