//! The file with an overlay's pages: two slots for each page of the device, one of which is in use at any time.
//!
//! The first slots lie at the pages' own offsets, the second ones behind all of them. A slot that is not in use any more is
//! *stale*: it is kept for the page's next write, and given back to the disk when there are many.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::FallocateFlags;

use super::PAGE;
use super::states::REGION_PAGES;

/// The file.
pub(super) struct Slots {
    pub(super) file: File,
    /// Of the device.
    pub(super) pages: u64,
}

impl Slots {
    fn offset(&self, slot: usize, page: u64) -> u64 {
        (slot as u64 * self.pages + page) * PAGE
    }

    pub(super) fn read(&self, slot: usize, page: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, self.offset(slot, page))
    }

    pub(super) fn write(&self, slot: usize, page: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.offset(slot, page))
    }

    /// Gives the room of slots back.
    pub(super) fn punch(&self, slot: usize, pages: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = (pages.end - pages.start) * PAGE;
        Ok(rustix::fs::fallocate(&self.file, flags, self.offset(slot, pages.start), length)?)
    }
}

/// The stale slots of some regions. Not shared with a successor, who takes every slot that is not in use for one.
#[derive(Default)]
pub(super) struct Stale(HashMap<u64, Bits>);

type Bits = [[u64; REGION_PAGES as usize / 64]; 2];

impl Stale {
    /// Gives whether that is news.
    pub(super) fn insert(&mut self, region: u64, index: usize, slot: usize) -> bool {
        let word = &mut self.0.entry(region).or_default()[slot][index / 64];
        let before = *word;
        *word |= 1 << (index % 64);
        *word != before
    }

    /// Gives whether it was there.
    pub(super) fn remove(&mut self, region: u64, index: usize, slot: usize) -> bool {
        let Some(bits) = self.0.get_mut(&region) else { return false };
        let word = &mut bits[slot][index / 64];
        let before = *word;
        *word &= !(1 << (index % 64));
        *word != before
    }

    /// Gives all of them back to the disk, and how many these were.
    pub(super) fn punch(&mut self, slots: &Slots) -> io::Result<u64> {
        let mut count = 0;
        while let Some(region) = self.0.keys().next().copied() {
            let bits = self.0.remove(&region).unwrap_or_default();
            for (slot, bits) in bits.iter().enumerate() {
                let is_stale = |index: &usize| bits[index / 64] & 1 << (index % 64) != 0;
                let mut index = 0;
                while let Some(start) = (index..REGION_PAGES as usize).find(is_stale) {
                    index =
                        (start..REGION_PAGES as usize).find(|index| !is_stale(index)).unwrap_or(REGION_PAGES as usize);
                    count += (index - start) as u64;
                    let first = region * REGION_PAGES;
                    slots.punch(slot, first + start as u64..(first + index as u64).min(slots.pages))?;
                }
            }
        }
        Ok(count)
    }
}
