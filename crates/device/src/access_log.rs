//! Which chunks were needed, in which order: what the next start of the same image will want first.

use std::collections::HashSet;
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

#[derive(Debug)]
pub(crate) struct AccessLog {
    start: Instant,
    entries: Mutex<(HashSet<u64>, Vec<Access>)>,
}

impl AccessLog {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, entries: Mutex::default() }
    }

    /// Notes a chunk that a read needed, unless it is noted already.
    pub(crate) fn note(&self, index: u64, now: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.0.insert(index) {
            entries.1.push(Access { index, at: now.saturating_duration_since(self.start) });
        }
    }

    pub(crate) fn entries(&self) -> Vec<Access> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    pub(crate) fn len(&self) -> u64 {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).1.len() as u64
    }
}
