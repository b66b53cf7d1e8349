//! The threads that load: what they take next, and what becomes of it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Loaded, Shared, State};
use crate::Error;
use crate::options::OnUnavailable;
use crate::reader::{LoadRequest, Priority, Tier};

/// The first pause before an unavailable tier is asked again; doubles up to [`LONGEST_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Short enough that readers go on soon after the origin is back.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a thread does next.
enum Job {
    /// Load a chunk into memory, for a read or for one to come.
    Load(u64, Priority),
    /// Bring it near, without opening it.
    Warm(u64, Priority),
}

impl Shared {
    /// Sees to it that there are threads for what is queued.
    pub(super) fn staff(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let ahead = state.prefetch.len() + state.warm.len();
        let prefetches = ahead.min(self.options.most_prefetches.saturating_sub(state.prefetching));
        let rest = if ahead == 0 && !state.has_readers() { state.rest.startable() } else { 0 };
        let queued = (state.demand.len() + prefetches + rest).min(self.cores.saturating_sub(state.busy));
        let woken = queued.min(state.idle);
        let hired = (queued - woken)
            .saturating_sub(state.starting)
            .min(self.options.most_loads.max(1).saturating_sub(state.threads));
        state.starting += hired;
        state.threads += hired;
        drop(state);
        for _ in 0..woken {
            self.work.notify_one();
        }
        for _ in 0..hired {
            let shared = Arc::clone(self);
            let spawned = std::thread::Builder::new().name("chunk-loader".into()).spawn(move || shared.run());
            if let Err(error) = spawned {
                tracing::warn!(image = self.reader.image(), %error, "no thread to load chunks with");
                let mut state = self.lock();
                state.threads -= 1;
                state.starting -= 1;
            }
        }
    }

    fn run(self: &Arc<Self>) {
        let mut state = self.lock();
        state.starting -= 1;
        while !self.is_stopping() {
            state = match self.next_job(&mut state) {
                Some(Job::Load(index, Priority::Demand)) => self.fly(state, index),
                Some(Job::Load(index, _)) => {
                    state.prefetching += 1;
                    let mut state = self.fly(state, index);
                    state.prefetching -= 1;
                    state
                }
                Some(Job::Warm(index, Priority::Background)) => {
                    state.rest.begin();
                    let (mut state, result) = self.warm(state, index, Priority::Background);
                    state.rest.end(index, result, self.reader.stored_length(index));
                    self.rest_changed.notify_all();
                    state
                }
                Some(Job::Warm(index, priority)) => {
                    state.prefetching += 1;
                    let (mut state, _) = self.warm(state, index, priority);
                    state.prefetching -= 1;
                    state
                }
                None => {
                    state.idle += 1;
                    let mut state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                    state
                }
            };
        }
        state.threads -= 1;
    }

    fn next_job(&self, state: &mut State) -> Option<Job> {
        if state.busy >= self.cores {
            return None;
        }
        if let Some(index) = state.demand.pop_front() {
            return Some(Job::Load(index, Priority::Demand));
        }
        if state.prefetching < self.options.most_prefetches {
            if let Some(index) = state.prefetch.pop_front() {
                return Some(Job::Load(index, Priority::Prefetch));
            }
            if let Some(index) = state.warm.pop_front() {
                return Some(Job::Warm(index, Priority::Prefetch));
            }
        }
        if !state.prefetch.is_empty() || !state.warm.is_empty() || state.has_readers() {
            return None;
        }
        state.rest.take().map(|index| Job::Warm(index, Priority::Background))
    }

