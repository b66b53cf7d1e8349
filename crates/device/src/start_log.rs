//! What a start read, kept for the next one: a [`StartLog`] is recorded from a device, written as text, and replayed.
//!
//! Replaying has the kernel read the same pages ahead, in the order in which they were needed, in requests as large as the
//! pages allow: the program then finds them in the page cache and waits neither for a tier nor for its own one page at a
//! time. It is advice: it may be wrong, old or of another image, and then only costs what is read for nothing.
//!
//! ```text
//! snowmelt start log 1
//! chunk INDEX                    a chunk that was needed, in the order of need
//! device OFFSET LENGTH           metadata: bytes of the device
//! file INODE OFFSET LENGTH       content: bytes of a file
//! ```

use std::fmt::Write as _;
use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use snowmelt_ext4::{Owned, owners};

use crate::loop_device::LoopDevice;
use crate::{Device, Error, file_handle};

const HEADER: &str = "snowmelt start log 1";
/// Metadata that lies nearer than this is read with one request: less than a request costs, and it is likely wanted too.
const GAP: u64 = 16 << 10;
const PAGE: u64 = 4096;
/// A log of more lines than this is not ours.
const MOST_LINES: usize = 100_000;
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

/// What a start read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartLog {
    /// The chunks that were needed, in the order of need.
    pub chunks: Vec<u64>,
    /// Metadata of the file system: bytes of the device, in ascending order.
    pub device: Vec<Range<u64>>,
    /// Content of files, in the order of need.
    pub files: Vec<FileRead>,
}

impl StartLog {
    /// What was read of a device that holds an ext4 file system, since it was made. Reads no chunk that was not read.
    pub fn record(device: &Device) -> Self {
        let chunks = device.access_log().iter().map(|access| access.index).collect();
        let reads: Vec<Range<u64>> = in_pages(device.start_reads());
        let mut read = |offset, buf: &mut [u8]| device.read_at(offset, buf).is_ok();
        let (mut metadata, mut files) = (Vec::new(), Vec::<FileRead>::new());
        for owned in owners(&reads, &mut read) {
            match owned {
                Owned::Other { range } => metadata.push(range),
                Owned::File { inode, range } => match files.last_mut() {
                    Some(last) if last.inode == inode && last.range.end == range.start => last.range.end = range.end,
                    _ => files.push(FileRead { inode, range }),
                },
            }
        }
        Self { chunks, device: joined(metadata, GAP), files }
    }

    /// What two starts have in common, in this one's order.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let both = |a: &Range<u64>, b: &Range<u64>| a.start.max(b.start)..a.end.min(b.end);
        let files = self.files.iter().flat_map(|read| {
            let others = other.files.iter().filter(|other| other.inode == read.inode);
            others.map(|other| FileRead { inode: read.inode, range: both(&read.range, &other.range) })
        });
        let device = self.device.iter().flat_map(|range| other.device.iter().map(|other| both(range, other)));
        Self {
            chunks: self.chunks.iter().copied().filter(|chunk| other.chunks.contains(chunk)).collect(),
            device: device.filter(|range| !range.is_empty()).collect(),
            files: files.filter(|read| !read.range.is_empty()).collect(),
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.device.is_empty() && self.files.is_empty()
    }

    /// As text.
    pub fn encode(&self) -> String {
        let mut text = format!("{HEADER}\n");
        // Writing to a string does not fail.
        for chunk in &self.chunks {
            let _ = writeln!(text, "chunk {chunk}");
        }
        for range in &self.device {
            let _ = writeln!(text, "device {} {}", range.start, range.end - range.start);
        }
        for FileRead { inode, range } in &self.files {
            let _ = writeln!(text, "file {inode} {} {}", range.start, range.end - range.start);
        }
        text
    }

    /// From text; `None` if it is not all such a log.
    pub fn decode(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEADER {
            return None;
        }
        let mut log = Self::default();
        for (at, line) in lines.enumerate() {
            let mut words = line.split(' ');
            let kind = words.next()?;
            let mut number = || words.next()?.parse::<u64>().ok();
            match kind {
                _ if at >= MOST_LINES => return None,
                "chunk" => log.chunks.push(number()?),
                "device" => log.device.push(range(number()?, number()?)?),
                "file" => {
                    let inode = u32::try_from(number()?).ok()?;
                    log.files.push(FileRead { inode, range: range(number()?, number()?)? });
                }
                _ => return None,
            }
            if words.next().is_some() {
                return None;
            }
        }
        Some(log)
    }

    /// Has the kernel read the metadata into the block device's page cache. Does not wait for it.
    pub fn replay_metadata(&self, device: &LoopDevice) {
        let mut left = MOST_REPLAYED_BYTES;
        for range in &self.device {
            read_ahead(device.as_fd(), range, &mut left);
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
        for FileRead { inode, range } in &self.files {
            if left == 0 || stop() {
                break;
            }
            if open.as_ref().is_none_or(|(number, _)| number != inode) {
                open = match file_handle::open(&root, *inode) {
                    Ok(file) => Some((*inode, file)),
                    Err(error) => {
                        tracing::debug!(inode, %error, "not read ahead");
                        continue;
                    }
                };
            }
            if let Some((_, file)) = &open {
                read_ahead(file.as_fd(), range, &mut left);
            }
        }
        Ok(())
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

fn range(start: u64, length: u64) -> Option<Range<u64>> {
    // What the kernel takes for offsets is signed.
    let end = start.checked_add(length).filter(|end| i64::try_from(*end).is_ok())?;
    (length > 0).then_some(start..end)
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

/// In ascending order, what overlaps or is less than `gap` apart joined.
fn joined(mut ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + gap => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
