//! Which sandbox an invocation gets: one that is idle, or the first that becomes free or is started for those who wait.
//!
//! A sandbox runs one invocation at a time. Starts follow demand: there are never more on their way than invocations that wait, and who
//! waits takes whichever sandbox is free first, so that a burst on a warm function is no burst of cold starts.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::api::ApiError;
use crate::hosts::Host;

/// Names what a sandbox runs: tenant, function, version, and the revision of that, since `$LATEST` changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) tenant: String,
    pub(crate) function: String,
    pub(crate) number: String,
    pub(crate) revision: String,
}

/// How many may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Invocations at once, of all functions of a tenant.
    pub(crate) account_concurrency: u32,
    /// New sandboxes of one function, in ten seconds.
    pub(crate) burst: usize,
    /// A sandbox that is idle for so long is ended.
    pub(crate) idle: Duration,
}

/// A sandbox that did not get to its first invocation: what clients are told in an answer.
#[derive(Clone, Debug)]
pub(crate) struct StartFailure {
    pub(crate) payload: Bytes,
}

/// What who waits gets.
pub(crate) type Assigned = Result<Host, StartFailure>;

/// What is to be done after a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// Start another sandbox of this kind.
    Start,
}

#[derive(Default)]
pub(crate) struct Assignment(Mutex<State>);

#[derive(Default)]
struct State {
    pools: HashMap<Key, Pool>,
    /// Which pool a sandbox is of.
    of: HashMap<String, Key>,
}

#[derive(Default)]
struct Pool {
    /// The last is the one that was used last: the others grow old.
    idle: Vec<(Host, Instant)>,
    busy: HashMap<String, Host>,
    starting: usize,
    waiting: VecDeque<oneshot::Sender<Assigned>>,
    /// When sandboxes were started of late.
    starts: VecDeque<Instant>,
}

impl Pool {
    fn concurrency(&self) -> usize {
        self.busy.len() + self.waiting.len()
    }

    fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.busy.is_empty() && self.starting == 0 && self.waiting.is_empty()
    }
}

/// How many sandboxes do what.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) idle: usize,
    pub(crate) busy: usize,
    pub(crate) starting: usize,
    pub(crate) waiting: usize,
}

/// Where an invocation's sandbox comes from.
pub(crate) enum Got {
    /// It is idle.
    Warm(Host),
    /// It will be told. Perhaps one is to be started first.
    Later(oneshot::Receiver<Assigned>, Wish),
}

impl Assignment {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a sandbox. `reserved` is the function's own limit.
    ///
    /// # Errors
    /// Throttled, with the reason.
    pub(crate) fn acquire(
        &self,
        key: &Key,
        reserved: Option<u32>,
        limits: &Limits,
        now: Instant,
    ) -> Result<Got, ApiError> {
        let mut state = self.lock();
        let of = |fits: &dyn Fn(&Key) -> bool| -> usize {
            state.pools.iter().filter(|(key, _)| fits(key)).map(|(_, pool)| pool.concurrency()).sum()
        };
        if let Some(reserved) = reserved
            && of(&|other| other.tenant == key.tenant && other.function == key.function) >= reserved as usize
        {
            return Err(ApiError::throttled("ReservedFunctionConcurrentInvocationLimitExceeded", 1));
        }
        if of(&|other| other.tenant == key.tenant) >= limits.account_concurrency as usize {
            return Err(ApiError::throttled("ConcurrentInvocationLimitExceeded", 1));
        }
        let pool = state.pools.entry(key.clone()).or_default();
        if let Some((host, _)) = pool.idle.pop() {
            pool.busy.insert(host.sandbox.clone(), host.clone());
            return Ok(Got::Warm(host));
        }
        let starts = pool.starting <= pool.waiting.len();
        if starts {
            while pool.starts.front().is_some_and(|at| now.duration_since(*at) > Duration::from_secs(10)) {
                pool.starts.pop_front();
            }
            if pool.starts.len() >= limits.burst && pool.starting == 0 && pool.busy.is_empty() {
                return Err(ApiError::throttled("FunctionInvocationRateLimitExceeded", 1));
            }
        }
        let (sender, receiver) = oneshot::channel();
        pool.waiting.push_back(sender);
        let wish = if starts && pool.starts.len() < limits.burst {
            pool.starting += 1;
            pool.starts.push_back(now);
            Wish::Start
        } else {
            Wish::Nothing
        };
        Ok(Got::Later(receiver, wish))
    }

