use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What made something fail, kept so that one failed load can be reported to everybody who waited for it.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// What can go wrong with a device. Variants say what the caller can do; the fields say what was being done to what. Keys
/// and content never appear in it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A chunk that the image names exists nowhere.
    #[error("{operation} {subject}: it is missing from the store: publish the image again")]
    NotFound {
        /// What was being done.
        operation: &'static str,
        /// To what: image, chunk, tier.
        subject: String,
        /// What a tier said.
        #[source]
        source: Option<Cause>,
    },
    /// Bytes did not verify, in any tier. They were not used.
    #[error(
        "{operation} {subject}: it is damaged: verify the image, and publish it again with --repair if the store's copy is damaged"
    )]
    Corrupt {
        /// What was being done.
        operation: &'static str,
        /// To what: image, chunk, tier.
        subject: String,
        /// Which check failed.
        #[source]
        source: Option<Cause>,
    },
    /// A tier did not answer until the deadline, or at all where the policy is to fail at once. The only variant that is
    /// retried, in the loader.
    #[error("{operation} {subject}: the store does not answer: check its address and the network")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// To what: image, chunk, tier.
        subject: String,
        /// What a tier said.
        #[source]
        source: Option<Cause>,
    },
    /// A request that cannot be served as it is: outside of the device, or a write to a read-only one.
    #[error("{operation}: {subject}")]
    Invalid {
        /// What was asked for.
        operation: &'static str,
        /// Why not.
        subject: String,
    },
    /// The overlay's budget is used up.
    #[error("write to the overlay of {image}: all {budget_bytes} bytes of it are used: raise overlay_size")]
    NoSpace {
        /// Whose overlay.
        image: String,
        /// What it may hold.
        budget_bytes: u64,
    },
    /// The system refused something.
    #[error("{operation} {subject}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file or device.
        subject: String,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
}

impl Error {
    /// The number that a reader of the block device is given (errno(3)).
    pub fn errno(&self) -> i32 {
        match self {
            Self::NoSpace { .. } => libc::ENOSPC,
            Self::Invalid { .. } => libc::EINVAL,
            _ => libc::EIO,
        }
    }

    pub(crate) fn io(operation: &'static str, subject: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, subject: subject.into(), source: Arc::new(source.into()) }
    }

    pub(crate) fn path(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::io(operation, path.display().to_string(), source)
    }

    /// The error and what caused it, in one line, for logs.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text
    }
}
