//! Objects by path: the few things that everything above asks of object storage.
//!
//! Objects are put (whole, absent or compared), read, listed, copied and deleted. A folder of this machine takes part through
//! `object_store` but for what that cannot do there: files are linked rather than copied, and compare-and-swap holds a lock.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};
use tokio::runtime::Runtime;

use crate::location::Location;
use crate::retry::{retrying, retrying_the_rest};
use crate::{Error, local, refusal};

/// Objects longer than this are put in parts.
const LONGEST_SINGLE_PUT: usize = 32 << 20;
/// Copies and deletions that are under way at once.
const MOST_AT_ONCE: usize = 32;

/// An object as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Path in the store.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// When it was put, by the store's clock.
    pub(crate) modified: SystemTime,
}

/// What an object was when it was read, to be compared when it is replaced.
#[derive(Clone, Debug)]
pub(crate) enum Version {
    /// There was none.
    Absent,
    /// The server's word for it.
    Tagged(UpdateVersion),
    /// Its bytes, where files have no tags.
    Bytes(Bytes),
}

/// What became of a swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swapped {
    /// It was done.
    Done,
    /// The object was something else.
    Conflict,
    /// The object was something else, but an earlier try had no answer: it may still be on its way, and be carried out should the
    /// object become again what it was.
    Uncertain,
}

impl Swapped {
    pub(crate) fn is_done(self) -> bool {
        self == Self::Done
    }
}

/// Objects below one URL.
#[derive(Clone)]
pub(crate) struct Objects {
    backend: Arc<dyn ObjectStore>,
    /// Where they are files of this machine.
    folder: Option<PathBuf>,
    is_object_storage: bool,
    url: String,
    patience: Duration,
    /// Connections live in it.
    runtime: Arc<OnceLock<Runtime>>,
}

impl Objects {
    pub(crate) fn new(location: Location, url: &str, patience: Duration) -> Self {
        let Location { objects, folder, is_object_storage } = location;
        Self { backend: objects, folder, is_object_storage, url: url.into(), patience, runtime: Arc::default() }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    pub(crate) fn is_object_storage(&self) -> bool {
        self.is_object_storage
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
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
            // As it is: what was listed must be found again under its own key, whatever characters that has.
            None => Path::parse(relative).unwrap_or_else(|_| Path::from(relative)),
        }
    }

    /// The path in the store of an object that was listed.
    fn relative(&self, location: &Path) -> Option<String> {
        let Some(folder) = &self.folder else { return Some(location.to_string()) };
        let folder = Path::from_absolute_path(folder).ok()?;
        let parts: Vec<_> = location.prefix_match(&folder)?.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }

