use std::path::PathBuf;

/// What can go wrong with chunks, manifests and keys. Secrets never appear in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes that should be a manifest are not one: damaged, truncated, or of another program.
    #[error("the manifest is not valid: {0}")]
    BadManifest(String),
    /// The manifest is of a version or suite that this program does not know.
    #[error("the manifest needs {0}, which this version of snowmelt does not know: upgrade snowmelt")]
    Unsupported(String),
    /// The sealed part does not open: something in the manifest was changed, or the key is not the one it was sealed under.
    #[error(
        "the manifest of tenant {tenant:?} does not open with its key: it was changed after it was sealed, or belongs to another tenant or image"
    )]
    Unauthentic {
        /// The tenant that the manifest names.
        tenant: String,
    },
    /// A chunk's bytes do not match its id or its tag.
    #[error("chunk {id} is damaged: {what}")]
    BadChunk {
        /// The id under which the bytes were found, or `?` where it is not known.
        id: String,
        /// Which check failed.
        what: &'static str,
    },
    /// The tenant's key is not to be had: there is none, it is disabled, or its service does not let us use it.
    #[error("no key of tenant {tenant:?}: {reason}")]
    NoKey {
        /// Whose key.
        tenant: String,
        /// Which key, why, and what to do.
        reason: String,
    },
    /// A key service did not answer, or not in time. Later it may.
    #[error("the key service {service} does not answer: {reason}")]
    KeyServiceUnavailable {
        /// The service.
        service: String,
        /// What happened.
        reason: String,
    },
    /// A key service cannot be used as it is set up: credentials, region, address.
    #[error("the key service {service} cannot be used: {reason}")]
    KeyService {
        /// The service.
        service: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A key file exists but cannot be used.
    #[error("the key file {} cannot be used: {what}", path.display())]
    BadKeyFile {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
    /// A value given to this crate is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// Reading or writing a key file failed.
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
    /// Whether another try later may succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::KeyServiceUnavailable { .. })
    }
}
