//! The path of a chunk to a sandbox.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use snowmelt_chunk::{ChunkId, ChunkSecret, Suite};
use snowmelt_store::Store;
use snowmelt_threads::{Background, Taken, Threads};
use snowmelt_zone::{Client, Follower};

use crate::stats::{Counters, add};
use crate::{ChunkName, DiskCache, Error, TierStats, Upstream, WorkerClient};

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
    /// Who waits for it.
    pub priority: Priority,
}

impl ChunkRequest<'_> {
    fn name(&self, stored_length: u32) -> ChunkName {
        ChunkName { id: self.id, suite: self.suite, stored_length }
    }
}

/// Who waits for a chunk; more urgent is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Nobody, and perhaps nobody ever will.
    Background,
    /// Nobody yet.
    Prefetch,
    /// A read of the device.
    Demand,
}

impl Priority {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Background, Self::Prefetch, Self::Demand];
}

/// Where a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The memory of this machine's worker.
    Memory,
    /// A cache on this machine's disk.
    Disk,
    /// The cache of the zone.
    Zone,
    /// The object storage.
    Origin,
}

impl Tier {
    /// All of them, the nearest first.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Zone, Self::Origin];
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "worker's memory",
            Self::Disk => "disk cache",
            Self::Zone => "zone cache",
            Self::Origin => "origin",
        })
    }
}

/// The tiers that a sandbox reads through. May be used from many threads; reads block.
#[derive(Debug)]
pub struct Tiers {
    path: Path,
    counters: Arc<Counters>,
}

#[derive(Debug)]
enum Path {
    /// A disk that all sandboxes write to, and what is beyond it.
    Own(Own),
    /// Through the worker.
    Worker(WorkerClient),
}

#[derive(Debug)]
struct Own {
    /// Replaced where the image has moved to another root.
    store: RwLock<Arc<Store>>,
    disk: Option<Arc<DiskCache>>,
    keeper: Option<Background<(ChunkId, Bytes)>>,
    upstream: Upstream,
}

impl Tiers {
    /// Reads from `disk`, where there is one, then from a zone, where there is one, and then from `store`.
    pub fn new(store: Arc<Store>, disk: Option<DiskCache>, zone: Option<(Arc<Client>, Follower)>) -> Self {
        let counters = Arc::<Counters>::default();
        let disk = disk.map(Arc::new);
        let keeper = disk.clone().map(|disk| {
            let mut has_complained = false;
            Background::start(&Threads::Real, "snowmelt-keep", QUEUE, move |(id, ciphertext): (ChunkId, Bytes)| {
                if let Err(error) = disk.put(&id, &ciphertext)
                    && !std::mem::replace(&mut has_complained, true)
                {
                    tracing::warn!(%error, "chunks are not kept on disk");
                }
            })
        });
        let upstream = Upstream::counting(zone, Arc::clone(&counters));
        let path = Path::Own(Own { store: RwLock::new(store), disk, keeper, upstream });
        Self { path, counters }
    }

    /// Reads everything through the worker.
    pub fn of_worker(worker: WorkerClient) -> Self {
        Self { path: Path::Worker(worker), counters: Arc::default() }
    }

    /// Reads from another store from now on: the image's chunks were copied there. A worker finds that out itself.
    pub fn set_store(&self, store: Arc<Store>) {
        if let Path::Own(own) = &self.path {
            *own.store.write().unwrap_or_else(PoisonError::into_inner) = store;
        }
    }

    /// Reads a chunk and decrypts it into `plaintext`, which has the chunk's stored length. One try at each tier; `asks` is
    /// told which, before it is asked.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the origin does not answer, [`Error::Lost`] where no tier has a good copy, [`Error::Worker`] for
    /// either where a worker says so, [`Error::Sealed`]. `plaintext` then holds nothing of use.
    pub fn read_chunk(
        &self,
        request: &ChunkRequest<'_>,
        plaintext: &mut [u8],
        asks: &dyn Fn(Tier),
    ) -> Result<Tier, Error> {
        match &self.path {
            Path::Own(own) => self.read_ourselves(own, request, plaintext, asks),
            Path::Worker(worker) => self.read_from_worker(worker, request, plaintext, asks),
        }
    }

    fn read_ourselves(
        &self,
        own: &Own,
        request: &ChunkRequest<'_>,
        plaintext: &mut [u8],
        asks: &dyn Fn(Tier),
    ) -> Result<Tier, Error> {
        asks(Tier::Disk);
        if self.read_from_disk(own, request, plaintext) {
            return Ok(Tier::Disk);
        }
        let (tier, ciphertext) = own.fetch(&request.name(plaintext.len() as u32), asks)?;
        self.decrypt(|| request.suite.open(request.secret, &ciphertext, plaintext))
            .map_err(|source| Error::Sealed { chunk: request.id.to_string(), source })?;
        if let Some(keeper) = &own.keeper
            && keeper.give((request.id, ciphertext)) == Taken::No
        {
            add(&self.counters.unkept_chunks, 1);
        }
        Ok(tier)
    }

