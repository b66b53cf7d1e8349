//! What is in each root, and what keeps it there.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::names::Entry;
use crate::{Error, Root, State, Store};

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

/// Finds out what is in each root; with `count` also how many chunks, which takes a request for every thousand.
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
    let mut roots = Vec::new();
    for (name, root) in &state.roots {
        let (image_count, image_bytes) = images.get(name).copied().unwrap_or_default();
        let leases = store.list_leases(name)?.iter().filter(|lease| lease.is_live(now)).count() as u64;
        let intents = store.list_intents(name)?.len() as u64;
        let chunks = if count {
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
            leases,
            intents,
            chunks,
        });
    }
    Ok(Status { roots, state, now, damaged })
}
