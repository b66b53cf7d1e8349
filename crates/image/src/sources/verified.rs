//! Checks a blob's size and digest while it is read from this machine.

use std::io::{self, Read};

use crate::Error;
use crate::digest::{BackgroundHasher, Digest};

/// Gives the bytes of `input`, and at their end an error where size or digest are not the expected ones. A longer
/// input is an error as soon as it shows.
pub(crate) struct VerifiedReader {
    input: Box<dyn Read + Send>,
    subject: String,
    /// `None` once the digest was checked.
    hasher: Option<BackgroundHasher>,
    expected: Digest,
    size: u64,
    received: u64,
    /// What failed stays failed: a second read must not look like a good end.
    failed: bool,
}

impl VerifiedReader {
    /// `subject` names image and blob in errors.
    pub(crate) fn new(
        input: Box<dyn Read + Send>,
        subject: String,
        expected: Digest,
        size: u64,
    ) -> Result<VerifiedReader, Error> {
        let hasher =
            BackgroundHasher::start(expected.algorithm()).map_err(|error| Error::from_read(&subject, error))?;
        Ok(VerifiedReader { input, subject, hasher: Some(hasher), expected, size, received: 0, failed: false })
    }

    fn read_checked(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            result => result.map_err(|error| Error::from_read(&self.subject, error))?,
        };
        if count == 0 {
            self.check_end()?;
            return Ok(0);
        }
        self.received += count as u64;
        if self.received > self.size {
            return Err(too_long(&self.subject, self.size).into());
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }

    fn check_end(&mut self) -> Result<(), Error> {
        let Some(hasher) = self.hasher.take() else {
            return Ok(());
        };
        if self.received < self.size {
            return Err(truncated(&self.subject, self.received, self.size));
        }
        let actual = hasher.finish().map_err(|error| Error::from_read(&self.subject, error))?;
        if actual == self.expected { Ok(()) } else { Err(wrong_digest(&self.subject, &actual, &self.expected)) }
    }
}

pub(crate) fn truncated(subject: &str, received: u64, size: u64) -> Error {
    Error::corrupt(subject, format!("it ends after {received} of {size} bytes: fetch or copy the image again"))
}

pub(crate) fn too_long(subject: &str, size: u64) -> Error {
    Error::corrupt(subject, format!("it has more than the {size} bytes that its descriptor says"))
}

pub(crate) fn wrong_digest(subject: &str, actual: &Digest, expected: &Digest) -> Error {
    Error::corrupt(subject, format!("its digest is {actual} and not {expected}: fetch or copy the image again"))
}

impl Read for VerifiedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.failed {
            return Err(Error::corrupt(&self.subject, "reading it failed before").into());
        }
        let result = self.read_checked(buffer);
        // An interruption is no failure: the caller reads again.
        self.failed = result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted);
        result
    }
}
