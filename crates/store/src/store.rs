//! A store behind a URL.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt as _, RetryConfig};
use snowmelt_chunk::{ChunkId, Manifest, ManifestId};
use tokio::runtime::Runtime;
use url::Url;

use crate::records::NameRecord;
use crate::retry::retrying;
use crate::{DEFAULT_ROOT, Error, ImageName, local};

/// The manifest of a full image of 16 TiB has 3.3 GB.
const MOST_MANIFEST_BYTES: u64 = 4 << 30;
/// The log of a start that reads 2,000 ranges has 60 KB.
const MOST_START_LOG_BYTES: u64 = 1 << 20;
/// A name's record has about 500 bytes, and what its publisher called its source.
const MOST_NAME_BYTES: u64 = 64 << 10;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Whether `http://` is allowed. Chunks are verified in any case, but names are not.
    pub allow_http: bool,
    /// The root to publish under and to read from.
    pub root: String,
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// How long requests that nobody answers are tried again, at most; zero is one try.
    pub patience: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            allow_http: false,
            root: DEFAULT_ROOT.into(),
            request_timeout: Duration::from_secs(30),
            patience: Duration::from_secs(30),
        }
    }
}

/// What putting a chunk did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It was not there, and is now.
    New,
    /// It was there already.
    AlreadyThere,
    /// It was there, damaged, and is whole now. Only publishing with [`PublishOptions::repair`](crate::PublishOptions::repair)
    /// finds that out.
    Repaired,
}

/// A name, and its record unless that is damaged.
pub type ListedName = (ImageName, Result<NameRecord, Error>);

