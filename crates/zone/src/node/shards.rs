//! What a node has: memory over disk.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use snowmelt_threads::{Background, Taken, Threads};

use super::disk::DiskLog;
use super::memory::Memory;
use crate::Error;
use crate::shard::{Shard, ShardKey};

/// Shards that wait to be written to the disk. What comes while it is full stays in memory only.
const QUEUE: usize = 256;
/// Bytes of those: they are in no budget.
const QUEUE_BYTES: u64 = 64 << 20;
/// After a write that failed the disk is left alone for so long: what is full or broken stays so for a while.
const DISK_REST: Duration = Duration::from_secs(1);

/// The shards of a node. May be used from many threads.
#[derive(Debug)]
pub struct Shards {
    memory: Memory,
    disk: Option<Arc<DiskLog>>,
    writer: Option<Writer>,
    counters: Counters,
    is_disk_failing: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Counters {
    memory_hits: AtomicU64,
    disk_hits: AtomicU64,
    misses: AtomicU64,
    stored: AtomicU64,
    unkept: Arc<AtomicU64>,
}

/// What a node has and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardsStats {
    /// Shards in memory, and their bytes.
    pub memory_shards: u64,
    /// Bytes of memory that they take.
    pub memory_bytes: u64,
    /// Shards on disk.
    pub disk_shards: u64,
    /// Bytes of disk that its segments take.
    pub disk_bytes: u64,
    /// Bytes of memory that shards may take.
    pub memory_budget_bytes: u64,
    /// Bytes of disk that segments may take; 0 without a disk.
    pub disk_budget_bytes: u64,
    /// Whether there is a disk, and it took what it was given last.
    pub is_disk_writable: bool,
    /// Requests that memory answered.
    pub memory_hits: u64,
    /// Requests that the disk answered.
    pub disk_hits: u64,
    /// Requests that nothing answered.
    pub misses: u64,
    /// Shards that came.
    pub stored: u64,
    /// Of those, shards that the disk did not take, since it was too slow, full or broken.
    pub unkept: u64,
    /// Shards whose bytes on disk have changed. They are dropped.
    pub damaged: u64,
    /// Shards that left memory for others.
    pub memory_evicted: u64,
    /// Shards that left the disk for others.
    pub disk_evicted: u64,
}

impl Shards {
    /// So many bytes of memory, and where `disk` names a folder, so many on disk, with what is there from before.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Invalid`] where another node uses the folder.
    pub fn open(memory_bytes: u64, disk: Option<(&Path, u64)>) -> Result<Self, Error> {
        let disk = disk.map(|(folder, bytes)| DiskLog::open(folder, bytes)).transpose()?.map(Arc::new);
        let counters = Counters::default();
        let is_disk_failing = Arc::new(AtomicBool::new(false));
        let writer = disk
            .as_ref()
            .map(|disk| Writer::start(Arc::clone(disk), Arc::clone(&counters.unkept), Arc::clone(&is_disk_failing)));
        Ok(Self { memory: Memory::new(memory_bytes), disk, writer, counters, is_disk_failing })
    }

    /// The shard if it is in memory.
    pub fn in_memory(&self, key: &ShardKey) -> Option<Shard> {
        let shard = self.memory.get(key)?;
        self.counters.memory_hits.fetch_add(1, Ordering::Relaxed);
        Some(shard)
    }

