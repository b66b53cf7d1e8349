//! Chunks in memory, each in a sealed file of its own.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use snowmelt_chunk::ChunkId;
use snowmelt_eviction::{Eviction as _, S3Fifo};

use crate::Error;

/// The kernel gives memory in pages, and a file in memory takes an inode and a descriptor beside them.
const PAGE: u64 = 4096;
const OVERHEAD_BYTES: u64 = 2048;

#[derive(Debug)]
pub(super) struct Memory(Mutex<State>);

#[derive(Debug)]
struct State {
    files: HashMap<ChunkId, Arc<OwnedFd>>,
    policy: S3Fifo<ChunkId>,
}

impl Memory {
    pub(super) fn new(budget_bytes: u64) -> Self {
        Self(Mutex::new(State { files: HashMap::new(), policy: S3Fifo::new(budget_bytes) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id: &ChunkId) -> Option<Arc<OwnedFd>> {
        let mut state = self.lock();
        if state.policy.touch(*id) { state.files.get(id).cloned() } else { None }
    }

    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.lock().files.contains_key(id)
    }

    /// The file lives on with whoever has a descriptor of it, also where it is not kept here.
    pub(super) fn put(&self, id: &ChunkId, bytes: &[u8]) -> Result<Arc<OwnedFd>, Error> {
        let file = Arc::new(sealed_file(bytes).map_err(Error::io("keep in memory", id.to_string()))?);
        let mut evicted = Vec::new();
        let mut state = self.lock();
        let State { files, policy } = &mut *state;
        if let Some(file) = files.get(id) {
            return Ok(Arc::clone(file));
        }
        policy.offer(*id, (bytes.len() as u64).next_multiple_of(PAGE) + OVERHEAD_BYTES, &mut evicted);
        files.insert(*id, Arc::clone(&file));
        let gone: Vec<_> = evicted.iter().filter_map(|id| files.remove(id)).collect();
        // The kernel takes its time to free what they hold.
        drop(state);
        drop(gone);
        Ok(file)
    }

    /// Chunks, and their bytes.
    pub(super) fn usage(&self) -> (u64, u64) {
        let state = self.lock();
        (state.files.len() as u64, state.policy.used_bytes())
    }
}

fn sealed_file(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let file = memfd_create("snowmelt-chunk", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}
