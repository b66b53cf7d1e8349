//! The states of an overlay's pages, in memory that outlives the process.
//!
//! A header of one page of memory comes first; then one word for every page of the device. A word is [`BASE`], [`ZERO`], or the
//! nonce that the page was last written under with the slot that it lies in. Regions of 512 pages are exactly one page of
//! memory, which is not touched before a page of the region is written: that is what [`States::region`] looks up.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::shared_memory::SharedWords;

/// Pages whose states lie side by side: 2 MiB of the device.
pub(super) const REGION_PAGES: u64 = 512;
/// Words before the first state.
const HEADER: usize = 512;

/// Never written: the image shows.
pub(super) const BASE: u64 = 0;
/// Reads as zeros and takes no room.
pub(super) const ZERO: u64 = u64::MAX;
/// In the word of a stored page: which of its two slots it is in.
const SLOT: u64 = 1 << 62;

/// "snowovly"
const MAGIC: u64 = u64::from_le_bytes(*b"snowovly");
const LAYOUT: u64 = 1;

// Words of the header.
const AT_MAGIC: usize = 0;
const AT_LAYOUT: usize = 1;
const AT_PAGES: usize = 2;
const AT_NEXT_NONCE: usize = 3;
const AT_EPOCH: usize = 4;
const AT_ID: usize = 5;

/// Where a page's content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Base,
    Zero,
    Stored {
        slot: usize,
        nonce: u64,
    },
    /// No state that was ever written.
    Invalid,
}

impl State {
    pub(super) fn of(word: u64) -> Self {
        match word {
            BASE => Self::Base,
            ZERO => Self::Zero,
            word if word < 2 * SLOT && word & !SLOT != 0 => {
                Self::Stored { slot: usize::from(word & SLOT != 0), nonce: word & !SLOT }
            }
            _ => Self::Invalid,
        }
    }

    pub(super) fn stored(slot: usize, nonce: u64) -> u64 {
        nonce | if slot == 0 { 0 } else { SLOT }
    }
}

/// How many pages from the first on have the same state, or lie in the same slot under nonces that follow one another.
pub(super) fn run_length(states: &[AtomicU64]) -> usize {
    let word = |state: &AtomicU64| state.load(Ordering::Acquire);
    let Some(first) = states.first().map(word) else { return 0 };
    let step = u64::from(matches!(State::of(first), State::Stored { .. }));
    let follows = |(index, state): &(usize, &AtomicU64)| Some(word(state)) == first.checked_add(*index as u64 * step);
    states.iter().enumerate().take_while(follows).count()
}

/// See the module.
pub(super) struct States {
    words: SharedWords,
    pages: u64,
    /// A bit for each region that was ever written. Only of this process, so that looking does not touch memory.
    written: Vec<AtomicU64>,
    /// Which of the processes that had this overlay one after the other this one is.
    epoch: u64,
}

/// What [`States::take_over`] found.
#[derive(Default)]
pub(super) struct Found {
    /// The regions that were written.
    pub(super) regions: Vec<u64>,
    /// Pages that take room.
    pub(super) stored_pages: u64,
}

fn words_of(pages: u64) -> Option<usize> {
    let words = pages.checked_next_multiple_of(REGION_PAGES)?.checked_add(HEADER as u64)?;
    usize::try_from(words).ok().filter(|words| words.checked_mul(8).is_some_and(|bytes| isize::try_from(bytes).is_ok()))
}

fn too_large() -> Error {
    Error::Invalid { operation: "make an overlay", subject: "the device is too large for this machine".into() }
}

fn refuse(why: impl std::fmt::Display) -> Error {
    Error::Invalid { operation: "take over an overlay", subject: format!("its page states are not right: {why}") }
}

impl States {
    /// States of a device that nothing was written to; `id` tells overlays apart.
    pub(super) fn new(pages: u64, id: u128) -> Result<Self, Error> {
        let made = SharedWords::new("snowmelt-overlay", words_of(pages).ok_or_else(too_large)?);
        let words = made.map_err(|error| Error::io("make", "the page states of an overlay", error))?;
        for (at, value) in [
            (AT_MAGIC, MAGIC),
            (AT_LAYOUT, LAYOUT),
            (AT_PAGES, pages),
            (AT_NEXT_NONCE, 1),
            (AT_EPOCH, 1),
            (AT_ID, id as u64),
            (AT_ID + 1, (id >> 64) as u64),
        ] {
            words[at].store(value, Ordering::Release);
        }
        Ok(Self::with(words, pages, 1))
    }

