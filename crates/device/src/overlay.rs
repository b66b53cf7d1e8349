//! What was written to a device: pages of 4 KiB in a file that has no name, encrypted under a key that only this process
//! has and that is zeroised when the overlay goes.
//!
//! Every page has a state: not written, zeros, lost, or the nonce that it was last written under. Nonces are counted up and
//! never used twice, so that AES-256-CTR keystream never repeats, however often a page is written: the counter block of a
//! page begins at `nonce * 256`, and a page takes 256 blocks. The file is sparse: a page lies at its offset in the image.
//! Bytes are not authenticated: who can change the file of a running process can change the process.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use zeroize::{Zeroize as _, Zeroizing};

use crate::Error;

/// Bytes of a page, the grain of copy-on-write.
pub(crate) const PAGE: u64 = 4096;
/// Pages whose states lie side by side: 2 MiB of the device.
const REGION_PAGES: u64 = 512;
/// Regions are guarded by this many locks.
const SHARDS: usize = 64;

/// Never written: the image shows.
const BASE: u64 = 0;
/// Reads as zeros and takes no room.
const ZERO: u64 = u64::MAX;
/// Writing it failed half way, so nobody knows what it is.
const LOST: u64 = u64::MAX - 1;

type Region = Box<[u64; REGION_PAGES as usize]>;

/// The written pages of one device.
pub(crate) struct Overlay {
    image: String,
    file: File,
    key: EncryptingKey,
    next_nonce: AtomicU64,
    used_pages: AtomicU64,
    budget_pages: u64,
    budget_bytes: u64,
    was_full: AtomicBool,
    has_failed: AtomicBool,
    written: AtomicBool,
    shards: Vec<RwLock<HashMap<u64, Region>>>,
}

fn is_stored(state: u64) -> bool {
    state != BASE && state < LOST
}

impl Overlay {
    /// An empty overlay with its file in `directory`, for at most `budget_bytes`.
    pub(crate) fn new(image: &str, directory: &Path, budget_bytes: u64) -> Result<Self, Error> {
        let file = unnamed_file(directory).map_err(|error| Error::path("make an overlay in", directory, error))?;
        let mut secret = Zeroizing::new([0; 32]);
        // The system's generator: that of aws-lc takes 40 ms to seed itself at its first use.
        getrandom::fill(secret.as_mut())
            .map_err(|_| Error::io("make a key for", "the overlay", io::Error::other("no random bytes")))?;
        let key = UnboundCipherKey::new(&AES_256, secret.as_ref()).and_then(EncryptingKey::ctr);
        Ok(Self {
            image: image.into(),
            file,
            key: key.expect("an AES-256 key has 32 bytes"),
            next_nonce: AtomicU64::new(1),
            used_pages: AtomicU64::new(0),
            budget_pages: budget_bytes / PAGE,
            budget_bytes,
            was_full: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            written: AtomicBool::new(false),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
        })
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_pages.load(Ordering::Relaxed) * PAGE
    }

