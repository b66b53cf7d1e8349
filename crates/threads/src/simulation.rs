//! Threads that take turns.
//!
//! Each is a thread of the system, of which only one runs at any time. When it waits, the next is chosen by the seed among those that
//! can go on; if none can, time passes until one can. So a history depends on nothing but its seed, and whatever would wait for ever is found.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

thread_local! {
    /// Which thread of its simulation this one is.
    static CURRENT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Threads that take turns by a seed, in virtual time.
#[derive(Clone, Debug)]
pub struct Simulation(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    seed: u64,
    /// Where virtual time began.
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    now: Duration,
    rng: ChaCha8Rng,
    threads: BTreeMap<u64, Participant>,
    /// Threads and events that there ever were.
    next: u64,
    panicked: Vec<String>,
}

#[derive(Debug)]
struct Participant {
    name: String,
    status: Status,
    turn: Arc<Condvar>,
    /// Told when it ends.
    end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Running,
    Ready,
    Waiting { event: Option<u64>, until: Option<Duration> },
}

/// Something to wait for in a simulation.
#[derive(Clone, Debug)]
pub struct Event {
    simulation: Simulation,
    number: u64,
}

/// A thread that may be waited for.
#[derive(Debug)]
#[doc(hidden)]
pub struct Joining {
    simulation: Simulation,
    thread: u64,
    end: Event,
}

impl Simulation {
    /// Runs `body` as the first thread. The others must have ended when it has.
    ///
    /// # Panics
    /// As `body` and the other threads do, with the seed.
    pub fn run<T>(seed: u64, body: impl FnOnce(&Self) -> T) -> T {
        let state = State {
            now: Duration::ZERO,
            rng: ChaCha8Rng::seed_from_u64(seed),
            threads: BTreeMap::new(),
            next: 0,
            panicked: Vec::new(),
        };
        let simulation = Self(Arc::new(Shared { seed, start: Instant::now(), state: Mutex::new(state) }));
        let number = simulation.join_in("main", Status::Running).0;
        let outer = CURRENT.replace(Some(number));
        let result = catch_unwind(AssertUnwindSafe(|| body(&simulation)));
        CURRENT.set(outer);
        let mut state = simulation.lock();
        state.threads.remove(&number);
        let result = result.unwrap_or_else(|panic| {
            eprintln!("seed {seed}");
            resume_unwind(panic)
        });
        assert!(state.panicked.is_empty(), "seed {seed}: these panicked: {:?}", state.panicked);
        let left: Vec<&str> = state.threads.values().map(|thread| thread.name.as_str()).collect();
        assert!(left.is_empty(), "seed {seed}: these did not end: {left:?}");
        drop(state);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its histories come from.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.0.start + self.lock().now
    }

    /// Lets time pass.
    pub fn sleep(&self, time: Duration) {
        let until = self.lock().now + time;
        self.wait(None, Some(until));
    }

    /// Something to wait for.
    pub fn event(&self) -> Event {
        let mut state = self.lock();
        state.next += 1;
        Event { simulation: self.clone(), number: state.next }
    }

    fn join_in(&self, name: &str, status: Status) -> (u64, Arc<Condvar>, Event) {
        let end = self.event();
        let mut state = self.lock();
        state.next += 1;
        let (number, turn) = (state.next, Arc::new(Condvar::new()));
        let participant = Participant { name: name.into(), status, turn: Arc::clone(&turn), end: end.number };
        state.threads.insert(number, participant);
        (number, turn, end)
    }

    /// A thread that runs when its turn comes.
    pub(crate) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Joining> {
        let (thread, turn, end) = self.join_in(name, Status::Ready);
        let simulation = self.clone();
        let begin = move || {
            CURRENT.set(Some(thread));
            simulation.await_turn(thread, &turn);
            let result = catch_unwind(AssertUnwindSafe(work));
            simulation.end(thread, result.is_err());
        };
        let spawned = std::thread::Builder::new().name(name.into()).spawn(begin);
        if spawned.is_err() {
            self.lock().threads.remove(&thread);
        }
        spawned.map(|_| Joining { simulation: self.clone(), thread, end })
    }

    fn await_turn(&self, thread: u64, turn: &Condvar) {
        let mut state = self.lock();
        while state.threads.get(&thread).is_some_and(|thread| thread.status != Status::Running) {
            state = turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self, thread: u64, has_panicked: bool) {
        let mut state = self.lock();
        if let Some(gone) = state.threads.remove(&thread) {
            state.notify(gone.end, usize::MAX);
            if has_panicked {
                state.panicked.push(gone.name);
            }
        }
        self.next_turn(&mut state);
    }

    /// Waits for an event or a time, whatever is first.
    fn wait(&self, event: Option<u64>, until: Option<Duration>) {
        let Some(thread) = CURRENT.get() else { panic!("only the simulation's own threads may wait in it") };
        let mut state = self.lock();
        let Some(own) = state.threads.get_mut(&thread) else { return };
        own.status = Status::Waiting { event, until };
        let turn = Arc::clone(&own.turn);
        self.next_turn(&mut state);
        drop(state);
        self.await_turn(thread, &turn);
    }

    /// Lets the next one run.
    fn next_turn(&self, state: &mut State) {
        loop {
            let ready: Vec<u64> =
                state.threads.iter().filter(|(_, thread)| thread.status == Status::Ready).map(|(id, _)| *id).collect();
            if !ready.is_empty() {
                let chosen = ready[state.rng.random_range(0..ready.len())];
                if let Some(thread) = state.threads.get_mut(&chosen) {
                    thread.status = Status::Running;
                    thread.turn.notify_all();
                }
                return;
            }
            let times = state.threads.values().filter_map(|thread| match thread.status {
                Status::Waiting { until, .. } => until,
                _ => None,
            });
            let Some(first) = times.min() else {
                if !state.threads.is_empty() {
                    // Nobody can go on and say so; the others could not end either.
                    let waiting: Vec<&str> = state.threads.values().map(|thread| thread.name.as_str()).collect();
                    eprintln!("seed {}: all wait for ever: {waiting:?}", self.0.seed);
                    std::process::abort();
                }
                return;
            };
            state.now = state.now.max(first);
            for thread in state.threads.values_mut() {
                if matches!(thread.status, Status::Waiting { until: Some(until), .. } if until <= first) {
                    thread.status = Status::Ready;
                }
            }
        }
    }
}

impl State {
    fn notify(&mut self, event: u64, most: usize) {
        let waits = |thread: &&mut Participant| matches!(thread.status, Status::Waiting { event: Some(waited), .. } if waited == event);
        // Which of them it is does not depend on the order in which they came.
        let mut waiting: Vec<&mut Participant> = self.threads.values_mut().filter(waits).collect();
        for _ in 0..most.min(waiting.len()) {
            let chosen = self.rng.random_range(0..waiting.len());
            waiting.swap_remove(chosen).status = Status::Ready;
        }
    }
}

impl Event {
    /// Waits until it is told, or until then. A thread that waits must hold no mutex.
    pub fn wait(&self, until: Option<Instant>) {
        let until = until.map(|until| until.saturating_duration_since(self.simulation.0.start));
        self.simulation.wait(Some(self.number), until);
    }

    /// Tells some of those who wait.
    pub fn notify(&self, most: usize) {
        self.simulation.lock().notify(self.number, most);
    }
}

impl Joining {
    pub(crate) fn join(self) {
        while self.simulation.lock().threads.contains_key(&self.thread) {
            self.end.wait(None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Background, Taken, Threads};

    /// Who was when, of threads that sleep, wait for one another and work in the background.
    fn history(seed: u64) -> Vec<(Duration, u64)> {
        Simulation::run(seed, |simulation| {
            let threads = Threads::Simulated(simulation.clone());
            let start = simulation.now();
            let seen = Arc::new(Mutex::new(Vec::new()));
            let kept = Arc::clone(&seen);
            let clock = simulation.clone();
            let background = Arc::new(Background::start(&threads, "background", 100, move |job: u64| {
                clock.sleep(Duration::from_millis(3));
                kept.lock().unwrap().push((clock.now() - start, job));
            }));
            let all: Vec<_> = (0..8)
                .map(|number: u64| {
                    let (simulation, background) = (simulation.clone(), Arc::clone(&background));
                    let work = move || {
                        for step in 0..5 {
                            simulation.sleep(Duration::from_millis(number % 3));
                            assert_eq!(background.give(number * 10 + step), Taken::Yes);
                        }
                    };
                    threads.spawn("giver", work).unwrap()
                })
                .collect();
            all.into_iter().for_each(crate::Thread::join);
            background.flush();
            drop(background);
            seen.lock().unwrap().clone()
        })
    }

    #[test]
    fn a_history_is_its_seeds_and_time_is_virtual() {
        let began = Instant::now();
        assert_eq!(history(1), history(1));
        assert_ne!(history(1), history(2));
        let all = history(3);
        assert_eq!(all.len(), 40);
        assert!(all.last().unwrap().0 >= Duration::from_millis(120));
        Simulation::run(4, |simulation| simulation.sleep(Duration::from_hours(1000)));
        assert!(began.elapsed() < Duration::from_mins(1));
    }

    #[test]
    #[should_panic(expected = "these panicked: [\"bad\"]")]
    fn a_panic_of_any_thread_is_a_failure() {
        Simulation::run(1, |simulation| {
            let threads = Threads::Simulated(simulation.clone());
            threads.spawn("bad", || panic!("as the test wants it")).unwrap().join();
        });
    }

    #[test]
    #[should_panic(expected = "these did not end: [\"long\"]")]
    fn nothing_may_be_left() {
        Simulation::run(1, |simulation| {
            let threads = Threads::Simulated(simulation.clone());
            let clock = simulation.clone();
            threads.spawn("long", move || clock.sleep(Duration::from_secs(1))).unwrap();
        });
    }
}
