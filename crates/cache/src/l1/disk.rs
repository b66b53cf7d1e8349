//! Chunks on a worker's disk, each in a file of its own.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use rustix::fs::Advice;
use snowmelt_chunk::ChunkId;
use snowmelt_eviction::{Eviction as _, S3Fifo};

use crate::{ChunkName, Error};

/// What a file is called while it is written. Ids have hexadecimal digits only.
const DRAFT: &str = "draft";
/// File systems give room in blocks.
const BLOCK: u64 = 4096;

#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    state: Mutex<State>,
    _lock: Flock<File>,
}

#[derive(Debug)]
struct State {
    /// Stored bytes of each chunk that is there.
    lengths: HashMap<ChunkId, u32>,
    policy: S3Fifo<ChunkId>,
}

impl Disk {
    pub(super) fn open(folder: &Path, budget_bytes: u64) -> Result<Self, Error> {
        let chunks = folder.join("chunks");
        fs::create_dir_all(&chunks).map_err(Error::io("make", &chunks))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(Error::io("open", &path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => Error::InUse { folder: folder.into() },
            error => Error::io("lock", &path)(error.into()),
        })?;
        let mut state = State { lengths: HashMap::new(), policy: S3Fifo::new(budget_bytes) };
        let mut evicted = Vec::new();
        for (_, id, length) in found(&chunks)? {
            state.lengths.insert(id, length);
            state.policy.offer(id, room(length), &mut evicted);
        }
        let disk = Self { folder: folder.into(), state: Mutex::new(state), _lock: lock };
        for id in evicted {
            disk.lock().lengths.remove(&id);
            let _ = fs::remove_file(disk.path(&id));
        }
        Ok(disk)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &ChunkId) -> PathBuf {
        let id = id.to_string();
        self.folder.join("chunks").join(&id[..2]).join(id)
    }

    /// The chunk's file, which may hold anything, but not fewer bytes.
    pub(super) fn get(&self, id: &ChunkId, stored_length: u32) -> Option<OwnedFd> {
        {
            let mut state = self.lock();
            if !state.policy.touch(*id) || state.lengths.get(id) != Some(&stored_length) {
                return None;
            }
        }
        let file = File::open(self.path(id)).ok();
        let file = file.filter(|file| file.metadata().is_ok_and(|found| found.len() == u64::from(stored_length)));
        if file.is_none() {
            self.forget(id);
        }
        file.map(Into::into)
    }

    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.lock().lengths.contains_key(id)
    }

    fn forget(&self, id: &ChunkId) {
        let mut state = self.lock();
        state.lengths.remove(id);
        state.policy.remove(*id);
        drop(state);
        let _ = fs::remove_file(self.path(id));
    }

    /// Drops the chunk's file if it is damaged; whether it was.
    pub(super) fn drop_damaged(&self, chunk: &ChunkName) -> bool {
        let Some(file) = self.get(&chunk.id, chunk.stored_length) else { return false };
        let mut bytes = Vec::with_capacity(chunk.stored_length as usize);
        let is_read = File::from(file).take(u64::from(chunk.stored_length)).read_to_end(&mut bytes).is_ok();
        if is_read && chunk.suite.id_of(&bytes) == chunk.id {
            return false;
        }
        self.forget(&chunk.id);
        true
    }

    /// Keeps a chunk, if the policy finds it worth its room. Called by one thread at a time.
    pub(super) fn put(&self, id: &ChunkId, bytes: &[u8]) -> Result<(), Error> {
        let length = bytes.len() as u32;
        let mut evicted = Vec::new();
        {
            let mut state = self.lock();
            if state.lengths.contains_key(id) {
                return Ok(());
            }
            state.policy.offer(*id, room(length), &mut evicted);
        }
        for gone in evicted.iter().filter(|gone| *gone != id) {
            self.lock().lengths.remove(gone);
            let _ = fs::remove_file(self.path(gone));
        }
        if evicted.contains(id) {
            return Ok(());
        }
        let written = self.write(id, bytes);
        if written.is_ok() {
            self.lock().lengths.insert(*id, length);
        } else {
            self.lock().policy.remove(*id);
        }
        written
    }

    fn write(&self, id: &ChunkId, bytes: &[u8]) -> Result<(), Error> {
        let (path, draft) = (self.path(id), self.folder.join(DRAFT));
        let create = || OpenOptions::new().write(true).create(true).truncate(true).open(&draft);
        let written = create().and_then(|mut file| {
            file.write_all(bytes)?;
            // Memory has it: the page cache need not have it as well. Asked for now, its writing need not be waited for later.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            Ok(())
        });
        let named = written.and_then(|()| match fs::rename(&draft, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
                fs::rename(&draft, &path)
            }
            named => named,
        });
        named.map_err(|error| {
            let _ = fs::remove_file(&draft);
            Error::io("write", &path)(error)
        })
    }

    /// Chunks, and the bytes of the budget that they take.
    pub(super) fn usage(&self) -> (u64, u64) {
        let state = self.lock();
        (state.lengths.len() as u64, state.policy.used_bytes())
    }
}

fn room(length: u32) -> u64 {
    u64::from(length).next_multiple_of(BLOCK)
}

/// The chunks in a folder, oldest first. What has another name is not ours, and stays.
fn found(chunks: &Path) -> Result<Vec<(SystemTime, ChunkId, u32)>, Error> {
    let mut found = Vec::new();
    for folder in fs::read_dir(chunks).map_err(Error::io("list", chunks))? {
        let folder = folder.map_err(Error::io("list", chunks))?.path();
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let id: Option<ChunkId> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (Some(id), Ok(metadata)) = (id, entry.metadata()) else { continue };
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if let Ok(length) = u32::try_from(metadata.len()) {
                found.push((written, id, length));
            }
        }
    }
    found.sort_unstable_by_key(|(written, id, _)| (*written, id.0));
    Ok(found)
}
