//! Which sandbox an invocation gets: one that is idle, or the first that becomes free or is started for those who wait.
//!
//! A sandbox runs one invocation at a time. Starts follow demand: there are never more on their way than invocations that wait, and who
//! waits takes whichever sandbox is free first, so that a burst on a warm function is no burst of cold starts. A sandbox is always in
//! one phase, and what is told of it twice counts once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use crate::api::ApiError;
use crate::hosts::Host;

/// Starts are counted over so long.
const BURST_WINDOW: Duration = Duration::from_secs(10);

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
    kind: String,
    message: String,
    /// What the runtime says of it, if it does.
    said: Bytes,
}

impl StartFailure {
    /// `said` may be empty.
    pub(crate) fn new(kind: &str, message: &str, said: Bytes) -> Self {
        Self { kind: kind.to_owned(), message: message.to_owned(), said }
    }

    /// What the caller of the invocation `id` gets.
    pub(crate) fn payload(&self, id: &str) -> Bytes {
        if self.said.is_empty() { payload(id, &self.kind, &self.message) } else { self.said.clone() }
    }
}

/// What a caller gets for a failure that is not the function's own, in Lambda's words.
pub(crate) fn payload(id: &str, kind: &str, message: &str) -> Bytes {
    json!({ "errorType": kind, "errorMessage": format!("RequestId: {id} Error: {message}") }).to_string().into()
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Idle,
    Busy,
}

#[derive(Default)]
pub(crate) struct Assignment(Mutex<State>);

#[derive(Default)]
struct State {
    pools: HashMap<Key, Pool>,
    /// Every sandbox there is, and what it does.
    of: HashMap<String, (Key, Phase)>,
}

#[derive(Default)]
struct Pool {
    /// The last is the one that was used last: the others grow old.
    idle: Vec<(Host, Instant)>,
    busy: usize,
    starting: usize,
    waiting: VecDeque<oneshot::Sender<Assigned>>,
    /// When sandboxes were started of late.
    starts: VecDeque<Instant>,
}

impl Pool {
    fn concurrency(&self) -> usize {
        self.busy + self.waiting.len()
    }

    fn counts(&self) -> Counts {
        Counts { idle: self.idle.len(), busy: self.busy, starting: self.starting, waiting: self.waiting.len() }
    }

    fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.busy == 0 && self.starting == 0 && self.waiting.is_empty()
    }

    fn forget_old_starts(&mut self, now: Instant) {
        while self.starts.front().is_some_and(|at| now.duration_since(*at) > BURST_WINDOW) {
            self.starts.pop_front();
        }
    }

    /// Whether those who wait need another sandbox; it counts as starting then.
    fn wish(&mut self) -> Wish {
        if self.waiting.len() > self.starting {
            self.starting += 1;
            Wish::Start
        } else {
            Wish::Nothing
        }
    }
}

/// How many sandboxes do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) idle: usize,
    pub(crate) busy: usize,
    pub(crate) starting: usize,
    pub(crate) waiting: usize,
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            idle: self.idle + other.idle,
            busy: self.busy + other.busy,
            starting: self.starting + other.starting,
            waiting: self.waiting + other.waiting,
        }
    }
}

/// Where an invocation's sandbox comes from.
pub(crate) enum Got {
    /// It is idle.
    Warm(Host),
    /// It will be told. Perhaps one is to be started first.
    Later(oneshot::Receiver<Assigned>, Wish),
}

