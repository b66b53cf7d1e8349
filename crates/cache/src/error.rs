use std::path::PathBuf;

/// What can go wrong between a chunk's id and its plaintext.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The origin does not have the chunk, or has other bytes under its id. No tier has a good copy.
    #[error("chunk {chunk} cannot be had: {source}")]
    Lost {
        /// The chunk's id.
        chunk: String,
        /// What the origin said.
        source: snowmelt_store::Error,
    },
    /// The origin does not answer. Later it may.
    #[error("chunk {chunk} cannot be had now: {source}")]
    Unavailable {
        /// The chunk's id.
        chunk: String,
        /// What the origin said.
        source: snowmelt_store::Error,
    },
    /// The bytes are those that the id names, but the key does not open them: the manifest does not fit its chunks.
    #[error("chunk {chunk} does not open: {source}")]
    Sealed {
        /// The chunk's id.
        chunk: String,
        /// What did not match.
        source: snowmelt_chunk::Error,
    },
    /// A worker has as much to do as it may.
    #[error("chunk {chunk} cannot be had now: the worker has {waiting} chunks to fetch already")]
    Busy {
        /// The chunk's id.
        chunk: String,
        /// Chunks that wait.
        waiting: usize,
    },
    /// The worker said that a chunk cannot be had.
    #[error("chunk {chunk} cannot be had: {reason}")]
    Worker {
        /// The chunk's id.
        chunk: String,
        /// What the worker said.
        reason: String,
        /// Whether another try later may succeed.
        is_passing: bool,
        /// Whether the origin said that it has no such chunk.
        is_missing: bool,
    },
    /// Another process has the folder.
    #[error("another worker uses {}: give each its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The cache's folder cannot be used.
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

    /// Whether another try later may succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Busy { .. } | Self::Worker { is_passing: true, .. })
    }

    /// Whether the origin said that it has no such chunk.
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Lost { source, .. } => matches!(source, snowmelt_store::Error::NotFound { .. }),
            Self::Worker { is_missing, .. } => *is_missing,
            _ => false,
        }
    }
}