    /// The shard if it is on disk, which is waited for. Memory has it then.
    pub fn on_disk(&self, key: &ShardKey) -> Option<Shard> {
        let Some(shard) = self.disk.as_ref().and_then(|disk| disk.get(key)) else {
            self.counters.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.memory.put(*key, shard.clone());
        // Counted when memory has it: who sees the count may rely on that.
        self.counters.disk_hits.fetch_add(1, Ordering::Release);
        Some(shard)
    }

    /// Whether [`Shards::on_disk`] may find it. Nothing is read.
    pub fn may_be_on_disk(&self, key: &ShardKey) -> bool {
        let is_there = self.disk.as_ref().is_some_and(|disk| disk.contains(key));
        if !is_there {
            self.counters.misses.fetch_add(1, Ordering::Relaxed);
        }
        is_there
    }

    /// Keeps a whole shard. False where it is there already.
    pub fn put(&self, key: ShardKey, shard: Shard) -> bool {
        let is_on_disk = self.disk.as_ref().is_some_and(|disk| disk.contains(&key));
        if is_on_disk || self.memory.contains(&key) {
            return false;
        }
        self.counters.stored.fetch_add(1, Ordering::Relaxed);
        self.memory.put(key, shard.clone());
        if let Some(writer) = &self.writer
            && !writer.write(key, shard)
        {
            self.counters.unkept.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// Waits until what came so far is on disk.
    pub fn flush(&self) {
        if let Some(writer) = &self.writer {
            writer.background.flush();
        }
    }

    /// What there is and was.
    pub fn stats(&self) -> ShardsStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let (memory_shards, memory_bytes) = self.memory.usage();
        let (disk_shards, disk_bytes) = self.disk.as_ref().map_or((0, 0), |disk| disk.usage());
        ShardsStats {
            memory_shards: memory_shards as u64,
            memory_bytes,
            disk_shards: disk_shards as u64,
            disk_bytes,
            memory_budget_bytes: self.memory.budget_bytes(),
            disk_budget_bytes: self.disk.as_ref().map_or(0, |disk| disk.budget_bytes()),
            is_disk_writable: self.disk.is_some() && !self.is_disk_failing.load(Ordering::Relaxed),
            memory_hits: get(&self.counters.memory_hits),
            disk_hits: get(&self.counters.disk_hits),
            misses: get(&self.counters.misses),
            stored: get(&self.counters.stored),
            unkept: get(&self.counters.unkept),
            damaged: self.disk.as_ref().map_or(0, |disk| disk.damaged()),
            memory_evicted: self.memory.evicted(),
            disk_evicted: self.disk.as_ref().map_or(0, |disk| disk.evicted()),
        }
    }
}

/// Writes to the disk behind the requests' backs.
#[derive(Debug)]
struct Writer {
    background: Background<(ShardKey, Shard)>,
    waiting_bytes: Arc<AtomicU64>,
}

impl Writer {
    fn start(disk: Arc<DiskLog>, unkept: Arc<AtomicU64>, is_failing: Arc<AtomicBool>) -> Self {
        let waiting_bytes = Arc::new(AtomicU64::new(0));
        let waiting = Arc::clone(&waiting_bytes);
        let mut failed: Option<Instant> = None;
        let write = move |(key, shard): (ShardKey, Shard)| {
            if failed.is_some_and(|failed| failed.elapsed() < DISK_REST) {
                unkept.fetch_add(1, Ordering::Relaxed);
            } else if let Err(error) = disk.put(&key, &shard) {
                unkept.fetch_add(1, Ordering::Relaxed);
                is_failing.store(true, Ordering::Relaxed);
                // Once, not for each shard.
                if failed.replace(Instant::now()).is_none() {
                    tracing::warn!(%error, "shards are kept in memory only");
                }
            } else if failed.take().is_some() {
                is_failing.store(false, Ordering::Relaxed);
                tracing::info!("shards are kept on disk again");
            }
            waiting.fetch_sub(shard.bytes.len() as u64, Ordering::Relaxed);
        };
        let background = Background::start(&Threads::Real, "write-shards", QUEUE, write);
        Self { background, waiting_bytes }
    }

    fn write(&self, key: ShardKey, shard: Shard) -> bool {
        let bytes = shard.bytes.len() as u64;
        // The first is taken however long it is.
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_taken =
            (waiting == 0 || waiting + bytes <= QUEUE_BYTES) && self.background.give((key, shard)) == Taken::Yes;
        if !is_taken {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_taken
    }
}
