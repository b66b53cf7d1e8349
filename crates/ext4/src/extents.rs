//! Extent trees: where the blocks of an inode are.

use crate::le::{put_u16, put_u32};
use crate::{BLOCK, checksum};

/// The most blocks that one initialised extent covers.
const MAX_EXTENT_BLOCKS: u64 = 32768;
/// Extents (12 bytes) after a header (12 bytes) in the 60 bytes of an inode.
const IN_INODE: usize = 4;
/// The same in a block, less the checksum.
const IN_BLOCK: usize = (BLOCK - 12 - 4) / 12;
const MAGIC: u16 = 0xf30a;

/// A run of blocks of a file: its place in the file and in the image, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) in_file: u64,
    pub(crate) in_image: u64,
    pub(crate) blocks: u64,
}

/// Splits mappings into extents of at most [`MAX_EXTENT_BLOCKS`] and joins those that continue each other.
fn extents(mappings: &[Mapping]) -> Vec<Mapping> {
    let mut extents: Vec<Mapping> = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let mut rest = *mapping;
        if let Some(last) = extents.last_mut()
            && last.in_file + last.blocks == rest.in_file
            && last.in_image + last.blocks == rest.in_image
        {
            let joined = rest.blocks.min(MAX_EXTENT_BLOCKS - last.blocks);
            last.blocks += joined;
            rest = after(rest, joined);
        }
        while rest.blocks > 0 {
            let blocks = rest.blocks.min(MAX_EXTENT_BLOCKS);
            extents.push(Mapping { blocks, ..rest });
            rest = after(rest, blocks);
        }
    }
    extents
}

fn after(mapping: Mapping, blocks: u64) -> Mapping {
    Mapping { in_file: mapping.in_file + blocks, in_image: mapping.in_image + blocks, blocks: mapping.blocks - blocks }
}

/// How many blocks of its own the tree over these mappings takes.
pub(crate) fn tree_blocks(mappings: &[Mapping]) -> u64 {
    let mut nodes = extents(mappings).len();
    let mut blocks = 0;
    while nodes > IN_INODE {
        nodes = nodes.div_ceil(IN_BLOCK);
        blocks += nodes as u64;
    }
    blocks
}

/// The 60 bytes of the inode, and the tree's own blocks, which lie from `first_block` of the image on.
pub(crate) fn encode(mappings: &[Mapping], first_block: u64, inode_seed: u32) -> ([u8; 60], Vec<[u8; BLOCK]>) {
    let mut blocks = Vec::new();
    let mut depth = 0;
    // An entry is the first block of the file that it covers and its 12 bytes.
    let mut level: Vec<(u32, [u8; 12])> = extents(mappings).iter().map(leaf_entry).collect();
    while level.len() > IN_INODE {
        let mut above = Vec::new();
        for entries in level.chunks(IN_BLOCK) {
            let place = first_block + blocks.len() as u64;
            let mut block = [0; BLOCK];
            fill(&mut block, entries, IN_BLOCK, depth);
            let checksum = checksum::extend(inode_seed, &block[..12 + 12 * IN_BLOCK]);
            put_u32(&mut block, 12 + 12 * IN_BLOCK, checksum);
            above.push((entries[0].0, index_entry(entries[0].0, place)));
            blocks.push(block);
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &level, IN_INODE, depth);
    (root, blocks)
}

fn fill(node: &mut [u8], entries: &[(u32, [u8; 12])], capacity: usize, depth: u16) {
    put_u16(node, 0, MAGIC);
    put_u16(node, 2, entries.len() as u16);
    put_u16(node, 4, capacity as u16);
    put_u16(node, 6, depth);
    for (slot, (_, entry)) in node[12..].chunks_exact_mut(12).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Mapping) -> (u32, [u8; 12]) {
    let mut entry = [0; 12];
    put_u32(&mut entry, 0, extent.in_file as u32);
    put_u16(&mut entry, 4, extent.blocks as u16);
    put_u16(&mut entry, 6, (extent.in_image >> 32) as u16);
    put_u32(&mut entry, 8, extent.in_image as u32);
    (extent.in_file as u32, entry)
}

fn index_entry(in_file: u32, place: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    put_u32(&mut entry, 0, in_file);
    put_u32(&mut entry, 4, place as u32);
    put_u16(&mut entry, 8, (place >> 32) as u16);
    entry
}
