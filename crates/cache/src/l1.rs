//! The chunks of a worker: memory over disk, shared by all sandboxes of the machine.
//!
//! A chunk in memory is a file in memory (memfd_create(2)) that is sealed: nobody can change it any more, so that a descriptor of
//! it can be given to any sandbox. A chunk on disk is a file named by its id, whose descriptor is given likewise; the kernel's page
//! cache may keep its bytes. Both budgets hold at every moment; what is kept is chosen by [`S3Fifo`], so that functions that
//! each run once do not push out what is used all the time.
//!
//! ```text
//! <folder>/lock                        held by the worker
//! <folder>/chunks/<2 hex>/<64 hex>     ciphertext of a chunk, named by its id
//! ```
//!
//! Files are written under a draft's name and then renamed. Nothing is synced: after a crash of the machine a file may hold anything,
//! which its readers find out, since they verify. A start finds what is there, oldest first.

mod disk;
mod memory;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use snowmelt_chunk::ChunkId;
use snowmelt_threads::{Background, Taken, Threads};

use self::disk::Disk;
use self::memory::Memory;
use crate::{ChunkName, Error, Tier};

/// Chunks that wait to be written to the disk: 32 MiB. What comes when it is full is in memory only.
const QUEUE: usize = 64;
/// How often it is said at most that the disk takes no chunk.
const BETWEEN_WARNINGS: Duration = Duration::from_mins(1);

/// What a worker may use.
#[derive(Clone, Debug)]
pub struct L1Options {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// A folder of its own, and how many bytes its chunks may take; without it, there is memory only.
    pub disk: Option<(PathBuf, u64)>,
}

/// The chunks of a worker. May be used from many threads.
#[derive(Debug)]
pub struct L1 {
    memory: Memory,
    disk: Option<Arc<Disk>>,
    writer: Option<Background<(ChunkId, Bytes)>>,
    options: L1Options,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    memory_hits: AtomicU64,
    disk_hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    unkept: Arc<AtomicU64>,
}

/// What a worker has and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Stats {
    /// Chunks in memory.
    pub memory_chunks: u64,
    /// Their bytes.
    pub memory_bytes: u64,
    /// Chunks on disk.
    pub disk_chunks: u64,
    /// Their bytes.
    pub disk_bytes: u64,
    /// Requests that memory answered.
    pub memory_hits: u64,
    /// Requests that the disk answered.
    pub disk_hits: u64,
    /// Requests that neither could.
    pub misses: u64,
    /// Copies that were damaged, and were dropped.
    pub damaged: u64,
    /// Chunks that the disk did not take, since it was too slow, full or broken.
    pub unkept: u64,
}

impl L1 {
    /// Opens what is there, within budgets.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::InUse`] where another worker has the folder.
    pub fn open(options: L1Options) -> Result<Self, Error> {
        Self::open_on(&Threads::Real, options)
    }

    pub(crate) fn open_on(threads: &Threads, options: L1Options) -> Result<Self, Error> {
        let disk = options.disk.as_ref().map(|(folder, bytes)| Disk::open(folder, *bytes)).transpose()?.map(Arc::new);
        let counters = Counters::default();
        let writer = disk.clone().map(|disk| {
            let unkept = Arc::clone(&counters.unkept);
            let mut warned: Option<Instant> = None;
            let write = move |(id, bytes): (ChunkId, Bytes)| {
                let Err(error) = disk.put(&id, &bytes) else { return };
                unkept.fetch_add(1, Ordering::Relaxed);
                // Not for each chunk: a full disk stays full for a while, and has room for a small one now and then.
                if warned.is_none_or(|at| at.elapsed() >= BETWEEN_WARNINGS) {
                    warned = Some(Instant::now());
                    tracing::warn!(%error, "chunks are not kept on disk");
                }
            };
            Background::start(threads, "l1-write", QUEUE, write)
        });
        Ok(Self { memory: Memory::new(options.memory_bytes), disk, writer, options, counters })
    }

    /// What it may use.
    pub fn options(&self) -> &L1Options {
        &self.options
    }

    /// A descriptor to read the chunk from, at offset 0. What the disk has may be damaged, which readers find out.
    pub fn get(&self, chunk: &ChunkName) -> Option<(Tier, Arc<OwnedFd>)> {
        if let Some(file) = self.memory.get(&chunk.id) {
            self.counters.memory_hits.fetch_add(1, Ordering::Relaxed);
            return Some((Tier::Memory, file));
        }
        if let Some(file) = self.disk.as_ref().and_then(|disk| disk.get(&chunk.id, chunk.stored_length)) {
            self.counters.disk_hits.fetch_add(1, Ordering::Relaxed);
            return Some((Tier::Disk, Arc::new(file)));
        }
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Whether the chunk is here. Does not count as a use.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.memory.contains(id) || self.disk.as_ref().is_some_and(|disk| disk.contains(id))
    }

    /// Keeps a chunk that was verified, and gives a descriptor of it. It goes to the disk in the background.
    ///
    /// # Errors
    /// [`Error::Io`] where the system has no memory or descriptor left for it; the chunk may then be on its way to the disk.
    pub fn put(&self, id: &ChunkId, bytes: &Bytes) -> Result<Arc<OwnedFd>, Error> {
        if let Some(writer) = &self.writer
            && writer.give((*id, bytes.clone())) == Taken::No
        {
            self.counters.unkept.fetch_add(1, Ordering::Relaxed);
        }
        self.memory.put(id, bytes)
    }

    /// A reader says that a copy is damaged. It is believed only if it is: who says so may want to harm others.
    pub fn check(&self, chunk: &ChunkName) {
        let Some(disk) = &self.disk else { return };
        if disk.drop_damaged(chunk) {
            tracing::warn!(chunk = %chunk.id, "a damaged copy on disk is dropped");
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what came so far is on disk.
    pub fn flush(&self) {
        if let Some(writer) = &self.writer {
            writer.flush();
        }
    }

    /// What there is and was.
    pub fn stats(&self) -> L1Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (memory_chunks, memory_bytes) = self.memory.usage();
        let (disk_chunks, disk_bytes) = self.disk.as_ref().map_or((0, 0), |disk| disk.usage());
        L1Stats {
            memory_chunks,
            memory_bytes,
            disk_chunks,
            disk_bytes,
            memory_hits: get(&self.counters.memory_hits),
            disk_hits: get(&self.counters.disk_hits),
            misses: get(&self.counters.misses),
            damaged: get(&self.counters.damaged),
            unkept: get(&self.counters.unkept),
        }
    }
}

#[cfg(test)]
mod tests;