    fn with(words: SharedWords, pages: u64, epoch: u64) -> Self {
        let regions = pages.div_ceil(REGION_PAGES) as usize;
        Self { words, pages, written: (0..regions.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), epoch }
    }

    /// The states that another process left. They are not this process's before [`States::take_over`].
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are not of a device of that size.
    pub(super) fn open(file: OwnedFd, pages: u64) -> Result<Self, Error> {
        let words = SharedWords::open(file, words_of(pages).ok_or_else(too_large)?).map_err(refuse)?;
        let header = |at: usize| words[at].load(Ordering::Acquire);
        if (header(AT_MAGIC), header(AT_LAYOUT)) != (MAGIC, LAYOUT) {
            return Err(refuse("they have another layout"));
        }
        if header(AT_PAGES) != pages {
            return Err(refuse(format_args!("they are of a device of {} pages, not {pages}", header(AT_PAGES))));
        }
        Ok(Self::with(words, pages, 0))
    }

    /// Takes them away from the process that had them, which can write no more, and looks at each.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no overlay can have left them so.
    pub(super) fn take_over(&mut self) -> Result<Found, Error> {
        self.epoch = self.words[AT_EPOCH].fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        let next_nonce = self.words[AT_NEXT_NONCE].load(Ordering::Acquire);
        if next_nonce == 0 || next_nonce >= SLOT {
            return Err(refuse("the next nonce is out of range"));
        }
        let mut found = Found::default();
        for range in self.words.touched().map_err(refuse)? {
            for at in range.start.max(HEADER)..range.end {
                let page = (at - HEADER) as u64;
                match State::of(self.words[at].load(Ordering::Acquire)) {
                    State::Base => continue,
                    State::Zero if page < self.pages => {}
                    State::Stored { nonce, .. } if page < self.pages && nonce < next_nonce => found.stored_pages += 1,
                    state => return Err(refuse(format_args!("page {page} is {state:?}"))),
                }
                let region = page / REGION_PAGES;
                if found.regions.last() != Some(&region) {
                    found.regions.push(region);
                    self.mark(region);
                }
            }
        }
        Ok(found)
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// What tells this overlay apart from others.
    pub(super) fn id(&self) -> u128 {
        let word = |at: usize| u128::from(self.words[at].load(Ordering::Acquire));
        word(AT_ID) | word(AT_ID + 1) << 64
    }

    /// Whether no other process has taken the overlay over.
    pub(super) fn is_ours(&self) -> bool {
        self.words[AT_EPOCH].load(Ordering::Acquire) == self.epoch
    }

    /// Nonces that nobody has used or will use, even if this process ends before it uses them: the first of `count`. `None`
    /// when there are no more.
    pub(super) fn take_nonces(&self, count: u64) -> Option<u64> {
        let next = &self.words[AT_NEXT_NONCE];
        let taken = next.try_update(Ordering::AcqRel, Ordering::Acquire, |next| {
            next.checked_add(count).filter(|end| *end < SLOT && next > 0)
        });
        taken.ok()
    }

    /// The states of some pages of a region; `None` where none of the region was ever written.
    pub(super) fn region(&self, region: u64, pages: Range<usize>) -> Option<&[AtomicU64]> {
        let word = self.written.get((region / 64) as usize)?;
        if word.load(Ordering::Acquire) & 1 << (region % 64) == 0 {
            return None;
        }
        Some(&self.words_of_region(region)[pages])
    }

    /// The same, to be written.
    pub(super) fn region_to_write(&self, region: u64, pages: Range<usize>) -> &[AtomicU64] {
        self.mark(region);
        &self.words_of_region(region)[pages]
    }

    fn mark(&self, region: u64) {
        self.written[(region / 64) as usize].fetch_or(1 << (region % 64), Ordering::AcqRel);
    }

    fn words_of_region(&self, region: u64) -> &[AtomicU64] {
        let first = HEADER + (region * REGION_PAGES) as usize;
        &self.words[first..first + REGION_PAGES as usize]
    }
}

impl AsFd for States {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}
