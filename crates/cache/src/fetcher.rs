//! Gets chunks from upstream for all sandboxes of a machine: each once, however many wait for it, and no more at once than may be.
//!
//! A chunk on its way is a *flight*. It waits for a thread that asks the zone, and if that does not have it, for one that asks the
//! origin; there are as many of each as there may be requests at once. Demand goes before prefetch, and that before what is
//! loaded in the background; a flight that somebody more urgent comes to wait for is promoted. What comes is in [`L1`] before
//! anybody is told. Nothing is tried again here: whoever waits has a deadline of its own.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use snowmelt_chunk::ChunkId;
use snowmelt_store::Store;
use snowmelt_threads::{Condvar, Threads};

use crate::{ChunkName, Error, L1, Priority, Tier, Upstream};

/// How much may be asked of others at once.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// Chunks read from the zone.
    pub zone_reads: usize,
    /// Chunks read from the origin.
    pub origin_reads: usize,
    /// Chunks that wait or are on their way. Beyond it, requests are refused.
    pub flights: usize,
}

impl Default for FetchLimits {
    fn default() -> Self {
        Self { zone_reads: 16, origin_reads: 64, flights: 4096 }
    }
}

/// What those who wait are told.
pub(crate) type Fetched = Result<(Tier, Arc<OwnedFd>), Arc<Error>>;

/// Somebody who waits for a chunk.
pub(crate) trait Waiter: Send {
    /// This tier is being asked now.
    fn asks(&self, tier: Tier);
    /// Here it is, or why not.
    fn done(self: Box<Self>, fetched: Fetched);
}

/// What was fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetcherStats {
    /// Chunks that somebody waits for.
    pub flights: u64,
    /// Requests that joined a flight.
    pub joined: u64,
    /// Requests that were refused, since too many waited.
    pub refused: u64,
    /// Chunks that could not be had.
    pub failed: u64,
}

/// Fetches chunks. Ends its threads, each after the chunk that it is at, when dropped.
#[derive(Debug)]
pub struct Fetcher(Arc<Shared>);

struct Shared {
    upstream: Upstream,
    threads: Threads,
    l1: Arc<L1>,
    limits: FetchLimits,
    observe: Box<dyn Fn(Tier, Priority, Duration) + Send + Sync>,
    state: Mutex<State>,
    zone: Condvar,
    origin: Condvar,
    joined: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// A chunk of one store: another may not have it, or have another error.
type Key = (ChunkId, usize);

struct Flight {
    chunk: ChunkName,
    store: Arc<Store>,
    priority: Priority,
    stage: Stage,
    is_running: bool,
    since: Instant,
    waiters: Vec<Box<dyn Waiter>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Zone,
    Origin,
}

impl From<Stage> for Tier {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Zone => Self::Zone,
            Stage::Origin => Self::Origin,
        }
    }
}

#[derive(Default)]
struct State {
    flights: HashMap<Key, Flight>,
    zone: Pool,
    origin: Pool,
    is_ending: bool,
}

/// What waits for the threads of a stage. A flight that was promoted is in two queues; the later finds it running, or gone.
#[derive(Default)]
struct Pool {
    queues: [VecDeque<Key>; Priority::ALL.len()],
    threads: usize,
    idle: usize,
}

impl Pool {
    fn pop(&mut self) -> Option<Key> {
        self.queues.iter_mut().rev().find_map(VecDeque::pop_front)
    }
}

impl State {
    fn pool(&mut self, stage: Stage) -> &mut Pool {
        match stage {
            Stage::Zone => &mut self.zone,
            Stage::Origin => &mut self.origin,
        }
    }
}

impl Fetcher {
    /// Fetches from `upstream` into `l1`. `observe` is told how long each chunk took, from when it was first asked for, that was had.
    pub fn new(
        upstream: Upstream,
        l1: Arc<L1>,
        limits: FetchLimits,
        observe: impl Fn(Tier, Priority, Duration) + Send + Sync + 'static,
    ) -> Self {
        let threads = upstream.threads();
        Self(Arc::new(Shared {
            upstream,
            l1,
            limits,
            observe: Box::new(observe),
            state: Mutex::default(),
            zone: threads.condvar(),
            origin: threads.condvar(),
            threads,
            joined: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }))
    }

    /// What it asks.
    pub fn upstream(&self) -> &Upstream {
        &self.0.upstream
    }

    /// Has a chunk fetched that [`L1`] does not have. The waiter is told from another thread, or at once where there is no room.
    pub(crate) fn fetch(&self, chunk: ChunkName, store: &Arc<Store>, priority: Priority, waiter: Box<dyn Waiter>) {
        let shared = &self.0;
        let key = (chunk.id, Arc::as_ptr(store) as usize);
        let mut state = shared.lock();
        let waiting = state.flights.len();
        if let Some(flight) = state.flights.get_mut(&key) {
            shared.joined.fetch_add(1, Ordering::Relaxed);
            waiter.asks(flight.stage.into());
            flight.waiters.push(waiter);
            if priority > flight.priority {
                flight.priority = priority;
                let stage = flight.stage;
                if !flight.is_running {
                    shared.queue(&mut state, stage, key, priority);
                }
            }
            return;
        }
        if waiting >= shared.limits.flights {
            drop(state);
            shared.refused.fetch_add(1, Ordering::Relaxed);
            return waiter.done(Err(Arc::new(Error::Busy { chunk: chunk.id.to_string(), waiting })));
        }
        let stage = if shared.upstream.has_zone() { Stage::Zone } else { Stage::Origin };
        waiter.asks(stage.into());
        let flight = Flight {
            chunk,
            store: Arc::clone(store),
            priority,
            stage,
            is_running: false,
            since: shared.threads.now(),
            waiters: vec![waiter],
        };
        state.flights.insert(key, flight);
        shared.queue(&mut state, stage, key, priority);
    }

