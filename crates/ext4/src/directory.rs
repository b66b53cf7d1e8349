//! Directory blocks: one linear block while the entries fit, then a hash tree (htree) over blocks.

use crate::geometry::inode_number;
use crate::htree_hash::half_md4;
use crate::le::{put_u16, put_u32};
use crate::{BLOCK, Kind, NodeId, Tree, checksum};

/// The checksum at the end of a block of entries, in the shape of an entry.
const TAIL: usize = 12;
/// `fake` entries of "." and ".." in a root, then the tree's own header.
const ROOT_ENTRIES_AT: usize = 12 + 12 + 8;
const NODE_ENTRIES_AT: usize = 8;
/// Entries are 8 bytes; the checksum at the end takes as much as one.
const ROOT_CAPACITY: usize = (BLOCK - ROOT_ENTRIES_AT - 8) / 8;
const NODE_CAPACITY: usize = (BLOCK - NODE_ENTRIES_AT - 8) / 8;

/// How the entries of one directory are spread over blocks.
#[derive(Debug, Clone)]
pub(crate) enum DirectoryLayout {
    /// All in one block.
    Linear,
    /// Block 0 is the root; blocks 1 to `nodes` (if any) the second level; the leaves follow.
    Tree {
        /// Entries in hash order, as indices.
        order: Vec<u32>,
        /// For each leaf: where in `order` it begins, and its hash in the level above.
        leaves: Vec<(u32, u32)>,
    },
}

