//! What a container writes: read as it comes, and kept for the end of an invocation.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use tokio::net::unix::pipe::Receiver;

/// An invocation's log is given with its answer up to so much of its end.
const TAIL: usize = 4096;
/// Read at once.
const BLOCK: usize = 64 << 10;
const MOST_PENDING: usize = 1 << 20;

/// The pipe's reading end.
pub(super) struct Log(Receiver);

/// The end of what was written since an invocation began.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Log {
    pub(super) fn new(pipe: OwnedFd) -> std::io::Result<Self> {
        Receiver::from_owned_fd(pipe).map(Self)
    }

    /// Waits for more; empty at the end.
    pub(super) async fn read(&self) -> std::io::Result<Vec<u8>> {
        loop {
            self.0.readable().await?;
            // Not before there is something: an idle host has none.
            let mut bytes = Vec::with_capacity(BLOCK);
            match self.0.try_read_buf(&mut bytes) {
                Ok(_) => {
                    // Many short ones may wait for a service that is gone.
                    bytes.shrink_to_fit();
                    return Ok(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What is there already, up to what a pipe holds: who writes all the time must not keep this from ending. The pipe itself is asked:
    /// whether it can be read is known from the last look at all of them, and what asks for this may have come after that.
    pub(super) fn read_now(&self) -> Vec<u8> {
        let mut all = Vec::new();
        // Between most invocations there is nothing: to ask costs less than to have room for it.
        while all.len() < MOST_PENDING
            && let Ok(there @ 1..) = rustix::io::ioctl_fionread(&self.0)
        {
            all.reserve(there as usize);
            match rustix::io::read(&self.0, rustix::buffer::spare_capacity(&mut all)) {
                Ok(1..) => {}
                _ => break,
            }
        }
        all
    }
}

impl Tail {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > 4 * TAIL {
            self.0.drain(..self.0.len() - TAIL);
        }
    }

    /// Its last 4 KiB, in base64.
    pub(super) fn encoded(&self) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(&self.0[self.0.len().saturating_sub(TAIL)..])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use base64::Engine as _;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_written_is_there_at_once() {
        use std::io::Write as _;
        let (from, mut to) = std::io::pipe().unwrap();
        let log = Log::new(from.into()).unwrap();
        for number in 0..100 {
            assert_eq!(log.read_now(), b"");
            // Nothing looks at the pipe between these two.
            to.write_all(&[number]).unwrap();
            assert_eq!(log.read_now(), [number]);
        }
        drop(to);
        assert_eq!(log.read().await.unwrap(), b"");
    }

    #[test]
    fn the_end_is_kept_however_it_comes() {
        for step in [1, 100, 5000] {
            let mut tail = Tail::default();
            let all: Vec<u8> = (0..20_000_u32).map(|number| (number % 251) as u8).collect();
            all.chunks(step).for_each(|part| tail.add(part));
            let found = base64::engine::general_purpose::STANDARD.decode(tail.encoded()).unwrap();
            assert_eq!(found, all[all.len() - TAIL..]);
            tail.clear();
            tail.add(b"short");
            assert_eq!(tail.encoded(), "c2hvcnQ=");
        }
    }
}
