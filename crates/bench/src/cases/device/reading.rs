//! One reader of files, and how long each of its reads takes.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::cases::reads::LargeFile;

pub(super) const KIB: usize = 1 << 10;
const PAGE: usize = 4 * KIB;
/// Reads at random in one sample.
const READS: usize = 4000;

/// What is read, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    pub(super) name: &'static str,
    /// Bytes of a read.
    pub(super) length: usize,
    pub(super) is_random: bool,
    /// So many bytes of the largest file; else all of all files.
    pub(super) span: Option<u64>,
}

/// Whether the kernel may keep what is read of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Through {
    PageCache,
    Device,
}

/// Files with the bytes of each that are read.
pub(super) struct Reader {
    files: Vec<(File, u64)>,
    pattern: Pattern,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn open(root: &Path, files: &[LargeFile], pattern: Pattern, through: Through) -> Result<Self> {
        let flags = if through == Through::Device { nix::libc::O_DIRECT } else { 0 };
        let open = |file: &LargeFile| {
            let path = root.join(&file.path);
            let opened = File::options().read(true).custom_flags(flags).open(&path);
            Ok((opened.with_context(|| path.display().to_string())?, pattern.span.unwrap_or(file.size)))
        };
        let count = if pattern.span.is_some() { 1 } else { files.len() };
        let opened = files.iter().take(count).map(open).collect::<Result<Vec<_>>>()?;
        ensure!(opened.iter().all(|(_, bytes)| *bytes >= pattern.length as u64), "files are too small");
        ensure!(pattern.span.is_none_or(|span| span <= files[0].size), "the largest file is too small");
        // Direct reads want their memory at a page's boundary.
        Ok(Self { files: opened, pattern, buffer: vec![0; pattern.length + PAGE] })
    }

    /// Reads everything once in order, and once more: what is to be kept of it then is.
    pub(super) fn prepare(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.in_order(&mut |_| Ok(()))?;
        }
        Ok(())
    }

    /// Reads as the pattern says, and records how long each read takes, in nanoseconds. Gives how long all took.
    pub(super) fn read(&mut self, seed: u64, times: &mut Histogram<u64>) -> Result<Duration> {
        let mut record = |took: Duration| Ok(times.record((took.as_nanos() as u64).max(1))?);
        let begun = Instant::now();
        if self.pattern.is_random { self.at_random(seed, &mut record) } else { self.in_order(&mut record) }?;
        Ok(begun.elapsed())
    }

    fn in_order(&mut self, took: &mut dyn FnMut(Duration) -> Result<()>) -> Result<()> {
        for file in 0..self.files.len() {
            let (length, bytes) = (self.pattern.length as u64, self.files[file].1);
            for number in 0..bytes / length {
                took(self.read_at(file, number * length)?)?;
            }
        }
        Ok(())
    }

    fn at_random(&mut self, seed: u64, took: &mut dyn FnMut(Duration) -> Result<()>) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Where a read may begin: at each page, but for those too near the end of a file.
        let begins = |bytes: u64| (bytes - self.pattern.length as u64) / PAGE as u64 + 1;
        let begins: Vec<u64> = self.files.iter().map(|(_, bytes)| begins(*bytes)).collect();
        let all: u64 = begins.iter().sum();
        for _ in 0..READS {
            let mut page = random.random_range(0..all);
            let mut file = 0;
            while page >= begins[file] {
                page -= begins[file];
                file += 1;
            }
            took(self.read_at(file, page * PAGE as u64)?)?;
        }
        Ok(())
    }

    fn read_at(&mut self, file: usize, at: u64) -> Result<Duration> {
        let skipped = self.buffer.as_ptr().align_offset(PAGE);
        let into = &mut self.buffer[skipped..skipped + self.pattern.length];
        let begun = Instant::now();
        self.files[file].0.read_exact_at(into, at)?;
        Ok(begun.elapsed())
    }
}