fn entry_length(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

impl DirectoryLayout {
    /// Decides the layout; the error says what does not fit.
    pub(crate) fn new(entries: &[(Vec<u8>, NodeId)], hash_seed: &[u8; 16]) -> Result<Self, String> {
        let length: usize = 12 + 12 + entries.iter().map(|(name, _)| entry_length(name)).sum::<usize>();
        if length <= BLOCK - TAIL {
            return Ok(Self::Linear);
        }
        let mut hashed: Vec<((u32, u32), u32)> =
            entries.iter().enumerate().map(|(index, (name, _))| (half_md4(name, hash_seed), index as u32)).collect();
        hashed.sort_unstable();
        let mut leaves = Vec::new();
        let mut left = 0;
        for (position, ((hash, _), index)) in hashed.iter().enumerate() {
            let length = entry_length(&entries[*index as usize].0);
            if length > left {
                // A leaf that begins with the hash that the one before ends with is marked as its continuation.
                let continued = position > 0 && hashed[position - 1].0.0 == *hash;
                leaves.push((position as u32, if position == 0 { 0 } else { hash | u32::from(continued) }));
                left = BLOCK - TAIL;
            }
            left -= length;
        }
        if leaves.len() > ROOT_CAPACITY * NODE_CAPACITY {
            return Err(format!("its {} entries are more than a directory of two hash levels holds", entries.len()));
        }
        Ok(Self::Tree { order: hashed.into_iter().map(|(_, index)| index).collect(), leaves })
    }

    /// Blocks of the second level.
    fn node_count(&self) -> usize {
        match self {
            Self::Tree { leaves, .. } if leaves.len() > ROOT_CAPACITY => leaves.len().div_ceil(NODE_CAPACITY),
            _ => 0,
        }
    }

    pub(crate) fn blocks(&self) -> u64 {
        match self {
            Self::Linear => 1,
            Self::Tree { leaves, .. } => (1 + self.node_count() + leaves.len()) as u64,
        }
    }

    pub(crate) fn is_indexed(&self) -> bool {
        matches!(self, Self::Tree { .. })
    }

    /// Block number `block` of the directory `node`, whose parent is `parent`.
    pub(crate) fn block(&self, tree: &Tree, node: usize, parent: usize, block: u64, inode_seed: u32) -> [u8; BLOCK] {
        let Kind::Directory { entries } = &tree.nodes[node].kind else {
            unreachable!("layouts are made for directories only")
        };
        let mut writer = EntryWriter { block: [0; BLOCK], at: 0, last: 0 };
        match self {
            Self::Linear => {
                writer.put(tree, b".", node);
                writer.put(tree, b"..", parent);
                for (name, id) in entries {
                    writer.put(tree, name, id.index());
                }
                writer.finish(inode_seed)
            }
            Self::Tree { order, leaves } => {
                let nodes = self.node_count();
                let block = block as usize;
                if block == 0 {
                    self.root(tree, node, parent, leaves, inode_seed)
                } else if block <= nodes {
                    let first = (block - 1) * NODE_CAPACITY;
                    let end = leaves.len().min(first + NODE_CAPACITY);
                    let targets = (first..end).map(|leaf| (leaves[leaf].1, (1 + nodes + leaf) as u32));
                    let mut bytes = [0; BLOCK];
                    put_u16(&mut bytes, 4, BLOCK as u16);
                    fill_index(&mut bytes, NODE_ENTRIES_AT, NODE_CAPACITY, targets, inode_seed);
                    bytes
                } else {
                    let leaf = block - 1 - nodes;
                    let end = leaves.get(leaf + 1).map_or(order.len(), |(position, _)| *position as usize);
                    for index in &order[leaves[leaf].0 as usize..end] {
                        let (name, id) = &entries[*index as usize];
                        writer.put(tree, name, id.index());
                    }
                    writer.finish(inode_seed)
                }
            }
        }
    }

    fn root(&self, tree: &Tree, node: usize, parent: usize, leaves: &[(u32, u32)], inode_seed: u32) -> [u8; BLOCK] {
        let mut writer = EntryWriter { block: [0; BLOCK], at: 0, last: 0 };
        writer.put(tree, b".", node);
        writer.put(tree, b"..", parent);
        let mut bytes = writer.block;
        // ".." covers the rest of the block for readers that do not know of trees.
        put_u16(&mut bytes, 12 + 4, (BLOCK - 12) as u16);
        let nodes = self.node_count();
        bytes[28] = 1; // half MD4; whether characters are signed is in the superblock
        bytes[29] = 8; // length of this header
        bytes[30] = u8::from(nodes > 0); // levels below this one, less the leaves
        if nodes == 0 {
            let targets = leaves.iter().enumerate().map(|(leaf, (_, hash))| (*hash, 1 + leaf as u32));
            fill_index(&mut bytes, ROOT_ENTRIES_AT, ROOT_CAPACITY, targets, inode_seed);
        } else {
            let targets = (0..nodes).map(|node| (leaves[node * NODE_CAPACITY].1, 1 + node as u32));
            fill_index(&mut bytes, ROOT_ENTRIES_AT, ROOT_CAPACITY, targets, inode_seed);
        }
        bytes
    }
}

/// The index entries of a root or node from `at` on. The first one's hash is implied; its place holds limit and count.
fn fill_index(
    bytes: &mut [u8; BLOCK],
    at: usize,
    capacity: usize,
    targets: impl Iterator<Item = (u32, u32)>,
    inode_seed: u32,
) {
    let mut count = 0;
    for (hash, block) in targets {
        put_u32(bytes, at + 8 * count, hash);
        put_u32(bytes, at + 8 * count + 4, block);
        count += 1;
    }
    put_u16(bytes, at, capacity as u16);
    put_u16(bytes, at + 2, count as u16);
    // The checksum covers the entries in use and itself as zeros (dx_tail).
    let covered = checksum::extend(inode_seed, &bytes[..at + 8 * count]);
    let checksum = checksum::extend(covered, &[0; 8]);
    put_u32(bytes, at + 8 * capacity + 4, checksum);
}

/// Puts entries into a block one after the other.
struct EntryWriter {
    block: [u8; BLOCK],
    at: usize,
    last: usize,
}

impl EntryWriter {
    fn put(&mut self, tree: &Tree, name: &[u8], node: usize) {
        let at = self.at;
        let length = entry_length(name);
        put_u32(&mut self.block, at, inode_number(node));
        put_u16(&mut self.block, at + 4, length as u16);
        self.block[at + 6] = name.len() as u8;
        self.block[at + 7] = file_type(&tree.nodes[node].kind);
        self.block[at + 8..][..name.len()].copy_from_slice(name);
        self.last = at;
        self.at += length;
    }

    /// Stretches the last entry to the tail and puts the checksum.
    fn finish(mut self, inode_seed: u32) -> [u8; BLOCK] {
        put_u16(&mut self.block, self.last + 4, (BLOCK - TAIL - self.last) as u16);
        put_u16(&mut self.block, BLOCK - TAIL + 4, TAIL as u16);
        self.block[BLOCK - TAIL + 7] = 0xde;
        let checksum = checksum::extend(inode_seed, &self.block[..BLOCK - TAIL]);
        put_u32(&mut self.block, BLOCK - 4, checksum);
        self.block
    }
}

fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory { .. } => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink { .. } => 7,
    }
}
