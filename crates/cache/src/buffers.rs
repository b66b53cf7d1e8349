//! Buffers for whole chunks, used again: the first touch of fresh memory costs more than what is then written into it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// Idle buffers that are kept: 16 MiB of them.
const MOST_IDLE: usize = 32;

/// Where buffers come from, and go to when the last user is done.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer in use.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Weak<Buffers>,
}

impl Buffers {
    /// A buffer of so many bytes, which may be any.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.resize(length, 0);
        Buffer { bytes, home: Arc::downgrade(self) }
    }
}

impl Buffer {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        let mut idle = home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_its_last_user_is_done() {
        let buffers = Arc::new(Buffers::default());
        let mut buffer = buffers.take(5);
        buffer.as_mut_slice().copy_from_slice(b"hello");
        let place = buffer.as_ref().as_ptr();
        let bytes = buffer.into_bytes();
        let clone = bytes.clone();
        drop(bytes);
        assert_ne!(buffers.take(5).as_ref().as_ptr(), place);
        assert_eq!(&clone[..], b"hello");
        drop(clone);
        assert_eq!(buffers.take(3).as_ref().as_ptr(), place);
    }
}
