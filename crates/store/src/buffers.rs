//! Buffers that can be written past the page cache.

/// A buffer whose bytes begin at a multiple of 4096, as O_DIRECT asks for. Made once and used again: the first touch of fresh
/// memory costs more than encrypting it.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

const ALIGNMENT: usize = 4096;

impl AlignedBuffer {
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        // `align_offset` may decline; the kernel then refuses the direct write and the buffered way is taken.
        Self { bytes, start: start.min(ALIGNMENT), length }
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }

    pub(crate) fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}
