use std::path::PathBuf;

/// What can go wrong with a store, by what the caller decides: only [`Error::Unavailable`] is worth another try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The thing is not in the store.
    #[error("{subject} is not in the store {store}{hint}")]
    NotFound {
        /// What was looked for.
        subject: String,
        /// The store's URL.
        store: String,
        /// What to do, beginning with punctuation, or empty.
        hint: String,
    },
    /// What the store gave is not what was put there. Another copy may be good.
    #[error("{subject} is damaged: {reason}")]
    Corrupt {
        /// What was read.
        subject: String,
        /// Which check failed.
        reason: String,
    },
    /// The store did not answer, or not in time. Later it may.
    #[error("{operation} {subject}: the store {store} does not answer: {source}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// With what.
        subject: String,
        /// The store's URL.
        store: String,
        /// The last failure.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store refuses it, and will until somebody changes something.
    #[error("{request} refuses: {what}: {todo} ({source})")]
    Refused {
        /// What was being done with what, and the store's URL.
        request: String,
        /// What is wrong.
        what: &'static str,
        /// What to do about it.
        todo: &'static str,
        /// What the server said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Others change the same thing all the time.
    #[error("{subject} is being changed by others all the time: try again")]
    Busy {
        /// What was to be changed.
        subject: String,
    },
    /// A root was retired while something was published to it.
    #[error("root {root} was retired meanwhile: publish again, to an active root")]
    RootClosed {
        /// Which root.
        root: String,
    },
    /// A name stands for an older image than this machine has seen it stand for.
    #[error(
        "{subject} went back from generation {seen} to {found}: somebody may have put an old record into the store. If that was meant, \
         such as by restoring a backup, remove {}", file.display()
    )]
    RolledBack {
        /// The image.
        subject: String,
        /// The generation that was seen before.
        seen: u64,
        /// The generation of the record in the store.
        found: u64,
        /// Where this machine remembers that.
        file: PathBuf,
    },
    /// A value that a caller gave cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// A manifest or a key cannot be used.
    #[error(transparent)]
    Chunk(#[from] snowmelt_chunk::Error),
    /// The image that is being published cannot be read.
    #[error("reading the image: {0}")]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// A file of this machine cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn corrupt(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Corrupt { subject: subject.into(), reason: reason.into() }
    }

    /// Whether another try later may succeed.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Chunk(error) => error.is_unavailable(),
            _ => false,
        }
    }
}
