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
}

impl ReadAhead {
    /// Starts the thread. It ends with the input, at an error, or when this reader is dropped.
    pub(crate) fn new(mut input: Box<dyn Read + Send>) -> io::Result<ReadAhead> {
        let (sender, buffers) = sync_channel(BUFFERS);
        thread::Builder::new().name("layer-read".into()).spawn(move || {
            loop {
                let mut buffer = Vec::with_capacity(BUFFER_BYTES);
                let result = input.by_ref().take(BUFFER_BYTES as u64).read_to_end(&mut buffer);
                // What was read before an error is part of the stream.
                let is_end = buffer.is_empty();
                if !is_end && sender.send(Ok(buffer)).is_err() {
                    return;
                }
                if let Err(error) = result {
                    // A receiver that is gone needs no error.
                    let _ = sender.send(Err(error));
                    return;
                }
                if is_end {
                    return;
                }
            }
        })?;
        Ok(ReadAhead { buffers, current: Vec::new(), position: 0 })
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() {
            match self.buffers.recv() {
                Ok(next) => {
                    self.current = next?;
                    self.position = 0;
                }
                // The thread ended after the last buffer.
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len() - self.position);
        buffer[..count].copy_from_slice(&self.current[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
