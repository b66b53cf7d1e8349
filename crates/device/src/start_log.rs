//! What starts read, kept for the next one: a [`StartLog`] is recorded from a device, merged with what earlier starts read,
//! written as text, and replayed.
//!
//! Replaying has the kernel read the same pages ahead, in the order in which they were needed, in requests as large as the
//! pages allow: the program then finds them in the page cache and waits neither for a tier nor for its own one page at a
//! time. It is advice: it may be wrong, old or of another image, and then only costs what is read for nothing.
//!
//! `merge` has how starts are merged, `text` how a log is written.

mod merge;
mod text;

pub(crate) use text::HEADER;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use snowmelt_ext4::{Owned, owners};

use crate::loop_device::LoopDevice;
use crate::{Device, Error, file_handle};

/// Metadata that lies nearer than this is read with one request: less than a request costs, and it is likely wanted too.
const GAP: u64 = 16 << 10;
const PAGE: u64 = 4096;
/// Nothing is replayed past so many bytes of metadata, and of files. A log may be anybody's who can write to the store, and a
/// sparse file is as long as it says: reading all of it ahead would fill memory with zeros. A Python that imports pandas reads
/// 70 MB.
const MOST_REPLAYED_BYTES: u64 = 1 << 30;

/// Content of a file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRead {
    /// The file's inode.
    pub inode: u32,
    /// Bytes of the file.
    pub range: Range<u64>,
}

/// A chunk that starts needed, and what they read of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedChunk {
    /// The chunk; its offset in the image is `index * chunk_size`.
    pub index: u64,
    /// How sure it is that the next start needs it: 1 to 4.
    pub weight: u8,
    /// Metadata of the file system: bytes of the device.
    pub metadata: Vec<Range<u64>>,
    /// Content of files, in the order of need.
    pub files: Vec<FileRead>,
}

/// A chunk that was loaded ahead and that nobody needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vain {
    /// The chunk.
    pub index: u64,
    /// At which start, counted from 1.
    pub start: u64,
}

/// What starts read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartLog {
    /// How many starts are merged in it.
    pub starts: u64,
    /// The chunks that were needed, in the order of need.
    pub chunks: Vec<LoggedChunk>,
    /// The chunks that were lately loaded ahead in vain.
    pub vain: Vec<Vain>,
}

impl StartLog {
    /// What was read during the start of a device that holds an ext4 file system. Reads no chunk that was not read.
    pub fn record(device: &Device) -> Self {
        let vain = device.prefetched_in_vain().into_iter().map(|index| Vain { index, start: 1 }).collect();
        let (indices, reads) = device.start_reads();
        let place: HashMap<u64, usize> = indices.iter().copied().zip(0..).collect();
        let mut chunks: Vec<LoggedChunk> = indices.into_iter().map(LoggedChunk::new).collect();
        let reads = within_chunks(in_pages(reads), device.chunk_size());
        let mut read = |offset, buf: &mut [u8]| device.read_at(offset, buf).is_ok();
        let mut parts = owners(&reads, &mut read).into_iter();
        for read in reads {
            // The parts of the reads come in their order.
            let mut at = read.start;
            while at < read.end
                && let Some(part) = parts.next()
            {
                let (Owned::File { range, .. } | Owned::Other { range }) = &part;
                at += (range.end - range.start).max(1);
                // What no chunk was needed for is a hole, or was written by the sandbox itself.
                let Some(chunk) = place.get(&(read.start / device.chunk_size())) else { continue };
                chunks[*chunk].add(part);
            }
        }
        Self { starts: 1, chunks, vain }
    }

