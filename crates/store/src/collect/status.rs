//! What is in each root, and what keeps it there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use snowmelt_chunk::{ChunkId, Manifest};

use crate::names::Entry;
use crate::{Error, Root, State, Store, each_image};

/// What is known of one root.
#[derive(Clone, Debug)]
pub struct RootStatus {
    /// Its name.
    pub name: String,
    /// Its state, since when, alarms.
    pub root: Root,
    /// Whether it is the one that is published to by default.
    pub is_default: bool,
    /// Names that stand for something in it.
    pub images: u64,
    /// Bytes of those images, shared chunks counted for each.
    pub image_bytes: u64,
    /// Live leases of sandboxes.
    pub leases: u64,
    /// Publishers that may be at it.
    pub intents: u64,
    /// Chunks in it and their bytes, if they were counted.
    pub chunks: Option<(u64, u64)>,
    /// Bytes of those that an image or a sandbox needs, if they were counted.
    pub live_bytes: Option<u64>,
}

/// What is known of all roots of a store.
#[derive(Clone, Debug)]
pub struct Status {
    /// By name; deleted ones too.
    pub roots: Vec<RootStatus>,
    /// As it was read.
    pub state: State,
    /// What time it is by the store's clock.
    pub now: SystemTime,
    /// Names whose records are damaged, as `tenant/name:tag`. Nothing expires while there are any.
    pub damaged: Vec<String>,
}

impl Status {
    /// Alarms of all roots that nobody has cleared.
    pub fn alarms(&self) -> u64 {
        self.roots.iter().map(|root| root.root.alarm_count).sum()
    }
}

/// Finds out what is in each root; with `count` also how many chunks, which takes a request for every thousand, and how many of
/// them are live, which takes one for every image.
///
/// # Errors
/// Those of the store.
pub fn status(store: &Store, count: bool) -> Result<Status, Error> {
    let now = store.now()?;
    let state = store.read_state()?;
    let mut images: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut damaged = Vec::new();
    for tenant in store.list_tenants()? {
        for (name, entry) in store.list_entries(&tenant)? {
            match entry {
                Entry::Image(record) => {
                    let sum = images.entry(record.root).or_default();
                    *sum = (sum.0 + 1, sum.1 + record.stored_bytes);
                }
                Entry::Damaged(_) => damaged.push(format!("{tenant}/{name}")),
                Entry::Absent | Entry::Removed(_) => {}
            }
        }
    }
    let mut live = BTreeMap::new();
    if count {
        each_image(store, &store.list_tenants()?, &mut |listed| {
            if let Ok((record, manifest)) = listed.image {
                add_live(&mut live, &record.root, &manifest);
            }
            Ok(())
        })?;
    }
    let mut roots = Vec::new();
    for (name, root) in &state.roots {
        let (image_count, image_bytes) = images.get(name).copied().unwrap_or_default();
        let leases: Vec<_> = store.list_leases(name)?.into_iter().filter(|lease| lease.is_live(now)).collect();
        let intents = store.list_intents(name)?.len() as u64;
        let chunks = if count {
            let used = leases.iter().map(|lease| (lease.tenant.as_str(), lease.manifest)).collect::<BTreeSet<_>>();
            for (tenant, manifest) in used {
                match store.read_manifest(name, tenant, &manifest) {
                    Ok(manifest) => add_live(&mut live, name, &manifest),
                    Err(error) if error.is_unavailable() => return Err(error),
                    // A lease may name what is not there.
                    Err(_) => {}
                }
            }
            let (mut chunks, mut bytes) = (0, 0);
            store.at_root(name)?.each_chunk(&mut |_, length| {
                chunks += 1;
                bytes += length;
            })?;
            Some((chunks, bytes))
        } else {
            None
        };
        roots.push(RootStatus {
            name: name.clone(),
            root: root.clone(),
            is_default: *name == state.active,
            images: image_count,
            image_bytes,
            leases: leases.len() as u64,
            intents,
            chunks,
            live_bytes: chunks.map(|_| live.remove(name).unwrap_or_default().values().sum()),
        });
    }
    Ok(Status { roots, state, now, damaged })
}

/// By root: the chunks that are needed, and their bytes.
type Live = BTreeMap<String, HashMap<ChunkId, u64>>;

fn add_live(live: &mut Live, root: &str, manifest: &Manifest) {
    let chunks = live.entry(root.to_owned()).or_default();
    chunks.extend(manifest.records().map(|record| (record.id, u64::from(record.stored_length))));
}