    pub(crate) fn error(&self, operation: &'static str, subject: &str, error: object_store::Error) -> Error {
        if self.folder.is_none()
            && let Some((what, todo)) = refusal::of(&error)
        {
            let request = format!("{operation} {subject}: the store {}", self.url);
            return Error::Refused { request, what, todo, source: refusal::said(&error).into() };
        }
        match error {
            object_store::Error::NotFound { .. } => self.not_found(subject, ""),
            object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
                Error::Invalid(format!("{operation} {subject}: the store {} can only be read", self.url))
            }
            error if refusal::refused_method(&error) => {
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
                source: refusal::said(&error).into(),
            },
        }
    }

    pub(crate) fn not_found(&self, subject: &str, hint: &str) -> Error {
        Error::NotFound { subject: subject.into(), store: self.url.clone(), hint: hint.into() }
    }

    /// Reads a whole object of at most `most` bytes. One try.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Corrupt`] where it is longer, [`Error::Unavailable`], [`Error::Refused`].
    pub(crate) fn get(&self, path: &str, subject: &str, most: u64) -> Result<Bytes, Error> {
        if let Some(folder) = &self.folder {
            // Without a detour over the runtime of `object_store`: most starts read nothing but two small files.
            let path = folder.join(path);
            return match local::read(&path, usize::try_from(most).unwrap_or(usize::MAX)) {
                Ok(bytes) if bytes.len() as u64 > most => Err(too_long(subject, most)),
                Ok(bytes) => Ok(bytes.into()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.not_found(subject, "")),
                Err(error) => Err(Error::io("read", path)(error)),
            };
        }
        self.get_remote(path, subject, most).map(|(bytes, _)| bytes)
    }

    fn get_remote(&self, path: &str, subject: &str, most: u64) -> Result<(Bytes, ObjectMeta), Error> {
        let path = self.path(path);
        let read = self.wait(async {
            let found = self.backend.get(&path).await?;
            let meta = found.meta.clone();
            let mut found = found.into_stream();
            let mut bytes = BytesMut::new();
            while let Some(part) = found.try_next().await? {
                bytes.extend_from_slice(&part);
                if bytes.len() as u64 > most {
                    return Ok(None);
                }
            }
            Ok(Some((bytes.freeze(), meta)))
        });
        read.map_err(|error| self.error("read", subject, error))?.ok_or_else(|| too_long(subject, most))
    }

    /// Reads an object that will be replaced, and what it is; tried again.
    ///
    /// # Errors
    /// As [`Objects::get`], but that nothing there is no error.
    pub(crate) fn get_version(&self, path: &str, subject: &str, most: u64) -> Result<(Option<Bytes>, Version), Error> {
        let read = retrying(self.patience, || {
            if self.folder.is_some() {
                return self.get(path, subject, most).map(|bytes| (bytes.clone(), Version::Bytes(bytes)));
            }
            let (bytes, meta) = self.get_remote(path, subject, most)?;
            Ok((bytes, Version::Tagged(UpdateVersion { e_tag: meta.e_tag, version: meta.version })))
        });
        match read {
            Ok((bytes, version)) => Ok((Some(bytes), version)),
            Err(Error::NotFound { .. }) => Ok((None, Version::Absent)),
            Err(error) => Err(error),
        }
    }

    /// Replaces an object if it still is what it was. Whoever reads meanwhile sees the old one or the new.
    ///
    /// `bytes` must differ from what anybody else would put there: an answer that was lost is found out by reading them back.
    ///
    /// # Errors
    /// [`Error::Unavailable`], after which it may be carried out still; [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the
    /// store can only be read.
    pub(crate) fn swap(&self, path: &str, subject: &str, bytes: &Bytes, was: &Version) -> Result<Swapped, Error> {
        if let Some(folder) = &self.folder {
            let was = match was {
                Version::Bytes(bytes) => Some(bytes.as_ref()),
                Version::Absent | Version::Tagged(_) => None,
            };
            let done = local::swap(folder, &folder.join(path), bytes, was)?;
            return Ok(if done { Swapped::Done } else { Swapped::Conflict });
        }
        let at = self.path(path);
        let mode = match was {
            Version::Tagged(version) => PutMode::Update(version.clone()),
            Version::Absent | Version::Bytes(_) => PutMode::Create,
        };
        let mut first = true;
        retrying(self.patience, || {
            let is_first = std::mem::take(&mut first);
            let put = self.backend.put_opts(&at, bytes.clone().into(), PutOptions::from(mode.clone()));
            match self.wait(put) {
                Ok(_) => Ok(Swapped::Done),
                Err(
                    object_store::Error::Precondition { .. }
                    | object_store::Error::AlreadyExists { .. }
                    | object_store::Error::NotFound { .. },
                ) => {
                    // An earlier try may have been carried out and its answer lost.
                    if is_first {
                        return Ok(Swapped::Conflict);
                    }
                    let is_ours = match self.get_version(path, subject, bytes.len() as u64) {
                        Ok((now, _)) => now.is_some_and(|now| now == *bytes),
                        // Longer than ours.
                        Err(Error::Corrupt { .. }) => false,
                        Err(error) => return Err(error),
                    };
                    Ok(if is_ours { Swapped::Done } else { Swapped::Uncertain })
                }
                Err(error) => Err(self.error("put", subject, error)),
            }
        })
    }

    /// Puts an object, whatever is there; long ones in parts. Tried again.
    ///
    /// # Errors
    /// As [`Objects::swap`].
    pub(crate) fn put(&self, path: &str, subject: &str, bytes: &Bytes) -> Result<(), Error> {
        let at = self.path(path);
        retrying(self.patience, || {
            let put = async {
                if bytes.len() <= LONGEST_SINGLE_PUT || self.folder.is_some() {
                    return self.backend.put(&at, bytes.clone().into()).await.map(drop);
                }
                let mut upload = self.backend.put_multipart(&at).await?;
                let mut start = 0;
                while start < bytes.len() {
                    let end = (start + LONGEST_SINGLE_PUT).min(bytes.len());
                    if let Err(error) = upload.put_part(bytes.slice(start..end).into()).await {
                        // Parts without an end would be paid for until somebody finds them.
                        let _ = upload.abort().await;
                        return Err(error);
                    }
                    start = end;
                }
                upload.complete().await.map(drop)
            };
            self.wait(put).map_err(|error| self.error("put", subject, error))
        })
    }

    /// Puts an object unless there is one; whether it did. Tried again.
    ///
    /// # Errors
    /// As [`Objects::swap`].
    pub(crate) fn put_if_absent(&self, path: &str, subject: &str, bytes: &Bytes) -> Result<bool, Error> {
        let at = self.path(path);
        retrying(self.patience, || {
            let payload = PutPayload::from(bytes.clone());
            match self.wait(self.backend.put_opts(&at, payload, PutOptions::from(PutMode::Create))) {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
                // A server without conditional writes. What is put so is named by its bytes: putting it again changes nothing.
                Err(error) if refusal::refused_method(&error) && self.is_object_storage => self
                    .wait(self.backend.put(&at, bytes.clone().into()))
                    .map(|_| true)
                    .map_err(|error| self.error("put", subject, error)),
                Err(error) => Err(self.error("put", subject, error)),
            }
        })
    }

    /// Reads many small objects, many at once; in the order of `paths`, `None` where there is nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`] and [`Error::Refused`]; what is wrong with one object is that one's.
    pub(crate) fn get_all(
        &self,
        paths: &[String],
        subject: &str,
        most: u64,
    ) -> Result<Vec<Option<Result<Bytes, Error>>>, Error> {
        let keep = |result: Result<Bytes, Error>| match result {
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error @ (Error::Unavailable { .. } | Error::Refused { .. })) => Err(error),
            result => Ok(Some(result)),
        };
        if self.folder.is_some() {
            return paths.iter().map(|path| keep(self.get(path, subject, most))).collect();
        }
        let read = |path: String| async move {
            let found = self.backend.get(&self.path(&path)).await?;
            if found.meta.size > most { Ok(Err(too_long(subject, most))) } else { found.bytes().await.map(Ok) }
        };
        let mut all = Vec::with_capacity(paths.len());
        retrying_the_rest(self.patience, |progress| {
            let rest: Vec<String> = paths[all.len()..].to_vec();
            self.wait(async {
                let mut results = futures::stream::iter(rest.into_iter().map(read)).buffered(MOST_AT_ONCE);
                // Ends with the first that is not answered, so that nobody waits for all others of a server that is gone.
                while let Some(result) = results.next().await {
                    all.push(match result {
                        Ok(result) => Some(result),
                        Err(error) => keep(Err(self.error("read", subject, error)))?,
                    });
                    *progress = true;
                }
                Ok(())
            })
        })?;
        Ok(all)
    }

    /// Size of an object and when it was put; `None` where there is none. Tried again.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`].
    pub(crate) fn head(&self, path: &str, subject: &str) -> Result<Option<Listed>, Error> {
        let at = self.path(path);
        retrying(self.patience, || match self.wait(self.backend.head(&at)) {
            Ok(meta) => Ok(Some(Listed { path: path.into(), bytes: meta.size, modified: meta.last_modified.into() })),
            Err(error) => match self.error("look up", subject, error) {
                Error::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        })
    }

    /// Deletes an object. Tried again.
    ///
    /// # Errors
    /// [`Error::NotFound`] where a server says so; most do not.
    pub(crate) fn delete(&self, path: &str, subject: &str) -> Result<(), Error> {
        let at = self.path(path);
        retrying(self.patience, || {
            self.wait(self.backend.delete(&at)).map_err(|error| self.error("remove", subject, error))
        })
    }

    /// Everything below a folder of the store.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Refused`], [`Error::Io`], [`Error::Invalid`] where the store does not list.
    pub(crate) fn list(&self, folder: &str) -> Result<Vec<Listed>, Error> {
        let mut found = Vec::new();
        self.list_each(folder, &mut |listed| {
            found.push(listed);
            true
        })?;
        Ok(found)
    }

    /// Calls `each` for everything below a folder, in pages, until it says false.
    ///
    /// # Errors
    /// As [`Objects::list`].
    pub(crate) fn list_each(&self, folder: &str, each: &mut dyn FnMut(Listed) -> bool) -> Result<(), Error> {
        let at = self.path(folder);
        // After a page that failed it goes on behind what was told, since object storage sorts. Web servers need not, and folders are
        // not tried again.
        let (mut last, mut told) = (None, HashSet::new());
        retrying_the_rest(self.patience, |progress| {
            let listing = async {
                let mut found = match &last {
                    Some(last) => self.backend.list_with_offset(Some(&at), last),
                    None => self.backend.list(Some(&at)),
                };
                loop {
                    match found.try_next().await {
                        Ok(None) => return Ok(()),
                        Ok(Some(meta)) => {
                            match (&self.folder, self.is_object_storage) {
                                (Some(_), _) => {}
                                (None, true) => last = Some(meta.location.clone()),
                                (None, false) if told.insert(meta.location.clone()) => {}
                                (None, false) => continue,
                            }
                            *progress = true;
                            let Some(path) = self.relative(&meta.location) else { continue };
                            let listed = Listed { path, bytes: meta.size, modified: meta.last_modified.into() };
                            if !each(listed) {
                                return Ok(());
                            }
                        }
                        // A file that was removed while its folder was read.
                        Err(object_store::Error::NotFound { source, .. })
                            if self.folder.is_some() && source.downcast_ref::<std::io::Error>().is_some() => {}
                        Err(error) => return Err(error),
                    }
                }
            };
            match self.wait(listing).map_err(|error| self.error("list", folder, error)) {
                Err(Error::NotFound { .. }) => Ok(()),
                result => result,
            }
        })
    }

    /// The names right below a folder that are folders themselves.
    ///
    /// # Errors
    /// As [`Objects::list`].
    pub(crate) fn list_folders(&self, folder: &str) -> Result<Vec<String>, Error> {
        let at = self.path(folder);
        let found = retrying(self.patience, || {
            match self
                .wait(self.backend.list_with_delimiter(Some(&at)))
                .map_err(|error| self.error("list", folder, error))
            {
                Err(Error::NotFound { .. }) => Ok(Vec::new()),
                result => result.map(|listed| listed.common_prefixes),
            }
        })?;
        let mut names: Vec<_> =
            found.iter().filter_map(|path| Some(path.parts().next_back()?.as_ref().to_owned())).collect();
        names.sort();
        Ok(names)
    }

    /// Copies objects within the store, many at once, without their bytes passing through here; `done` is told of each. Where one
    /// is there already it stays. One that is not there to be copied is an error.
    ///
    /// # Errors
    /// The first; what was copied before stays.
    pub(crate) fn copy_all(&self, pairs: &[(String, String)], done: &(dyn Fn(usize) + Sync)) -> Result<(), Error> {
        if let Some(folder) = &self.folder {
            for (index, (from, to)) in pairs.iter().enumerate() {
                link(&folder.join(from), &folder.join(to)).map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => self.not_found(from, ""),
                    _ => Error::io("copy", folder.join(from))(error),
                })?;
                done(index);
            }
            return Ok(());
        }
        let mut rest: Vec<usize> = (0..pairs.len()).collect();
        retrying_the_rest(self.patience, |progress| {
            let copied = self.wait(async {
                let mut copies = futures::stream::iter(rest.clone())
                    .map(|index| async move {
                        let (from, to) = (self.path(&pairs[index].0), self.path(&pairs[index].1));
                        (index, self.backend.copy(&from, &to).await)
                    })
                    .buffer_unordered(MOST_AT_ONCE);
                let (mut copied, mut failed) = (HashSet::new(), None);
                while let Some((index, result)) = copies.next().await {
                    match result {
                        Ok(()) => {
                            copied.insert(index);
                            done(index);
                        }
                        Err(error) => {
                            failed = Some((index, error));
                            break;
                        }
                    }
                }
                (copied, failed)
            });
            rest.retain(|index| !copied.0.contains(index));
            *progress = !copied.0.is_empty();
            match copied.1 {
                None => Ok(()),
                Some((index, error)) => Err(self.error("copy", &pairs[index].0, error)),
            }
        })
    }

    /// Deletes many objects, in bulk where the server can; what is not there is no error. Returns how many.
    ///
    /// # Errors
    /// The first; others may be deleted or not.
    pub(crate) fn delete_all(&self, paths: Vec<String>) -> Result<u64, Error> {
        let count = paths.len() as u64;
        if let Some(folder) = &self.folder {
            for path in paths {
                match fs::remove_file(folder.join(&path)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", folder.join(path))(error));
                    }
                    _ => {}
                }
            }
            return Ok(count);
        }
        retrying(self.patience, || {
            let all: Vec<_> = paths.iter().map(|path| Ok(self.path(path))).collect();
            let mut deleted = self.backend.delete_stream(futures::stream::iter(all).boxed());
            self.wait(async {
                while let Some(result) = deleted.next().await {
                    match result {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            })
            .map_err(|error| self.error("remove", "objects of a root", error))
        })?;
        Ok(count)
    }

    /// The store's clock: when an object that is put now counts as put. Everything that compares ages uses it, so that the clocks of
    /// machines need not agree.
    ///
    /// # Errors
    /// Those of putting an object.
    pub(crate) fn now(&self) -> Result<SystemTime, Error> {
        let path = "gc/clock";
        self.put(path, "the clock", &Bytes::from_static(b"When this was put is what time it is.\n"))?;
        let found = self.head(path, "the clock")?;
        found.map(|found| found.modified).ok_or_else(|| self.not_found("the clock", ""))
    }

    /// Whether anything is below a folder.
    ///
    /// # Errors
    /// As [`Objects::list`].
    pub(crate) fn has_any(&self, path: &str) -> Result<bool, Error> {
        if let Some(folder) = &self.folder {
            return Ok(fs::read_dir(folder.join(path)).is_ok_and(|mut entries| entries.next().is_some()));
        }
        let mut found = false;
        self.list_each(path, &mut |_| {
            found = true;
            false
        })?;
        Ok(found)
    }

    /// Removes a folder with all that is in it, where folders exist; how many files there were, `None` where there are no folders.
    /// Links are removed and not followed, whoever changes what meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`]: what is left is removed by another try.
    pub(crate) fn remove_folder(&self, path: &str) -> Result<Option<u64>, Error> {
        fn count(folder: &std::path::Path) -> u64 {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| if is_folder(&entry) { count(&entry.path()) } else { 1 }).sum()
        }
        fn is_folder(entry: &fs::DirEntry) -> bool {
            entry.file_type().is_ok_and(|kind| kind.is_dir())
        }
        let Some(folder) = self.folder.as_ref().map(|folder| folder.join(path)) else { return Ok(None) };
        let files = count(&folder);
        let mut tries = 0;
        loop {
            tries += 1;
            match fs::remove_dir_all(&folder) {
                // Somebody who slept puts a chunk there just now.
                Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty && tries < 10 => {}
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", folder)(error));
                }
                _ => return Ok(Some(files)),
            }
        }
    }
}

fn too_long(subject: &str, most: u64) -> Error {
    Error::corrupt(subject, format!("it is longer than {most} bytes"))
}

/// Gives a file a second name: chunks are never changed in place, so that two roots may share their bytes.
fn link(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    use std::io::ErrorKind;
    let linked = match fs::hard_link(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound && from.exists() => {
            fs::create_dir_all(to.parent().unwrap_or(to))?;
            fs::hard_link(from, to)
        }
        linked => linked,
    };
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // Other file systems, or too many names: copied under a draft's name first.
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::StorageFull) => {
            let bytes = fs::read(from)?;
            local::put_if_absent(to, &bytes).map(drop).map_err(std::io::Error::other)
        }
        linked => linked,
    }
}
