//! The path of a chunk: disk, then origin.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use snowmelt_chunk::{ChunkId, ChunkSecret, Suite};
use snowmelt_store::Store;

use crate::stats::{Counters, add};
use crate::{DiskCache, Error, TierStats};

/// Chunks that wait to be written to the disk. With chunks of 512 KiB this bounds the memory that they hold to 16 MiB; what
/// comes when it is full is not kept, since readers must not wait for the disk.
const QUEUE: usize = 32;

/// A chunk to be read.
#[derive(Clone, Copy, Debug)]
pub struct ChunkRequest<'a> {
    /// Its id.
    pub id: ChunkId,
    /// How it is encrypted.
    pub suite: Suite,
    /// What opens it.
    pub secret: &'a ChunkSecret,
}

/// Where a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The cache on this machine's disk.
    Disk,
    /// The object storage.
    Origin,
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Disk => "disk cache",
            Self::Origin => "origin",
        })
    }
}

/// The tiers that a sandbox reads through. May be used from many threads; reads block.
#[derive(Debug)]
pub struct Tiers {
    /// Replaced where the image has moved to another root.
    store: RwLock<Arc<Store>>,
    disk: Option<Arc<DiskCache>>,
    counters: Counters,
    keeper: Option<Keeper>,
}

impl Tiers {
    /// Reads from `disk`, where there is one, and then from `store`.
    pub fn new(store: Arc<Store>, disk: Option<DiskCache>) -> Self {
        let disk = disk.map(Arc::new);
        let keeper = disk.clone().map(Keeper::start);
        Self { store: RwLock::new(store), disk, counters: Counters::default(), keeper }
    }

    /// Reads from another store from now on: the image's chunks were copied there.
    pub fn set_store(&self, store: Arc<Store>) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = store;
    }

    fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads a chunk and decrypts it into `plaintext`, which has the chunk's stored length. One try at each tier; `asks` is
    /// told which, before it is asked.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the origin does not answer, [`Error::Lost`] where no tier has a good copy,
    /// [`Error::Sealed`]. `plaintext` then holds nothing of use.
    pub fn read_chunk(
        &self,
        request: &ChunkRequest<'_>,
        plaintext: &mut [u8],
        asks: &dyn Fn(Tier),
    ) -> Result<Tier, Error> {
        asks(Tier::Disk);
        if self.read_from_disk(request, plaintext) {
            return Ok(Tier::Disk);
        }
        asks(Tier::Origin);
        let ciphertext = self.fetch(request, plaintext.len() as u32)?;
        self.decrypt(|| request.suite.open(request.secret, &ciphertext, plaintext))
            .map_err(|source| Error::Sealed { chunk: request.id.to_string(), source })?;
        if let Some(keeper) = &self.keeper
            && !keeper.keep(request.id, ciphertext)
        {
            add(&self.counters.unkept_chunks, 1);
        }
        Ok(Tier::Origin)
    }

    /// Whether the chunk is in the cache on disk. The copy may be damaged, which its reader finds out.
    pub fn is_on_disk(&self, id: &ChunkId, stored_length: u32) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.contains(id, u64::from(stored_length)))
    }

    /// Sees to it that the chunk is in the cache on disk, where there is one. Nothing is decrypted.
    ///
    /// # Errors
    /// As [`Tiers::read_chunk`], and [`Error::Io`] of the disk.
    pub fn warm_chunk(&self, request: &ChunkRequest<'_>, stored_length: u32, asks: &dyn Fn(Tier)) -> Result<(), Error> {
        asks(Tier::Disk);
        let Some(disk) = &self.disk else { return Ok(()) };
        if disk.contains(&request.id, u64::from(stored_length)) {
            return Ok(());
        }
        asks(Tier::Origin);
        let ciphertext = self.fetch(request, stored_length)?;
        disk.put(&request.id, &ciphertext).map(drop)
    }

    /// Whether the disk gave the chunk whole. A damaged copy is dropped, so that the origin's takes its place.
    fn read_from_disk(&self, request: &ChunkRequest<'_>, plaintext: &mut [u8]) -> bool {
        let Some(disk) = &self.disk else { return false };
        if !disk.get(&request.id, plaintext) {
            return false;
        }
        // Where opening does not authenticate, the id must be checked again: the disk may have changed a bit.
        let whole = (request.suite.open_authenticates() || self.verify(request, plaintext))
            && self.decrypt(|| request.suite.open_in_place(request.secret, plaintext)).is_ok();
        if whole {
            add(&self.counters.disk_chunks, 1);
            add(&self.counters.disk_bytes, plaintext.len() as u64);
        } else {
            tracing::warn!(chunk = %request.id, tier = %Tier::Disk, "a damaged copy is dropped and fetched again");
            add(&self.counters.damaged_chunks, 1);
            disk.remove(&request.id);
        }
        whole
    }

    /// Reads a chunk from the origin and verifies it: no other byte enters this machine.
    fn fetch(&self, request: &ChunkRequest<'_>, stored_length: u32) -> Result<Bytes, Error> {
        let chunk = || request.id.to_string();
        let started = Instant::now();
        let store = self.store();
        let fetched = store.read_chunk(&request.id, stored_length);
        add(&self.counters.origin_nanoseconds, started.elapsed().as_nanos() as u64);
        let ciphertext = fetched.map_err(|source| {
            if source.is_unavailable() || is_passing(&source) {
                Error::Unavailable { chunk: chunk(), source }
            } else {
                Error::Lost { chunk: chunk(), source }
            }
        })?;
        add(&self.counters.origin_chunks, 1);
        add(&self.counters.origin_bytes, ciphertext.len() as u64);
        if !self.verify(request, &ciphertext) {
            add(&self.counters.damaged_chunks, 1);
            let source = snowmelt_store::Error::Corrupt {
                subject: format!("chunk {}", request.id),
                reason: format!("the bytes from {} are not those that its id names", store.url()),
            };
            return Err(Error::Lost { chunk: chunk(), source });
        }
        Ok(ciphertext)
    }

    fn verify(&self, request: &ChunkRequest<'_>, ciphertext: &[u8]) -> bool {
        let started = Instant::now();
        let matches = request.suite.id_of(ciphertext) == request.id;
        add(&self.counters.verify_nanoseconds, started.elapsed().as_nanos() as u64);
        matches
    }

    /// Opens a chunk and counts the time.
    fn decrypt(&self, open: impl FnOnce() -> Result<(), snowmelt_chunk::Error>) -> Result<(), snowmelt_chunk::Error> {
        let started = Instant::now();
        let opened = open();
        add(&self.counters.decrypt_nanoseconds, started.elapsed().as_nanos() as u64);
        opened
    }

    /// What was read from where.
    pub fn stats(&self) -> TierStats {
        self.counters.read()
    }

    /// Waits until everything that was fetched so far is on the disk, or was found not to fit.
    pub fn flush(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.flush();
        }
    }
}

