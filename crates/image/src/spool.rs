//! Holds the contents of regular files while an image is made: packed one behind the other in an unlinked temporary
//! file, so that memory does not grow with file sizes and nothing is left behind, however the process ends.
//!
//! What is stored of a file depends on its content alone: runs of zeros become holes by one rule, whether the source
//! called them sparse or wrote them out. That makes the digest, and with it the layout, the same for every source.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use snowmelt_ext4::{BLOCK_SIZE, Segment};

const BLOCK: usize = BLOCK_SIZE as usize;
/// Zero blocks in a row that become a hole: 64 KiB. Shorter runs would buy little and cost an extent each. Changing it
/// changes images.
const MIN_HOLE_BLOCKS: u64 = 16;
const WRITE_BUFFER_BYTES: usize = 256 << 10;
static ZEROS: [u8; MIN_HOLE_BLOCKS as usize * BLOCK] = [0; MIN_HOLE_BLOCKS as usize * BLOCK];

/// A file's content in a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Which spool, by its number in the image.
    pub(crate) spool: u32,
    /// Where the first stored byte lies in the spool.
    pub(crate) offset: u64,
    /// Size of the file in bytes.
    pub(crate) size: u64,
    pub(crate) ranges: Box<[StoredRange]>,
    /// BLAKE3 over size, ranges and stored bytes: equal for equal contents.
    pub(crate) digest: [u8; 32],
}

/// Allocated blocks of a file, and where they are in its stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredRange {
    pub(crate) first_block: u64,
    pub(crate) blocks: u64,
    /// Blocks stored before this range.
    pub(crate) stored_before: u64,
}

impl Content {
    pub(crate) fn segments(&self) -> Vec<Segment> {
        self.ranges.iter().map(|range| Segment { first_block: range.first_block, blocks: range.blocks }).collect()
    }

    pub(crate) fn allocated_blocks(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.stored_before + range.blocks)
    }

    /// Bytes that are not holes; the last block counts up to the end of the file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let Some(last) = self.ranges.last() else {
            return 0;
        };
        let beyond = ((last.first_block + last.blocks) * BLOCK_SIZE).saturating_sub(self.size);
        self.allocated_blocks() * BLOCK_SIZE - beyond
    }

    /// Fills `buffer` with the file's bytes at `offset`; holes and what lies behind the end read as zeros.
    pub(crate) fn read_at(&self, spools: &[Spool], mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let spool = &spools[self.spool as usize].file;
        while !buffer.is_empty() {
            let block = offset / BLOCK_SIZE;
            let index = self.ranges.partition_point(|range| range.first_block + range.blocks <= block);
            let range = self.ranges.get(index);
            let in_range = range.filter(|range| range.first_block <= block && offset < self.size);
            let (end, source) = match (in_range, range) {
                (Some(range), _) => {
                    let start = range.first_block * BLOCK_SIZE;
                    let end = ((range.first_block + range.blocks) * BLOCK_SIZE).min(self.size);
                    (end, Some(self.offset + range.stored_before * BLOCK_SIZE + offset - start))
                }
                (None, Some(range)) if offset < self.size => (range.first_block * BLOCK_SIZE, None),
                (None, _) => (u64::MAX, None),
            };
            let count = usize::try_from(end - offset).map_or(buffer.len(), |count| count.min(buffer.len()));
            let (part, rest) = buffer.split_at_mut(count);
            match source {
                Some(source) => spool.read_exact_at(part, source)?,
                None => part.fill(0),
            }
            buffer = rest;
            offset += count as u64;
        }
        Ok(())
    }
}

/// A finished spool file. Reads may come from any thread.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
}

/// A spool that contents are added to.
pub(crate) struct SpoolWriter {
    file: File,
    number: u32,
    buffer: Vec<u8>,
    length: u64,
}

impl SpoolWriter {
    /// Makes an unlinked file in `directory`.
    pub(crate) fn create(directory: &Path, number: u32) -> io::Result<SpoolWriter> {
        let file = tempfile::tempfile_in(directory)?;
        Ok(SpoolWriter { file, number, buffer: Vec::with_capacity(WRITE_BUFFER_BYTES), length: 0 })
    }