impl State {
    /// Takes a sandbox out of the phase that it is in.
    fn leave(&mut self, sandbox: &str) -> Option<(Key, Phase)> {
        let (key, phase) = self.of.remove(sandbox)?;
        let pool = self.pools.entry(key.clone()).or_default();
        match phase {
            Phase::Starting => pool.starting = pool.starting.saturating_sub(1),
            Phase::Idle => pool.idle.retain(|(host, _)| host.sandbox != sandbox),
            Phase::Busy => pool.busy = pool.busy.saturating_sub(1),
        }
        Some((key, phase))
    }
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
            pool.busy += 1;
            state.of.insert(host.sandbox.clone(), (key.clone(), Phase::Busy));
            return Ok(Got::Warm(host));
        }
        pool.forget_old_starts(now);
        let needs_one = pool.starting <= pool.waiting.len();
        if needs_one && pool.starts.len() >= limits.burst && pool.starting == 0 && pool.busy == 0 {
            return Err(ApiError::throttled("FunctionInvocationRateLimitExceeded", 1));
        }
        let (sender, receiver) = oneshot::channel();
        pool.waiting.push_back(sender);
        let wish = if needs_one && pool.starts.len() < limits.burst {
            pool.starting += 1;
            pool.starts.push_back(now);
            Wish::Start
        } else {
            Wish::Nothing
        };
        Ok(Got::Later(receiver, wish))
    }

    /// A sandbox that was wished for is being started, and will come as this.
    pub(crate) fn starting(&self, sandbox: &str, key: &Key) {
        self.lock().of.insert(sandbox.to_owned(), (key.clone(), Phase::Starting));
    }

    /// A sandbox of a service before this one: it counts as starting until it comes.
    pub(crate) fn expect(&self, sandbox: &str, key: &Key) {
        let mut state = self.lock();
        state.pools.entry(key.clone()).or_default().starting += 1;
        state.of.insert(sandbox.to_owned(), (key.clone(), Phase::Starting));
    }

    /// It waits for an invocation. True if somebody is given it at once.
    pub(crate) fn free(&self, host: &Host, now: Instant) -> bool {
        let mut state = self.lock();
        if state.of.get(&host.sandbox).is_none_or(|(_, phase)| *phase == Phase::Idle) {
            return false;
        }
        let Some((key, _)) = state.leave(&host.sandbox) else { return false };
        let pool = state.pools.entry(key.clone()).or_default();
        while let Some(waiting) = pool.waiting.pop_front() {
            if waiting.send(Ok(host.clone())).is_ok() {
                pool.busy += 1;
                state.of.insert(host.sandbox.clone(), (key, Phase::Busy));
                return true;
            }
            // Who waited has gone.
        }
        pool.idle.push((host.clone(), now));
        state.of.insert(host.sandbox.clone(), (key, Phase::Idle));
        false
    }

    /// It is at an invocation that began before this service did.
    pub(crate) fn adopt_busy(&self, host: &Host) {
        let mut state = self.lock();
        if let Some((key, _)) = state.leave(&host.sandbox) {
            state.pools.entry(key.clone()).or_default().busy += 1;
            state.of.insert(host.sandbox.clone(), (key, Phase::Busy));
        }
    }

    /// It is no more. Where it never came to its first invocation, the first who waits is told why. Gives whether another is to be
    /// started for who waits.
    pub(crate) fn gone(&self, sandbox: &str, failure: Option<&StartFailure>) -> Option<(Key, Wish)> {
        let mut state = self.lock();
        let (key, phase) = state.leave(sandbox)?;
        let pool = state.pools.entry(key.clone()).or_default();
        if let (Phase::Starting, Some(failure)) = (phase, failure) {
            while let Some(waiting) = pool.waiting.pop_front() {
                if waiting.send(Err(failure.clone())).is_ok() {
                    break;
                }
            }
        }
        let wish = pool.wish();
        Some((key, wish))
    }

    /// What was wished for cannot be started: everybody who waits is told.
    pub(crate) fn give_up(&self, key: &Key, failure: &StartFailure) {
        let mut state = self.lock();
        let Some(pool) = state.pools.get_mut(key) else { return };
        pool.starting = pool.starting.saturating_sub(1);
        for waiting in pool.waiting.drain(..) {
            // Who waited may have gone.
            let _ = waiting.send(Err(failure.clone()));
        }
    }

    /// What there are pools of.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.lock().pools.keys().cloned().collect()
    }

    /// Whether there is a sandbox of those that fit, or somebody waits for one.
    pub(crate) fn has_any(&self, fits: &dyn Fn(&Key) -> bool) -> bool {
        self.lock().pools.iter().any(|(key, pool)| !pool.is_empty() && fits(key))
    }

    /// Sandboxes that have been idle for too long, or run what is not `current` any more: they are taken out, and are to be ended.
    pub(crate) fn reap(&self, idle: Duration, now: Instant, is_current: &dyn Fn(&Key) -> bool) -> Vec<Host> {
        let mut state = self.lock();
        let mut reaped = Vec::new();
        for (key, pool) in &mut state.pools {
            let stays = is_current(key);
            let (kept, old) = pool.idle.drain(..).partition(|(_, since)| stays && now.duration_since(*since) < idle);
            pool.idle = kept;
            let old: Vec<(Host, Instant)> = old;
            reaped.extend(old.into_iter().map(|(host, _)| host));
            pool.forget_old_starts(now);
        }
        for host in &reaped {
            state.of.remove(&host.sandbox);
        }
        state.pools.retain(|_, pool| !pool.is_empty() || !pool.starts.is_empty());
        reaped
    }

    /// Every sandbox that there is, and what it does.
    pub(crate) fn sandboxes(&self) -> Vec<(String, Key, Phase)> {
        self.lock().of.iter().map(|(id, (key, phase))| (id.clone(), key.clone(), *phase)).collect()
    }

    /// How many there are of each kind.
    pub(crate) fn counts_by_key(&self) -> Vec<(Key, Counts)> {
        let state = self.lock();
        state.pools.iter().map(|(key, pool)| (key.clone(), pool.counts())).collect()
    }

    /// How many of those that fit there are.
    #[cfg(test)]
    pub(crate) fn counts(&self, fits: &dyn Fn(&Key) -> bool) -> Counts {
        let state = self.lock();
        let pools = state.pools.iter().filter(|(key, _)| fits(key));
        pools.fold(Counts::default(), |sum, (_, pool)| sum + pool.counts())
    }
}

#[cfg(test)]
mod tests;
