//! A zone as settings have it: texts and paths.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientOptions};
use crate::tls::{ClientTls, TlsFiles};
use crate::{Code, Error, Follower, Members};

/// What a reader is told of a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ZoneOptions {
    /// Where its nodes are listed, as [`Members`] reads it.
    pub nodes: String,
    /// How chunks are cut, such as `4+1`, which it is by default. All readers of the zone need the same.
    #[serde(default)]
    pub code: Option<String>,
    /// A file with what nodes want to see.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// [`TlsFiles::ca`]. All three files, or none.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// [`TlsFiles::certificate`].
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// [`TlsFiles::key`].
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
}

impl ZoneOptions {
    /// Whether the texts are what they should be. No file is read.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong.
    pub fn check(&self) -> Result<(), Error> {
        self.parsed().map(drop)
    }

    fn parsed(&self) -> Result<(Members, Code, Option<TlsFiles>), Error> {
        let code = self.code.as_deref().map_or(Ok(Code::default()), str::parse)?;
        let tls = TlsFiles::of(self.tls_ca.as_deref(), self.tls_cert.as_deref(), self.tls_key.as_deref())?;
        Ok((self.nodes.parse()?, code, tls))
    }

    /// A client of the zone, and what tells it of the zone's nodes for as long as it is kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is wrong in options, files or the list of nodes, [`Error::Io`] for files that cannot be read.
    /// A list that cannot be had is none: the client has no nodes until there is one.
    pub fn connect(&self) -> Result<(Arc<Client>, Follower), Error> {
        let (members, code, tls) = self.parsed()?;
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let tls = tls.map(|files| ClientTls::load(&files).map(Arc::new)).transpose()?;
        let client = Arc::new(Client::new(ClientOptions { code, token, tls, ..ClientOptions::default() }));
        let follower = Follower::start(members, &client)?;
        Ok((client, follower))
    }
}

impl TlsFiles {
    /// All three, or none.
    ///
    /// # Errors
    /// [`Error::Invalid`] where some are missing.
    pub fn of(ca: Option<&Path>, certificate: Option<&Path>, key: Option<&Path>) -> Result<Option<Self>, Error> {
        match (ca, certificate, key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(certificate), Some(key)) => {
                Ok(Some(Self { ca: ca.into(), certificate: certificate.into(), key: key.into() }))
            }
            _ => {
                Err(Error::invalid("TLS", "it takes three files: the authority's certificate, an own one, and its key"))
            }
        }
    }
}

/// The token in a file, without the end of its line. Others should not be able to read the file, which is said.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, [`Error::Invalid`] where it holds no token: 1 to 1024 visible characters.
pub fn read_token(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let token = text.trim_end_matches(['\n', '\r']);
    if !(1..=1024).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = "there is no token in it: expected a line of 1 to 1024 visible ASCII characters";
        return Err(Error::invalid(path.display().to_string(), reason));
    }
    if std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o077 != 0) {
        tracing::warn!("others may read the token in {}: chmod 600", path.display());
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mistakes_are_found_without_reading_a_file() {
        let good = ZoneOptions { nodes: "file:/nowhere".into(), ..ZoneOptions::default() };
        good.check().unwrap();
        let path = Some(PathBuf::from("/nowhere"));
        let all = ZoneOptions { tls_ca: path.clone(), tls_cert: path.clone(), tls_key: path.clone(), ..good.clone() };
        all.check().unwrap();
        for (bad, part) in [
            (ZoneOptions { nodes: String::new(), ..good.clone() }, "HOST:PORT"),
            (ZoneOptions { code: Some("4".into()), ..good.clone() }, "4+1"),
            (ZoneOptions { tls_ca: None, ..all.clone() }, "three files"),
            (ZoneOptions { tls_key: None, ..all }, "three files"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_token_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (text, token) in [
            ("open-sesame\n", Some("open-sesame")),
            ("a", Some("a")),
            ("", None),
            ("\n", None),
            ("a b\n", None),
            ("a\nb\n", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_token(&path).ok().as_deref(), token, "{text:?}");
        }
    }
}