    /// What was fetched.
    pub fn stats(&self) -> FetcherStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FetcherStats {
            flights: self.0.lock().flights.len() as u64,
            joined: get(&self.0.joined),
            refused: get(&self.0.refused),
            failed: get(&self.0.failed),
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_ending = true;
        let waiting: Vec<Key> =
            state.flights.iter().filter(|(_, flight)| !flight.is_running).map(|(key, _)| *key).collect();
        let flights: Vec<Flight> = waiting.iter().filter_map(|key| state.flights.remove(key)).collect();
        drop(state);
        self.0.zone.notify_all();
        self.0.origin.notify_all();
        for flight in flights {
            let ended = Arc::new(ended(&flight.chunk));
            for waiter in flight.waiters {
                waiter.done(Err(Arc::clone(&ended)));
            }
        }
    }
}

fn ended(chunk: &ChunkName) -> Error {
    let reason = "the worker is ending".into();
    Error::Worker { chunk: chunk.id.to_string(), reason, is_passing: true, is_missing: false }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn condvar(&self, stage: Stage) -> &Condvar {
        match stage {
            Stage::Zone => &self.zone,
            Stage::Origin => &self.origin,
        }
    }

    fn queue(self: &Arc<Self>, state: &mut State, stage: Stage, key: Key, priority: Priority) {
        let most = match stage {
            Stage::Zone => self.limits.zone_reads,
            Stage::Origin => self.limits.origin_reads,
        };
        let pool = state.pool(stage);
        pool.queues[priority as usize].push_back(key);
        let waiting: usize = pool.queues.iter().map(VecDeque::len).sum();
        if pool.idle >= waiting || pool.threads >= most.max(1) {
            self.condvar(stage).notify_one();
            return;
        }
        let shared = Arc::clone(self);
        let spawned = self.threads.spawn("fetch", move || shared.run(stage));
        match spawned {
            Ok(_) => pool.threads += 1,
            // Those that there are come to it.
            Err(error) => tracing::warn!(%error, "no thread to fetch chunks with"),
        }
    }

    fn run(self: &Arc<Self>, stage: Stage) {
        let mut state = self.lock();
        while !state.is_ending {
            let Some(key) = state.pool(stage).pop() else {
                state.pool(stage).idle += 1;
                state = self.condvar(stage).wait(&self.state, state);
                state.pool(stage).idle -= 1;
                continue;
            };
            let Some(flight) = state.flights.get_mut(&key).filter(|flight| !flight.is_running && flight.stage == stage)
            else {
                continue;
            };
            flight.is_running = true;
            let (chunk, store) = (flight.chunk, Arc::clone(&flight.store));
            drop(state);
            // A panic must not leave others waiting for ever.
            let panicked = |_| Err(Self::unexpected(&chunk));
            let fetched = catch_unwind(AssertUnwindSafe(|| self.fetch(stage, &store, &chunk))).unwrap_or_else(panicked);
            state = self.lock();
            match fetched {
                Ok(Some((tier, file))) => state = self.land(state, &key, tier, &Ok((tier, file))),
                Ok(None) if state.is_ending => {
                    state = self.land(state, &key, stage.into(), &Err(Arc::new(ended(&chunk))));
                }
                Ok(None) => self.move_on(&mut state, &key),
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    state = self.land(state, &key, stage.into(), &Err(Arc::new(error)));
                }
            }
        }
        state.pool(stage).threads -= 1;
    }

    fn unexpected(chunk: &ChunkName) -> Error {
        let source = snowmelt_store::Error::Corrupt {
            subject: format!("chunk {}", chunk.id),
            reason: "what reads it panicked: this is a bug".into(),
        };
        Error::Lost { chunk: chunk.id.to_string(), source }
    }

    /// `None` where the next stage has to be asked.
    fn fetch(&self, stage: Stage, store: &Store, chunk: &ChunkName) -> Result<Option<(Tier, Arc<OwnedFd>)>, Error> {
        // Whoever asked may have looked just before another's flight landed, or that of another store.
        if self.l1.contains(&chunk.id)
            && let Some(found) = self.l1.get(chunk)
        {
            return Ok(Some(found));
        }
        let (tier, bytes): (Tier, Bytes) = match stage {
            Stage::Zone => match self.upstream.from_zone(chunk) {
                Some(bytes) => (Tier::Zone, bytes),
                None => return Ok(None),
            },
            Stage::Origin => (Tier::Origin, self.upstream.from_origin(store, chunk)?),
        };
        self.l1.put(&chunk.id, &bytes).map(|file| Some((tier, file)))
    }

    fn move_on(self: &Arc<Self>, state: &mut State, key: &Key) {
        let Some(flight) = state.flights.get_mut(key) else { return };
        flight.stage = Stage::Origin;
        flight.is_running = false;
        for waiter in &flight.waiters {
            waiter.asks(Tier::Origin);
        }
        let priority = flight.priority;
        self.queue(state, Stage::Origin, *key, priority);
    }

    fn land<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        key: &Key,
        tier: Tier,
        fetched: &Fetched,
    ) -> MutexGuard<'a, State> {
        let Some(flight) = state.flights.remove(key) else { return state };
        drop(state);
        if fetched.is_ok() && matches!(tier, Tier::Zone | Tier::Origin) {
            (self.observe)(tier, flight.priority, self.threads.now() - flight.since);
        }
        for waiter in flight.waiters {
            waiter.done(fetched.clone());
        }
        self.lock()
    }
}

#[cfg(test)]
mod tests;
