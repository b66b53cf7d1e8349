//! A shard: what a node keeps, and what says whether it is whole.

use bytes::Bytes;
use snowmelt_chunk::ChunkId;

use crate::erasure::Code;

/// Which shard of which chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardKey {
    /// The chunk.
    pub chunk: ChunkId,
    /// How it was cut.
    pub code: Code,
    /// Data shards first, then parity.
    pub index: u8,
}

/// A shard's bytes and what a reader needs beside them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Bytes of the whole chunk as it is stored.
    pub chunk_bytes: u32,
    /// [`checksum`] of key, length of the chunk, and bytes.
    pub checksum: u32,
    /// [`Code::bytes_of`] the index.
    pub bytes: Bytes,
}

impl Shard {
    /// Whether the bytes are what was written under this key.
    pub fn is_whole(&self, key: &ShardKey) -> bool {
        self.bytes.len() == key.code.bytes_of(usize::from(key.index), self.chunk_bytes as usize)
            && self.checksum == checksum(key, self.chunk_bytes, &self.bytes)
    }
}

/// CRC-32C of `chunk id, data, parity, index` (35 bytes), the chunk's length (4 bytes, little-endian) and the shard's bytes. It finds
/// what disks, memory and networks do to a shard, and a shard under a wrong name; whether the chunk is right only its id says.
pub fn checksum(key: &ShardKey, chunk_bytes: u32, bytes: &[u8]) -> u32 {
    let mut head = [0; 39];
    head[..32].copy_from_slice(&key.chunk.0);
    head[32] = key.code.data() as u8;
    head[33] = key.code.parity() as u8;
    head[34] = key.index;
    head[35..].copy_from_slice(&chunk_bytes.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), bytes)
}
