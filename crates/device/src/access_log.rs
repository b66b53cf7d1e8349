//! What was needed, in which order: what the next start of the same program will want first.

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

/// Reads are recorded for this long: what comes later is work, not start.
const START: Duration = Duration::from_secs(30);
/// No more reads are recorded. A Python that imports pandas takes about 2,000.
const MOST_READS: usize = 16384;

#[derive(Debug)]
pub(crate) struct AccessLog {
    start: Instant,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    seen: HashSet<u64>,
    chunks: Vec<Access>,
    reads: Vec<Range<u64>>,
}

impl AccessLog {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, entries: Mutex::default() }
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
        if entries.reads.len() < MOST_READS && now.saturating_duration_since(self.start) <= START {
            entries.reads.push(bytes.clone());
        }
    }

    pub(crate) fn entries(&self) -> Vec<Access> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).chunks.clone()
    }

    /// The reads of the start, in their order.
    pub(crate) fn reads(&self) -> Vec<Range<u64>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).reads.clone()
    }

    pub(crate) fn len(&self) -> u64 {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).chunks.len() as u64
    }
}