/// Whether a file system failed in a way that may pass: a network file system that is away, a disk that is full of errors now.
fn is_passing(error: &snowmelt_store::Error) -> bool {
    matches!(error, snowmelt_store::Error::Io { source, .. } if source.kind() != std::io::ErrorKind::PermissionDenied)
}

/// Writes fetched chunks to the disk behind the readers' backs. Ends, with all it has taken, when dropped.
#[derive(Debug)]
struct Keeper {
    queue: Mutex<Option<SyncSender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Job {
    Keep(ChunkId, Bytes),
    /// Answered when all before it is done.
    Flush(SyncSender<()>),
}

impl Keeper {
    fn start(disk: Arc<DiskCache>) -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("snowmelt-keep".into())
            .spawn(move || keep_all(&disk, &receiver))
            .inspect_err(|error| tracing::warn!(%error, "chunks are not kept on disk"))
            .ok();
        Self { queue: Mutex::new(Some(sender)), thread: Mutex::new(thread) }
    }

    fn sender(&self) -> Option<SyncSender<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, id: ChunkId, ciphertext: Bytes) -> bool {
        self.sender().is_some_and(|sender| {
            !matches!(
                sender.try_send(Job::Keep(id, ciphertext)),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
            )
        })
    }

    fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if let Some(sender) = self.sender()
            && sender.send(Job::Flush(done)).is_ok()
        {
            // An error means that the thread is gone, and with it all that could be waited for.
            let _ = wait.recv();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn keep_all(disk: &DiskCache, queue: &Receiver<Job>) {
    let mut complained = false;
    for job in queue {
        match job {
            Job::Keep(id, ciphertext) => {
                if let Err(error) = disk.put(&id, &ciphertext)
                    && !complained
                {
                    tracing::warn!(%error, "chunks are not kept on disk");
                    complained = true;
                }
            }
            Job::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
