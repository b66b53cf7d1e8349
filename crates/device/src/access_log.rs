//! What was needed, in which order: what the next start of the same program will want first. And what was loaded for nothing.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first time that a read needed a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The chunk; its offset in the image is `index * chunk_size`.
    pub index: u64,
    /// Time since the device was made.
    pub at: Duration,
}

/// No more reads are recorded. A Python that imports pandas takes about 2,000.
const MOST_READS: usize = 16384;

#[derive(Debug)]
pub(crate) struct AccessLog {
    start: Instant,
    /// What comes later is work, not start.
    record_for: Duration,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    seen: HashSet<u64>,
    chunks: Vec<Access>,
    reads: Vec<Range<u64>>,
    prefetched: HashSet<u64>,
}

impl AccessLog {
    pub(crate) fn new(start: Instant, record_for: Duration) -> Self {
        Self { start, record_for, entries: Mutex::default() }
    }

    fn is_start(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.start) <= self.record_for
    }

    /// Notes a chunk that a read needed, unless it is noted already.
    pub(crate) fn note(&self, index: u64, now: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.seen.insert(index) {
            entries.chunks.push(Access { index, at: now.saturating_duration_since(self.start) });
        }
    }

    /// Notes a read, if it belongs to the start.
    pub(crate) fn note_read(&self, bytes: &Range<u64>, now: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.reads.len() < MOST_READS && self.is_start(now) {
            entries.reads.push(bytes.clone());
        }
    }

    /// Notes a chunk that was loaded before a read needed it, if it belongs to the start.
    pub(crate) fn note_prefetched(&self, index: u64, now: Instant) {
        if self.is_start(now) {
            self.entries.lock().unwrap_or_else(PoisonError::into_inner).prefetched.insert(index);
        }
    }

    pub(crate) fn entries(&self) -> Vec<Access> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).chunks.clone()
    }

    /// The chunks and the reads of the start, in their order.
    pub(crate) fn start(&self) -> (Vec<u64>, Vec<Range<u64>>) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let of_start = entries.chunks.iter().filter(|access| access.at <= self.record_for);
        (of_start.map(|access| access.index).collect(), entries.reads.clone())
    }

    /// The chunks that were loaded during the start and that no read has needed so far, in ascending order.
    pub(crate) fn in_vain(&self) -> Vec<u64> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vain: Vec<u64> = entries.prefetched.difference(&entries.seen).copied().collect();
        vain.sort_unstable();
        vain
    }

    pub(crate) fn len(&self) -> u64 {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).chunks.len() as u64
    }
}
