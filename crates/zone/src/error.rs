use std::path::PathBuf;

/// What can go wrong in a zone's cache. A miss is none of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What was given cannot be used.
    #[error("{subject}: {reason}")]
    Invalid {
        /// What is wrong.
        subject: String,
        /// Why, and what is expected.
        reason: String,
    },
    /// Who lists the nodes of the zone does not answer, or not as it should.
    #[error("{subject}: {reason}")]
    Unavailable {
        /// Who was asked.
        subject: String,
        /// What came of it.
        reason: String,
    },
    /// A file or socket of this machine cannot be used.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn invalid(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), reason: reason.into() }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}
