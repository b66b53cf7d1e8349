//! Room that a read needs beside its buffer, kept for the thread's next read.

use std::cell::Cell;
use std::ops::Range;

thread_local! {
    /// Rooms of the thread's last read, for parity and for [`Begun`]: to have them anew from the kernel costs more than a copy.
    /// What is in them says nothing.
    pub(super) static PARITY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static BEGUN: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What came so far of shards that are still on their way, and lies where they are rebuilt.
pub(super) struct Begun {
    ranges: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

impl Begun {
    pub(super) fn new() -> Self {
        let mut bytes = BEGUN.take();
        bytes.clear();
        Self { ranges: Vec::new(), bytes }
    }

    pub(super) fn save(&mut self, range: Range<usize>, chunk: &[u8]) {
        self.bytes.extend_from_slice(&chunk[range.clone()]);
        self.ranges.push(range);
    }

    pub(super) fn restore(&self, chunk: &mut [u8]) {
        let mut bytes = &self.bytes[..];
        for range in &self.ranges {
            let (saved, rest) = bytes.split_at(range.len());
            chunk[range.clone()].copy_from_slice(saved);
            bytes = rest;
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        BEGUN.set(std::mem::take(&mut self.bytes));
    }
}