    /// A sandbox is being started, and will come as this.
    pub(crate) fn starting(&self, sandbox: &str, key: &Key) {
        self.lock().of.insert(sandbox.to_owned(), key.clone());
    }

    /// It waits for its first invocation, or for the next one. True if somebody is given it at once.
    pub(crate) fn free(&self, host: &Host, is_new: bool, now: Instant) -> bool {
        let mut state = self.lock();
        let Some(key) = state.of.get(&host.sandbox).cloned() else { return false };
        let pool = state.pools.entry(key).or_default();
        if is_new {
            pool.starting = pool.starting.saturating_sub(1);
        }
        pool.busy.remove(&host.sandbox);
        while let Some(waiting) = pool.waiting.pop_front() {
            pool.busy.insert(host.sandbox.clone(), host.clone());
            if waiting.send(Ok(host.clone())).is_ok() {
                return true;
            }
            // Who waited has gone.
            pool.busy.remove(&host.sandbox);
        }
        pool.idle.push((host.clone(), now));
        false
    }

    /// It is at an invocation that began before this service did.
    pub(crate) fn adopt_busy(&self, host: &Host) {
        let mut state = self.lock();
        let Some(key) = state.of.get(&host.sandbox).cloned() else { return };
        state.pools.entry(key).or_default().busy.insert(host.sandbox.clone(), host.clone());
    }

    /// It never came to its first invocation: the first who waits is told why. Gives whether another is to be started.
    pub(crate) fn failed_to_start(&self, sandbox: &str, failure: &StartFailure) -> Option<(Key, Wish)> {
        let mut state = self.lock();
        let key = state.of.remove(sandbox)?;
        let pool = state.pools.get_mut(&key)?;
        pool.starting = pool.starting.saturating_sub(1);
        while let Some(waiting) = pool.waiting.pop_front() {
            if waiting.send(Err(failure.clone())).is_ok() {
                break;
            }
        }
        let wish = if pool.waiting.len() > pool.starting {
            pool.starting += 1;
            Wish::Start
        } else {
            Wish::Nothing
        };
        Some((key, wish))
    }

    /// It is no more. Gives whether another is to be started for who waits.
    pub(crate) fn gone(&self, sandbox: &str) -> Option<(Key, Wish)> {
        let mut state = self.lock();
        let key = state.of.remove(sandbox)?;
        let pool = state.pools.get_mut(&key)?;
        pool.idle.retain(|(host, _)| host.sandbox != sandbox);
        pool.busy.remove(sandbox);
        let wish = if pool.waiting.len() > pool.starting {
            pool.starting += 1;
            Wish::Start
        } else {
            Wish::Nothing
        };
        if pool.is_empty() {
            state.pools.remove(&key);
        }
        Some((key, wish))
    }

    /// Sandboxes that have been idle for too long, or run what `is_current` says is no more: they are taken out, and are to be ended.
    pub(crate) fn reap(&self, idle: Duration, now: Instant, is_current: &dyn Fn(&Key) -> bool) -> Vec<Host> {
        let mut state = self.lock();
        let mut reaped = Vec::new();
        for (key, pool) in &mut state.pools {
            let stays = is_current(key);
            let mut kept = Vec::new();
            for (host, since) in pool.idle.drain(..) {
                if stays && now.duration_since(since) < idle {
                    kept.push((host, since));
                } else {
                    reaped.push(host);
                }
            }
            pool.idle = kept;
        }
        reaped
    }

    #[cfg(test)]
    pub(crate) fn counts(&self, fits: &dyn Fn(&Key) -> bool) -> Counts {
        let state = self.lock();
        let pools = state.pools.iter().filter(|(key, _)| fits(key));
        pools.fold(Counts::default(), |counts, (_, pool)| Counts {
            idle: counts.idle + pool.idle.len(),
            busy: counts.busy + pool.busy.len(),
            starting: counts.starting + pool.starting,
            waiting: counts.waiting + pool.waiting.len(),
        })
    }
}

#[cfg(test)]
mod tests;
