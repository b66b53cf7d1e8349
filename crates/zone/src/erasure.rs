//! The erasure code: a chunk as `data` + `parity` shards, any `data` of which give it back.
//!
//! The bytes of a shard are part of the format ([docs/protocol.md](../../../docs/protocol.md)), since every reader and writer of
//! a zone must agree on them. A data shard is a piece of the chunk as it is: with a chunk of `length` bytes and shards of
//! `s = ceil(length / data)` bytes, shard `i` is `chunk[i*s .. min((i+1)*s, length)]`; the last ones may be shorter, or empty.
//! Parity is made of data shards padded with zeros to `s` bytes. With one parity shard it is their exclusive or; with more,
//! Reed-Solomon over GF(2^8) as the crate `reed-solomon-erasure` has it (a Vandermonde matrix made systematic).

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::Error;

/// How a chunk is cut into shards. Written `4+1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code {
    data: u8,
    parity: u8,
}

/// More would make shards of a few KiB, of which headers and requests are most.
const MOST_DATA: u8 = 32;
const MOST_PARITY: u8 = 8;

impl Default for Code {
    /// Four data shards and one of parity.
    fn default() -> Self {
        Self { data: 4, parity: 1 }
    }
}

impl Code {
    /// A code of 1 to 32 data shards and 0 to 8 parity shards.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other numbers.
    pub fn new(data: u8, parity: u8) -> Result<Self, Error> {
        if (1..=MOST_DATA).contains(&data) && parity <= MOST_PARITY {
            return Ok(Self { data, parity });
        }
        Err(Error::invalid(
            format!("the code {data}+{parity}"),
            format!("expected 1 to {MOST_DATA} data shards and at most {MOST_PARITY} of parity, such as 4+1"),
        ))
    }

    /// Shards that are pieces of the chunk: so many are enough.
    pub fn data(self) -> usize {
        usize::from(self.data)
    }

    /// Shards that may be missing.
    pub fn parity(self) -> usize {
        usize::from(self.parity)
    }

    /// All shards.
    pub fn shards(self) -> usize {
        self.data() + self.parity()
    }

    /// Bytes of a parity shard, which no data shard exceeds.
    pub fn shard_bytes(self, chunk_bytes: usize) -> usize {
        chunk_bytes.div_ceil(self.data())
    }

    /// Bytes of shard `index`.
    pub fn bytes_of(self, index: usize, chunk_bytes: usize) -> usize {
        if index < self.data() { self.range_of(index, chunk_bytes).len() } else { self.shard_bytes(chunk_bytes) }
    }

    /// Where data shard `index` lies in the chunk.
    pub fn range_of(self, index: usize, chunk_bytes: usize) -> Range<usize> {
        let shard = self.shard_bytes(chunk_bytes);
        (index * shard).min(chunk_bytes)..((index + 1) * shard).min(chunk_bytes)
    }

    /// The parity shards of a chunk, one after the other, each [`Code::shard_bytes`] long.
    pub fn parity_of(self, chunk: &[u8]) -> Vec<u8> {
        let shard = self.shard_bytes(chunk.len());
        let mut parity = vec![0; shard * self.parity()];
        match self.parity {
            0 => {}
            1 => {
                for index in 0..self.data() {
                    xor(&mut parity, &chunk[self.range_of(index, chunk.len())]);
                }
            }
            _ if shard == 0 => {}
            _ => {
                let padded: Vec<Vec<u8>> = (0..self.data()).map(|index| self.padded(index, chunk, shard)).collect();
                let mut into: Vec<&mut [u8]> = parity.chunks_exact_mut(shard).collect();
                self.reed_solomon()
                    .encode_sep(&padded, &mut into)
                    .expect("shards are as many and as long as they must be");
            }
        }
        parity
    }

