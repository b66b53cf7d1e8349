//! Decides where file content goes in the data region, so that images share chunks.
//!
//! A chunk is shared only if all its bytes are equal, so what matters is that equal files meet the same neighbours at the
//! same place in their chunk, whatever else an image holds. [`PlacementKind::Aligned`] therefore starts large files at a
//! chunk boundary and packs small ones into *bins*, at most a chunk each and never sharing one: which files share a bin
//! follows from the directory they belong to (see [`groups`]) and from the files' own digests (see [`bins`]), not from
//! their number or from what comes before. The unused end of a bin or of a large file's last chunk is free space, which
//! is not stored.
//!
//! [`PlacementKind::Serial`] puts one file behind the other in tree order. It is here to be compared with.

mod bins;
mod groups;
#[cfg(test)]
mod tests;

use snowmelt_ext4::{BLOCK_SIZE, Placement};

use crate::merge::ImageTree;

/// How file content is laid out in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PlacementKind {
    /// For deduplication between images: files of a chunk or more at chunk boundaries, small ones in bins cut by
    /// content.
    #[default]
    Aligned,
    /// In tree order without gaps, as a plain flattening would; for comparison.
    Serial,
}

/// Places the content of every file. `chunk_size` is in bytes, a multiple of the block size.
pub(crate) fn place(image: &ImageTree, kind: PlacementKind, chunk_size: u32) -> Placement {
    let mut placement = Placement { starts: vec![None; image.tree.nodes.len()], blocks: 0 };
    match kind {
        PlacementKind::Serial => {
            for (start, content) in placement.starts.iter_mut().zip(&image.contents) {
                let blocks = content.as_ref().map_or(0, crate::spool::Content::allocated_blocks);
                if blocks > 0 {
                    *start = Some(placement.blocks);
                    placement.blocks += blocks;
                }
            }
        }
        PlacementKind::Aligned => place_aligned(image, u64::from(chunk_size) / BLOCK_SIZE, &mut placement),
    }
    placement
}

fn place_aligned(image: &ImageTree, chunk_blocks: u64, placement: &mut Placement) {
    for group in groups::groups(image, chunk_blocks) {
        for bin in bins::pack(&group, chunk_blocks) {
            let mut block = placement.blocks.next_multiple_of(chunk_blocks);
            for file in bin {
                placement.starts[file.node.0 as usize] = Some(block);
                block += file.blocks;
            }
            placement.blocks = block;
        }
    }
}
