//! What was written to a device: encrypted pages of 4 KiB in a file that has no name, and their states in memory that outlives
//! the process. Both are descriptors, so a process that holds duplicates of them can give a successor all that was written, even
//! when this process is killed; the key is given to it sealed, and is zeroised here when the overlay goes.
//!
//! Every page has a state: not written, zeros, or the nonce that it was last written under and which of its two slots in the file it
//! is in. **A page is never overwritten in place.** A write, of a part of a page too, puts the whole new page into the slot that is not in use,
//! and then changes the state, which is one word. So at any instruction at which the process may be killed each page is wholly
//! what it was before the write or wholly what it is after it; the write itself is sent again to the successor by the kernel.
//! No reader can be given anything else, and a write that fails leaves what was there. What it costs is room: an overwritten
//! page has two slots, and slots that are not in use are given back to the disk when there are many of them.
//!
//! Nonces are counted up in the shared memory, before they are used, so none is used twice, whoever dies when. AES-256-CTR keystream
//! never repeats, however often a page is written: the counter block of a page begins at `nonce * 256`, and a page takes 256
//! blocks. The file is sparse: a page's first slot lies at its offset in the image. Bytes are not authenticated: who can change
//! the file of a running process can change the process. A successor does not trust the states either: it checks them when it
//! begins and again whenever it reads one.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use zeroize::{Zeroize as _, Zeroizing};

use crate::Error;

mod handover;
mod sealed_key;
mod slots;
mod states;

pub(crate) use handover::OverlayHandover;
use slots::{Slots, Stale};
use states::{BASE, REGION_PAGES, State, States, ZERO, run_length};

/// Bytes of a page, the grain of copy-on-write.
pub(crate) const PAGE: u64 = 4096;
/// Regions are guarded by this many locks.
const SHARDS: usize = 64;
/// Of the budget, the part that slots may take which are not in use, before they are given back.
const STALE_PART: u64 = 16;
/// So many may be kept however small the budget is.
const FEW_STALE: u64 = 256;

/// The written pages of one device.
pub(crate) struct Overlay {
    image: String,
    slots: Slots,
    states: States,
    secret: Zeroizing<[u8; 32]>,
    key: EncryptingKey,
    used_pages: AtomicU64,
    stale_pages: AtomicU64,
    budget_pages: u64,
    budget_bytes: u64,
    was_full: AtomicBool,
    has_failed: AtomicBool,
    written: AtomicBool,
    stopped: AtomicBool,
    /// Whether the file system takes slots back.
    gives_back: AtomicBool,
    /// Guard the states and slots of regions: shared by readers, and by one writer alone.
    shards: Vec<RwLock<Stale>>,
    #[cfg(test)]
    kill: tests::KillSwitch,
}

