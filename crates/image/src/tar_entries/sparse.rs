//! Sparse maps: which ranges of a file the stored bytes are (GNU tar manual, "Storing Sparse Files").

use std::io::BufRead;

use super::header::{TAR_BLOCK, sparse_ranges};
use super::pax::{SparseRecords, decimal};
use super::{Problem, truncated};

/// More ranges than this are refused: 16 MiB of map.
const MAX_RANGES: usize = 1 << 20;

/// Old GNU: adds an extension block's 21 ranges; says whether another block follows.
pub(super) fn extend(block: &[u8; TAR_BLOCK], ranges: &mut Vec<(u64, u64)>) -> Result<bool, Problem> {
    ranges.extend(sparse_ranges(&block[..504])?);
    if ranges.len() > MAX_RANGES {
        return Err(too_many());
    }
    Ok(block[504] != 0)
}

/// PAX 1.0: the map stands before the data, in decimal lines padded to whole blocks. Returns the ranges and the bytes
/// the map took.
pub(super) fn read_map(input: &mut impl BufRead, stored: u64) -> Result<(Vec<(u64, u64)>, u64), Problem> {
    let mut taken = 0u64;
    let mut block: Vec<u8> = Vec::new();
    let mut next_line = |input: &mut dyn BufRead| -> Result<u64, Problem> {
        let mut line = Vec::new();
        loop {
            if block.is_empty() {
                let mut bytes = vec![0; TAR_BLOCK];
                if stored - taken < TAR_BLOCK as u64 {
                    return Err(Problem::malformed("a sparse map is longer than its entry"));
                }
                input.read_exact(&mut bytes).map_err(super::end_is_truncation)?;
                taken += TAR_BLOCK as u64;
                bytes.reverse();
                block = bytes;
            }
            let Some(byte) = block.pop() else {
                return Err(truncated());
            };
            if byte == b'\n' {
                return decimal(b"GNU.sparse map", &line);
            }
            line.push(byte);
            // 20 digits hold any 64-bit number.
            if line.len() > 20 {
                return Err(Problem::malformed("a sparse map holds something other than numbers"));
            }
        }
    };
    let count = next_line(input)?;
    if count > MAX_RANGES as u64 {
        return Err(too_many());
    }
    let mut ranges = Vec::new();
    for _ in 0..count {
        ranges.push((next_line(input)?, next_line(input)?));
    }
    Ok((ranges, taken))
}

/// PAX 0.0 and 0.1: the count, where given, must be the number of pairs.
pub(super) fn old_pax(records: &SparseRecords) -> Result<(), Problem> {
    if !matches!((records.major, records.minor), (None, None) | (Some(0), _)) {
        return Err(Problem::unsupported("a sparse format newer than 1.0"));
    }
    let pairs = records.numbers.len() / 2;
    if !records.numbers.len().is_multiple_of(2) || records.blocks.is_some_and(|blocks| blocks != pairs as u64) {
        return Err(Problem::malformed("a sparse map whose count does not fit its ranges"));
    }
    Ok(())
}

pub(super) fn pairs(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Ranges must ascend without overlap inside the file, and hold exactly the stored bytes.
pub(super) fn check(ranges: &[(u64, u64)], size: u64, stored: u64) -> Result<(), Problem> {
    let (mut end, mut total) = (0u64, 0u64);
    for &(offset, length) in ranges {
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
        end = next.ok_or_else(|| Problem::malformed("a sparse map that overlaps or leaves its file"))?;
        total += length;
    }
    if total != stored {
        return Err(Problem::malformed(format!("a sparse map of {total} bytes for a body of {stored}")));
    }
    Ok(())
}

fn too_many() -> Problem {
    Problem::unsupported(format!("a sparse map of more than {MAX_RANGES} ranges"))
}
