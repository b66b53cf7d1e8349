//! What a device did, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::reader::{Spent, Tier};

/// A counter that many threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn add_since(&self, start: Instant) {
        self.add(start.elapsed().as_nanos() as u64);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn time(&self) -> Duration {
        Duration::from_nanos(self.get())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) reads: Counter,
    pub(crate) read_bytes: Counter,
    pub(crate) reads_from_memory: Counter,
    pub(crate) writes: Counter,
    pub(crate) written_bytes: Counter,
    pub(crate) discards: Counter,
    pub(crate) loads: [Counter; Tier::ALL.len()],
    pub(crate) loaded_bytes: [Counter; Tier::ALL.len()],
    pub(crate) prefetched: Counter,
    pub(crate) in_background: Counter,
    pub(crate) failures: Counter,
    pub(crate) retries: Counter,
    pub(crate) stalls: Counter,
    pub(crate) serve_ns: Counter,
    pub(crate) queue_ns: Counter,
    pub(crate) load_ns: Counter,
    pub(crate) copy_ns: Counter,
}

/// What a device did since it was made. Counts are of calls, sizes in bytes, times summed over all threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Reads of the device.
    pub reads: u64,
    /// Bytes that they asked for.
    pub read_bytes: u64,
    /// Reads for which every chunk lay decrypted in memory, or none was needed.
    pub reads_from_memory: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Discards, and writes of zeros.
    pub discards: u64,
    /// Distinct chunks that reads needed.
    pub touched_chunks: u64,
    /// Chunks loaded, by the tier that they came from. A chunk that was evicted and needed again counts again.
    pub loads: Vec<(Tier, u64)>,
    /// The same in bytes.
    pub loaded_bytes: Vec<(Tier, u64)>,
    /// How many of those were loaded before they were needed,
    pub prefetched: u64,
    /// and in the background.
    pub in_background: u64,
    /// Chunks that were prefetched during the start and that no read has needed so far.
    pub in_vain: u64,
    /// Loads that failed.
    pub failures: u64,
    /// Attempts after the first because a tier did not answer.
    pub retries: u64,
    /// Stalls that were reported.
    pub stalls: u64,
    /// Bytes held by the overlay.
    pub overlay_bytes: u64,
    /// From a read's arrival to its answer.
    pub serve_time: Duration,
    /// Time that loads waited for a thread.
    pub queue_time: Duration,
    /// Time in the tiers, without verification where the tiers tell it.
    pub fetch_time: Duration,
    /// Time checking ids.
    pub verify_time: Duration,
    /// Time decrypting.
    pub decrypt_time: Duration,
    /// Time copying bytes to where they were asked for (for FUSE: writing the reply).
    pub copy_time: Duration,
}

impl Stats {
    /// Chunks loaded, from all tiers.
    pub fn total_loads(&self) -> u64 {
        self.loads.iter().map(|(_, count)| count).sum()
    }
}

impl Counters {
    pub(crate) fn read(&self, touched_chunks: u64, in_vain: u64, overlay_bytes: u64, spent: Spent) -> Stats {
        let by_tier = |counters: &[Counter; Tier::ALL.len()]| {
            Tier::ALL.iter().zip(counters).map(|(tier, counter)| (*tier, counter.get())).collect()
        };
        Stats {
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            reads_from_memory: self.reads_from_memory.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            discards: self.discards.get(),
            touched_chunks,
            loads: by_tier(&self.loads),
            loaded_bytes: by_tier(&self.loaded_bytes),
            prefetched: self.prefetched.get(),
            in_background: self.in_background.get(),
            in_vain,
            failures: self.failures.get(),
            retries: self.retries.get(),
            stalls: self.stalls.get(),
            overlay_bytes,
            serve_time: self.serve_ns.time(),
            queue_time: self.queue_ns.time(),
            fetch_time: self.load_ns.time().saturating_sub(spent.verifying + spent.decrypting),
            verify_time: spent.verifying,
            decrypt_time: spent.decrypting,
            copy_time: self.copy_ns.time(),
        }
    }
}