    /// Loads a queued chunk, unless another thread does.
    fn fly<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>, index: u64) -> MutexGuard<'a, State> {
        let Some(flight) = state.flights.get_mut(&index).filter(|flight| !flight.running) else {
            return state;
        };
        flight.running = true;
        let (request, since) = (Arc::clone(&flight.request), flight.since);
        state.busy += 1;
        drop(state);

        self.counters.queue_ns.add(self.options.clock.now().saturating_duration_since(since).as_nanos() as u64);
        let loaded = self.load(index, &request);
        let mut state = self.lock();
        state.busy -= usize::from(request.leave_core());
        let Some(flight) = state.flights.get_mut(&index) else { return state };
        if loaded.is_err()
            && request.priority == Priority::Prefetch
            && !flight.waiters.is_empty()
            && !self.is_stopping()
        {
            // Reads joined a prefetch that gave up early: they get an attempt of their own, with their own deadline.
            self.promote(&mut state, index);
            return state;
        }
        let Some(flight) = state.flights.remove(&index) else { return state };
        if let Err(error) = &loaded
            && !flight.waiters.is_empty()
        {
            state.note_failure(index, flight.since, self.options.clock.now(), error);
        }
        let evicted = match &loaded {
            Ok(chunk) => state.resident.insert(index, Arc::clone(chunk), !flight.waiters.is_empty()),
            Err(_) => None,
        };
        drop(state);
        drop(evicted);
        for (_, waiter) in flight.waiters {
            waiter(loaded.clone());
        }
        self.lock()
    }

    /// Has a chunk loaded next for the reads that came to wait for it.
    fn promote(self: &Arc<Self>, state: &mut State, index: u64) {
        let request = self.request(Priority::Demand, self.options.clock.now());
        if let Some(flight) = state.flights.get_mut(&index) {
            flight.request = request;
            flight.running = false;
            state.demand.push_front(index);
        }
    }

    /// Brings a chunk near, unless it is being loaded. A read that comes meanwhile waits, and finds it near.
    fn warm<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        index: u64,
        priority: Priority,
    ) -> (MutexGuard<'a, State>, Result<(), Error>) {
        let now = self.options.clock.now();
        if state.resident.contains(index) || !self.take_off(&mut state, index, priority, now) {
            return (state, Ok(()));
        }
        let Some(flight) = state.flights.get_mut(&index) else { return (state, Ok(())) };
        flight.running = true;
        let request = Arc::clone(&flight.request);
        state.busy += 1;
        drop(state);

        let warmed = catch_unwind(AssertUnwindSafe(|| self.reader.warm_chunk(index, &request)))
            .unwrap_or_else(|_| Err(self.panicked(index)));
        match &warmed {
            Err(error) => tracing::debug!(chunk = self.subject(index), error = error.chain(), "not fetched ahead"),
            // It may have been near already.
            Ok(()) if matches!(request.tier(), Tier::Zone | Tier::Origin) => {
                self.count(index, &request, self.reader.stored_length(index) as usize);
            }
            Ok(()) => {}
        }
        let mut state = self.lock();
        state.busy -= usize::from(request.leave_core());
        let has_readers = state.flights.get(&index).is_some_and(|flight| !flight.waiters.is_empty());
        if has_readers && !self.is_stopping() {
            self.promote(&mut state, index);
        } else if let Some(flight) = state.flights.remove(&index) {
            drop(state);
            for (_, waiter) in flight.waiters {
                waiter(Err(self.closed()));
            }
            state = self.lock();
        }
        (state, warmed)
    }

    fn panicked(&self, index: u64) -> Error {
        Error::io("load", self.subject(index), io::Error::other("its reader panicked"))
    }

    fn load(&self, index: u64, request: &LoadRequest) -> Loaded {
        let mut buffer = self.buffers.take(self.reader.stored_length(index) as usize);
        let mut pause = FIRST_PAUSE;
        loop {
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| self.reader.read_chunk(index, request, buffer.as_mut())))
                .unwrap_or_else(|_| Err(self.panicked(index)));
            match result {
                Ok(()) => {
                    self.counters.load_ns.add_since(start);
                    self.count(index, request, buffer.len());
                    return Ok(Arc::new(buffer));
                }
                Err(error) if self.may_retry(&error, request) => {
                    self.counters.retries.add(1);
                    let now = self.options.clock.now();
                    let until = request.deadline.map_or(now + pause, |deadline| deadline.min(now + pause));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.options.clock.wait_until(until, &|| self.is_stopping());
                }
                Err(error) => {
                    if request.priority == Priority::Prefetch {
                        tracing::debug!(error = error.chain(), "not read ahead");
                    } else {
                        self.counters.failures.add(1);
                        tracing::error!(
                            image = self.reader.image(),
                            chunk = self.reader.chunk_name(index),
                            tier = %request.tier(),
                            error = error.chain(),
                            "a chunk cannot be read; its readers get an I/O error"
                        );
                    }
                    return Err(error);
                }
            }
        }
    }

    fn may_retry(&self, error: &Error, request: &LoadRequest) -> bool {
        matches!(error, Error::Unavailable { .. })
            && request.priority == Priority::Demand
            && self.options.on_unavailable == OnUnavailable::Block
            && !self.is_stopping()
            && request.deadline.is_none_or(|deadline| self.options.clock.now() < deadline)
    }

    fn count(&self, index: u64, request: &LoadRequest, bytes: usize) {
        let tier = request.tier() as usize;
        self.counters.loads[tier].add(1);
        self.counters.loaded_bytes[tier].add(bytes as u64);
        match request.priority {
            Priority::Demand => {}
            Priority::Prefetch => {
                self.counters.prefetched.add(1);
                self.log.note_prefetched(index, self.options.clock.now());
            }
            Priority::Background => self.counters.in_background.add(1),
        }
    }
}
