//! Packs a group's files into bins of at most a chunk, cut where the content says.
//!
//! This is content-defined chunking with files as its bytes: after a least fill, each further file ends its bin with a
//! chance that its own digest decides. A file that is added, removed or changed thus changes the bin it lies in, and
//! the bins after it only up to the next such cut.

use super::groups::File;

/// Splits `files`, in their order, into bins. A file larger than a chunk is a bin of its own.
pub(super) fn pack(files: &[File], chunk_blocks: u64) -> Vec<&[File]> {
    // Measured on six Python images of 2.7 GB: from a quarter to three quarters of least fill the unique bytes grow by
    // 0.3 %, and the chunks shrink by a quarter. An eighth leaves most bins to end by content before they are full.
    let least_blocks = chunk_blocks * 3 / 4;
    let expected_blocks = (chunk_blocks / 8).max(1);
    let mut bins = Vec::new();
    let (mut start, mut filled) = (0, 0);
    for (index, file) in files.iter().enumerate() {
        if filled > 0 && filled + file.blocks > chunk_blocks {
            bins.push(&files[start..index]);
            (start, filled) = (index, 0);
        }
        filled += file.blocks;
        if filled >= least_blocks && ends_bin(file, expected_blocks) {
            bins.push(&files[start..=index]);
            (start, filled) = (index + 1, 0);
        }
    }
    if start < files.len() {
        bins.push(&files[start..]);
    }
    bins
}

/// True with a chance of the file's blocks in `expected_blocks`.
fn ends_bin(file: &File, expected_blocks: u64) -> bool {
    let mut word = [0; 4];
    word.copy_from_slice(&file.digest[..4]);
    u64::from(u32::from_le_bytes(word)) % expected_blocks < file.blocks
}
