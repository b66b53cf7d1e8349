//! Hashes in a thread of its own, so that reading and decompressing don't wait for it.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::{Algorithm, Digest, Hasher};

/// Bytes that are handed over at once: few enough hand-overs not to be felt, and a buffer that fits a second-level cache.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that may wait: 1 MiB in all.
const WAITING_BATCHES: usize = 4;

/// As [`Hasher`], beside the calling thread.
pub(crate) struct BackgroundHasher {
    batch: Vec<u8>,
    batches: SyncSender<Vec<u8>>,
    thread: JoinHandle<Digest>,
}

impl BackgroundHasher {
    pub(crate) fn start(algorithm: Algorithm) -> io::Result<BackgroundHasher> {
        let (batches, receiver) = sync_channel::<Vec<u8>>(WAITING_BATCHES);
        let thread = thread::Builder::new().name("digest".into()).spawn(move || {
            let mut hasher = Hasher::new(algorithm);
            for batch in receiver {
                hasher.update(&batch);
            }
            hasher.finish()
        })?;
        Ok(BackgroundHasher { batch: Vec::with_capacity(BATCH_BYTES), batches, thread })
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BATCH_BYTES - self.batch.len()));
            self.batch.extend_from_slice(now);
            bytes = later;
            if self.batch.len() == BATCH_BYTES {
                let full = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH_BYTES));
                // A thread that is gone shows in `finish`.
                let _ = self.batches.send(full);
            }
        }
    }

    /// The digest of everything so far.
    pub(crate) fn finish(self) -> io::Result<Digest> {
        let _ = self.batches.send(self.batch);
        drop(self.batches);
        self.thread.join().map_err(|_| io::Error::other("the thread that computes digests ended early"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn equals_the_digest_in_one_piece() {
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for piece in [1_000_000, BATCH_BYTES, BATCH_BYTES - 1, 77_777] {
            let mut hasher = BackgroundHasher::start(Algorithm::Sha256).unwrap();
            bytes.chunks(piece).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish().unwrap(), Digest::of(&bytes));
        }
        let empty = BackgroundHasher::start(Algorithm::Sha256).unwrap();
        assert_eq!(empty.finish().unwrap(), Digest::of(b""));
    }
}
