//! Answers to the kernel.

use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use zerocopy::{Immutable, IntoBytes};

use super::protocol::OutHeader;
use super::session::Session;

/// Writes one answer.
pub(super) fn send(connection: &File, unique: u64, parts: &[&[u8]]) -> io::Result<()> {
    write(connection, OutHeader { length: 0, error: 0, unique }, parts)
}

/// Answers with a number of errno(3).
pub(super) fn send_error(connection: &File, unique: u64, errno: i32) -> io::Result<()> {
    write(connection, OutHeader { length: 0, error: -errno, unique }, &[])
}

/// Writes an answer, or a notification, whose length is filled in here.
pub(super) fn write(connection: &File, header: OutHeader, parts: &[&[u8]]) -> io::Result<()> {
    debug_assert!(parts.len() <= 1, "an answer is a header and one part");
    let part = parts.first().copied().unwrap_or(&[]);
    let length = size_of::<OutHeader>() + part.len();
    let header = OutHeader { length: length as u32, ..header };
    let slices = [IoSlice::new(header.as_bytes()), IoSlice::new(part)];
    // The kernel takes an answer whole or not at all.
    rustix::io::writev(connection, if part.is_empty() { &slices[..1] } else { &slices })?;
    Ok(())
}

/// The answer that one request is owed. Who drops it without a word answers that it failed.
pub(super) struct Reply {
    session: Arc<Session>,
    unique: u64,
    answered: bool,
}

impl Reply {
    pub(super) fn new(session: &Arc<Session>, unique: u64) -> Self {
        session.begin_request();
        Self { session: Arc::clone(session), unique, answered: false }
    }

    /// The request succeeded, with nothing to tell.
    pub(super) fn ok(self) {
        self.bytes(&[]);
    }

    pub(super) fn structure<T: IntoBytes + Immutable>(self, structure: &T) {
        self.bytes(structure.as_bytes());
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) {
        self.answered = true;
        note(send(self.session.connection(), self.unique, &[bytes]));
    }

    pub(super) fn error(mut self, errno: i32) {
        self.answered = true;
        note(send_error(self.session.connection(), self.unique, errno));
    }

    /// Nobody waits for an answer.
    pub(super) fn none(mut self) {
        self.answered = true;
    }
}

fn note(sent: io::Result<()>) {
    match sent {
        Ok(()) => {}
        // Nobody waits any more: the mount is gone, or the request was sent again to a successor.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED)) => {
            tracing::debug!(%error, "an answer came too late");
        }
        Err(error) => tracing::warn!(%error, "the kernel refused an answer"),
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            note(send_error(self.session.connection(), self.unique, libc::EIO));
        }
        self.session.end_request();
    }
}
