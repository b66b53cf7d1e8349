//! Gets chunks into memory: one load per chunk however many reads wait for it, on threads of its own.
//!
//! A read asks with [`Loader::get`] and goes on when its callback is called, so no thread of the caller ever waits for a
//! tier. A *flight* is one chunk on its way. Demand goes before prefetch, and prefetch before what is fetched in the background,
//! for which nothing begins while a read waits; a flight that a read comes to wait for is promoted.
//! Only [`Error::Unavailable`] is retried, and only here. `threads` does the work, `background` brings near what nobody asked for.

mod background;
mod threads;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::background::Rest;
use crate::access_log::AccessLog;
use crate::buffers::{BufferPool, ChunkBuffer};
use crate::options::DeviceOptions;
use crate::reader::{ChunkReader, LoadRequest, Priority, Tier};
use crate::resident::{Resident, Streams};
use crate::stats::Counters;
use crate::{Error, stall};

/// How long a chunk that no tier gave until the deadline is not asked for again. Longer than the kernel takes to ask again.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// What a waiting read is told.
pub(crate) type Loaded = Result<Arc<ChunkBuffer>, Error>;
type Waiter = Box<dyn FnOnce(Loaded) + Send>;

/// A chunk on its way.
pub(crate) struct Flight {
    /// Each read with when it gives up, even where the reader is stuck.
    waiters: Vec<(Option<Instant>, Waiter)>,
    pub(crate) request: Arc<LoadRequest>,
    pub(crate) since: Instant,
    running: bool,
    /// When a stall is reported next, and how long after that again.
    pub(crate) stall_at: Instant,
    pub(crate) stall_step: Duration,
}

impl Flight {
    pub(crate) fn readers(&self) -> usize {
        self.waiters.len()
    }

    /// When the watcher has to look at it next.
    pub(crate) fn watch_at(&self) -> Instant {
        self.waiters.iter().filter_map(|(until, _)| *until).fold(self.stall_at, Instant::min)
    }

    /// Takes the reads that waited for too long.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Waiter> {
        let expired = |(until, _): &mut (Option<Instant>, Waiter)| until.is_some_and(|until| until <= now);
        self.waiters.extract_if(.., expired).map(|(_, waiter)| waiter).collect()
    }
}

pub(crate) struct State {
    resident: Resident,
    streams: Streams,
    pub(crate) flights: HashMap<u64, Flight>,
    demand: VecDeque<u64>,
    prefetch: VecDeque<u64>,
    /// To be prefetched too, but no further than to this machine.
    warm: VecDeque<u64>,
    rest: Rest,
    /// Chunks whose readers were just told that no tier answers, and when. The kernel asks again at once for each page of a
    /// read that failed: without this a reader would wait for the deadline twice.
    failed: HashMap<u64, (Instant, Error)>,
    /// What a reader was last told that got no chunk.
    pub(crate) last_failure: Option<Error>,
    idle: usize,
    threads: usize,
    /// Of the threads, those that have not begun to look for work yet.
    starting: usize,
    /// Prefetches that have begun and not ended.
    prefetching: usize,
    /// Loads that read or decrypt at this moment. More of them than cores would only take turns, and each takes buffers.
    busy: usize,
    /// Until when the stall watcher sleeps; `None` until there is one.
    pub(crate) watched_until: Option<Instant>,
}

impl State {
    /// Whether a read waits for a chunk.
    fn has_readers(&self) -> bool {
        self.flights.values().any(|flight| !flight.waiters.is_empty())
    }

    /// Remembers what readers are told; and for a moment that no tier gave the chunk, where finding that out took long.
    pub(crate) fn note_failure(&mut self, index: u64, waited_since: Instant, now: Instant, error: &Error) {
        self.last_failure = Some(error.clone());
        let waited = now.saturating_duration_since(waited_since);
        if matches!(error, Error::Unavailable { .. }) && waited >= FAILED_FOR {
            self.failed.retain(|_, (at, _)| now.saturating_duration_since(*at) < FAILED_FOR);
            self.failed.insert(index, (now, error.clone()));
        }
    }
}