impl Overlay {
    /// An empty overlay of a device of `size_bytes`, with its file in `directory`, for at most `budget_bytes`.
    pub(crate) fn new(image: &str, directory: &Path, budget_bytes: u64, size_bytes: u64) -> Result<Self, Error> {
        let file = unnamed_file(directory).map_err(|error| Error::path("make an overlay in", directory, error))?;
        // The system's generator: that of aws-lc takes 40 ms to seed itself at its first use.
        let no_random = |_| Error::io("make a key for", "the overlay", io::Error::other("no random bytes"));
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut()).map_err(no_random)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(no_random)?;
        let states = States::new(size_bytes.div_ceil(PAGE), u128::from_le_bytes(id))?;
        Ok(Self::with(image, file, states, secret, budget_bytes))
    }

    fn with(image: &str, file: File, states: States, secret: Zeroizing<[u8; 32]>, budget_bytes: u64) -> Self {
        let key = UnboundCipherKey::new(&AES_256, secret.as_ref()).and_then(EncryptingKey::ctr);
        Self {
            image: image.into(),
            slots: Slots { file, pages: states.pages() },
            states,
            secret,
            key: key.expect("an AES-256 key has 32 bytes"),
            used_pages: AtomicU64::new(0),
            stale_pages: AtomicU64::new(0),
            budget_pages: budget_bytes / PAGE,
            budget_bytes,
            was_full: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            written: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            gives_back: AtomicBool::new(true),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            #[cfg(test)]
            kill: tests::KillSwitch::default(),
        }
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_pages.load(Ordering::Relaxed) * PAGE
    }

    fn shard(&self, region: u64) -> &RwLock<Stale> {
        &self.shards[(region % SHARDS as u64) as usize]
    }

    fn reading(&self, region: u64) -> RwLockReadGuard<'_, Stale> {
        self.shard(region).read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock of a region for writing to it.
    fn writing(&self, region: u64) -> Result<RwLockWriteGuard<'_, Stale>, Error> {
        let guard = self.shard(region).write().unwrap_or_else(PoisonError::into_inner);
        if self.stopped.load(Ordering::Acquire) || !self.states.is_ours() {
            return Err(self.error("write to", io::Error::other("another process has taken it over")));
        }
        Ok(guard)
    }

    /// Takes no more writes, and waits for those that have begun.
    pub(crate) fn stop_writes(&self) {
        self.stopped.store(true, Ordering::Release);
        for shard in &self.shards {
            drop(shard.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Whether any byte of the range was written.
    pub(crate) fn touches(&self, range: &Range<u64>) -> bool {
        self.written.load(Ordering::Acquire) && self.any_page(range, |state| state != BASE)
    }

    /// Whether every byte of the range lies in a page that was written, so that the image is not needed. What is covered
    /// once stays so.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        self.written.load(Ordering::Acquire) && !self.any_page(range, |state| state == BASE)
    }

    /// A state is one word that a writer changes when all else is done, so no lock is needed to look at it.
    fn any_page(&self, range: &Range<u64>, is: impl Fn(u64) -> bool) -> bool {
        regions(range).any(|(region, pages)| {
            let states = self.states.region(region, pages);
            states.map_or_else(|| is(BASE), |states| states.iter().any(|state| is(state.load(Ordering::Acquire))))
        })
    }

    /// Puts what was written over `buf`, which holds the image's bytes at `offset` wherever pages were not written.
    pub(crate) fn read_over(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let range = offset..offset + buf.len() as u64;
        for (region, pages) in regions(&range) {
            let _reading = self.reading(region);
            let Some(states) = self.states.region(region, pages.clone()) else { continue };
            let mut index = 0;
            while index < states.len() {
                let run = run_length(&states[index..]);
                let state = State::of(states[index].load(Ordering::Acquire));
                let page = region * REGION_PAGES + (pages.start + index) as u64;
                index += run;
                let from = (page * PAGE).max(range.start);
                let to = ((page + run as u64) * PAGE).min(range.end);
                let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
                match state {
                    State::Base => {}
                    State::Zero => part.fill(0),
                    State::Stored { slot, nonce } => self.read_run(page, slot, nonce, from, part)?,
                    State::Invalid => return Err(self.unknown("read")),
                }
            }
        }
        Ok(())
    }

    /// Reads a run of pages with nonces from `nonce` on, beginning at the byte `from` of the device.
    fn read_run(&self, page: u64, slot: usize, nonce: u64, from: u64, part: &mut [u8]) -> Result<(), Error> {
        let into = (from - page * PAGE) as usize;
        if into == 0 && part.len().is_multiple_of(16) {
            self.slots.read(slot, page, part).map_err(|error| self.failed("read", error))?;
            self.crypt(nonce, part);
            return Ok(());
        }
        let mut whole = Zeroizing::new(vec![0; (into + part.len()).next_multiple_of(PAGE as usize)]);
        self.slots.read(slot, page, &mut whole).map_err(|error| self.failed("read", error))?;
        self.crypt(nonce, &mut whole);
        part.copy_from_slice(&whole[into..into + part.len()]);
        Ok(())
    }

    /// Writes whole pages.
    pub(crate) fn write_pages(&self, first_page: u64, bytes: &[u8]) -> Result<(), Error> {
        debug_assert!(bytes.len().is_multiple_of(PAGE as usize));
        let range = first_page * PAGE..first_page * PAGE + bytes.len() as u64;
        let mut rest = bytes;
        for (region, pages) in regions(&range) {
            let part;
            (part, rest) = rest.split_at(pages.len() * PAGE as usize);
            let mut stale = self.writing(region)?;
            self.store(region, pages, &mut stale, part)?;
            drop(stale);
            self.give_back_stale(region);
        }
        Ok(())
    }

    /// Writes a part of one page. `base` gives the image's bytes of the page, if they are needed.
    pub(crate) fn write_within(
        &self,
        page: u64,
        within: usize,
        bytes: &[u8],
        base: Option<&[u8; PAGE as usize]>,
    ) -> Result<(), Error> {
        let region = page / REGION_PAGES;
        let index = (page % REGION_PAGES) as usize;
        let mut stale = self.writing(region)?;
        let mut whole = Zeroizing::new([0; PAGE as usize]);
        let state =
            self.states.region(region, index..index + 1).map_or(BASE, |states| states[0].load(Ordering::Acquire));
        match (State::of(state), base) {
            (State::Base, Some(base)) => whole.copy_from_slice(base),
            (State::Base, None) | (State::Invalid, _) => return Err(self.unknown("write a part of a page to")),
            (State::Zero, _) => {}
            (State::Stored { slot, nonce }, _) => self.read_run(page, slot, nonce, page * PAGE, whole.as_mut())?,
        }
        whole[within..within + bytes.len()].copy_from_slice(bytes);
        self.store(region, index..index + 1, &mut stale, whole.as_ref())?;
        drop(stale);
        self.give_back_stale(region);
        Ok(())
    }

    /// Writes pages of one region, whose lock is held.
    fn store(&self, region: u64, pages: Range<usize>, stale: &mut Stale, bytes: &[u8]) -> Result<(), Error> {
        let states = self.states.region_to_write(region, pages.clone());
        let old: Vec<State> = states.iter().map(|state| State::of(state.load(Ordering::Acquire))).collect();
        let is_fresh = |state: &State| !matches!(state, State::Stored { .. });
        let mut fresh = old.iter().filter(|state| is_fresh(state)).count() as u64;
        self.reserve(fresh)?;
        let Some(nonces) = self.states.take_nonces(old.len() as u64) else {
            self.used_pages.fetch_sub(fresh, Ordering::Relaxed);
            return Err(self.failed("write to", io::Error::other("its nonces are used up")));
        };
        let mut sealed = bytes.to_vec();
        self.crypt(nonces, &mut sealed);
        let target = |state: &State| usize::from(matches!(state, State::Stored { slot: 0, .. }));
        let mut start = 0;
        while start < old.len() {
            let slot = target(&old[start]);
            let end = start + old[start..].iter().take_while(|state| target(state) == slot).count();
            let first_page = region * REGION_PAGES + (pages.start + start) as u64;
            let part = &sealed[start * PAGE as usize..end * PAGE as usize];
            if let Err(error) = self.write_slots(slot, first_page, part) {
                self.used_pages.fetch_sub(fresh, Ordering::Relaxed);
                return Err(self.failed("write to", error));
            }
            for index in start..end {
                self.step()?;
                // Only now: all that a reader needs is there.
                states[index].store(State::stored(slot, nonces + index as u64), Ordering::Release);
                let news = if let State::Stored { slot, .. } = old[index] {
                    stale.insert(region, pages.start + index, slot)
                } else {
                    fresh -= 1;
                    false
                };
                let used_again = stale.remove(region, pages.start + index, slot);
                self.stale_pages.fetch_add(u64::from(news), Ordering::Relaxed);
                self.stale_pages.fetch_sub(u64::from(used_again), Ordering::Relaxed);
            }
            self.written.store(true, Ordering::Release);
            start = end;
        }
        Ok(())
    }

    fn write_slots(&self, slot: usize, page: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if self.kill.is_armed() {
            // The kernel may have copied any part of it.
            self.slots.write(slot, page, &bytes[..bytes.len() / 3])?;
            self.kill.step().map_err(io::Error::other)?;
        }
        self.slots.write(slot, page, bytes)
    }

    /// Where tests have the process end: between any two changes of what outlives it.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests have it fail"))]
    fn step(&self) -> Result<(), Error> {
        #[cfg(test)]
        self.kill.step().map_err(|error| Error::io("go on", "a test", io::Error::other(error)))?;
        Ok(())
    }

    /// Gives slots back that are not in use, once they are many: those of the shard of this region, and those of others until
    /// there are half as many. Nobody holds a lock.
    fn give_back_stale(&self, region: u64) {
        let most = (self.budget_pages / STALE_PART).max(FEW_STALE);
        if self.stale_pages.load(Ordering::Relaxed) <= most || !self.gives_back.load(Ordering::Relaxed) {
            return;
        }
        for other in 0..SHARDS as u64 {
            // Who writes or reads there is not waited for: there are others.
            if let Ok(mut stale) = self.shard(region.wrapping_add(other)).try_write() {
                if self.stopped.load(Ordering::Acquire) || !self.states.is_ours() {
                    return;
                }
                match stale.punch(&self.slots) {
                    Ok(count) => self.stale_pages.fetch_sub(count, Ordering::Relaxed),
                    Err(error) => {
                        tracing::warn!(image = self.image, %error, "the overlay's file keeps what is not needed any more");
                        self.gives_back.store(false, Ordering::Relaxed);
                        return;
                    }
                };
            }
            if self.stale_pages.load(Ordering::Relaxed) <= most / 2 {
                return;
            }
        }
    }

    fn reserve(&self, pages: u64) -> Result<(), Error> {
        let reserved = self.used_pages.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(pages).filter(|used| *used <= self.budget_pages || pages == 0)
        });
        if reserved.is_ok() {
            return Ok(());
        }
        let error = Error::NoSpace { image: self.image.clone(), budget_bytes: self.budget_bytes };
        if !self.was_full.swap(true, Ordering::Relaxed) {
            tracing::error!(image = self.image, %error, "writes of the sandbox fail");
        }
        Err(error)
    }

    /// Has whole pages read as zeros and gives their room back.
    pub(crate) fn zero_pages(&self, pages: Range<u64>) -> Result<(), Error> {
        for (region, within) in regions(&(pages.start * PAGE..pages.end * PAGE)) {
            let mut stale = self.writing(region)?;
            let states = self.states.region_to_write(region, within.clone());
            self.written.store(true, Ordering::Release);
            let (mut stored, mut in_use) = (0, [false; 2]);
            for (index, state) in within.clone().zip(states) {
                self.step()?;
                if let State::Stored { slot, .. } = State::of(state.swap(ZERO, Ordering::AcqRel)) {
                    in_use[slot] = true;
                    stored += 1;
                }
                for (slot, in_use) in in_use.iter_mut().enumerate() {
                    if stale.remove(region, index, slot) {
                        *in_use = true;
                        self.stale_pages.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
            self.step()?;
            self.used_pages.fetch_sub(stored, Ordering::Relaxed);
            self.was_full.store(false, Ordering::Relaxed);
            let first = region * REGION_PAGES;
            for slot in (0..2).filter(|slot| in_use[*slot]) {
                self.slots
                    .punch(slot, first + within.start as u64..first + within.end as u64)
                    .map_err(|error| self.failed("give back pages of", error))?;
            }
        }
        Ok(())
    }

    /// Encrypts or decrypts pages with nonces from `nonce` on.
    fn crypt(&self, nonce: u64, bytes: &mut [u8]) {
        let counter = (u128::from(nonce) << 8).to_be_bytes();
        self.key
            .less_safe_encrypt(bytes, EncryptionContext::Iv128(FixedLength::from(counter)))
            .expect("CTR encrypts any length that a request may have");
    }

    fn failed(&self, operation: &'static str, error: io::Error) -> Error {
        // A full disk fails every write from then on: said once.
        if !self.has_failed.swap(true, Ordering::Relaxed) {
            tracing::error!(image = self.image, operation, %error, "the overlay's file fails: what the sandbox writes is lost");
        }
        self.error(operation, error)
    }

    fn error(&self, operation: &'static str, error: io::Error) -> Error {
        Error::io(operation, format!("the overlay of {}", self.image), error)
    }

    fn unknown(&self, operation: &'static str) -> Error {
        self.failed(operation, io::Error::other("the rest of a page is not known"))
    }
}

/// The regions that a range of bytes lies in, each with its pages that the range touches.
fn regions(range: &Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
    let pages = range.start / PAGE..range.end.div_ceil(PAGE);
    (pages.start / REGION_PAGES..pages.end.div_ceil(REGION_PAGES)).map(move |region| {
        let first = region * REGION_PAGES;
        let start = pages.start.max(first) - first;
        (region, start as usize..(pages.end.min(first + REGION_PAGES) - first) as usize)
    })
}

/// A file that has no name, so that nothing is left of it when the process ends, however it ends.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE).open(directory) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)) => {
            let mut unique = [0; 16];
            getrandom::fill(&mut unique).map_err(|_| io::Error::other("no random bytes"))?;
            let path = directory.join(format!(".overlay-{:032x}", u128::from_le_bytes(unique)));
            unique.zeroize();
            let file = options.create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        result => result,
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("used_bytes", &self.used_bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