/// Chunks, manifests and names on object storage. May be used from many threads; all calls block.
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Where the store is a directory of this machine.
    folder: Option<PathBuf>,
    url: String,
    root: String,
    patience: Duration,
    /// Shared by all roots of one store: connections live in it.
    runtime: Arc<OnceLock<Runtime>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url).field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `url`: `file:///folder` or a plain path (made when something is put), or `https://…` and
    /// `http://…`, which can only be read.
    ///
    /// # Errors
    /// [`Error::Invalid`] for URLs that cannot be used. Nothing is read yet.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, Error> {
        let invalid = |why: String| Error::Invalid(format!("the store {url:?} cannot be used: {why}"));
        check_root(&options.root)?;
        if let Some(folder) = folder_of(url).map_err(invalid)? {
            let objects = LocalFileSystem::new().with_fsync(true);
            return Ok(Self::over(Arc::new(objects), Some(folder), url, options));
        }
        let parsed = Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        match parsed.scheme() {
            "https" => {}
            "http" if options.allow_http => {}
            "http" => return Err(invalid("it is plain HTTP: use https, or allow it with --allow-http".into())),
            scheme => {
                return Err(invalid(format!(
                    "no store is reached by {scheme}: use file:///folder, https://… or http://…"
                )));
            }
        }
        let client = ClientOptions::new()
            .with_allow_http(true)
            .with_connect_timeout(Duration::from_secs(5))
            .with_timeout(options.request_timeout);
        let objects = HttpBuilder::new()
            .with_url(url)
            .with_client_options(client)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Self::over(Arc::new(objects), None, url, options))
    }

    fn over(objects: Arc<dyn ObjectStore>, folder: Option<PathBuf>, url: &str, options: &StoreOptions) -> Self {
        Self {
            objects,
            folder,
            url: url.into(),
            root: options.root.clone(),
            patience: options.patience,
            runtime: Arc::default(),
        }
    }

    /// A store over any `object_store`, for tests that inject faults.
    pub fn over_objects(objects: Arc<dyn ObjectStore>, options: &StoreOptions) -> Self {
        Self::over(objects, None, "memory:", options)
    }

    /// The same store with another root to publish under and to read chunks from: that of a name's record.
    ///
    /// # Errors
    /// [`Error::Invalid`] where that is no root's name.
    pub fn at_root(&self, root: &str) -> Result<Self, Error> {
        check_root(root)?;
        Ok(Self {
            objects: Arc::clone(&self.objects),
            folder: self.folder.clone(),
            url: self.url.clone(),
            root: root.into(),
            patience: self.patience,
            runtime: Arc::clone(&self.runtime),
        })
    }

    /// The URL it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The root that it publishes under and reads from.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// How long requests are tried again.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether it is a directory of this machine, where a read costs no round trip.
    pub fn is_local(&self) -> bool {
        self.folder.is_some()
    }

    /// Runs one asynchronous operation. The runtime is made when first needed: most starts from a warm cache never do.
    fn wait<T>(&self, operation: impl Future<Output = T>) -> T {
        self.runtime
            .get_or_init(|| {
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .thread_name("snowmelt-store")
                    .build()
                    .expect("the system can make one more thread")
            })
            .block_on(operation)
    }

    /// An object's path. A local store is rooted at `/`, so that a folder that does not exist yet needs no special case.
    fn path(&self, relative: &str) -> Path {
        match &self.folder {
            Some(folder) => Path::from_absolute_path(folder.join(relative)).expect("the folder is absolute"),
            None => Path::from(relative),
        }
    }

    fn chunk_path(&self, id: &ChunkId) -> String {
        let id = id.to_string();
        format!("roots/{}/chunks/{}/{id}", self.root, &id[..2])
    }

    fn manifest_path(root: &str, tenant: &str, id: &ManifestId) -> String {
        format!("roots/{root}/manifests/{tenant}/{id}")
    }

    fn name_path(tenant: &str, name: &ImageName) -> String {
        format!("names/{tenant}/{}/{}", name.folder(), name.tag())
    }

    fn error(&self, operation: &'static str, subject: &str, error: object_store::Error) -> Error {
        match error {
            object_store::Error::NotFound { .. } => self.not_found(subject, ""),
            object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
                Error::Invalid(format!("{operation} {subject}: the store {} can only be read", self.url))
            }
            error if refused_method(&error) => {
                let what = if operation == "list" {
                    "lists nothing: ask for an image by its name"
                } else {
                    "can only be read"
                };
                Error::Invalid(format!("{operation} {subject}: the store {} {what}", self.url))
            }
            // What a file system refuses it will refuse again; what a server refuses may be a bad moment.
            object_store::Error::Generic { source, .. } if self.folder.is_some() => Error::Io {
                operation,
                path: self.folder.clone().unwrap_or_default(),
                source: std::io::Error::other(source),
            },
            error => Error::Unavailable {
                operation,
                subject: subject.into(),
                store: self.url.clone(),
                source: Box::new(error),
            },
        }
    }

    fn not_found(&self, subject: &str, hint: &str) -> Error {
        Error::NotFound { subject: subject.into(), store: self.url.clone(), hint: hint.into() }
    }

    /// Puts a chunk even where one is there already, since that one is damaged.
    ///
    /// # Errors
    /// As [`Store::put_chunk`].
    pub fn replace_chunk(&self, id: &ChunkId, ciphertext: &[u8]) -> Result<(), Error> {
        let path = self.chunk_path(id);
        if let Some(folder) = &self.folder {
            return local::replace(&folder.join(path), ciphertext);
        }
        let subject = format!("chunk {id}");
        let path = self.path(&path);
        retrying(self.patience, || {
            self.wait(self.objects.put(&path, Bytes::copy_from_slice(ciphertext).into()))
                .map(drop)
                .map_err(|error| self.error("put", &subject, error))
        })
    }

    /// Puts a chunk unless it is there. Whether it reached the disk is only known after [`Store::sync`].
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`].
    pub fn put_chunk(&self, id: &ChunkId, ciphertext: &[u8]) -> Result<PutOutcome, Error> {
        let path = self.chunk_path(id);
        if let Some(folder) = &self.folder {
            return local::put_if_absent(&folder.join(path), ciphertext);
        }
        let subject = format!("chunk {id}");
        let path = self.path(&path);
        retrying(self.patience, || {
            // Asking first saves the upload of what is there already, which is most of an image.
            match self.wait(self.objects.head(&path)) {
                Ok(found) if found.size == ciphertext.len() as u64 => return Ok(PutOutcome::AlreadyThere),
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.error("look up", &subject, error)),
            }
            // Content-addressed: whoever puts it last puts the same bytes.
            self.wait(self.objects.put(&path, Bytes::copy_from_slice(ciphertext).into()))
                .map(|_| PutOutcome::New)
                .map_err(|error| self.error("put", &subject, error))
        })
    }

    /// Removes what publishers that were killed left under draft names. Only a directory of this machine has such.
    pub fn remove_abandoned_drafts(&self) {
        if let Some(folder) = &self.folder {
            local::remove_abandoned_drafts(&folder.join("roots").join(&self.root).join("chunks"));
        }
    }

    /// Finds out whether the store can be written, before work is done for it: a web server may give and not take.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it can only be read, and those of [`Store::put_chunk`].
    pub fn check_writable(&self) -> Result<(), Error> {
        if self.folder.is_some() {
            return Ok(());
        }
        // Removing what is not there changes nothing, whoever answers.
        let nothing = format!("roots/{}/chunks/00/writable", self.root);
        match self.remove(&nothing, "anything") {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(Error::Invalid(_)) => Err(Error::Invalid(format!("the store {} can only be read", self.url))),
            Err(error) => Err(error),
        }
    }

    /// Waits until all chunks put so far are durable. To be called before the manifest that names them is put.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        match &self.folder {
            Some(folder) if folder.exists() => local::sync(folder),
            _ => Ok(()),
        }
    }

    /// Reads a chunk's ciphertext. It has `stored_length` bytes; whether they are the right ones is for the caller to
    /// verify. One try, no more: who reads on behalf of a device has a deadline of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`] for another length, [`Error::Unavailable`].
    pub fn read_chunk(&self, id: &ChunkId, stored_length: u32) -> Result<Bytes, Error> {
        let subject = format!("chunk {id}");
        let bytes = self.get(&self.chunk_path(id), &subject, u64::from(stored_length))?;
        if bytes.len() != stored_length as usize {
            let found = bytes.len();
            return Err(Error::corrupt(
                subject,
                format!("the store has {found} bytes of it rather than {stored_length}"),
            ));
        }
        Ok(bytes)
    }

    /// Reads a whole object of at most `most` bytes. One try.
    fn get(&self, path: &str, subject: &str, most: u64) -> Result<Bytes, Error> {
        let too_long = || Error::corrupt(subject, format!("it is longer than {most} bytes"));
        if let Some(folder) = &self.folder {
            // Without a detour over the runtime of `object_store`: most starts read nothing but two small files.
            let path = folder.join(path);
            return match local::read(&path, usize::try_from(most).unwrap_or(usize::MAX)) {
                Ok(bytes) if bytes.len() as u64 > most => Err(too_long()),
                Ok(bytes) => Ok(bytes.into()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.not_found(subject, "")),
                Err(error) => Err(Error::io("read", path)(error)),
            };
        }
        let path = self.path(path);
        let read = self.wait(async {
            let mut found = self.objects.get(&path).await?.into_stream();
            let mut bytes = BytesMut::new();
            while let Some(part) = found.try_next().await? {
                bytes.extend_from_slice(&part);
                if bytes.len() as u64 > most {
                    return Ok(None);
                }
            }
            Ok(Some(bytes.freeze()))
        });
        read.map_err(|error| self.error("read", subject, error))?.ok_or_else(too_long)
    }

    /// Puts a manifest under its id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`], [`Error::Invalid`] where the store can only be read.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<ManifestId, Error> {
        let id = manifest.id();
        let path = self.path(&Self::manifest_path(&self.root, manifest.tenant(), &id));
        let bytes = Bytes::copy_from_slice(manifest.as_bytes());
        retrying(self.patience, || {
            self.wait(self.objects.put(&path, bytes.clone().into()))
                .map_err(|error| self.error("put", &format!("manifest {id}"), error))
        })?;
        Ok(id)
    }

    /// Reads a manifest and checks that it is the one that the id names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::Unavailable`], and those of [`Manifest::decode`].
    pub fn read_manifest(&self, root: &str, tenant: &str, id: &ManifestId) -> Result<Manifest, Error> {
        let subject = format!("manifest {id}");
        let path = Self::manifest_path(root, tenant, id);
        let bytes = retrying(self.patience, || self.get(&path, &subject, MOST_MANIFEST_BYTES))?;
        if ManifestId::of(&bytes) != *id {
            return Err(Error::corrupt(subject, "its bytes are not those that its id names"));
        }
        let manifest = Manifest::decode(&bytes)?;
        if manifest.tenant() != tenant {
            return Err(Error::corrupt(subject, format!("it belongs to tenant {:?}", manifest.tenant())));
        }
        Ok(manifest)
    }

    /// Where the logs of starts of a tenant's images lie, beside its manifests, if the store is a directory of this machine. What
    /// is in a log is for who writes it.
    pub fn starts_folder(&self, tenant: &str) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.join(format!("roots/{}/starts/{tenant}", self.root)))
    }

    /// Reads the log of a start. It is only advice, so there is one try.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none, [`Error::Corrupt`] where it is over a MiB, [`Error::Unavailable`].
    pub fn read_start_log(&self, tenant: &str, manifest: &ManifestId, log: &str) -> Result<Bytes, Error> {
        let path = format!("roots/{}/starts/{tenant}/{manifest}/{log}", self.root);
        self.get(&path, &format!("start log {log} of manifest {manifest}"), MOST_START_LOG_BYTES)
    }

    /// Makes a name stand for what the record says. Readers see the old record or the new one, never a mixture.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`], [`Error::Invalid`] where the store can only be read.
    pub fn put_name(&self, tenant: &str, name: &ImageName, record: &NameRecord) -> Result<(), Error> {
        let path = self.path(&Self::name_path(tenant, name));
        let bytes = Bytes::from(serde_json::to_vec_pretty(record).expect("a record of plain fields is JSON"));
        retrying(self.patience, || {
            self.wait(self.objects.put(&path, bytes.clone().into()))
                .map(|_| ())
                .map_err(|error| self.error("put", &format!("name {name}"), error))
        })
    }

    /// What a name stands for.
    ///
    /// # Errors
    /// [`Error::NotFound`] with what to do, [`Error::Corrupt`], [`Error::Unavailable`].
    pub fn read_name(&self, tenant: &str, name: &ImageName) -> Result<NameRecord, Error> {
        let subject = format!("image {name} of tenant {tenant:?}");
        let path = Self::name_path(tenant, name);
        match retrying(self.patience, || self.get(&path, &subject, MOST_NAME_BYTES)) {
            Err(Error::NotFound { .. }) => {
                Err(self.not_found(&subject, ": `snowmelt images` lists what is, `snowmelt publish` adds"))
            }
            Err(error) => Err(error),
            Ok(bytes) => NameRecord::decode(&subject, &bytes),
        }
    }

    /// Removes a name. Its manifest and chunks stay.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Unavailable`], [`Error::Io`].
    pub fn remove_name(&self, tenant: &str, name: &ImageName) -> Result<(), Error> {
        let subject = format!("image {name} of tenant {tenant:?}");
        match self.remove(&Self::name_path(tenant, name), &subject) {
            Err(Error::NotFound { .. }) => Err(self.not_found(&subject, ": `snowmelt images` lists what is")),
            result => result,
        }
    }

    fn remove(&self, path: &str, subject: &str) -> Result<(), Error> {
        let path = self.path(path);
        retrying(self.patience, || {
            self.wait(self.objects.delete(&path)).map_err(|error| self.error("remove", subject, error))
        })
    }

    /// All names of a tenant with their records, by name. A record that cannot be read ([`Error::Corrupt`]) is an error of its
    /// own and not of the list, so that one bad file does not hide all others.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`], [`Error::Invalid`] where the store does not list.
    pub fn list_names(&self, tenant: &str) -> Result<Vec<ListedName>, Error> {
        let prefix = format!("names/{tenant}");
        let at = self.path(&prefix);
        let found: Vec<_> = retrying(self.patience, || match self.wait(self.objects.list(Some(&at)).try_collect()) {
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            result => result.map_err(|error| self.error("list", &format!("names of tenant {tenant:?}"), error)),
        })?;
        let mut names = Vec::new();
        for object in found {
            let parts: Vec<_> = object.location.parts().collect();
            let [.., folder, tag] = parts.as_slice() else { continue };
            let Some(name) = ImageName::from_path(folder.as_ref(), tag.as_ref()) else { continue };
            match self.read_name(tenant, &name) {
                // Removed since it was listed.
                Err(Error::NotFound { .. }) => {}
                Err(error @ Error::Corrupt { .. }) => names.push((name, Err(error))),
                record => names.push((name, Ok(record?))),
            }
        }
        names.sort_by(|(a, _): &ListedName, (b, _)| a.cmp(b));
        Ok(names)
    }
}