pub(crate) struct Shared {
    pub(crate) reader: Arc<dyn ChunkReader>,
    pub(crate) options: DeviceOptions,
    pub(crate) counters: Counters,
    pub(crate) log: AccessLog,
    buffers: Arc<BufferPool>,
    cores: usize,
    state: Mutex<State>,
    work: Condvar,
    /// A chunk was fetched in the background, or could not be.
    rest_changed: Condvar,
    stopping: AtomicBool,
    /// Has the stall watcher look again. Not part of the state: the clock asks for it under a lock of its own.
    pub(crate) look_again: AtomicBool,
}

/// Owns the threads; when it is dropped they end, each after the load that it is at.
pub(crate) struct Loader(pub(crate) Arc<Shared>);

impl Drop for Loader {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Release);
        let mut state = self.0.lock();
        let waiting: Vec<u64> = state.flights.iter().filter(|(_, flight)| !flight.running).map(|(i, _)| *i).collect();
        let flights: Vec<_> = waiting.iter().filter_map(|index| state.flights.remove(index)).collect();
        drop(state);
        self.0.work.notify_all();
        self.0.options.clock.wake();
        for (_, waiter) in flights.into_iter().flat_map(|flight| flight.waiters) {
            waiter(Err(self.0.closed()));
        }
    }
}

/// What [`Loader::get`] found.
pub(crate) enum Found {
    /// The chunk is in memory.
    Here(Arc<ChunkBuffer>),
    /// Its place in the image is a hole.
    Hole,
    /// It could not be had a moment ago.
    Failed(Error),
    /// The callback will be called.
    Later,
}

impl Loader {
    pub(crate) fn new(reader: Arc<dyn ChunkReader>, options: DeviceOptions) -> Self {
        let chunk_bytes = reader.geometry().chunk_size as usize;
        let capacity = (options.memory_bytes / chunk_bytes as u64).max(4) as usize;
        let read_ahead = options.read_ahead_chunks.min(capacity as u64 / 4);
        Self(Arc::new(Shared {
            reader,
            counters: Counters::default(),
            log: AccessLog::new(options.clock.now(), options.record_for),
            buffers: BufferPool::new(chunk_bytes, capacity),
            cores: std::thread::available_parallelism().map_or(2, usize::from),
            state: Mutex::new(State {
                resident: Resident::new(capacity, options.reads_once),
                streams: Streams::new(read_ahead, options.read_ahead_after),
                flights: HashMap::new(),
                demand: VecDeque::new(),
                prefetch: VecDeque::new(),
                warm: VecDeque::new(),
                rest: Rest::new(options.most_in_background),
                failed: HashMap::new(),
                last_failure: None,
                idle: 0,
                threads: 0,
                starting: 0,
                prefetching: 0,
                busy: 0,
                watched_until: None,
            }),
            work: Condvar::new(),
            rest_changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            look_again: AtomicBool::new(false),
            options,
        }))
    }

    /// The chunk if it is in memory, with no effect but on what is evicted and read ahead.
    pub(crate) fn peek(&self, index: u64) -> Option<Arc<ChunkBuffer>> {
        let shared = &self.0;
        let mut state = shared.lock();
        let (chunk, first) = state.resident.get(index).map(|(chunk, first)| (Arc::clone(chunk), first))?;
        let ahead = state.streams.observe(index);
        if ahead.is_empty() {
            drop(state);
        } else {
            shared.read_ahead(&mut state, ahead);
            shared.staff(state);
        }
        if first {
            shared.log.note(index, shared.options.clock.now());
        }
        Some(chunk)
    }

    /// The chunk, now or later: `later` makes the callback where it is needed.
    pub(crate) fn get(&self, index: u64, later: impl FnOnce() -> Waiter) -> Found {
        if let Some(chunk) = self.peek(index) {
            return Found::Here(chunk);
        }
        let shared = &self.0;
        if shared.reader.stored_length(index) == 0 {
            return Found::Hole;
        }
        let now = shared.options.clock.now();
        shared.log.note(index, now);
        let mut state = shared.lock();
        if let Some((chunk, _)) = state.resident.get(index) {
            return Found::Here(Arc::clone(chunk));
        }
        if let Some((at, error)) = state.failed.get(&index) {
            if now.saturating_duration_since(*at) < FAILED_FOR {
                return Found::Failed(error.clone());
            }
            state.failed.remove(&index);
        }
        let fresh = shared.take_off(&mut state, index, Priority::Demand, now);
        let flight = state.flights.get_mut(&index).expect("it has just been made");
        // The loader itself gives up at the deadline, and says why; this is for readers that do not come back.
        let gives_up = shared.deadline(now).and_then(|deadline| deadline.checked_add(stall::GRACE));
        flight.waiters.push((gives_up, later()));
        let watch_at = flight.watch_at();
        if fresh || (flight.request.priority != Priority::Demand && !flight.running) {
            if !fresh {
                flight.request = shared.request(Priority::Demand, now);
            }
            state.demand.push_back(index);
        }
        shared.watch(&mut state, watch_at);
        let ahead = state.streams.observe(index);
        shared.read_ahead(&mut state, ahead);
        shared.staff(state);
        Found::Later
    }

