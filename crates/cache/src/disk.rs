//! A cache of chunks in a folder, shared by processes, bounded in bytes.
//!
//! ```text
//! <folder>/chunks/<2 hex>/<64 hex>     ciphertext of a chunk, named by its id; its time of modification is that of its last use
//! <folder>/usage                       bytes that the chunks take, 8 bytes little-endian, changed only under its lock
//! ```
//!
//! Room is reserved in `usage` before a chunk is written, so that the chunks never take more than the budget. A process that is
//! killed between the two leaves room reserved for nothing; the next eviction counts the files and corrects it. Nothing is
//! synced to the disk: after a crash of the machine a file may hold anything, which readers find out, since they verify.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use snowmelt_chunk::ChunkId;

use crate::Error;

/// Eviction makes room down to this share of the budget, so that it is seldom needed.
const EVICT_TO_PERCENT: u64 = 90;

/// A draft that was not written to for so long belongs to nobody: its writer was killed. Writing one takes milliseconds.
const ABANDONED_AFTER: Duration = Duration::from_mins(10);

/// Chunks on this machine's disk.
#[derive(Debug)]
pub struct DiskCache {
    folder: PathBuf,
    budget_bytes: u64,
    /// What this process has marked as used: once per chunk is enough for eviction by last use.
    touched: Mutex<HashSet<ChunkId>>,
}

impl DiskCache {
    /// Opens the cache in `folder`, which is made where it is not there, with room for `budget_bytes` of chunks. All
    /// processes should give one folder the same budget; the smallest wins.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: impl Into<PathBuf>, budget_bytes: u64) -> Result<Self, Error> {
        let folder = folder.into();
        let chunks = folder.join("chunks");
        fs::create_dir_all(&chunks).map_err(Error::io("make", chunks))?;
        Ok(Self { folder, budget_bytes, touched: Mutex::new(HashSet::new()) })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes that chunks may take.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    fn path(&self, id: &ChunkId) -> PathBuf {
        let id = id.to_string();
        self.folder.join("chunks").join(&id[..2]).join(id)
    }

    /// Reads a chunk into `ciphertext`, which has its stored length. `false` where it is not there, has another length or
    /// cannot be read: the next tier is asked then. The bytes are not verified.
    pub fn get(&self, id: &ChunkId, ciphertext: &mut [u8]) -> bool {
        let Ok(file) = File::open(self.path(id)) else { return false };
        if file.read_exact_at(ciphertext, 0).is_err() {
            return false;
        }
        let first = self.touched.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(*id);
        if first {
            // Only eviction order depends on it.
            let _ = file.set_modified(SystemTime::now());
        }
        true
    }

    /// Whether a chunk of this stored length is here.
    pub fn contains(&self, id: &ChunkId, length: u64) -> bool {
        fs::metadata(self.path(id)).is_ok_and(|found| found.len() == length)
    }

    /// Drops a chunk, because it is damaged.
    pub fn remove(&self, id: &ChunkId) {
        // Its room stays reserved until the next eviction counts: too little is kept for a while, never too much.
        let _ = fs::remove_file(self.path(id));
    }

    /// Keeps a chunk that has been verified. `false` where it is larger than the whole budget.
    ///
    /// # Errors
    /// [`Error::Io`]: the chunk is then not kept.
    pub fn put(&self, id: &ChunkId, ciphertext: &[u8]) -> Result<bool, Error> {
        let path = self.path(id);
        let length = ciphertext.len() as u64;
        if length > self.budget_bytes {
            return Ok(false);
        }
        if self.contains(id, length) {
            return Ok(true);
        }
        self.reserve(length)?;
        let draft = self.write_draft(&path, ciphertext);
        let kept = draft.and_then(|draft| {
            fs::rename(&draft, &path).map_err(|error| {
                let _ = fs::remove_file(&draft);
                Error::io("write", &path)(error)
            })
        });
        kept.map(|()| true)
    }

