//! Shards on a node's disk: a log in segments, oldest segment first out.
//!
//! ```text
//! <folder>/lock                    held by the one node that uses the folder
//! <folder>/segments/<16 hex>       records one after the other, then zeros; named by a number that only rises
//!
//! record   "snwshrd1"  chunk id (32)  data  parity  index  0  chunk bytes (4)  checksum of the shard (4)  checksum of the header (4)
//!          then the shard's bytes; numbers are little-endian
//! ```
//!
//! Everything is written in order and nothing is changed, so a crash can only damage what was written last, and nothing is synced:
//! this is a cache. A start reads the headers and believes those whose checksum fits; the bytes are checked whenever they are read.
//! When the budget is used up the oldest segment goes; what was asked for since it was written is written again first, so that
//! what is hot stays and a scan passes through.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use snowmelt_chunk::ChunkId;

use crate::Error;
use crate::erasure::Code;
use crate::shard::{Shard, ShardKey};

const MAGIC: &[u8; 8] = b"snwshrd1";
const HEADER_BYTES: usize = 56;
/// A budget is so many segments: one is the granularity of eviction, and an open file.
const SEGMENTS: u64 = 64;
const SMALLEST_SEGMENT: u64 = 1 << 20;
const LARGEST_SEGMENT: u64 = 256 << 20;
/// Of a segment that goes, at most this share is written again: there must be room for what is new.
const MOST_REWRITTEN_PERCENT: u64 = 50;

/// The shards on disk.
#[derive(Debug)]
pub(crate) struct DiskLog {
    folder: PathBuf,
    budget_bytes: u64,
    segment_bytes: u64,
    state: Mutex<State>,
    /// Held while a segment is evicted, so that the state's lock is not.
    evicting: Mutex<()>,
    damaged: AtomicU64,
    evicted: AtomicU64,
    _lock: Flock<File>,
}

#[derive(Debug, Default)]
struct State {
    index: HashMap<ShardKey, Place>,
    /// Oldest first; the last is written to.
    segments: Vec<Arc<Segment>>,
    next_number: u64,
    /// Where the last segment goes on.
    end: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    /// Bytes that it takes of the budget.
    room: u64,
}

#[derive(Clone, Debug)]
struct Place {
    segment: Arc<Segment>,
    /// Of the shard's bytes, behind the header.
    offset: u64,
    chunk_bytes: u32,
    checksum: u32,
    asked_for: Arc<AtomicBool>,
}

