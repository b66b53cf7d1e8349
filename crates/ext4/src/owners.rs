//! Finds out whose blocks were read: which ranges of a device are content of which files.
//!
//! A kernel that reads a file has read the file's inode before. So of all inode tables only the blocks among the ranges
//! themselves need be looked at: nothing is read that was not read already. Extent trees are followed into such blocks only,
//! for the same reason.
//!
//! The image may be anybody's: whatever its bytes are, the answer is bounded by the ranges that were asked for.

use std::ops::Range;

use crate::le::{get_u16, get_u32};
use crate::{BLOCK, BLOCK_SIZE};

/// Reads bytes of the device from an offset on; false where that fails.
pub type ReadDevice<'a> = dyn FnMut(u64, &mut [u8]) -> bool + 'a;

/// A part of a range that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owned {
    /// Content of a regular file.
    File {
        /// The file's inode.
        inode: u32,
        /// Bytes within the file; whole blocks, so the last may reach past its end.
        range: Range<u64>,
    },
    /// Anything else: metadata, or of a file whose inode is not among the ranges.
    Other {
        /// Bytes of the device.
        range: Range<u64>,
    },
}

const MAGIC: u16 = 0xef53;
const EXTENT_MAGIC: u16 = 0xf30a;
const REGULAR: u16 = 0x8000;
const USES_EXTENTS: u32 = 0x8_0000;
const INCOMPATIBLE_64BIT: u32 = 0x80;
/// What an image of 4 TiB has; their descriptors are 2 MiB.
const MOST_GROUPS: u64 = 32768;
/// The kernel's limit (`EXT4_MAX_EXTENT_DEPTH`).
const DEEPEST_TREE: u16 = 5;

/// Says for every byte of `ranges`, in their order, whose it is. Ranges must be whole blocks of 4096 bytes; all of them are
/// [`Owned::Other`] where the device holds no ext4 file system with such blocks.
pub fn owners(ranges: &[Range<u64>], read: &mut ReadDevice<'_>) -> Vec<Owned> {
    let extents = Layout::read(read).map_or_else(Vec::new, |layout| file_extents(&layout, ranges, read));
    let mut owned = Vec::with_capacity(ranges.len());
    for range in ranges {
        split(range.clone(), &extents, &mut owned);
    }
    owned
}

/// Where the inodes are.
struct Layout {
    inodes_per_group: u64,
    inode_size: usize,
    /// First block of each group's inode table, with the group; ascending.
    tables: Vec<(u64, u64)>,
}

impl Layout {
    fn read(read: &mut ReadDevice<'_>) -> Option<Self> {
        let mut sb = [0; 1024];
        if !read(1024, &mut sb) || get_u16(&sb, 0x38) != MAGIC || get_u32(&sb, 0x18) != 2 {
            return None;
        }
        let inode_size = usize::from(get_u16(&sb, 0x58));
        let (blocks_per_group, inodes_per_group) = (u64::from(get_u32(&sb, 0x20)), u64::from(get_u32(&sb, 0x28)));
        let is_64bit = get_u32(&sb, 0x60) & INCOMPATIBLE_64BIT != 0;
        let descriptor_size = if is_64bit { usize::from(get_u16(&sb, 0xfe)) } else { 32 };
        let high = if is_64bit { u64::from(get_u32(&sb, 0x150)) << 32 } else { 0 };
        let blocks = u64::from(get_u32(&sb, 0x04)) | high;
        let plausible = inode_size.is_power_of_two()
            && (128..=BLOCK).contains(&inode_size)
            && blocks_per_group != 0
            && inodes_per_group != 0
            && (32..=1024).contains(&descriptor_size)
            && (!is_64bit || descriptor_size >= 64);
        let groups = plausible.then(|| blocks.div_ceil(blocks_per_group)).filter(|groups| *groups <= MOST_GROUPS)?;
        let mut descriptors = vec![0; groups as usize * descriptor_size];
        if !read(BLOCK_SIZE, &mut descriptors) {
            return None;
        }
        let table = |descriptor: &[u8]| {
            let high = if is_64bit { u64::from(get_u32(descriptor, 0x28)) << 32 } else { 0 };
            u64::from(get_u32(descriptor, 0x08)) | high
        };
        let mut tables: Vec<(u64, u64)> = descriptors.chunks_exact(descriptor_size).map(table).zip(0..).collect();
        tables.sort_unstable();
        Some(Self { inodes_per_group, inode_size, tables })
    }

    /// The number of the first inode in a block; `None` if the block is of no inode table.
    fn first_inode(&self, block: u64) -> Option<u64> {
        let after = self.tables.partition_point(|(start, _)| *start <= block);
        let (start, group) = self.tables.get(after.checked_sub(1)?)?;
        let index = (block - start) * (BLOCK / self.inode_size) as u64;
        (index < self.inodes_per_group).then(|| group * self.inodes_per_group + index + 1)
    }
}

/// A run of blocks of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FileExtent {
    in_image: u64,
    blocks: u64,
    in_file: u64,
    inode: u32,
}

