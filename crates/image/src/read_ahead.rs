//! Runs a reader in a thread of its own, a few buffers ahead, so that decompressing and storing a layer overlap.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

const BUFFER_BYTES: usize = 256 << 10;
/// Buffers that may wait: 1 MiB in all.
const BUFFERS: usize = 4;

/// Reads what the thread read.
pub(crate) struct ReadAhead {
    buffers: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    position: usize,
    /// The end, or an error, was passed on.
    ended: bool,
}

impl ReadAhead {
    /// Starts the thread. It ends with the input, at an error, or when this reader is dropped.
    pub(crate) fn new(mut input: Box<dyn Read + Send>) -> io::Result<ReadAhead> {
        let (sender, buffers) = sync_channel(BUFFERS);
        thread::Builder::new().name("layer-read".into()).spawn(move || {
            loop {
                let mut buffer = Vec::with_capacity(BUFFER_BYTES);
                let result = input.by_ref().take(BUFFER_BYTES as u64).read_to_end(&mut buffer);
                let is_empty = buffer.is_empty();
                // What was read before an error is part of the stream. An empty buffer is the mark of its end.
                if (!is_empty || result.is_ok()) && sender.send(Ok(buffer)).is_err() {
                    return;
                }
                if let Err(error) = result {
                    // A receiver that is gone needs no error.
                    let _ = sender.send(Err(error));
                    return;
                }
                if is_empty {
                    return;
                }
            }
        })?;
        Ok(ReadAhead { buffers, current: Vec::new(), position: 0, ended: false })
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() && !self.ended {
            self.position = 0;
            self.current.clear();
            // Only the mark is the end: a thread that died would else pass off the beginning of a layer for all of it.
            let next = self.buffers.recv().unwrap_or_else(|_| {
                Err(io::Error::other("the thread that decompresses it ended early: this is a fault of snowmelt"))
            });
            self.ended = next.as_ref().map_or(true, Vec::is_empty);
            self.current = next?;
        }
        let count = buffer.len().min(self.current.len() - self.position);
        buffer[..count].copy_from_slice(&self.current[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    /// Gives some bytes, then does what `then` does.
    struct Then<F>(usize, F);

    impl<F: FnMut() -> io::Result<usize>> Read for Then<F> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return (self.1)();
            }
            let count = buffer.len().min(self.0);
            buffer[..count].fill(7);
            self.0 -= count;
            Ok(count)
        }
    }

    fn read(length: usize, then: impl FnMut() -> io::Result<usize> + Send + 'static) -> (usize, io::Result<usize>) {
        let mut reader = ReadAhead::new(Box::new(Then(length, then))).unwrap();
        let mut bytes = Vec::new();
        let result = reader.read_to_end(&mut bytes);
        // After the end, and after an error, there is nothing more.
        assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
        (bytes.len(), result)
    }

    #[test]
    fn all_bytes_then_the_end() {
        for length in [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, 5 * BUFFER_BYTES + 3] {
            assert_eq!(read(length, || Ok(0)).1.unwrap(), length);
        }
    }

    #[test]
    fn an_error_comes_behind_the_bytes_before_it() {
        for length in [0, 1, BUFFER_BYTES] {
            let (got, result) = read(length, || Err(io::ErrorKind::ConnectionReset.into()));
            assert_eq!((got, result.unwrap_err().kind()), (length, io::ErrorKind::ConnectionReset));
        }
    }

    /// A decoder that panicked used to read as the end of the layer: a tar file cut between two entries is a whole one.
    #[test]
    fn a_thread_that_panics_is_an_error() {
        let (_, result) = read(3 * BUFFER_BYTES, || panic!("a fault in a decoder, for a test"));
        assert!(result.unwrap_err().to_string().contains("ended early"));
    }
}
