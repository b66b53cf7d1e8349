//! Extended attributes: in the inode while they fit, then in one block.

use crate::checksum;
use crate::le::{put_u16, put_u32};

const MAGIC: u32 = 0xea02_0000;
const ENTRY_HEADER: usize = 16;
const BLOCK_HEADER: usize = 32;
/// What `extra_isize` of 32 leaves of a 256-byte inode: its first 4 bytes are the magic number.
pub(crate) const INODE_AREA: usize = 256 - 128 - 32;

/// An attribute as ext4 stores it.
#[derive(Debug, Clone)]
struct Attribute {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn entry_length(&self) -> usize {
        (ENTRY_HEADER + self.name.len()).next_multiple_of(4)
    }

    fn length(&self) -> usize {
        self.entry_length() + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`.
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// The attributes of one node, split between its inode and its block.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    in_inode: Vec<Attribute>,
    in_block: Vec<Attribute>,
}

/// Prefixes of names that are stored as a number. A name must have one of them.
const PREFIXES: [(&[u8], u8); 6] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"system.", 7),
];

/// Whether ext4 can keep attributes of this name at all: `user.`, `trusted.`, `security.` and `system.`.
pub fn has_xattr_namespace(name: &[u8]) -> bool {
    prefix(name).is_some()
}

/// Checks the extended attributes of one node, as [`crate::Node::xattrs`] has them, so that they can be refused where their
/// source is known.
///
/// # Errors
/// What ext4 cannot keep: an unknown namespace, a name that is too long, a malformed access control list, or more than
/// fits into the inode and one block of 4096 bytes.
pub fn check_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), String> {
    Attributes::new(xattrs).map(|_| ())
}

impl Attributes {
    /// Encodes the attributes of a node; the error says what ext4 cannot keep.
    pub(crate) fn new(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<Self, String> {
        let mut attributes = xattrs.iter().map(|(name, value)| encode(name, value)).collect::<Result<Vec<_>, _>>()?;
        // The order that the kernel keeps a block in, since it searches it by that order.
        attributes.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
        let mut split = Self::default();
        // The magic number and the four zero bytes that end the entries.
        let (mut inode_left, mut block_left) = (INODE_AREA - 8, crate::BLOCK - BLOCK_HEADER - 4);
        for attribute in attributes {
            let length = attribute.length();
            if length <= inode_left {
                inode_left -= length;
                split.in_inode.push(attribute);
            } else if length <= block_left {
                block_left -= length;
                split.in_block.push(attribute);
            } else {
                let total: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
                return Err(format!("its extended attributes ({total} bytes) do not fit one block of 4096 bytes"));
            }
        }
        Ok(split)
    }

    pub(crate) fn needs_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// Fills what an inode has left for attributes.
    pub(crate) fn fill_inode(&self, area: &mut [u8]) {
        if self.in_inode.is_empty() {
            return;
        }
        put_u32(area, 0, MAGIC);
        // Value offsets count from the first entry. Hashes are only kept in blocks.
        fill_entries(&mut area[4..], 0, &self.in_inode, |_| 0);
    }

    /// The attribute block at block `place` of the image.
    pub(crate) fn block(&self, place: u64, file_system_seed: u32) -> [u8; crate::BLOCK] {
        let mut block = [0; crate::BLOCK];
        fill_entries(&mut block, BLOCK_HEADER, &self.in_block, Attribute::hash);
        put_u32(&mut block, 0, MAGIC);
        put_u32(&mut block, 4, 1); // owners
        put_u32(&mut block, 8, 1); // blocks
        let hash = self.in_block.iter().map(Attribute::hash).try_fold(0_u32, |hash, entry| {
            // A zero hash of an entry means "do not share this block".
            (entry != 0).then(|| hash.rotate_left(16) ^ entry)
        });
        put_u32(&mut block, 12, hash.unwrap_or(0));
        let seed = checksum::extend(file_system_seed, &place.to_le_bytes());
        let checksum = checksum::extend(seed, &block);
        put_u32(&mut block, 16, checksum);
        block
    }
}

/// Entries from `start` on, values from the end downwards; offsets count from the start of `area`.
fn fill_entries(area: &mut [u8], start: usize, attributes: &[Attribute], hash: impl Fn(&Attribute) -> u32) {
    let (mut entry, mut value) = (start, area.len());
    for attribute in attributes {
        value -= attribute.value.len().next_multiple_of(4);
        area[entry] = attribute.name.len() as u8;
        area[entry + 1] = attribute.index;
        put_u16(area, entry + 2, if attribute.value.is_empty() { 0 } else { value as u16 });
        put_u32(area, entry + 8, attribute.value.len() as u32);
        put_u32(area, entry + 12, hash(attribute));
        area[entry + ENTRY_HEADER..][..attribute.name.len()].copy_from_slice(&attribute.name);
        area[value..][..attribute.value.len()].copy_from_slice(&attribute.value);
        entry += attribute.entry_length();
    }
}

fn prefix(name: &[u8]) -> Option<(&'static [u8], u8)> {
    let fits = |prefix: &[u8], index| if matches!(index, 2 | 3) { name == prefix } else { name.starts_with(prefix) };
    PREFIXES.into_iter().find(|(prefix, index)| fits(prefix, *index))
}

fn encode(name: &[u8], value: &[u8]) -> Result<Attribute, String> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    let (prefix, index) = prefix(name).ok_or_else(|| {
        format!("extended attribute {:?} is of no namespace that ext4 knows (user, trusted, security, system)", shown())
    })?;
    let rest = &name[prefix.len()..];
    if rest.is_empty() != matches!(index, 2 | 3) || rest.len() > 255 || rest.contains(&0) {
        return Err(format!("extended attribute {:?} has a name that ext4 cannot keep", shown()));
    }
    let value = if matches!(index, 2 | 3) {
        acl_to_disk(value)
            .ok_or_else(|| format!("extended attribute {:?} is not a valid access control list", shown()))?
    } else {
        value.to_vec()
    };
    Ok(Attribute { index, name: rest.to_vec(), value })
}

/// From the form of the system calls (version 2, 8 bytes an entry) to that of the disk (version 1, an id only where one is meant).
fn acl_to_disk(value: &[u8]) -> Option<Vec<u8>> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let (version, entries) = value.split_at_checked(4)?;
    if version != 2_u32.to_le_bytes() || entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        match tag {
            USER | GROUP => disk.extend_from_slice(entry),
            0x01 | 0x04 | 0x10 | 0x20 => disk.extend_from_slice(&entry[..4]),
            _ => return None,
        }
    }
    Some(disk)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn attributes_are_checked_without_a_tree() {
        let check = |name: &[u8], length| check_xattrs(&[(name.to_vec(), vec![7; length])]);
        // A block less its header of 32 bytes, the 4 zero bytes behind the entries, and an entry of 16 bytes and its name.
        assert_eq!(check(b"user.name", 4096 - 32 - 4 - 20), Ok(()));
        assert!(check(b"user.name", 4096 - 32 - 4 - 19).unwrap_err().contains("do not fit one block of 4096 bytes"));
        assert!(check(b"com.apple.quarantine", 1).unwrap_err().contains("no namespace"));
        assert!(check(b"system.posix_acl_access", 5).unwrap_err().contains("not a valid access control list"));
        for (name, known) in [("user.a", true), ("security.capability", true), ("com.apple.a", false), ("user", false)]
        {
            assert_eq!(has_xattr_namespace(name.as_bytes()), known, "{name}");
        }
    }
}
