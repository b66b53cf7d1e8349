use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a source's name and a flattened image. Variants are named by what the caller decides.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The thing asked for is not there: a tag, a platform, a blob, a file.
    #[error("{subject} is not there: {reason}")]
    NotFound {
        /// What was looked for, and where.
        subject: String,
        /// How it showed, and what to do.
        reason: String,
    },
    /// The registry wants other credentials, or none will do.
    #[error("{subject} is refused: {reason}")]
    Denied {
        /// What was asked for, and of whom.
        subject: String,
        /// What the registry said, and what to do.
        reason: String,
    },
    /// Bytes from outside break their format, or are not those that their digest names. Another copy may be good.
    #[error("{subject} is damaged: {reason}")]
    Corrupt {
        /// The image, layer and entry.
        subject: String,
        /// Which check failed, and what to do.
        reason: String,
    },
    /// A registry did not answer, or not to the end, and trying again did not help. Later it may.
    #[error("{operation} {subject}: {reason}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// With what.
        subject: String,
        /// What happened, how often it was tried, and what to do.
        reason: String,
        /// The last failure, where there was one below this crate.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Well-formed, but nothing that this crate takes: a value out of range, a kind of image that is not supported.
    #[error("{subject} cannot be used: {reason}")]
    Invalid {
        /// The value, image, layer or entry.
        subject: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// Reading or writing on this machine failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn not_found(subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::NotFound { subject: subject.into(), reason: reason.into() }
    }

    pub(crate) fn denied(subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Denied { subject: subject.into(), reason: reason.into() }
    }

    pub(crate) fn corrupt(subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Corrupt { subject: subject.into(), reason: reason.into() }
    }

    pub(crate) fn unavailable(operation: &'static str, subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Unavailable { operation, subject: subject.into(), reason: reason.into(), source: None }
    }

    pub(crate) fn invalid(subject: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Invalid { subject: subject.into(), reason: reason.into() }
    }

    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { operation, path: path.to_owned(), source }
    }

    /// The error that a layer's reader gave: readers carry an [`Error`] inside the `io::Error`, and this takes it out
    /// again. Anything else is a failure of reading `subject`.
    pub(crate) fn from_read(subject: &str, error: io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Error::Io { operation: "read", path: PathBuf::from(subject), source },
        }
    }
}

/// For readers, whose errors must be `io::Error`; `Error::from_read` is the way back.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::NotFound { .. } => io::ErrorKind::NotFound,
            Error::Denied { .. } => io::ErrorKind::PermissionDenied,
            Error::Corrupt { .. } => io::ErrorKind::InvalidData,
            Error::Invalid { .. } => io::ErrorKind::InvalidInput,
            Error::Unavailable { .. } => io::ErrorKind::TimedOut,
            Error::Io { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}
