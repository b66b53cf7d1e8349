//! Inodes: 256 bytes each.

use crate::geometry::INODE_SIZE;
use crate::le::{put_u16, put_u32};
use crate::xattr::Attributes;
use crate::{Kind, Node, Timestamp, checksum};

const FLAG_INDEX: u32 = 0x1000;
const FLAG_EXTENTS: u32 = 0x8_0000;
/// How far the fields beyond the first 128 bytes reach: up to and with the project id.
pub(crate) const EXTRA_SIZE: u16 = 32;
/// A directory with more subdirectories counts as having one link (dir_nlink).
const MAX_DIRECTORY_LINKS: u32 = 65000;

/// What an inode needs beyond its node.
pub(crate) struct InodeParts<'a> {
    pub(crate) number: u32,
    pub(crate) links: u32,
    pub(crate) size: u64,
    /// All blocks it owns: content, extent tree, attributes.
    pub(crate) blocks: u64,
    /// Root of the extent tree, or the target of a short symlink, or a device number.
    pub(crate) block_area: [u8; 60],
    pub(crate) has_extents: bool,
    pub(crate) has_index: bool,
    pub(crate) attributes: &'a Attributes,
    /// The attribute block's place, 0 for none.
    pub(crate) attribute_block: u64,
}

pub(crate) fn encode(node: &Node, parts: &InodeParts<'_>, file_system_seed: u32) -> [u8; INODE_SIZE] {
    let mut inode = [0; INODE_SIZE];
    put_u16(&mut inode, 0x00, type_bits(&node.kind) | node.mode);
    put_u16(&mut inode, 0x02, node.uid as u16);
    put_u32(&mut inode, 0x04, parts.size as u32);
    let (seconds, extra) = encode_time(node.mtime);
    // Access, change, modification, creation.
    for (seconds_at, extra_at) in [(0x08, 0x8c), (0x0c, 0x84), (0x10, 0x88), (0x90, 0x94)] {
        put_u32(&mut inode, seconds_at, seconds);
        put_u32(&mut inode, extra_at, extra);
    }
    put_u16(&mut inode, 0x18, node.gid as u16);
    let is_directory = matches!(node.kind, Kind::Directory { .. });
    let links = if is_directory && parts.links > MAX_DIRECTORY_LINKS { 1 } else { parts.links };
    put_u16(&mut inode, 0x1a, links as u16);
    // Counted in sectors of 512 bytes, 48 bits of them (huge_file).
    let sectors = parts.blocks * 8;
    put_u32(&mut inode, 0x1c, sectors as u32);
    let extents = if parts.has_extents { FLAG_EXTENTS } else { 0 };
    put_u32(&mut inode, 0x20, extents | if parts.has_index { FLAG_INDEX } else { 0 });
    inode[0x28..0x64].copy_from_slice(&parts.block_area);
    put_u32(&mut inode, 0x68, parts.attribute_block as u32);
    put_u32(&mut inode, 0x6c, (parts.size >> 32) as u32);
    put_u16(&mut inode, 0x74, (sectors >> 32) as u16);
    put_u16(&mut inode, 0x76, (parts.attribute_block >> 32) as u16);
    put_u16(&mut inode, 0x78, (node.uid >> 16) as u16);
    put_u16(&mut inode, 0x7a, (node.gid >> 16) as u16);
    put_u16(&mut inode, 0x80, EXTRA_SIZE);
    parts.attributes.fill_inode(&mut inode[128 + usize::from(EXTRA_SIZE)..]);
    let checksum = checksum::extend(checksum::inode_seed(file_system_seed, parts.number), &inode);
    put_u16(&mut inode, 0x7c, checksum as u16);
    put_u16(&mut inode, 0x82, (checksum >> 16) as u16);
    inode
}

fn type_bits(kind: &Kind) -> u16 {
    match kind {
        Kind::Fifo => 0x1000,
        Kind::CharDevice { .. } => 0x2000,
        Kind::Directory { .. } => 0x4000,
        Kind::BlockDevice { .. } => 0x6000,
        Kind::File { .. } => 0x8000,
        Kind::Symlink { .. } => 0xa000,
        Kind::Socket => 0xc000,
    }
}

/// Seconds in 32 bits, and the extra word: two more bits of seconds below 30 bits of nanoseconds.
fn encode_time(time: Timestamp) -> (u32, u32) {
    const MIN: i64 = i32::MIN as i64;
    const MAX: i64 = (1 << 34) + MIN - 1;
    let nanoseconds = if (MIN..=MAX).contains(&time.seconds) { time.nanoseconds.min(999_999_999) } else { 0 };
    let seconds = time.seconds.clamp(MIN, MAX);
    let low = seconds as i32;
    let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
    (low as u32, nanoseconds << 2 | epoch)
}

/// The block area of a device's inode: the old form where both numbers fit a byte, else the new one.
pub(crate) fn device_area(major: u32, minor: u32) -> [u8; 60] {
    let mut area = [0; 60];
    if major < 256 && minor < 256 {
        put_u32(&mut area, 0, major << 8 | minor);
    } else {
        put_u32(&mut area, 4, (minor & 0xff) | major << 8 | (minor & !0xff) << 12);
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_encoded_as_the_kernel_documents() {
        // Documentation/filesystems/ext4/inodes.rst, "Inode Timestamps".
        for (seconds, low, epoch) in [
            (-1, 0xffff_ffff, 0),
            (0, 0, 0),
            (i64::from(i32::MIN), 0x8000_0000, 0),
            (0x7fff_ffff, 0x7fff_ffff, 0),
            (0x8000_0000, 0x8000_0000, 1),
            (0x1_7fff_ffff, 0x7fff_ffff, 1),
            (0x3_7fff_ffff, 0x7fff_ffff, 3),
        ] {
            assert_eq!(encode_time(Timestamp { seconds, nanoseconds: 5 }), (low, 5 << 2 | epoch), "{seconds}");
        }
        assert_eq!(encode_time(Timestamp { seconds: i64::MIN, nanoseconds: 5 }), (0x8000_0000, 0));
        assert_eq!(encode_time(Timestamp { seconds: i64::MAX, nanoseconds: 5 }), (0x7fff_ffff, 3));
    }
}
