//! What is beyond this machine: the cache of the zone, then the origin.
//!
//! Every chunk that comes from there is checked by its id before anybody sees it: no other byte enters this machine. What the zone
//! did not have, it is given in the background, by whoever got it from the origin; so are shards that single nodes had lost.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use snowmelt_chunk::{ChunkId, Suite};
use snowmelt_store::Store;
use snowmelt_threads::{Background, Taken, Threads};
use snowmelt_zone::{Client, Follower, Found};

use crate::buffers::Buffers;
use crate::stats::{Counters, add};
use crate::{Error, Tier};

/// Chunks that wait to be written to the zone: 16 MiB. What comes when it is full is written by who misses it next.
const QUEUE: usize = 32;

/// A chunk by what is known of it without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkName {
    /// Its id.
    pub id: ChunkId,
    /// What the id is a hash by.
    pub suite: Suite,
    /// Bytes that are stored.
    pub stored_length: u32,
}

/// The zone's cache and the origin.
#[derive(Debug)]
pub struct Upstream {
    zone: Option<Zone>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Zone {
    client: Arc<Client>,
    /// Knows which nodes there are, while it lives.
    _follower: Option<Follower>,
    writer: Background<WriteBack>,
    buffers: Arc<Buffers>,
}

/// A chunk for the zone: all of its shards, or those that are missing.
#[derive(Debug)]
struct WriteBack {
    id: ChunkId,
    bytes: Bytes,
    missing: Option<Vec<u8>>,
}

impl Upstream {
    /// Asks a zone, where there is one.
    pub fn new(zone: Option<(Arc<Client>, Follower)>) -> Self {
        Self::counting(zone, Arc::default())
    }

    pub(crate) fn counting(zone: Option<(Arc<Client>, Follower)>, counters: Arc<Counters>) -> Self {
        Self::of(zone.map(|(client, follower)| (client, Some(follower))), counters)
    }

    /// Without a follower the client knows its nodes.
    pub(crate) fn of(zone: Option<(Arc<Client>, Option<Follower>)>, counters: Arc<Counters>) -> Self {
        let zone = zone.map(|(client, follower)| {
            let nodes = Arc::clone(&client);
            let write = move |job: WriteBack| {
                nodes.write(&job.id, &job.bytes, job.missing.as_deref());
            };
            let writer = Background::start(&client.threads(), "zone-write", QUEUE, write);
            Zone { client, _follower: follower, writer, buffers: Arc::default() }
        });
        Self { zone, counters }
    }

    /// Where it runs.
    pub(crate) fn threads(&self) -> Threads {
        self.zone().map(Client::threads).unwrap_or_default()
    }

    /// Whether there is a zone to be asked.
    pub fn has_zone(&self) -> bool {
        self.zone.is_some()
    }

    /// The zone's client.
    pub fn zone(&self) -> Option<&Client> {
        self.zone.as_ref().map(|zone| &*zone.client)
    }

    /// Asks the zone, once. Its answer comes soon, or is none.
    pub fn from_zone(&self, chunk: &ChunkName) -> Option<Bytes> {
        let zone = self.zone.as_ref()?;
        let started = Instant::now();
        let mut bytes = zone.buffers.take(chunk.stored_length as usize);
        let found = zone.client.read(&chunk.id, bytes.as_mut_slice(), &|bytes| self.verify(chunk, bytes));
        add(&self.counters.zone_nanoseconds, started.elapsed().as_nanos() as u64);
        match found {
            Found::Hit { missing } => {
                add(&self.counters.zone_chunks, 1);
                let bytes = bytes.into_bytes();
                add(&self.counters.zone_bytes, bytes.len() as u64);
                if !missing.is_empty() {
                    self.write_back(chunk.id, &bytes, Some(missing));
                }
                Some(bytes)
            }
            Found::Miss => None,
            Found::Corrupt => {
                tracing::warn!(chunk = %chunk.id, tier = %Tier::Zone, "shards do not make the chunk: the origin is asked");
                add(&self.counters.damaged_chunks, 1);
                None
            }
        }
    }

    /// Asks the origin, and gives the zone what came.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Lost`].
    pub fn from_origin(&self, store: &Store, chunk: &ChunkName) -> Result<Bytes, Error> {
        let name = || chunk.id.to_string();
        let started = Instant::now();
        let fetched = store.read_chunk(&chunk.id, chunk.stored_length);
        add(&self.counters.origin_nanoseconds, started.elapsed().as_nanos() as u64);
        let bytes = fetched.map_err(|source| {
            if source.is_unavailable() || is_passing(&source) {
                Error::Unavailable { chunk: name(), source }
            } else {
                Error::Lost { chunk: name(), source }
            }
        })?;
        add(&self.counters.origin_chunks, 1);
        add(&self.counters.origin_bytes, bytes.len() as u64);
        if !self.verify(chunk, &bytes) {
            add(&self.counters.damaged_chunks, 1);
            let source = snowmelt_store::Error::Corrupt {
                subject: format!("chunk {}", chunk.id),
                reason: format!("the bytes from {} are not those that its id names", store.url()),
            };
            return Err(Error::Lost { chunk: name(), source });
        }
        self.write_back(chunk.id, &bytes, None);
        Ok(bytes)
    }

    fn write_back(&self, id: ChunkId, bytes: &Bytes, missing: Option<Vec<u8>>) {
        let Some(zone) = &self.zone else { return };
        let job = WriteBack { id, bytes: bytes.clone(), missing };
        if zone.writer.give(job) == Taken::No {
            add(&self.counters.unshared_chunks, 1);
        }
    }

    pub(crate) fn verify(&self, chunk: &ChunkName, bytes: &[u8]) -> bool {
        let started = Instant::now();
        let matches = chunk.suite.id_of(bytes) == chunk.id;
        add(&self.counters.verify_nanoseconds, started.elapsed().as_nanos() as u64);
        matches
    }

    /// Waits until the zone was given what came so far.
    pub fn flush(&self) {
        if let Some(zone) = &self.zone {
            zone.writer.flush();
        }
    }
}

/// Whether a file system failed in a way that may pass: a network file system that is away, a disk that is full of errors now.
fn is_passing(error: &snowmelt_store::Error) -> bool {
    matches!(error, snowmelt_store::Error::Io { source, .. } if source.kind() != std::io::ErrorKind::PermissionDenied)
}
