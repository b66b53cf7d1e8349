//! Mutual TLS between readers and nodes: whose certificates are believed, and which is shown.
//!
//! TLS 1.3 only, by rustls over aws-lc-rs. Both sides show a certificate of one authority; a reader checks that the node's is for
//! the host of the node's address. Files are looked at again every second in which a connection is made, so certificates can be
//! replaced without a restart: connections that are there stay, new ones use the new files. Files that cannot be used are said
//! once, and those from before go on.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::Error;

/// How often files are looked at, while connections are made.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The files of one side, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities whose certificates are believed.
    pub ca: PathBuf,
    /// What this side shows, with what lies between it and the authority.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
}

impl TlsFiles {
    fn all(&self) -> [&Path; 3] {
        [&self.ca, &self.certificate, &self.key]
    }

    fn authorities(&self) -> Result<Arc<RootCertStore>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| unusable(&self.ca, &error))?;
        }
        Ok(Arc::new(roots))
    }

    fn own(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| match error {
            rustls::pki_types::pem::Error::Io(error) => Error::io("read", &self.key)(error),
            error => unusable(&self.key, &error),
        })?;
        Ok((certificates(&self.certificate)?, key))
    }

    fn client(&self) -> Result<ClientConfig, Error> {
        let (chain, key) = self.own()?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&self.certificate, &error))?
            .with_root_certificates(self.authorities()?)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&self.certificate, &error))?;
        // Connections live for long, and a certificate is looked at whenever one is made.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn server(&self) -> Result<ServerConfig, Error> {
        let (chain, key) = self.own()?;
        let provider = Arc::new(default_provider());
        let readers = WebPkiClientVerifier::builder_with_provider(self.authorities()?, Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&self.ca, &error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(&self.certificate, &error))?
            .with_client_cert_verifier(readers)
            .with_single_cert(chain, key)
            .map_err(|error| unusable(&self.certificate, &error))?;
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// What tells that files were replaced. A replaced file has another inode or time; whose clock set it does not matter.
    fn stamps(&self) -> [Option<(u64, u64, i64, i64)>; 3] {
        let stamp = |file: Metadata| (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
        self.all().map(|path| std::fs::metadata(path).ok().map(stamp))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| match error {
        rustls::pki_types::pem::Error::Io(error) => Error::io("read", path)(error),
        error => unusable(path, &error),
    })?;
    if found.is_empty() {
        return Err(Error::invalid(path.display().to_string(), "there is no certificate in it: expected PEM"));
    }
    Ok(found)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::invalid(path.display().to_string(), format!("it cannot be used for TLS: {error}"))
}

/// What files said when they were last read.
#[derive(Debug)]
struct Current<C> {
    files: TlsFiles,
    load: fn(&TlsFiles) -> Result<C, Error>,
    config: ArcSwap<C>,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    stamps: [Option<(u64, u64, i64, i64)>; 3],
}

impl<C> Current<C> {
    fn load(files: &TlsFiles, load: fn(&TlsFiles) -> Result<C, Error>) -> Result<Self, Error> {
        let looked = Mutex::new(Looked { at: Instant::now(), stamps: files.stamps() });
        Ok(Self { files: files.clone(), load, config: ArcSwap::from_pointee(load(files)?), looked })
    }

    fn get(&self) -> Arc<C> {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at.elapsed() >= LOOK_EVERY {
            looked.at = Instant::now();
            let stamps = self.files.stamps();
            if stamps != looked.stamps {
                // Tried once for each change, so that a mistake is said once.
                looked.stamps = stamps;
                match (self.load)(&self.files) {
                    Ok(config) => {
                        tracing::info!(certificate = %self.files.certificate.display(), "the files for TLS were read again");
                        self.config.store(Arc::new(config));
                    }
                    Err(error) => tracing::warn!(%error, "the files for TLS have changed, and those from before go on"),
                }
            }
        }
        self.config.load_full()
    }
}

/// How a reader speaks TLS.
#[derive(Debug)]
pub struct ClientTls(Current<ClientConfig>);

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read, [`Error::Invalid`] where it is not what it should be.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        Current::load(files, TlsFiles::client).map(Self)
    }

    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        self.0.get()
    }
}

/// How a node speaks TLS.
#[derive(Debug)]
pub struct ServerTls(Current<ServerConfig>);

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be read, [`Error::Invalid`] where it is not what it should be.
    pub fn load(files: &TlsFiles) -> Result<Self, Error> {
        Current::load(files, TlsFiles::server).map(Self)
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.0.get()
    }
}

/// What the certificate of the node at `HOST:PORT` must be for; `None` where that is no name.
pub(crate) fn server_name(address: &str) -> Option<ServerName<'static>> {
    let host = address.rsplit_once(':')?.0;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}