    /// Starts a file's content; one at a time.
    pub(crate) fn content(&mut self) -> ContentWriter<'_> {
        let offset = self.length;
        ContentWriter {
            spool: self,
            offset,
            hasher: blake3::Hasher::new(),
            partial: Vec::new(),
            next_block: 0,
            zero_blocks: 0,
            ranges: Vec::new(),
            stored_blocks: 0,
            size: 0,
        }
    }

    pub(crate) fn finish(mut self) -> io::Result<Spool> {
        self.file.write_all(&self.buffer)?;
        Ok(Spool { file: self.file })
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        if self.buffer.len() + bytes.len() > WRITE_BUFFER_BYTES {
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        if bytes.len() >= WRITE_BUFFER_BYTES / 4 && self.buffer.is_empty() {
            return self.file.write_all(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

/// Takes a file's bytes in order and stores the blocks that are not holes.
pub(crate) struct ContentWriter<'a> {
    spool: &'a mut SpoolWriter,
    offset: u64,
    hasher: blake3::Hasher,
    /// The beginning of a block whose rest has not come yet.
    partial: Vec<u8>,
    /// The block that follows all stored ones and the zero blocks below.
    next_block: u64,
    /// Zero blocks before `next_block` of which it is not decided yet whether they are a hole.
    zero_blocks: u64,
    ranges: Vec<StoredRange>,
    stored_blocks: u64,
    size: u64,
}

impl ContentWriter<'_> {
    pub(crate) fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        self.size += data.len() as u64;
        if !self.partial.is_empty() {
            let count = data.len().min(BLOCK - self.partial.len());
            self.partial.extend_from_slice(&data[..count]);
            data = &data[count..];
            if self.partial.len() < BLOCK {
                return Ok(());
            }
            let block = std::mem::take(&mut self.partial);
            self.whole_blocks(&block)?;
            self.partial = block;
            self.partial.clear();
        }
        let whole = data.len() - data.len() % BLOCK;
        self.whole_blocks(&data[..whole])?;
        self.partial.extend_from_slice(&data[whole..]);
        Ok(())
    }

    /// As writing so many zeros, in time that does not depend on their number.
    pub(crate) fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        if !self.partial.is_empty() {
            let fill = count.min((BLOCK - self.partial.len()) as u64);
            self.write(&ZEROS[..fill as usize])?;
            count -= fill;
        }
        let blocks = count / BLOCK_SIZE;
        self.zero_blocks += blocks;
        self.next_block += blocks;
        self.size += blocks * BLOCK_SIZE;
        self.write(&ZEROS[..(count % BLOCK_SIZE) as usize])
    }

    pub(crate) fn finish(mut self) -> io::Result<Content> {
        let last = std::mem::take(&mut self.partial);
        if !last.is_empty() {
            if is_zero(&last) && self.zero_blocks + 1 >= MIN_HOLE_BLOCKS {
                self.zero_blocks += 1;
            } else {
                self.store(&last)?;
            }
        }
        if self.zero_blocks > 0 && self.zero_blocks < MIN_HOLE_BLOCKS {
            self.store(&[])?;
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&self.size.to_le_bytes());
        for range in &self.ranges {
            digest.update(&range.first_block.to_le_bytes()).update(&range.blocks.to_le_bytes());
        }
        digest.update(self.hasher.finalize().as_bytes());
        Ok(Content {
            spool: self.spool.number,
            offset: self.offset,
            size: self.size,
            ranges: self.ranges.into_boxed_slice(),
            digest: *digest.finalize().as_bytes(),
        })
    }

    /// `data` is a multiple of the block size.
    fn whole_blocks(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let used = data.chunks_exact(BLOCK).take_while(|block| !is_zero(block)).count() * BLOCK;
            if used > 0 {
                self.store(&data[..used])?;
                data = &data[used..];
            } else {
                self.zero_blocks += 1;
                self.next_block += 1;
                data = &data[BLOCK..];
            }
        }
        Ok(())
    }

    /// Stores blocks at `next_block`, of which only the file's last may be short, and the short run of zeros before
    /// them; a long run ends the range instead.
    fn store(&mut self, data: &[u8]) -> io::Result<()> {
        let zeros = std::mem::take(&mut self.zero_blocks);
        let is_hole = zeros >= MIN_HOLE_BLOCKS;
        let blocks = data.len().div_ceil(BLOCK) as u64 + if is_hole { 0 } else { zeros };
        if !is_hole && zeros > 0 {
            let filler = &ZEROS[..zeros as usize * BLOCK];
            self.hasher.update(filler);
            self.spool.append(filler)?;
        }
        let first_block = self.next_block - if is_hole { 0 } else { zeros };
        match self.ranges.last_mut() {
            Some(range) if range.first_block + range.blocks == first_block => range.blocks += blocks,
            _ => self.ranges.push(StoredRange { first_block, blocks, stored_before: self.stored_blocks }),
        }
        self.stored_blocks += blocks;
        self.next_block += data.len().div_ceil(BLOCK) as u64;
        self.hasher.update(data);
        self.spool.append(data)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Blocks of text differ at once; only long runs of zeros are looked at to the end.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}