    fn write_draft(&self, path: &Path, ciphertext: &[u8]) -> Result<PathBuf, Error> {
        let folder = path.parent().unwrap_or(&self.folder);
        // By chance and not by process: processes that do not see each other may share the folder.
        let mut number = [0; 16];
        getrandom::fill(&mut number)
            .map_err(|error| Error::io("name a draft of", path)(std::io::Error::other(error.to_string())))?;
        let draft = folder.join(format!("{DRAFT}{:032x}", u128::from_ne_bytes(number)));
        let create = || OpenOptions::new().write(true).create_new(true).open(&draft);
        let file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(folder).and_then(|()| create()),
            file => file,
        };
        file.and_then(|mut file| file.write_all(ciphertext)).map_err(|error| {
            let _ = fs::remove_file(&draft);
            Error::io("write", &draft)(error)
        })?;
        Ok(draft)
    }

    /// Opens and locks the file of used bytes. Whoever holds it may evict.
    fn lock_usage(&self) -> Result<Flock<File>, Error> {
        let path = self.folder.join("usage");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| Error::io("lock", &path)(error.into()))
    }

    /// Adds `length` to the used bytes, evicting first where that would exceed the budget.
    fn reserve(&self, length: u64) -> Result<(), Error> {
        let file = self.lock_usage()?;
        let io = |error| Error::io("write", self.folder.join("usage"))(error);
        let mut bytes = [0; 8];
        let used = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_le_bytes(bytes),
            // New, or cut short by a crash: count what is there.
            Err(_) => self.count()?,
        };
        let used = if used.saturating_add(length) > self.budget_bytes { self.evict(length)? } else { used };
        file.write_all_at(&(used + length).to_le_bytes(), 0).map_err(io)
    }

    /// Bytes that the chunks take, as the files say.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn count(&self) -> Result<u64, Error> {
        Ok(self.files()?.iter().map(|file| file.length).sum())
    }

    /// Removes the least recently used chunks until `incoming` bytes fit well; gives the bytes that are left.
    fn evict(&self, incoming: u64) -> Result<u64, Error> {
        let mut files = self.files()?;
        let mut used: u64 = files.iter().map(|file| file.length).sum();
        let target = (self.budget_bytes / 100 * EVICT_TO_PERCENT).min(self.budget_bytes - incoming);
        files.sort_by(|a, b| (a.used_at, &a.path).cmp(&(b.used_at, &b.path)));
        for file in files {
            if used <= target {
                break;
            }
            if file.evictable && fs::remove_file(&file.path).is_ok() {
                used -= file.length;
            }
        }
        Ok(used)
    }

    fn files(&self) -> Result<Vec<CachedFile>, Error> {
        let chunks = self.folder.join("chunks");
        let mut files = Vec::new();
        for folder in fs::read_dir(&chunks).map_err(Error::io("list", &chunks))? {
            let folder = folder.map_err(Error::io("list", &chunks))?.path();
            // A folder or file that another process removes meanwhile is no longer there to count.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                let used_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let drafted = draft(&entry.file_name(), used_at);
                if drafted == Some(Draft::Abandoned) {
                    let _ = fs::remove_file(entry.path());
                    continue;
                }
                // What is being written counts, and is not for eviction: its writer would not find it again.
                files.push(CachedFile {
                    path: entry.path(),
                    length: metadata.len(),
                    used_at,
                    evictable: drafted.is_none(),
                });
            }
        }
        Ok(files)
    }
}

struct CachedFile {
    path: PathBuf,
    length: u64,
    used_at: SystemTime,
    evictable: bool,
}

/// A file that is being written under a draft's name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Draft {
    /// A moment ago.
    Live,
    /// Long ago: by a process that is gone.
    Abandoned,
}

/// What names of drafts begin with. Ids have hexadecimal digits only.
const DRAFT: &str = ".draft-";

fn draft(name: &std::ffi::OsStr, written_at: SystemTime) -> Option<Draft> {
    if !name.as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
        return None;
    }
    let age = written_at.elapsed().unwrap_or_default();
    Some(if age > ABANDONED_AFTER { Draft::Abandoned } else { Draft::Live })
}

#[cfg(test)]
mod tests;
