//! Where the parts of the file system lie: groups, bitmaps, inode tables.

use crate::{BLOCK_SIZE, Error};

pub(crate) const BLOCKS_PER_GROUP: u64 = 8 * BLOCK_SIZE;
pub(crate) const INODE_SIZE: usize = 256;
pub(crate) const INODES_PER_BLOCK: u64 = BLOCK_SIZE / INODE_SIZE as u64;
pub(crate) const DESCRIPTOR_SIZE: usize = 64;
const DESCRIPTORS_PER_BLOCK: u64 = BLOCK_SIZE / DESCRIPTOR_SIZE as u64;
/// Inodes 1 to 10 are reserved; 2 is the root directory.
pub(crate) const FIRST_INODE: u32 = 11;
pub(crate) const ROOT_INODE: u32 = 2;
/// mke2fs makes one inode per 16 KiB by default; guests get the same for their free space.
const BYTES_PER_FREE_INODE: u64 = 16 << 10;
/// 32-bit block numbers in extents' 48 bits are plenty: 16 TiB is the format's limit for images.
const MAX_BLOCKS: u64 = 1 << 32;

/// Positions and counts of everything before the data region, in blocks.
///
/// All groups' bitmaps and inode tables lie together at the front (flex_bg with one flex group), so that what a mount
/// reads is contiguous, and so that the tables' unused parts are one hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) groups: u64,
    pub(crate) inodes_per_group: u64,
    /// Inodes in use, the reserved ones included.
    pub(crate) used_inodes: u64,
    pub(crate) descriptor_blocks: u64,
    pub(crate) block_bitmaps: u64,
    pub(crate) inode_bitmaps: u64,
    pub(crate) inode_tables: u64,
    /// Directories, symlinks, attribute blocks and extent trees.
    pub(crate) tree_blocks_start: u64,
    pub(crate) tree_blocks: u64,
    pub(crate) data_start: u64,
    pub(crate) data_blocks: u64,
    pub(crate) total_blocks: u64,
}

pub(crate) struct Needs {
    pub(crate) nodes: u64,
    pub(crate) tree_blocks: u64,
    pub(crate) data_blocks: u64,
    pub(crate) free_bytes: u64,
    pub(crate) data_alignment: u64,
}

impl Geometry {
    pub(crate) fn new(needs: &Needs) -> Result<Self, Error> {
        let alignment = needs.data_alignment;
        if alignment == 0 || !alignment.is_multiple_of(BLOCK_SIZE) || alignment > 1 << 30 {
            return Err(Error::BadImage(format!(
                "a data alignment of {alignment} bytes: a multiple of 4096 up to 1 GiB"
            )));
        }
        let too_large = || Error::BadImage("the image would exceed 16 TiB, the limit of ext4 with 4 KiB blocks".into());
        if needs.data_blocks > MAX_BLOCKS || needs.free_bytes > MAX_BLOCKS * BLOCK_SIZE {
            return Err(too_large());
        }
        let used_inodes = u64::from(FIRST_INODE) - 1 + needs.nodes - 1;
        let inodes = used_inodes + needs.free_bytes / BYTES_PER_FREE_INODE;
        // More groups need more descriptors and bitmaps, which may need one more group: grow until it holds itself.
        let mut groups = 1;
        loop {
            let geometry = Self::with_groups(groups, inodes, used_inodes, needs);
            if geometry.total_blocks > MAX_BLOCKS || inodes > u64::from(u32::MAX) {
                return Err(too_large());
            }
            let by_blocks = geometry.total_blocks.div_ceil(BLOCKS_PER_GROUP);
            let by_inodes = inodes.div_ceil(BLOCKS_PER_GROUP);
            if by_blocks == groups && geometry.inodes_per_group <= BLOCKS_PER_GROUP {
                return Ok(geometry);
            }
            // With more inodes than the groups' bitmaps can hold, the image grows free blocks until they can.
            if by_blocks <= groups && geometry.inodes_per_group <= BLOCKS_PER_GROUP {
                return Ok(geometry.grown_to(groups));
            }
            groups = by_blocks.max(by_inodes).max(groups + 1);
        }
    }

    fn with_groups(groups: u64, inodes: u64, used_inodes: u64, needs: &Needs) -> Self {
        let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let block_bitmaps = 1 + descriptor_blocks;
        let inode_bitmaps = block_bitmaps + groups;
        let inode_tables = inode_bitmaps + groups;
        let tree_blocks_start = inode_tables + groups * inodes_per_group / INODES_PER_BLOCK;
        let data_start = (tree_blocks_start + needs.tree_blocks).next_multiple_of(needs.data_alignment / BLOCK_SIZE);
        let total_blocks = data_start + needs.data_blocks + needs.free_bytes.div_ceil(BLOCK_SIZE);
        Self {
            groups,
            inodes_per_group,
            used_inodes,
            descriptor_blocks,
            block_bitmaps,
            inode_bitmaps,
            inode_tables,
            tree_blocks_start,
            tree_blocks: needs.tree_blocks,
            data_start,
            data_blocks: needs.data_blocks,
            total_blocks,
        }
    }

    /// Adds free blocks so that the last of `groups` has some.
    fn grown_to(mut self, groups: u64) -> Self {
        self.total_blocks = self.total_blocks.max((groups - 1) * BLOCKS_PER_GROUP + 64);
        self
    }

    pub(crate) fn inode_table(&self, group: u64) -> u64 {
        self.inode_tables + group * self.inodes_per_group / INODES_PER_BLOCK
    }

    /// How many inodes of the group are in use; they are always its first ones.
    pub(crate) fn used_inodes_in(&self, group: u64) -> u64 {
        self.used_inodes.saturating_sub(group * self.inodes_per_group).min(self.inodes_per_group)
    }

    /// How many blocks the group has: all but the last have [`BLOCKS_PER_GROUP`].
    pub(crate) fn blocks_in(&self, group: u64) -> u64 {
        (self.total_blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }
}

/// The inode number of a node.
pub(crate) fn inode_number(node: usize) -> u32 {
    if node == 0 { ROOT_INODE } else { FIRST_INODE + node as u32 - 1 }
}

/// The node of an inode; `None` for the reserved ones.
pub(crate) fn node_of(inode: u32) -> Option<usize> {
    match inode {
        ROOT_INODE => Some(0),
        FIRST_INODE.. => Some((inode - FIRST_INODE) as usize + 1),
        _ => None,
    }
}