/// Whether a server said that it does not do such a thing at all (405, 501), as plain web servers do where they are asked to
/// list or to write.
fn refused_method(error: &object_store::Error) -> bool {
    let object_store::Error::Generic { source, .. } = error else { return false };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
    while let Some(error) = next {
        // The library keeps the status in its text only.
        let text = error.to_string();
        if ["405 Method Not Allowed", "501 Not Implemented", "501 Unsupported method"]
            .iter()
            .any(|it| text.contains(it))
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Roots are parts of paths.
pub(crate) fn check_root(root: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&root.len()) && root.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{root:?} is not a root's name: 1 to 64 of a-z, 0-9 and '-'")))
}

/// The folder that a URL names, absolute; `None` where it names a server.
fn folder_of(url: &str) -> Result<Option<PathBuf>, String> {
    let path = if let Some(path) = url.strip_prefix("file://") {
        if !path.starts_with('/') {
            return Err("a file URL has three slashes: file:///folder".into());
        }
        Url::parse(url)
            .map_err(|error| error.to_string())?
            .to_file_path()
            .map_err(|()| "it does not name a folder of this machine".to_string())?
    } else if url.contains("://") {
        return Ok(None);
    } else if url.is_empty() {
        return Err("it is empty".into());
    } else {
        std::path::absolute(FilePath::new(url)).map_err(|error| error.to_string())?
    };
    if path.to_str().is_none() {
        return Err("its path is not UTF-8".into());
    }
    if path.exists() && !path.is_dir() {
        return Err(format!("{} is not a folder", path.display()));
    }
    Ok(Some(path))
}

#[cfg(test)]
mod tests;