/// The extents of all files whose inodes are in the ranges, by their place in the image.
fn file_extents(layout: &Layout, ranges: &[Range<u64>], read: &mut ReadDevice<'_>) -> Vec<FileExtent> {
    let asked = union(ranges);
    let within = |block: u64| {
        let after = asked.partition_point(|range| range.start <= block * BLOCK_SIZE);
        after.checked_sub(1).is_some_and(|at| block * BLOCK_SIZE < asked[at].end)
    };
    let mut found = Vec::new();
    let mut block = [0; BLOCK];
    for number in asked.iter().flat_map(|range| range.start / BLOCK_SIZE..range.end / BLOCK_SIZE) {
        let Some(first) = layout.first_inode(number) else { continue };
        if !read(number * BLOCK_SIZE, &mut block) {
            continue;
        }
        for (inode, bytes) in (first..).zip(block.chunks_exact(layout.inode_size)) {
            let Ok(inode) = u32::try_from(inode) else { continue };
            if get_u16(bytes, 0) & 0xf000 == REGULAR && get_u32(bytes, 0x20) & USES_EXTENTS != 0 {
                let mut walk = Walk { inode, within: &within, found: &mut found, left: MOST_TREE_BLOCKS };
                walk.node(&bytes[0x28..0x28 + 60], DEEPEST_TREE, read);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The same bytes as disjoint ranges in ascending order.
fn union(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut union: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}

/// More blocks of one file's extent tree than this are not looked at: they map over 40 GiB even in pieces of 128 KiB.
const MOST_TREE_BLOCKS: u32 = 1024;

struct Walk<'a> {
    inode: u32,
    within: &'a dyn Fn(u64) -> bool,
    found: &'a mut Vec<FileExtent>,
    left: u32,
}

impl Walk<'_> {
    fn node(&mut self, node: &[u8], deepest: u16, read: &mut ReadDevice<'_>) {
        let depth = get_u16(node, 6);
        if get_u16(node, 0) != EXTENT_MAGIC || depth > deepest {
            return;
        }
        for entry in node[12..].chunks_exact(12).take(usize::from(get_u16(node, 2))) {
            if depth == 0 {
                let in_image = u64::from(get_u16(entry, 6)) << 32 | u64::from(get_u32(entry, 8));
                // Above 32768 it is allocated and not written: its blocks are not read.
                let blocks = u64::from(get_u16(entry, 4));
                if (1..=32768).contains(&blocks) {
                    let in_file = u64::from(get_u32(entry, 0));
                    self.found.push(FileExtent { in_image, blocks, in_file, inode: self.inode });
                }
                continue;
            }
            let child = u64::from(get_u16(entry, 8)) << 32 | u64::from(get_u32(entry, 4));
            let mut block = [0; BLOCK];
            if self.left > 0 && (self.within)(child) && read(child * BLOCK_SIZE, &mut block) {
                self.left -= 1;
                self.node(&block, depth - 1, read);
            }
        }
    }
}

/// Cuts a range where its owner changes.
fn split(range: Range<u64>, extents: &[FileExtent], owned: &mut Vec<Owned>) {
    let (mut block, end) = (range.start / BLOCK_SIZE, range.end / BLOCK_SIZE);
    while block < end {
        let after = extents.partition_point(|extent| extent.in_image <= block);
        let here = after.checked_sub(1).map(|at| extents[at]).filter(|extent| block < extent.in_image + extent.blocks);
        let until = match here {
            Some(extent) => extent.in_image + extent.blocks,
            None => extents.get(after).map_or(u64::MAX, |extent| extent.in_image),
        };
        // What an extent begins to cover in the middle of another, in a damaged file system, is the later one's.
        let until = until.min(extents.get(after).map_or(u64::MAX, |extent| extent.in_image)).min(end);
        owned.push(match here {
            Some(extent) => {
                let start = (extent.in_file + (block - extent.in_image)) * BLOCK_SIZE;
                Owned::File { inode: extent.inode, range: start..start + (until - block) * BLOCK_SIZE }
            }
            None => Owned::Other { range: block * BLOCK_SIZE..until * BLOCK_SIZE },
        });
        block = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_file_system_belongs_to_nobody() {
        let range = 8192..16384;
        let mut reads = |_: u64, buf: &mut [u8]| {
            buf.fill(0);
            true
        };
        assert_eq!(owners(std::slice::from_ref(&range), &mut reads), [Owned::Other { range: range.clone() }]);
        let mut fails = |_: u64, _: &mut [u8]| false;
        assert_eq!(owners(std::slice::from_ref(&range), &mut fails), [Owned::Other { range }]);
    }

    #[test]
    fn ranges_are_cut_where_the_owner_changes() {
        let extent = |in_image, blocks, in_file, inode| FileExtent { in_image, blocks, in_file, inode };
        let extents = [extent(10, 5, 0, 12), extent(15, 5, 7, 12), extent(30, 1, 0, 13)];
        let mut owned = Vec::new();
        split(8 * BLOCK_SIZE..31 * BLOCK_SIZE, &extents, &mut owned);
        let bytes = |blocks: Range<u64>| blocks.start * BLOCK_SIZE..blocks.end * BLOCK_SIZE;
        assert_eq!(
            owned,
            [
                Owned::Other { range: bytes(8..10) },
                Owned::File { inode: 12, range: bytes(0..5) },
                Owned::File { inode: 12, range: bytes(7..12) },
                Owned::Other { range: bytes(20..30) },
                Owned::File { inode: 13, range: bytes(0..1) },
            ]
        );
    }
}
