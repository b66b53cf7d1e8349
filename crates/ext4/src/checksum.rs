//! crc32c as ext4's metadata_csum uses it: chained, and without the final inversion.

/// The checksum of `bytes` after whatever `seed` already covers.
pub(crate) fn extend(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The seed of everything in a file system but the superblock.
pub(crate) fn file_system_seed(uuid: &[u8; 16]) -> u32 {
    extend(u32::MAX, uuid)
}

/// The seed of what belongs to one inode. Its generation is always 0 here.
pub(crate) fn inode_seed(file_system_seed: u32, inode: u32) -> u32 {
    extend(extend(file_system_seed, &inode.to_le_bytes()), &0_u32.to_le_bytes())
}
