//! The beginning of a session: what the kernel offers, and what is taken of it.

use std::fs::File;
use std::io;

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

use super::protocol::{InitOut, MAJOR, MINOR, OLDEST_MINOR, Operation, Request, flags};
use super::reply;

/// The largest request: that of the kernel's default limit of 256 pages.
const MOST_REQUEST_BYTES: u32 = 1 << 20;
/// What the kernel takes for the least.
const LEAST_WRITE_BYTES: u32 = 4096;
/// Requests that the kernel lets lie open at once: as many as the loop device has.
const MOST_REQUESTS: u16 = 128;

/// What a session and the kernel have agreed on, for as long as the connection lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Negotiated {
    pub(super) minor: u32,
    pub(super) flags: u64,
    pub(super) max_write: u32,
}

impl Negotiated {
    /// Whether the kernel sends again what was read and never answered.
    pub(super) fn can_resend(&self) -> bool {
        self.flags & flags::HAS_RESEND != 0
    }

    /// The room that the kernel wants for a request: it gives none to who reads with less.
    pub(super) fn request_bytes(&self) -> usize {
        // As libfuse has it: headers, and no less than FUSE_MIN_READ_BUFFER.
        (self.max_write.min(MOST_REQUEST_BYTES) as usize + 4096).max(8192)
    }
}

/// Answers the first request, which the kernel sends when it mounts.
pub(super) fn negotiate(connection: &File, writable: bool) -> io::Result<Negotiated> {
    let mut buffer = vec![0; 8192];
    loop {
        let length = match rustix::io::read(connection, &mut buffer[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let request = buffer.get(..length).map(Request::parse);
        let Some(Ok(Request { header, operation: Operation::Init { major, minor, max_readahead, flags } })) = request
        else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel began with something else than INIT"));
        };
        if major > MAJOR {
            // It asks again in the version that it is told.
            let version = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
            reply::send(connection, header.unique, &[version.as_bytes()])?;
            continue;
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            reply::send_error(connection, header.unique, libc::EPROTO)?;
            let said = format!("the kernel speaks FUSE {major}.{minor}; Linux 5.10 or later is needed");
            return Err(io::Error::new(io::ErrorKind::Unsupported, said));
        }
        let (negotiated, out) = choose(minor, max_readahead, flags, writable);
        reply::send(connection, header.unique, &[out.as_bytes()])?;
        tracing::debug!(?negotiated, "a FUSE session began");
        return Ok(negotiated);
    }
}

fn choose(minor: u32, max_readahead: u32, offered: u64, writable: bool) -> (Negotiated, InitOut) {
    // With asynchronous direct I/O the loop device's requests are served side by side. What a kernel does not have, it
    // does without.
    let wanted = flags::ASYNC_READ
        | flags::BIG_WRITES
        | flags::ASYNC_DIO
        | flags::MAX_PAGES
        | flags::INIT_EXT
        | flags::HAS_RESEND;
    let flags = offered & wanted;
    // Every thread has a buffer for the largest write; where nothing is written none need be large. Reads have a limit of
    // their own, in pages.
    let max_write = if writable { MOST_REQUEST_BYTES } else { LEAST_WRITE_BYTES };
    let negotiated = Negotiated { minor: minor.min(MINOR), flags, max_write };
    let out = InitOut {
        major: MAJOR,
        minor: negotiated.minor,
        max_readahead: max_readahead.min(MOST_REQUEST_BYTES),
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MOST_REQUESTS,
        congestion_threshold: MOST_REQUESTS,
        max_write,
        time_granularity_ns: 1,
        max_pages: (i64::from(MOST_REQUEST_BYTES) / page_bytes()).max(1) as u16,
        ..InitOut::default()
    };
    (negotiated, out)
}

/// Bytes of a page of memory.
fn page_bytes() -> i64 {
    sysconf(SysconfVar::PAGE_SIZE).ok().flatten().filter(|bytes| *bytes > 0).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offered_is_taken() {
        let (negotiated, out) = choose(45, 131_072, u64::MAX, true);
        assert!(negotiated.can_resend());
        assert_eq!((out.minor, out.max_write, out.max_readahead), (MINOR, 1 << 20, 131_072));
        assert_eq!(u64::from(out.flags) | u64::from(out.flags2) << 32, negotiated.flags);
        let (negotiated, out) = choose(32, 131_072, flags::ASYNC_READ | flags::MAX_PAGES, false);
        assert!(!negotiated.can_resend(), "Linux 5.10");
        assert_eq!((out.minor, out.flags2, out.max_write), (32, 0, 4096));
        assert_eq!(u64::from(out.flags), flags::ASYNC_READ | flags::MAX_PAGES);
        assert_eq!(negotiated.request_bytes(), 8192);
    }
}