impl DiskLog {
    /// Opens or makes the log in `folder`, within `budget_bytes`, of which at least one segment of 1 MiB is used.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Invalid`] where another node uses the folder.
    pub(crate) fn open(folder: &Path, budget_bytes: u64) -> Result<Self, Error> {
        let segments = folder.join("segments");
        fs::create_dir_all(&segments).map_err(Error::io("make", &segments))?;
        let lock_path = folder.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(Error::io("open", &lock_path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => {
                Error::invalid(folder.display().to_string(), "another cache node uses this folder: give each its own")
            }
            error => Error::io("lock", &lock_path)(error.into()),
        })?;
        let segment_bytes = (budget_bytes / SEGMENTS).clamp(SMALLEST_SEGMENT, LARGEST_SEGMENT);
        let mut state = State::default();
        for (number, path) in numbered(&segments)? {
            state.next_number = number + 1;
            // One that cannot be read is a miss for each of its shards.
            match recover(&mut state, number, &path) {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(segment = %path.display(), %error, "a segment cannot be read, and is dropped");
                }
            }
        }
        let log = Self {
            folder: folder.to_owned(),
            budget_bytes,
            segment_bytes,
            state: Mutex::new(state),
            evicting: Mutex::default(),
            damaged: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            _lock: lock,
        };
        log.make_room(0);
        Ok(log)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shards, and the bytes of the budget that are used.
    pub(crate) fn usage(&self) -> (usize, u64) {
        let state = self.state();
        (state.index.len(), state.used_bytes())
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Shards that were dropped since their bytes have changed.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Shards that left for others.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    pub(crate) fn contains(&self, key: &ShardKey) -> bool {
        self.state().index.contains_key(key)
    }

    /// Reads a shard; `None` where it is not there. One that is damaged is dropped, and not there.
    pub(crate) fn get(&self, key: &ShardKey) -> Option<Shard> {
        let place = self.state().index.get(key).cloned()?;
        place.asked_for.store(true, Ordering::Relaxed);
        let shard = read(key, &place);
        if shard.is_none() {
            tracing::warn!(chunk = %key.chunk, index = key.index, "a damaged shard is dropped");
            self.damaged.fetch_add(1, Ordering::Relaxed);
            self.drop_damaged(key, &place);
        }
        shard
    }

    fn drop_damaged(&self, key: &ShardKey, place: &Place) {
        let mut state = self.state();
        // Another may have been written meanwhile.
        if state
            .index
            .get(key)
            .is_some_and(|now| now.offset == place.offset && now.segment.number == place.segment.number)
        {
            state.index.remove(key);
        }
    }

    /// Writes a shard. One that is there stays.
    ///
    /// # Errors
    /// [`Error::Io`]: it is not there then.
    pub(crate) fn put(&self, key: &ShardKey, shard: &Shard) -> Result<(), Error> {
        if self.contains(key) {
            return Ok(());
        }
        self.make_room((HEADER_BYTES + shard.bytes.len()) as u64);
        self.append(key, shard, false)
    }

    fn append(&self, key: &ShardKey, shard: &Shard, asked_for: bool) -> Result<(), Error> {
        let length = (HEADER_BYTES + shard.bytes.len()) as u64;
        let (segment, offset) = self.reserve(length)?;
        let record = record_of(key, shard);
        if let Err(error) = segment.file.write_all_at(&record, offset) {
            self.give_back(&segment, offset, length);
            return Err(Error::io("write", &segment.path)(error));
        }
        let place = Place {
            segment,
            offset: offset + HEADER_BYTES as u64,
            chunk_bytes: shard.chunk_bytes,
            checksum: shard.checksum,
            asked_for: Arc::new(AtomicBool::new(asked_for)),
        };
        let mut state = self.state();
        // It may have been evicted while this wrote to it.
        if state.segments.iter().any(|segment| segment.number == place.segment.number) {
            state.index.insert(*key, place);
        }
        Ok(())
    }

    /// Room for a record in the last segment, which a new one follows where it is full.
    fn reserve(&self, length: u64) -> Result<(Arc<Segment>, u64), Error> {
        let mut state = self.state();
        if let Some(last) = state.segments.last()
            && state.end + length <= last.room
        {
            let (segment, offset) = (Arc::clone(last), state.end);
            state.end += length;
            return Ok((segment, offset));
        }
        let number = state.next_number;
        let path = self.folder.join("segments").join(format!("{number:016x}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Error::io("make", &path))?;
        let segment = Arc::new(Segment { number, path, file, room: self.segment_bytes.max(length) });
        state.next_number += 1;
        state.end = length;
        state.segments.push(Arc::clone(&segment));
        Ok((segment, 0))
    }

    /// Room of a record that was not written: a hole would hide what follows it from the next start.
    fn give_back(&self, segment: &Segment, offset: u64, length: u64) {
        let mut state = self.state();
        if state.segments.last().is_some_and(|last| last.number == segment.number) && state.end == offset + length {
            state.end = offset;
        }
    }

    /// Evicts segments until a record fits the budget.
    fn make_room(&self, length: u64) {
        let _evicting = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let oldest = {
                let state = self.state();
                let fits = state.segments.last().is_some_and(|last| state.end + length <= last.room);
                let needed = if fits || length == 0 { 0 } else { self.segment_bytes.max(length) };
                if state.used_bytes() + needed <= self.budget_bytes || state.segments.is_empty() {
                    return;
                }
                Arc::clone(&state.segments[0])
            };
            self.evict(&oldest);
        }
    }

    fn evict(&self, segment: &Arc<Segment>) {
        let mut hot: Vec<(ShardKey, Place)> = {
            let mut state = self.state();
            state.segments.retain(|other| other.number != segment.number);
            let gone: Vec<_> = state
                .index
                .iter()
                .filter(|(_, place)| place.segment.number == segment.number)
                .map(|(key, _)| *key)
                .collect();
            gone.iter().filter_map(|key| Some((*key, state.index.remove(key)?))).collect()
        };
        let had = hot.len() as u64;
        // Its room is free before what is hot is written again, which goes into the same budget.
        let _ = fs::remove_file(&segment.path);
        hot.retain(|(_, place)| place.asked_for.load(Ordering::Relaxed));
        hot.sort_by_key(|(_, place)| place.offset);
        let kept = self.write_again(&hot, segment.room * MOST_REWRITTEN_PERCENT / 100);
        self.evicted.fetch_add(had - kept, Ordering::Relaxed);
    }

    /// Writes the first of these shards again, as many as `left` bytes hold. How many.
    fn write_again(&self, hot: &[(ShardKey, Place)], mut left: u64) -> u64 {
        let mut kept = 0;
        for (key, place) in hot {
            let length = (HEADER_BYTES + key.code.bytes_of(usize::from(key.index), place.chunk_bytes as usize)) as u64;
            let Some(rest) = left.checked_sub(length) else { break };
            left = rest;
            let Some(shard) = read(key, place) else { continue };
            if let Err(error) = self.append(key, &shard, false) {
                tracing::warn!(%error, "hot shards are not kept");
                break;
            }
            kept += 1;
        }
        kept
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.room).sum()
    }
}

fn read(key: &ShardKey, place: &Place) -> Option<Shard> {
    let mut bytes = vec![0; key.code.bytes_of(usize::from(key.index), place.chunk_bytes as usize)];
    place.segment.file.read_exact_at(&mut bytes, place.offset).ok()?;
    let shard = Shard { chunk_bytes: place.chunk_bytes, checksum: place.checksum, bytes: Bytes::from(bytes) };
    shard.is_whole(key).then_some(shard)
}

/// Segments by number. What has another name is not ours, and stays.
fn numbered(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let name = entry.file_name();
        let number = name.to_str().filter(|name| name.len() == 16).and_then(|name| u64::from_str_radix(name, 16).ok());
        if let Some(number) = number.filter(|number| *number < u64::MAX) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Adds what a segment from before says it has.
fn recover(state: &mut State, number: u64, path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let segment = Arc::new(Segment { number, path: path.to_owned(), file, room: length });
    let read = |into: &mut [u8], at| segment.file.read_exact_at(into, at);
    scan(length, read, |key, offset, chunk_bytes, checksum| {
        let (segment, asked_for) = (Arc::clone(&segment), Arc::new(AtomicBool::new(false)));
        state.index.insert(key, Place { segment, offset, chunk_bytes, checksum, asked_for });
    })?;
    state.segments.push(segment);
    // Nothing is added to it: what follows its last whole record may be half of one.
    state.end = length;
    Ok(())
}

/// Finds the records of a segment of `length` bytes, up to the first that is none or not whole: key, where the shard's bytes are,
/// bytes of the chunk, and checksum.
fn scan(
    length: u64,
    read: impl Fn(&mut [u8], u64) -> std::io::Result<()>,
    mut found: impl FnMut(ShardKey, u64, u32, u32),
) -> std::io::Result<()> {
    let mut at = 0;
    let mut header = [0; HEADER_BYTES];
    while at + HEADER_BYTES as u64 <= length {
        read(&mut header, at)?;
        let Some((key, chunk_bytes, checksum)) = decode_header(&header) else { break };
        let offset = at + HEADER_BYTES as u64;
        at = offset + key.code.bytes_of(usize::from(key.index), chunk_bytes as usize) as u64;
        if at > length {
            break;
        }
        found(key, offset, chunk_bytes, checksum);
    }
    Ok(())
}

/// What a start finds in a segment of these bytes, for fuzzers: shards that are whole, with their keys.
pub(crate) fn shards_in(segment: &[u8]) -> Vec<(ShardKey, Shard)> {
    let read = |into: &mut [u8], at: u64| {
        into.copy_from_slice(&segment[at as usize..at as usize + into.len()]);
        Ok(())
    };
    let mut shards = Vec::new();
    let scanned = scan(segment.len() as u64, read, |key, offset, chunk_bytes, checksum| {
        let length = key.code.bytes_of(usize::from(key.index), chunk_bytes as usize);
        let bytes = Bytes::copy_from_slice(&segment[offset as usize..offset as usize + length]);
        let shard = Shard { chunk_bytes, checksum, bytes };
        if shard.is_whole(&key) {
            shards.push((key, shard));
        }
    });
    scanned.map_or_else(|_| Vec::new(), |()| shards)
}

/// Bytes of a record.
pub(crate) fn record_of(key: &ShardKey, shard: &Shard) -> Vec<u8> {
    [&encode_header(key, shard)[..], &shard.bytes].concat()
}

fn encode_header(key: &ShardKey, shard: &Shard) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..40].copy_from_slice(&key.chunk.0);
    header[40] = key.code.data() as u8;
    header[41] = key.code.parity() as u8;
    header[42] = key.index;
    header[44..48].copy_from_slice(&shard.chunk_bytes.to_le_bytes());
    header[48..52].copy_from_slice(&shard.checksum.to_le_bytes());
    let own = crc32c::crc32c(&header[..52]);
    header[52..].copy_from_slice(&own.to_le_bytes());
    header
}

/// Key, bytes of the chunk, and the shard's checksum.
fn decode_header(header: &[u8; HEADER_BYTES]) -> Option<(ShardKey, u32, u32)> {
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if &header[..8] != MAGIC || number(52) != crc32c::crc32c(&header[..52]) {
        return None;
    }
    let code = Code::new(header[40], header[41]).ok()?;
    let mut id = [0; 32];
    id.copy_from_slice(&header[8..40]);
    let key = ShardKey { chunk: ChunkId(id), code, index: header[42] };
    (usize::from(key.index) < code.shards()).then_some((key, number(44), number(48)))
}

#[cfg(test)]
mod tests;
