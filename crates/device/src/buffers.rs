//! Memory for decrypted chunks, used again and again: the first touch of fresh pages costs more than decrypting into them.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Free buffers, all of one size.
#[derive(Debug)]
pub(crate) struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
    buffer_bytes: usize,
    most_free: usize,
}

impl BufferPool {
    /// Buffers of `buffer_bytes`; at most `most_free` are kept while nobody uses them.
    pub(crate) fn new(buffer_bytes: usize, most_free: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), buffer_bytes, most_free })
    }

    /// A buffer of `length` bytes (at most the pool's size) with arbitrary content of this same image.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> ChunkBuffer {
        assert!(length <= self.buffer_bytes, "a chunk is no longer than the chunk size");
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| vec![0; self.buffer_bytes].into_boxed_slice());
        ChunkBuffer { bytes, length, pool: Arc::clone(self) }
    }
}

/// The stored part of one chunk, decrypted. Goes back to its pool when dropped.
#[derive(Debug)]
pub(crate) struct ChunkBuffer {
    bytes: Box<[u8]>,
    length: usize,
    pool: Arc<BufferPool>,
}

impl ChunkBuffer {
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl Deref for ChunkBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for ChunkBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.pool.most_free {
            free.push(bytes);
        }
    }
}
