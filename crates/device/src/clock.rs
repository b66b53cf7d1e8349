//! Time, as the loader sees it: a seam, so that tests of deadlines and stalls need no sleeping.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The present.
    fn now(&self) -> Instant;

    /// Waits until `until` has come or `stop` returns true. `stop` is asked again at every [`Clock::wake`].
    fn wait_until(&self, until: Instant, stop: &dyn Fn() -> bool);

    /// Has every waiter ask its `stop` again.
    fn wake(&self);
}

/// The system's monotonic clock.
#[derive(Debug, Default)]
pub struct SystemClock {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait_until(&self, until: Instant, stop: &dyn Fn() -> bool) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !stop() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (guard, _) = self.woken.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        // Taking the lock orders this after a waiter's look at `stop`, so that no wake is lost.
        drop(self.lock.lock());
        self.woken.notify_all();
    }
}

/// A clock that stands still until it is moved: for tests.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<(Instant, Vec<Instant>)>,
    changed: Condvar,
}

impl Default for ManualClock {
    fn default() -> Self {
        Self { now: Mutex::new((Instant::now(), Vec::new())), changed: Condvar::new() }
    }
}

impl ManualClock {
    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).0 += by;
        self.changed.notify_all();
    }

    /// Blocks until somebody waits for a time that is at most `within` away.
    pub fn await_waiter(&self, within: Duration) {
        let mut state = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.1.iter().any(|until| *until <= state.0 + within) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn wait_until(&self, until: Instant, stop: &dyn Fn() -> bool) {
        let mut state = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        state.1.push(until);
        self.changed.notify_all();
        while state.0 < until && !stop() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(at) = state.1.iter().position(|other| *other == until) {
            state.1.swap_remove(at);
        }
    }

    fn wake(&self) {
        drop(self.now.lock());
        self.changed.notify_all();
    }
}