    fn shard(&self, region: u64) -> &RwLock<HashMap<u64, Region>> {
        &self.shards[(region % SHARDS as u64) as usize]
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

    fn any_page(&self, range: &Range<u64>, is: impl Fn(u64) -> bool) -> bool {
        regions(range).any(|(region, pages)| {
            let shard = self.shard(region).read().unwrap_or_else(PoisonError::into_inner);
            shard.get(&region).map_or_else(|| is(BASE), |states| states[pages].iter().any(|state| is(*state)))
        })
    }

    /// Puts what was written over `buf`, which holds the image's bytes at `offset` wherever pages were not written.
    pub(crate) fn read_over(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let range = offset..offset + buf.len() as u64;
        for (region, pages) in regions(&range) {
            let shard = self.shard(region).read().unwrap_or_else(PoisonError::into_inner);
            let Some(states) = shard.get(&region) else { continue };
            let mut index = pages.start;
            while index < pages.end {
                let run = run_length(&states[index..pages.end]);
                let state = states[index];
                let page = region * REGION_PAGES + index as u64;
                index += run;
                if state == BASE {
                    continue;
                }
                let from = (page * PAGE).max(range.start);
                let to = ((page + run as u64) * PAGE).min(range.end);
                let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
                match state {
                    ZERO => part.fill(0),
                    LOST => {
                        let gone = io::Error::other("an earlier write of it failed");
                        return Err(Error::io("read", format!("the overlay of {}", self.image), gone));
                    }
                    nonce => self.read_run(page, nonce, from, part)?,
                }
            }
        }
        Ok(())
    }

    /// Reads a run of pages with nonces from `nonce` on, beginning at the byte `from` of the device.
    fn read_run(&self, page: u64, nonce: u64, from: u64, part: &mut [u8]) -> Result<(), Error> {
        let into = (from - page * PAGE) as usize;
        if into == 0 && part.len().is_multiple_of(16) {
            self.file.read_exact_at(part, from).map_err(|error| self.failed("read", error))?;
            self.crypt(nonce, part);
            return Ok(());
        }
        let mut whole = Zeroizing::new(vec![0; (into + part.len()).next_multiple_of(PAGE as usize)]);
        self.file.read_exact_at(&mut whole, page * PAGE).map_err(|error| self.failed("read", error))?;
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
            let mut shard = self.shard(region).write().unwrap_or_else(PoisonError::into_inner);
            let states = shard.entry(region).or_insert_with(fresh_region);
            self.store(region, pages, states, part)?;
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
        let mut shard = self.shard(region).write().unwrap_or_else(PoisonError::into_inner);
        let states = shard.entry(region).or_insert_with(fresh_region);
        let mut whole = Zeroizing::new([0; PAGE as usize]);
        match (states[index], base) {
            (BASE, Some(base)) => whole.copy_from_slice(base),
            (BASE, None) | (LOST, _) => {
                return Err(self.failed("write a part of a page to", io::Error::other("the rest of it is not known")));
            }
            (ZERO, _) => {}
            (nonce, _) => self.read_run(page, nonce, page * PAGE, whole.as_mut())?,
        }
        whole[within..within + bytes.len()].copy_from_slice(bytes);
        self.store(region, index..index + 1, states, whole.as_ref())
    }

    fn store(&self, region: u64, pages: Range<usize>, states: &mut Region, bytes: &[u8]) -> Result<(), Error> {
        let states = &mut states[pages.clone()];
        let fresh = states.iter().filter(|state| !is_stored(**state)).count() as u64;
        self.reserve(fresh)?;
        self.written.store(true, Ordering::Release);
        let nonce = self.next_nonce.fetch_add(states.len() as u64, Ordering::Relaxed);
        let mut sealed = bytes.to_vec();
        self.crypt(nonce, &mut sealed);
        let offset = (region * REGION_PAGES + pages.start as u64) * PAGE;
        if let Err(error) = self.file.write_all_at(&sealed, offset) {
            states.fill(LOST);
            self.used_pages.fetch_sub(pages.len() as u64, Ordering::Relaxed);
            return Err(self.failed("write to", error));
        }
        for (state, nonce) in states.iter_mut().zip(nonce..) {
            *state = nonce;
        }
        Ok(())
    }

    fn reserve(&self, pages: u64) -> Result<(), Error> {
        let reserved = self.used_pages.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(pages).filter(|used| *used <= self.budget_pages)
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
            let mut shard = self.shard(region).write().unwrap_or_else(PoisonError::into_inner);
            let states = shard.entry(region).or_insert_with(fresh_region);
            self.written.store(true, Ordering::Release);
            let start = within.start as u64;
            let length = within.len() as u64;
            let states = &mut states[within];
            let stored = states.iter().filter(|state| is_stored(**state)).count() as u64;
            states.fill(ZERO);
            if stored > 0 {
                self.used_pages.fetch_sub(stored, Ordering::Relaxed);
                self.was_full.store(false, Ordering::Relaxed);
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let offset = (region * REGION_PAGES + start) * PAGE;
                rustix::fs::fallocate(&self.file, flags, offset, length * PAGE)
                    .map_err(|error| self.failed("give back pages of", error.into()))?;
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
            tracing::error!(image = self.image, operation, %error, "the overlay's file fails: what the sandbox wrote is lost");
        }
        Error::io(operation, format!("the overlay of {}", self.image), error)
    }
}

fn fresh_region() -> Region {
    Box::new([BASE; REGION_PAGES as usize])
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

/// How many pages from the first on have the same state, or nonces that follow one another.
fn run_length(states: &[u64]) -> usize {
    let first = states[0];
    let follows = |(index, state): (usize, &u64)| {
        if is_stored(first) { *state == first + index as u64 && is_stored(*state) } else { *state == first }
    };
    states.iter().enumerate().take_while(|state| follows(*state)).count()
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