    /// The indices of the chunks that were needed, in the order of need.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().map(|chunk| chunk.index)
    }

    /// The log without what was read of these chunks: what is to be replayed. The chunks themselves stay.
    #[must_use]
    pub fn without_pages_of(&self, left_out: &HashSet<u64>) -> Self {
        let chunks = self.chunks.iter().filter(|chunk| !left_out.contains(&chunk.index));
        Self { chunks: chunks.cloned().collect(), vain: Vec::new(), starts: self.starts }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.vain.is_empty()
    }

    /// Has the kernel read the metadata into the block device's page cache. Does not wait for it.
    pub fn replay_metadata(&self, device: &LoopDevice) {
        let mut left = MOST_REPLAYED_BYTES;
        let metadata = self.chunks.iter().flat_map(|chunk| chunk.metadata.iter().cloned()).collect();
        for range in joined(metadata, GAP) {
            read_ahead(device.as_fd(), &range, &mut left);
        }
    }

    /// Has the kernel read the files into the page cache of the file system that is mounted at `mount_point`, until `stop`
    /// says so. Waits for inodes, not for content.
    ///
    /// It must not be called in the process that serves the device: killed in the middle, that would wait for itself.
    ///
    /// # Errors
    /// [`Error::Io`] where `mount_point` cannot be opened. A file that cannot is left out.
    pub fn replay_files(&self, mount_point: &Path, mut stop: impl FnMut() -> bool) -> Result<(), Error> {
        let root = File::open(mount_point).map_err(|error| Error::path("open", mount_point, error))?;
        let mut open: Option<(u32, File)> = None;
        let mut left = MOST_REPLAYED_BYTES;
        for FileRead { inode, range } in self.file_reads() {
            if left == 0 || stop() {
                break;
            }
            if open.as_ref().is_none_or(|(number, _)| *number != inode) {
                open = match file_handle::open(&root, inode) {
                    Ok(file) => Some((inode, file)),
                    Err(error) => {
                        tracing::debug!(inode, %error, "not read ahead");
                        continue;
                    }
                };
            }
            if let Some((_, file)) = &open {
                read_ahead(file.as_fd(), &range, &mut left);
            }
        }
        Ok(())
    }

    /// What a replay does before it asks the kernel. For fuzzing.
    pub(crate) fn fuzz_replay(&self) {
        let mut left = MOST_REPLAYED_BYTES;
        for range in joined(self.chunks.iter().flat_map(|chunk| chunk.metadata.iter().cloned()).collect(), GAP) {
            take(&range, &mut left);
        }
        for FileRead { range, .. } in self.file_reads() {
            take(&range, &mut left);
        }
    }

    /// All that was read of files, neighbours joined also where they lie in two chunks.
    fn file_reads(&self) -> Vec<FileRead> {
        let mut reads: Vec<FileRead> = Vec::new();
        for read in self.chunks.iter().flat_map(|chunk| &chunk.files) {
            push_file(&mut reads, read.clone());
        }
        reads
    }
}

impl LoggedChunk {
    /// A chunk that one start needed.
    fn new(index: u64) -> Self {
        Self { index, weight: merge::FIRST_WEIGHT, ..Self::default() }
    }

    fn add(&mut self, part: Owned) {
        match part {
            Owned::Other { range } => {
                self.metadata.push(range);
                self.metadata = joined(std::mem::take(&mut self.metadata), 0);
            }
            Owned::File { inode, range } => push_file(&mut self.files, FileRead { inode, range }),
        }
    }
}

/// Adds a read; one that continues the last is joined to it.
fn push_file(reads: &mut Vec<FileRead>, read: FileRead) {
    match reads.last_mut() {
        Some(last) if last.inode == read.inode && last.range.end == read.range.start => last.range.end = read.range.end,
        _ => reads.push(read),
    }
}

/// readahead(2), which does not take block devices; of no more bytes than are `left`.
fn read_ahead(file: BorrowedFd<'_>, range: &Range<u64>, left: &mut u64) {
    let Some(length) = take(range, left) else { return };
    if let Err(error) = fadvise(file, range.start, Some(length), Advice::WillNeed) {
        tracing::debug!(%error, "not read ahead");
    }
}

/// How much of a range may be read ahead, taken from what is `left`; `None` for nothing, which the kernel would take for all.
fn take(range: &Range<u64>, left: &mut u64) -> Option<NonZeroU64> {
    let length = (range.end - range.start).min(*left);
    *left -= length;
    NonZeroU64::new(length)
}

/// The pages that the ranges touch; what continues the range before it is joined to it.
fn in_pages(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut pages: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let range = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
        match pages.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => pages.push(range),
        }
    }
    pages
}

/// The ranges, cut where a chunk ends.
fn within_chunks(ranges: Vec<Range<u64>>, chunk_size: u64) -> Vec<Range<u64>> {
    let mut cut = Vec::with_capacity(ranges.len());
    for mut range in ranges {
        while !range.is_empty() {
            let end = range.end.min((range.start / chunk_size + 1) * chunk_size);
            cut.push(range.start..end);
            range.start = end;
        }
    }
    cut
}

/// In ascending order, what overlaps or is at most `gap` apart joined.
fn joined(mut ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
