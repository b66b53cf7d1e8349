//! What the user's Docker configuration says about a registry: `config.json`, and the helpers it names.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::Error;

/// Largest `config.json` in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Under which name Docker files what belongs to its own registry.
const DOCKER_IO_SERVER: &str = "https://index.docker.io/v1/";

/// How to log in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    /// A token that buys access tokens.
    Identity(String),
}

/// Secrets don't appear.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Password { .. } => "Password",
            Credentials::Identity(_) => "Identity",
        })
    }
}

/// `DOCKER_CONFIG`, or `.docker` in the home directory.
pub(crate) fn configuration_directory() -> Option<PathBuf> {
    match std::env::var_os("DOCKER_CONFIG") {
        Some(directory) if !directory.is_empty() => Some(directory.into()),
        _ => std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")),
    }
}

/// The credentials for `registry`; [`Credentials::Anonymous`] where none are configured.
pub(crate) fn find(registry: &str, directory: Option<&Path>) -> Result<Credentials, Error> {
    let Some(path) = directory.map(|directory| directory.join("config.json")) else {
        return Ok(Credentials::Anonymous);
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Credentials::Anonymous);
        }
        Err(error) => return Err(Error::io("read Docker's configuration", &path, error)),
    };
    let server = if registry == "docker.io" { DOCKER_IO_SERVER } else { registry };
    let denied = |reason: String| Error::denied(format!("the registry {registry}"), reason);
    match docker_credential::get_credential_from_reader(file.take(MAX_CONFIG_BYTES), server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Credentials::Password { user, password }),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Credentials::Identity(token)),
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => {
            Ok(Credentials::Anonymous)
        }
        // What helpers say, by protocol, when they know nothing of the server.
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains("credentials not found") || stderr.contains("credentials not found") =>
        {
            Ok(Credentials::Anonymous)
        }
        Err(CredentialRetrievalError::ConfigReadError) => {
            Err(denied(format!("{} is not valid JSON of Docker's configuration: mend it", path.display())))
        }
        Err(CredentialRetrievalError::HelperFailure { helper, stderr, .. }) => Err(denied(format!(
            "the credential helper {helper}, which {} names, failed: {}",
            path.display(),
            super::client::printable(&stderr)
        ))),
        Err(CredentialRetrievalError::HelperCommunicationError) => Err(denied(format!(
            "a credential helper that {} names for it could not be run: install it, or remove the entry",
            path.display()
        ))),
        Err(error) => Err(denied(format!("its entry in {} cannot be used: {error}", path.display()))),
    }
}
