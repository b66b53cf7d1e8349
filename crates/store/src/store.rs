//! A store behind a URL: chunks, manifests, logs of starts. Names are in `names`, roots in `roots`.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use snowmelt_chunk::{ChunkId, Manifest, ManifestId};

use crate::location::{Location, S3Options};
use crate::objects::Objects;
use crate::retry::retrying;
use crate::{DEFAULT_ROOT, Error, local};

/// The manifest of a full image of 16 TiB has 3.3 GB.
const MOST_MANIFEST_BYTES: u64 = 4 << 30;
/// The log of a start that reads 2,000 ranges has 60 KB.
const MOST_START_LOG_BYTES: u64 = 1 << 20;
/// Keys that a server lists in one answer.
const LIST_PAGE: u64 = 1000;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Whether `http://` is allowed. Chunks are verified in any case, but names are not.
    pub allow_http: bool,
    /// The root to publish under; the store's active one where it is not set.
    pub root: Option<String>,
    /// How S3 is reached.
    pub s3: S3Options,
    /// The longest that one request may take.
    pub request_timeout: Duration,
    /// How long requests that nobody answers are tried again, at most; zero is one try.
    pub patience: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            allow_http: false,
            root: None,
            s3: S3Options::default(),
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

/// Chunks, manifests and names on object storage. May be used from many threads; all calls block.
#[derive(Clone)]
pub struct Store {
    objects: Objects,
    /// The root that chunks are read from and put to.
    root: String,
    /// Whether that root was asked for.
    asked_root: Option<String>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url()).field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `url`: `file:///folder` or a plain path (made when something is put), `s3://bucket/prefix`, `gs://…`,
    /// `az://…`; or `https://…` and `http://…`, which can only be read.
    ///
    /// # Errors
    /// [`Error::Invalid`] for URLs that cannot be used. Nothing is read yet.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, Error> {
        Self::at(Location::of(url, options)?, url, options)
    }

    fn at(location: Location, url: &str, options: &StoreOptions) -> Result<Self, Error> {
        let root = options.root.clone().unwrap_or_else(|| DEFAULT_ROOT.into());
        check_root(&root)?;
        let objects = Objects::new(location, url, options.patience);
        Ok(Self { objects, root, asked_root: options.root.clone() })
    }

    /// A store over any `object_store`, for tests that inject faults.
    ///
    /// # Panics
    /// Where the options name a root that is none.
    pub fn over_objects(objects: Arc<dyn ObjectStore>, options: &StoreOptions) -> Self {
        let location = Location { objects, folder: None, is_object_storage: true };
        Self::at(location, "memory:", options).expect("a root's name")
    }

    /// The same store with another root to read chunks from and to put them to: that of a name's record.
    ///
    /// # Errors
    /// [`Error::Invalid`] where that is no root's name.
    pub fn at_root(&self, root: &str) -> Result<Self, Error> {
        check_root(root)?;
        Ok(Self { root: root.into(), ..self.clone() })
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The URL it was opened with.
    pub fn url(&self) -> &str {
        self.objects.url()
    }

    /// The root that it reads chunks from and puts them to.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The root that was asked for when it was opened.
    pub fn asked_root(&self) -> Option<&str> {
        self.asked_root.as_deref()
    }

    /// How long requests are tried again.
    pub(crate) fn patience(&self) -> Duration {
        self.objects.patience()
    }

    /// Whether it is a directory of this machine, where a read costs no round trip.
    pub fn is_local(&self) -> bool {
        self.objects.folder().is_some()
    }

    /// Whether it takes objects and lists them; plain web servers only give them.
    pub fn is_object_storage(&self) -> bool {
        self.objects.is_object_storage()
    }

    /// What time it is by the store's clock, as precise as its server says (S3: seconds). Two requests.
    ///
    /// # Errors
    /// Those of putting an object.
    pub fn now(&self) -> Result<std::time::SystemTime, Error> {
        self.objects.now()
    }

    pub(crate) fn chunk_path(root: &str, id: &ChunkId) -> String {
        let id = id.to_string();
        format!("roots/{root}/chunks/{}/{id}", &id[..2])
    }

    pub(crate) fn manifest_path(root: &str, tenant: &str, id: &ManifestId) -> String {
        format!("roots/{root}/manifests/{tenant}/{id}")
    }

    pub(crate) fn starts_path(root: &str, tenant: &str, id: &ManifestId) -> String {
        format!("roots/{root}/starts/{tenant}/{id}")
    }

    /// Puts a chunk even where one is there already, since that one is damaged.
    ///
    /// # Errors
    /// As [`Store::put_chunk`].
    pub fn replace_chunk(&self, id: &ChunkId, ciphertext: &[u8]) -> Result<(), Error> {
        let path = Self::chunk_path(&self.root, id);
        if let Some(folder) = self.objects.folder() {
            return local::replace(&folder.join(path), ciphertext);
        }
        self.objects.put(&path, &format!("chunk {id}"), &Bytes::copy_from_slice(ciphertext))
    }

    /// Puts a chunk unless it is there. Whether it reached the disk is only known after [`Store::sync`].
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`].
    pub fn put_chunk(&self, id: &ChunkId, ciphertext: &[u8]) -> Result<PutOutcome, Error> {
        let path = Self::chunk_path(&self.root, id);
        if let Some(folder) = self.objects.folder() {
            return local::put_if_absent(&folder.join(path), ciphertext);
        }
        let subject = format!("chunk {id}");
        // Asking first saves the upload of what is there already, which is most of an image.
        match self.objects.head(&path, &subject)? {
            Some(found) if found.bytes == ciphertext.len() as u64 => return Ok(PutOutcome::AlreadyThere),
            Some(_) => {
                self.replace_chunk(id, ciphertext)?;
                return Ok(PutOutcome::New);
            }
            None => {}
        }
        self.put_new_chunk(id, ciphertext)
    }

    /// Puts a chunk that most likely is not there: without asking first. One that is there stays.
    ///
    /// # Errors
    /// As [`Store::put_chunk`].
    pub fn put_new_chunk(&self, id: &ChunkId, ciphertext: &[u8]) -> Result<PutOutcome, Error> {
        let path = Self::chunk_path(&self.root, id);
        if let Some(folder) = self.objects.folder() {
            return local::put_if_absent(&folder.join(path), ciphertext);
        }
        let bytes = Bytes::copy_from_slice(ciphertext);
        let is_new = self.objects.put_if_absent(&path, &format!("chunk {id}"), &bytes)?;
        Ok(if is_new { PutOutcome::New } else { PutOutcome::AlreadyThere })
    }

    /// Whether a chunk of that length is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub fn has_chunk(&self, id: &ChunkId, stored_length: u32) -> Result<bool, Error> {
        let found = self.objects.head(&Self::chunk_path(&self.root, id), &format!("chunk {id}"))?;
        Ok(found.is_some_and(|found| found.bytes == u64::from(stored_length)))
    }

    /// Which chunks its root has, if to list them takes fewer requests than to ask for `wanted` chunks one by one, which is so
    /// unless the store is much larger than the image. In a folder asking costs no round trip, so it is never listed.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub fn known_chunks(&self, wanted: u64) -> Result<Option<HashSet<ChunkId>>, Error> {
        if self.is_local() || !self.is_object_storage() {
            return Ok(None);
        }
        let folder = format!("roots/{}/chunks", self.root);
        // Ids are spread evenly, so the first page tells how many pages there are.
        let mut known = HashSet::new();
        let (mut pages, mut too_many) = (0_u32, false);
        self.objects.list_each(&folder, &mut |listed| {
            let Some(id) = id_of(&listed.path) else { return true };
            known.insert(id);
            if (known.len() as u64).is_multiple_of(LIST_PAGE) {
                pages += 1;
                let share = f64::from(u16::from_be_bytes([id.0[0], id.0[1]]).max(1)) / 65536.0;
                too_many = f64::from(pages) / share > (wanted.max(16) / 2) as f64;
            }
            !too_many
        })?;
        Ok(if too_many { None } else { Some(known) })
    }

    /// Every chunk of its root, with its stored length.
    ///
    /// # Errors
    /// Those of listing.
    pub fn each_chunk(&self, each: &mut dyn FnMut(ChunkId, u64)) -> Result<(), Error> {
        self.objects.list_each(&format!("roots/{}/chunks", self.root), &mut |listed| {
            if let Some(id) = id_of(&listed.path) {
                each(id, listed.bytes);
            }
            true
        })
    }

    /// Removes what publishers that were killed left under draft names. Only a directory of this machine has such.
    pub fn remove_abandoned_drafts(&self) {
        if let Some(folder) = self.objects.folder() {
            local::remove_abandoned_drafts(&folder.join("roots").join(&self.root).join("chunks"));
        }
    }

    /// The same for everything but chunks: part of every collection.
    pub(crate) fn remove_other_abandoned_drafts(&self) {
        if let Some(folder) = self.objects.folder() {
            for part in ["names", "gc", "salt"] {
                local::remove_all_abandoned_drafts(&folder.join(part));
            }
        }
    }

    /// Finds out whether the store can be written, before work is done for it: a web server may give and not take, a bucket may
    /// not be there, credentials may be wrong.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it can only be read, [`Error::Refused`], and those of [`Store::put_chunk`].
    pub fn check_writable(&self) -> Result<(), Error> {
        if self.is_local() {
            return Ok(());
        }
        // Removing what is not there changes nothing, whoever answers.
        let nothing = format!("roots/{}/chunks/00/writable", self.root);
        match self.objects.delete(&nothing, "an object that is not there") {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(Error::Invalid(_)) => Err(Error::Invalid(format!("the store {} can only be read", self.url()))),
            Err(error) => Err(error),
        }
    }

    /// Waits until all chunks put so far are durable. To be called before the manifest that names them is put.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<(), Error> {
        match self.objects.folder() {
            Some(folder) if folder.exists() => local::sync(folder),
            _ => Ok(()),
        }
    }

    /// Reads a chunk's ciphertext. It has `stored_length` bytes; whether they are the right ones is for the caller to
    /// verify. One try, no more: who reads on behalf of a device has a deadline of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`] for another length, [`Error::Unavailable`], [`Error::Refused`].
    pub fn read_chunk(&self, id: &ChunkId, stored_length: u32) -> Result<Bytes, Error> {
        let subject = format!("chunk {id}");
        let bytes = self.objects.get(&Self::chunk_path(&self.root, id), &subject, u64::from(stored_length))?;
        if bytes.len() != stored_length as usize {
            let found = bytes.len();
            return Err(Error::corrupt(
                subject,
                format!("the store has {found} bytes of it rather than {stored_length}"),
            ));
        }
        Ok(bytes)
    }

    /// Puts a manifest under its id.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the store can only be read.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<ManifestId, Error> {
        let id = manifest.id();
        let path = Self::manifest_path(&self.root, manifest.tenant(), &id);
        self.objects.put(&path, &format!("manifest {id}"), &Bytes::copy_from_slice(manifest.as_bytes()))?;
        Ok(id)
    }

    /// Reads a manifest and checks that it is the one that the id names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`], [`Error::Unavailable`], [`Error::Refused`], and those of [`Manifest::decode`].
    pub fn read_manifest(&self, root: &str, tenant: &str, id: &ManifestId) -> Result<Manifest, Error> {
        let subject = format!("manifest {id}");
        let path = Self::manifest_path(root, tenant, id);
        let bytes = retrying(self.patience(), || self.objects.get(&path, &subject, MOST_MANIFEST_BYTES))?;
        if ManifestId::of(&bytes) != *id {
            return Err(Error::corrupt(subject, "its bytes are not those that its id names"));
        }
        let manifest = Manifest::decode(&bytes)?;
        if manifest.tenant() != tenant {
            return Err(Error::corrupt(subject, format!("it belongs to tenant {:?}", manifest.tenant())));
        }
        Ok(manifest)
    }

    /// Whether a root has a manifest.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`].
    pub fn has_manifest(&self, root: &str, tenant: &str, id: &ManifestId) -> Result<bool, Error> {
        let path = Self::manifest_path(root, tenant, id);
        Ok(self.objects.head(&path, &format!("manifest {id}"))?.is_some())
    }

    /// Where the logs of starts of a tenant's images lie, beside its manifests, if the store is a directory of this machine. What
    /// is in a log is for who writes it.
    pub fn starts_folder(&self, tenant: &str) -> Option<PathBuf> {
        self.objects.folder().map(|folder| folder.join(format!("roots/{}/starts/{tenant}", self.root)))
    }

    /// Reads the log of a start. It is only advice, so there is one try.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none, [`Error::Corrupt`] where it is over a MiB, [`Error::Unavailable`].
    pub fn read_start_log(&self, tenant: &str, manifest: &ManifestId, log: &str) -> Result<Bytes, Error> {
        let path = format!("{}/{log}", Self::starts_path(&self.root, tenant, manifest));
        self.objects.get(&path, &format!("start log {log} of manifest {manifest}"), MOST_START_LOG_BYTES)
    }

    /// Puts the log of a start, whatever was there.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the store can only be read.
    pub fn put_start_log(&self, tenant: &str, manifest: &ManifestId, log: &str, text: &str) -> Result<(), Error> {
        let path = format!("{}/{log}", Self::starts_path(&self.root, tenant, manifest));
        let subject = format!("start log {log} of manifest {manifest}");
        self.objects.put(&path, &subject, &Bytes::copy_from_slice(text.as_bytes()))
    }

    /// The names of the logs of starts of an image.
    ///
    /// # Errors
    /// Those of listing.
    pub fn list_start_logs(&self, tenant: &str, manifest: &ManifestId) -> Result<Vec<String>, Error> {
        let listed = self.objects.list(&Self::starts_path(&self.root, tenant, manifest))?;
        Ok(listed.into_iter().filter_map(|log| Some(log.path.rsplit_once('/')?.1.to_owned())).collect())
    }
}

/// The chunk that an object's path names.
fn id_of(path: &str) -> Option<ChunkId> {
    path.rsplit_once('/')?.1.parse().ok()
}

/// Roots are parts of paths.
pub(crate) fn check_root(root: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&root.len()) && root.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{root:?} is not a root's name: 1 to 64 of a-z, 0-9 and '-'")))
}

#[cfg(test)]
mod tests;