    /// Loads chunks that will be wanted: as many as memory has room for are opened, the others are brought nearer.
    pub(crate) fn prefetch(&self, indices: impl IntoIterator<Item = u64>) {
        let shared = &self.0;
        let now = shared.options.clock.now();
        let mut state = shared.lock();
        let mut room = None;
        for index in indices {
            if state.resident.contains(index) || shared.reader.stored_length(index) == 0 {
                continue;
            }
            // Half of it, so that what is read meanwhile does not push out what was loaded before it was needed.
            let room = room.get_or_insert_with(|| state.resident.make_room() / 2);
            if *room == 0 {
                state.warm.push_back(index);
            } else if shared.take_off(&mut state, index, Priority::Prefetch, now) {
                state.prefetch.push_back(index);
                *room -= 1;
            }
        }
        shared.staff(state);
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        now.checked_add(self.options.deadline)
    }

    /// A load that, while it needs a core, counts as busy once [`Shared::fly`] has begun it.
    fn request(self: &Arc<Self>, priority: Priority, now: Instant) -> Arc<LoadRequest> {
        let shared = Arc::downgrade(self);
        let leaves_core = move || {
            if let Some(shared) = shared.upgrade() {
                let mut state = shared.lock();
                state.busy -= 1;
                shared.staff(state);
            }
        };
        Arc::new(LoadRequest::new(priority, self.deadline(now)).when_it_leaves_its_core(leaves_core))
    }

    /// How messages call a chunk.
    pub(crate) fn subject(&self, index: u64) -> String {
        format!("chunk {} of image {}", self.reader.chunk_name(index), self.reader.image())
    }

    /// What reads are told that a reader kept for too long.
    pub(crate) fn expired(&self, index: u64, tier: Tier) -> Error {
        let waited = io::Error::new(io::ErrorKind::TimedOut, "the deadline has passed");
        Error::Unavailable {
            operation: "read",
            subject: format!("{} ({tier})", self.subject(index)),
            source: Some(Arc::new(waited)),
        }
    }

    fn closed(&self) -> Error {
        Error::Unavailable {
            operation: "read",
            subject: format!("image {} (its device was closed)", self.reader.image()),
            source: None,
        }
    }

    /// Makes the flight of a chunk; false where there is one.
    fn take_off(self: &Arc<Self>, state: &mut State, index: u64, priority: Priority, now: Instant) -> bool {
        if state.flights.contains_key(&index) {
            return false;
        }
        let stall_at = now + stall::FIRST;
        state.flights.insert(
            index,
            Flight {
                waiters: Vec::new(),
                request: self.request(priority, now),
                since: now,
                running: false,
                stall_at,
                stall_step: stall::FIRST,
            },
        );
        self.watch(state, stall_at);
        true
    }

    /// Sees to it that the watcher looks at that time.
    fn watch(self: &Arc<Self>, state: &mut State, at: Instant) {
        match state.watched_until {
            None => {
                state.watched_until = Some(at);
                stall::spawn_watcher(self);
            }
            Some(until) if at < until => {
                state.watched_until = Some(at);
                self.look_again.store(true, Ordering::Release);
                self.options.clock.wake();
            }
            Some(_) => {}
        }
    }

    fn read_ahead(self: &Arc<Self>, state: &mut State, ahead: Range<u64>) {
        let slots = self.reader.geometry().slot_count();
        let now = self.options.clock.now();
        for index in ahead.start..ahead.end.min(slots) {
            if !state.resident.contains(index)
                && self.reader.stored_length(index) != 0
                && self.take_off(state, index, Priority::Prefetch, now)
            {
                state.prefetch.push_back(index);
            }
        }
    }
}
