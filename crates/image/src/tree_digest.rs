//! One digest for a whole image tree, contents included: what everything that looks random in an image is derived from.

use snowmelt_ext4::Kind;

use crate::merge::ImageTree;

/// Context of the key derivation (BLAKE3's `derive_key`). Changing it, or the encoding below, changes all images.
const CONTEXT: &str = "snowmelt 2026-11 image tree";

/// The file system's uuid and the seed of its directory hashes.
pub(crate) struct Identity {
    pub(crate) uuid: [u8; 16],
    pub(crate) hash_seed: [u8; 16],
}

/// Derives the identity from all that the tree says: equal trees have equal identities, whatever they came from.
pub(crate) fn identity(image: &ImageTree) -> Identity {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    let mut record = Vec::new();
    for (node, content) in image.tree.nodes.iter().zip(&image.contents) {
        record.clear();
        record.extend_from_slice(&node.mode.to_le_bytes());
        record.extend_from_slice(&node.uid.to_le_bytes());
        record.extend_from_slice(&node.gid.to_le_bytes());
        record.extend_from_slice(&node.mtime.seconds.to_le_bytes());
        record.extend_from_slice(&node.mtime.nanoseconds.to_le_bytes());
        count(&mut record, node.xattrs.len());
        for (name, value) in &node.xattrs {
            bytes(&mut record, name);
            bytes(&mut record, value);
        }
        match &node.kind {
            Kind::Directory { entries } => {
                record.push(0);
                count(&mut record, entries.len());
                for (name, id) in entries {
                    bytes(&mut record, name);
                    record.extend_from_slice(&id.0.to_le_bytes());
                }
            }
            Kind::File { .. } => {
                record.push(1);
                // Covers the size and where the holes are.
                record.extend_from_slice(content.as_ref().map_or(&[0; 32], |content| &content.digest));
            }
            Kind::Symlink { target } => {
                record.push(2);
                bytes(&mut record, target);
            }
            Kind::CharDevice { major, minor } => device(&mut record, 3, *major, *minor),
            Kind::BlockDevice { major, minor } => device(&mut record, 4, *major, *minor),
            Kind::Fifo => record.push(5),
            Kind::Socket => record.push(6),
        }
        hasher.update(&record);
    }
    let mut output = [0; 32];
    hasher.finalize_xof().fill(&mut output);
    let (mut uuid, mut hash_seed) = ([0; 16], [0; 16]);
    uuid.copy_from_slice(&output[..16]);
    hash_seed.copy_from_slice(&output[16..]);
    // Version 8 (custom) and the variant of RFC 9562, so that tools print and accept it.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Identity { uuid, hash_seed }
}

fn count(record: &mut Vec<u8>, count: usize) {
    record.extend_from_slice(&(count as u64).to_le_bytes());
}

fn bytes(record: &mut Vec<u8>, bytes: &[u8]) {
    count(record, bytes.len());
    record.extend_from_slice(bytes);
}

fn device(record: &mut Vec<u8>, tag: u8, major: u32, minor: u32) {
    record.push(tag);
    record.extend_from_slice(&major.to_le_bytes());
    record.extend_from_slice(&minor.to_le_bytes());
}