    fn read_from_worker(
        &self,
        worker: &WorkerClient,
        request: &ChunkRequest<'_>,
        plaintext: &mut [u8],
        asks: &dyn Fn(Tier),
    ) -> Result<Tier, Error> {
        let name = request.name(plaintext.len() as u32);
        let (mut tier, mut file) = worker.get(&name, request.priority, asks)?;
        let mut opened = self.open_file(&file.into(), request, plaintext);
        if opened.is_err() {
            add(&self.counters.damaged_chunks, 1);
            // The worker drops a damaged copy; a good one that does not open is the manifest's fault.
            worker.check(&name)?;
            (tier, file) = worker.get(&name, request.priority, asks)?;
            opened = self.open_file(&file.into(), request, plaintext);
        }
        opened.map_err(|source| Error::Sealed { chunk: request.id.to_string(), source })?;
        let (chunks, bytes) = match tier {
            Tier::Memory => (&self.counters.memory_chunks, &self.counters.memory_bytes),
            Tier::Disk => (&self.counters.disk_chunks, &self.counters.disk_bytes),
            Tier::Zone => (&self.counters.zone_chunks, &self.counters.zone_bytes),
            Tier::Origin => (&self.counters.origin_chunks, &self.counters.origin_bytes),
        };
        add(chunks, 1);
        add(bytes, plaintext.len() as u64);
        Ok(tier)
    }

    /// Reads and opens a chunk in the memory that it is wanted in.
    fn open_file(
        &self,
        file: &File,
        request: &ChunkRequest<'_>,
        plaintext: &mut [u8],
    ) -> Result<(), snowmelt_chunk::Error> {
        let what = match file.read_exact_at(plaintext, 0) {
            Ok(()) if self.opens_in_place(request, plaintext) => return Ok(()),
            Ok(()) => "its key does not open it",
            Err(_) => "its file cannot be read as a whole",
        };
        Err(snowmelt_chunk::Error::BadChunk { id: request.id.to_string(), what })
    }

    /// Whether bytes from this machine are the chunk, which they then are in the clear.
    fn opens_in_place(&self, request: &ChunkRequest<'_>, bytes: &mut [u8]) -> bool {
        // Where opening does not authenticate, the id must be checked again: the disk may have changed a bit.
        (request.suite.open_authenticates() || self.verify(request, bytes))
            && self.decrypt(|| request.suite.open_in_place(request.secret, bytes)).is_ok()
    }

    /// Which of the chunks are on this machine. The copies may be damaged, which their readers find out.
    pub fn are_near(&self, chunks: &[(ChunkId, u32)]) -> Vec<bool> {
        match &self.path {
            Path::Own(Own { disk: Some(disk), .. }) => {
                chunks.iter().map(|(id, length)| disk.contains(id, u64::from(*length))).collect()
            }
            Path::Own(_) => vec![false; chunks.len()],
            Path::Worker(worker) => worker.contains(chunks),
        }
    }

    /// Sees to it that the chunk is on this machine, where there is a place for it. Nothing is decrypted.
    ///
    /// # Errors
    /// As [`Tiers::read_chunk`], and [`Error::Io`] of the disk.
    pub fn warm_chunk(&self, request: &ChunkRequest<'_>, stored_length: u32, asks: &dyn Fn(Tier)) -> Result<(), Error> {
        let name = request.name(stored_length);
        let own = match &self.path {
            Path::Own(own) => own,
            Path::Worker(worker) => return worker.warm(&name, request.priority, asks).map(drop),
        };
        asks(Tier::Disk);
        let Some(disk) = &own.disk else { return Ok(()) };
        if disk.contains(&request.id, u64::from(stored_length)) {
            return Ok(());
        }
        let (_, ciphertext) = own.fetch(&name, asks)?;
        disk.put(&request.id, &ciphertext).map(drop)
    }

    /// Whether the disk gave the chunk whole. A damaged copy is dropped, so that another takes its place.
    fn read_from_disk(&self, own: &Own, request: &ChunkRequest<'_>, plaintext: &mut [u8]) -> bool {
        let Some(disk) = &own.disk else { return false };
        if !disk.get(&request.id, plaintext) {
            return false;
        }
        let is_whole = self.opens_in_place(request, plaintext);
        if is_whole {
            add(&self.counters.disk_chunks, 1);
            add(&self.counters.disk_bytes, plaintext.len() as u64);
        } else {
            tracing::warn!(chunk = %request.id, tier = %Tier::Disk, "a damaged copy is dropped and fetched again");
            add(&self.counters.damaged_chunks, 1);
            disk.remove(&request.id);
        }
        is_whole
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

    /// Waits until everything that was fetched so far is where it is kept, or was found not to fit.
    pub fn flush(&self) {
        if let Path::Own(own) = &self.path {
            if let Some(keeper) = &own.keeper {
                keeper.flush();
            }
            own.upstream.flush();
        }
    }
}

impl Own {
    fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn fetch(&self, chunk: &ChunkName, asks: &dyn Fn(Tier)) -> Result<(Tier, Bytes), Error> {
        if self.upstream.has_zone() {
            asks(Tier::Zone);
            if let Some(ciphertext) = self.upstream.from_zone(chunk) {
                return Ok((Tier::Zone, ciphertext));
            }
        }
        asks(Tier::Origin);
        Ok((Tier::Origin, self.upstream.from_origin(&self.store(), chunk)?))
    }
}

#[cfg(test)]
mod tests;