    /// Puts the data shards that are missing into a chunk, whose other data shards are in their places. `parity` has parity shards
    /// by their index (`0` is the first after the data); as many as are missing are needed.
    ///
    /// # Errors
    /// [`Error::Invalid`] where too few shards are there, or one has another length.
    pub fn rebuild(self, chunk: &mut [u8], missing: &[usize], parity: &[(usize, &[u8])]) -> Result<(), Error> {
        let shard = self.shard_bytes(chunk.len());
        let fits = |(index, bytes): &(usize, &[u8])| *index < self.parity() && bytes.len() == shard;
        if missing.len() > parity.len() || missing.iter().any(|index| *index >= self.data()) || !parity.iter().all(fits)
        {
            return Err(Error::invalid("shards of a chunk", "they are too few, or of another code"));
        }
        if missing.is_empty() || shard == 0 {
            return Ok(());
        }
        if self.parity == 1 {
            let range = self.range_of(missing[0], chunk.len());
            let (before, rest) = chunk.split_at_mut(range.start);
            let (lost, after) = rest.split_at_mut(range.len());
            lost.copy_from_slice(&parity[0].1[..lost.len()]);
            for other in before.chunks(shard).chain(after.chunks(shard)) {
                let common = other.len().min(lost.len());
                xor(&mut lost[..common], &other[..common]);
            }
            return Ok(());
        }
        let mut shards: Vec<Option<Vec<u8>>> = (0..self.data())
            .map(|index| (!missing.contains(&index)).then(|| self.padded(index, chunk, shard)))
            .chain(std::iter::repeat_n(None, self.parity()))
            .collect();
        for (index, bytes) in parity {
            shards[self.data() + index] = Some(bytes.to_vec());
        }
        self.reed_solomon()
            .reconstruct_data(&mut shards)
            .map_err(|error| Error::invalid("shards of a chunk", error.to_string()))?;
        for index in missing {
            let range = self.range_of(*index, chunk.len());
            if let Some(bytes) = &shards[*index] {
                let bytes = &bytes[..range.len()];
                chunk[range].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn padded(self, index: usize, chunk: &[u8], shard: usize) -> Vec<u8> {
        let mut bytes = chunk[self.range_of(index, chunk.len())].to_vec();
        bytes.resize(shard, 0);
        bytes
    }

    fn reed_solomon(self) -> ReedSolomon {
        ReedSolomon::new(self.data(), self.parity()).expect("the numbers were checked")
    }
}

/// `into ^= from`, over the length of the shorter. The compiler makes vectors of it.
fn xor(into: &mut [u8], from: &[u8]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into ^= from;
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.data, self.parity)
    }
}

impl FromStr for Code {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers = text.split_once('+').and_then(|(data, parity)| Some((number(data)?, number(parity)?)));
        let (data, parity) = numbers.ok_or_else(|| {
            Error::invalid(format!("the code {text:?}"), "expected data and parity shards, such as 4+1")
        })?;
        Self::new(data, parity)
    }
}

/// Digits only, with none to spare, so that a code has one way to be written.
fn number(text: &str) -> Option<u8> {
    let is_canonical =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_canonical.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn code() -> impl Strategy<Value = Code> {
        (1..=8_u8, 0..=4_u8).prop_map(|(data, parity)| Code::new(data, parity).unwrap())
    }

    proptest! {
        #[test]
        fn any_data_shards_of_all_give_the_chunk_back(
            code in code(),
            chunk in prop::collection::vec(any::<u8>(), 0..2000),
            order in prop::collection::vec(any::<u64>(), 16),
        ) {
            let parity = code.parity_of(&chunk);
            let shard = code.shard_bytes(chunk.len());
            prop_assert_eq!(parity.len(), shard * code.parity());
            let mut indices: Vec<usize> = (0..code.shards()).collect();
            indices.sort_by_key(|index| order[*index % 16].wrapping_mul(*index as u64 + 1));
            let here = &indices[..code.data()];
            let mut rebuilt = vec![0xa5; chunk.len()];
            for index in here.iter().filter(|index| **index < code.data()) {
                let range = code.range_of(*index, chunk.len());
                rebuilt[range.clone()].copy_from_slice(&chunk[range]);
            }
            let missing: Vec<usize> = (0..code.data()).filter(|index| !here.contains(index)).collect();
            let with: Vec<(usize, &[u8])> = here
                .iter()
                .filter(|index| **index >= code.data())
                .map(|index| index - code.data())
                .map(|index| (index, &parity[index * shard..(index + 1) * shard]))
                .collect();
            code.rebuild(&mut rebuilt, &missing, &with).unwrap();
            prop_assert_eq!(rebuilt, chunk);
        }

        #[test]
        fn shards_cover_the_chunk_once(code in code(), length in 0..5000_usize) {
            let mut at = 0;
            for index in 0..code.data() {
                let range = code.range_of(index, length);
                prop_assert_eq!(range.start, at);
                prop_assert_eq!(range.len(), code.bytes_of(index, length));
                prop_assert!(range.len() <= code.shard_bytes(length));
                at = range.end;
            }
            prop_assert_eq!(at, length);
        }

        #[test]
        fn a_code_is_read_as_it_is_written(code in code()) {
            prop_assert_eq!(code.to_string().parse::<Code>().unwrap(), code);
        }

        #[test]
        fn any_text_is_a_code_or_an_error(text in ".{0,8}") {
            if let Ok(code) = text.parse::<Code>() {
                prop_assert_eq!(code.to_string(), text);
            }
        }
    }

    /// Other implementations must make the same bytes.
    #[test]
    fn parity_has_the_bytes_of_the_format() {
        let chunk: Vec<u8> = (1..=10).collect();
        assert_eq!(Code::default().parity_of(&chunk), [8, 15, 12]);
        assert_eq!(Code::new(2, 2).unwrap().parity_of(&chunk).len(), 10);
    }

    #[test]
    fn too_few_shards_are_an_error() {
        let code = Code::default();
        let mut chunk = vec![0; 8];
        code.rebuild(&mut chunk, &[0, 1], &[(0, &[0, 0])]).unwrap_err();
        code.rebuild(&mut chunk, &[0], &[(0, &[0])]).unwrap_err();
        code.rebuild(&mut chunk, &[0], &[(1, &[0, 0])]).unwrap_err();
        code.rebuild(&mut chunk, &[4], &[(0, &[0, 0])]).unwrap_err();
    }
}
