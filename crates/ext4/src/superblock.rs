//! The superblock and the group descriptors.

use crate::geometry::{BLOCKS_PER_GROUP, DESCRIPTOR_SIZE, FIRST_INODE, Geometry, INODE_SIZE};
use crate::inode::EXTRA_SIZE;
use crate::le::{put_u16, put_u32};
use crate::{Options, checksum};

/// ext_attr, dir_index, sparse_super2 (with no backup superblock at all: an image is never repaired).
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// filetype, extents, 64bit, flex_bg.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// Free blocks and inodes of the whole file system.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FreeCounts {
    pub(crate) blocks: u64,
    pub(crate) inodes: u64,
}

/// The 1024 bytes at offset 1024.
pub(crate) fn encode(geometry: &Geometry, free: FreeCounts, options: &Options) -> [u8; 1024] {
    let mut sb = [0; 1024];
    let inodes = geometry.groups * geometry.inodes_per_group;
    put_u32(&mut sb, 0x00, inodes as u32);
    put_u32(&mut sb, 0x04, geometry.total_blocks as u32);
    put_u32(&mut sb, 0x0c, free.blocks as u32);
    put_u32(&mut sb, 0x10, free.inodes as u32);
    put_u32(&mut sb, 0x18, 2); // blocks of 1024 << 2 bytes
    put_u32(&mut sb, 0x1c, 2);
    put_u32(&mut sb, 0x20, BLOCKS_PER_GROUP as u32);
    put_u32(&mut sb, 0x24, BLOCKS_PER_GROUP as u32);
    put_u32(&mut sb, 0x28, geometry.inodes_per_group as u32);
    put_u16(&mut sb, 0x36, u16::MAX); // never ask for a check by mount count
    put_u16(&mut sb, 0x38, 0xef53);
    put_u16(&mut sb, 0x3a, 1); // clean
    put_u16(&mut sb, 0x3c, 2); // on errors: remount read-only
    put_u32(&mut sb, 0x4c, 1); // dynamic revision
    put_u32(&mut sb, 0x54, FIRST_INODE);
    put_u16(&mut sb, 0x58, INODE_SIZE as u16);
    put_u32(&mut sb, 0x5c, COMPATIBLE);
    put_u32(&mut sb, 0x60, INCOMPATIBLE);
    put_u32(&mut sb, 0x64, READ_ONLY_COMPATIBLE);
    sb[0x68..0x78].copy_from_slice(&options.uuid);
    sb[0x78..0x80].copy_from_slice(b"snowmelt");
    sb[0xec..0xfc].copy_from_slice(&options.hash_seed);
    sb[0xfc] = 1; // half MD4
    put_u16(&mut sb, 0xfe, DESCRIPTOR_SIZE as u16);
    put_u32(&mut sb, 0x100, 0x4 | 0x8); // mount with user attributes and access control lists
    put_u32(&mut sb, 0x150, (geometry.total_blocks >> 32) as u32);
    put_u32(&mut sb, 0x158, (free.blocks >> 32) as u32);
    put_u16(&mut sb, 0x15c, EXTRA_SIZE);
    put_u16(&mut sb, 0x15e, EXTRA_SIZE);
    put_u32(&mut sb, 0x160, 2); // names are hashed as unsigned characters
    // One flex group over all groups, since all metadata lies together.
    sb[0x174] = geometry.groups.next_power_of_two().trailing_zeros().max(4) as u8;
    sb[0x175] = 1; // crc32c
    let checksum = checksum::extend(u32::MAX, &sb[..0x3fc]);
    put_u32(&mut sb, 0x3fc, checksum);
    sb
}

/// What a group's descriptor says beyond its places.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GroupUse {
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u64,
    pub(crate) directories: u64,
    /// `None`: no block of the group is in use, its bitmap is not written and reads as free.
    pub(crate) block_bitmap_checksum: Option<u32>,
    /// `None`: no inode of the group is in use.
    pub(crate) inode_bitmap_checksum: Option<u32>,
}

pub(crate) fn encode_descriptor(
    geometry: &Geometry,
    group: u64,
    usage: &GroupUse,
    file_system_seed: u32,
) -> [u8; DESCRIPTOR_SIZE] {
    const INODES_UNUSED: u16 = 1;
    const BLOCKS_UNUSED: u16 = 2;
    const TABLE_ZEROED: u16 = 4;
    let mut bytes = [0; DESCRIPTOR_SIZE];
    let mut split_u32 = |low: usize, high: usize, value: u64| {
        put_u32(&mut bytes, low, value as u32);
        put_u32(&mut bytes, high, (value >> 32) as u32);
    };
    split_u32(0x00, 0x20, geometry.block_bitmaps + group);
    split_u32(0x04, 0x24, geometry.inode_bitmaps + group);
    split_u32(0x08, 0x28, geometry.inode_table(group));
    let mut split_u16 = |low: usize, high: usize, value: u64| {
        put_u16(&mut bytes, low, value as u16);
        put_u16(&mut bytes, high, (value >> 16) as u16);
    };
    split_u16(0x0c, 0x2c, usage.free_blocks);
    split_u16(0x0e, 0x2e, usage.free_inodes);
    split_u16(0x10, 0x30, usage.directories);
    split_u16(0x18, 0x38, u64::from(usage.block_bitmap_checksum.unwrap_or(0)));
    split_u16(0x1a, 0x3a, u64::from(usage.inode_bitmap_checksum.unwrap_or(0)));
    split_u16(0x1c, 0x32, geometry.inodes_per_group - geometry.used_inodes_in(group));
    let mut flags = TABLE_ZEROED;
    if usage.inode_bitmap_checksum.is_none() {
        flags |= INODES_UNUSED;
    }
    if usage.block_bitmap_checksum.is_none() {
        flags |= BLOCKS_UNUSED;
    }
    put_u16(&mut bytes, 0x12, flags);
    let seed = checksum::extend(file_system_seed, &(group as u32).to_le_bytes());
    let checksum = checksum::extend(seed, &bytes);
    put_u16(&mut bytes, 0x1e, checksum as u16);
    bytes
}
