//! Which sandbox an invocation gets: one that is idle, or the first that becomes free or is started for those who wait.
//!
//! A sandbox runs one invocation at a time. Starts follow demand: there are never more on their way than invocations that wait, and who
//! waits takes whichever sandbox is free first, so that a burst on a warm function is no burst of cold starts. One that has answered asks for
//! more within microseconds, mostly: who comes between waits a moment ([`RETURNS_WITHIN`]) before it is as if it were not there. A sandbox is always in
//! one phase, and what is told of it twice counts once.

mod usage;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

pub(crate) use self::usage::Aside;
use self::usage::Usage;
use crate::api::ApiError;
use crate::hosts::Host;

/// A sandbox that has answered asks for more so soon that whoever comes between waits for it.
pub(crate) const RETURNS_WITHIN: Duration = Duration::from_millis(10);

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
    /// Its invocation has its answer, and it has not asked for another yet.
    Answered,
}

#[derive(Default)]
pub(crate) struct Assignment(Mutex<State>);

#[derive(Default)]
struct State {
    pools: HashMap<Key, Pool>,
    /// Every sandbox there is.
    of: HashMap<String, Member>,
    usage: Usage,
    /// Who waited last.
    last_ticket: u64,
}

/// A sandbox: what it runs and does, and whether it is one of those that are kept.
#[derive(Clone, Debug)]
struct Member {
    key: Key,
    phase: Phase,
    is_provisioned: bool,
}

#[derive(Default)]
struct Pool {
    /// The last is the one that was used last: the others grow old.
    idle: Vec<Idle>,
    busy: usize,
    /// Those that have answered, and since when: their invocation counts until they are free, as in Lambda.
    answered: Vec<(String, Instant)>,
    starting: usize,
    /// Of those, such that are to be kept: nobody waits for them, since they may take long to begin.
    starting_kept: usize,
    /// How many of all these are kept whether they are needed or not.
    provisioned: usize,
    waiting: VecDeque<Waiting>,
    /// When sandboxes were started of late.
    starts: VecDeque<Instant>,
}

/// Somebody who waits.
struct Waiting {
    ticket: u64,
    to: oneshot::Sender<Assigned>,
}

struct Idle {
    host: Host,
    since: Instant,
    is_provisioned: bool,
}

impl Pool {
    /// One that is idle, of those that are kept where there is one.
    fn take_idle(&mut self) -> Option<Idle> {
        let kept = if self.provisioned > 0 { self.idle.iter().rposition(|idle| idle.is_provisioned) } else { None };
        match kept {
            Some(at) => Some(self.idle.remove(at)),
            None => self.idle.pop(),
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            idle: self.idle.len(),
            busy: self.busy,
            answered: self.answered.len(),
            starting: self.starting,
            waiting: self.waiting.len(),
        }
    }

    fn is_empty(&self) -> bool {
        self.counts() == Counts::default()
    }

    fn forget_old_starts(&mut self, now: Instant) {
        while self.starts.front().is_some_and(|at| now.duration_since(*at) > BURST_WINDOW) {
            self.starts.pop_front();
        }
    }

    /// How many are being started for those who wait.
    fn coming(&self) -> usize {
        self.starting.saturating_sub(self.starting_kept)
    }

    /// How many will be free at once.
    fn returning(&self, now: Instant) -> usize {
        self.answered.iter().filter(|(_, since)| now.saturating_duration_since(*since) < RETURNS_WITHIN).count()
    }

    /// Whether those who wait need more than what is about to come or to be free.
    fn is_short(&self, now: Instant) -> bool {
        self.waiting.len() > self.coming() + self.returning(now)
    }

    /// How many are to be started for those who wait and had none started, as far as that is allowed by now: they count as starting then.
    fn overdue(&mut self, burst: usize, now: Instant) -> usize {
        self.forget_old_starts(now);
        let mut count = 0;
        while self.starts.len() < burst && self.is_short(now) {
            self.starting += 1;
            self.starts.push_back(now);
            count += 1;
        }
        count
    }

    /// Whether those who wait need another sandbox; it counts as starting then.
    fn wish(&mut self) -> Wish {
        if self.waiting.len() > self.coming() {
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
    pub(crate) answered: usize,
    pub(crate) starting: usize,
    pub(crate) waiting: usize,
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            idle: self.idle + other.idle,
            busy: self.busy + other.busy,
            answered: self.answered + other.answered,
            starting: self.starting + other.starting,
            waiting: self.waiting + other.waiting,
        }
    }
}

/// Where an invocation's sandbox comes from.
pub(crate) enum Got {
    /// It is idle.
    Warm(Host),
    /// It will be told. Perhaps one is to be started first. The number is for [`Assignment::waits_in_vain`].
    Later(oneshot::Receiver<Assigned>, Wish, u64),
}

/// How it is with somebody who has waited.
#[derive(Debug)]
pub(crate) enum StillWaits {
    /// It was given something meanwhile.
    Given,
    /// Another is about to be free.
    Shortly,
    /// There may be no more than there are: it does not wait any more.
    Refused(ApiError),
    /// For one that is started, perhaps for so many that are to be started now.
    Long(usize),
}

impl State {
    /// Takes a sandbox out of the phase that it is in.
    fn leave(&mut self, sandbox: &str) -> Option<Member> {
        let member = self.of.remove(sandbox)?;
        let pool = self.pools.entry(member.key.clone()).or_default();
        pool.provisioned = pool.provisioned.saturating_sub(usize::from(member.is_provisioned));
        match member.phase {
            Phase::Starting => {
                pool.starting = pool.starting.saturating_sub(1);
                pool.starting_kept = pool.starting_kept.saturating_sub(usize::from(member.is_provisioned));
            }
            Phase::Idle => pool.idle.retain(|idle| idle.host.sandbox != sandbox),
            Phase::Busy => {
                pool.busy = pool.busy.saturating_sub(1);
                self.usage.end(&member.key);
            }
            Phase::Answered => {
                pool.answered.retain(|(answered, _)| answered != sandbox);
                self.usage.end(&member.key);
            }
        }
        Some(member)
    }

    /// Puts it into another.
    fn enter(&mut self, sandbox: &str, member: Member) {
        let pool = self.pools.entry(member.key.clone()).or_default();
        pool.provisioned += usize::from(member.is_provisioned);
        self.of.insert(sandbox.to_owned(), member);
    }
}

impl Assignment {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a function has for itself from now on.
    pub(crate) fn set_aside(&self, tenant: &str, function: &str, aside: Aside) {
        self.lock().usage.set_aside(tenant, function, aside);
    }

    /// Asks for a sandbox.
    ///
    /// # Errors
    /// Throttled, with the reason.
    pub(crate) fn acquire(&self, key: &Key, limits: &Limits, now: Instant) -> Result<Got, ApiError> {
        let mut state = self.lock();
        let State { pools, of, usage, last_ticket } = &mut *state;
        let pool = pools.entry(key.clone()).or_default();
        // One that is about to be free is in use for a moment only: who can have it next is not refused before that has passed.
        usage.check(key, limits.account_concurrency, pool.returning(now).saturating_sub(pool.waiting.len()))?;
        if let Some(Idle { host, .. }) = pool.take_idle() {
            pool.busy += 1;
            usage.begin(key);
            if let Some(member) = of.get_mut(&host.sandbox) {
                member.phase = Phase::Busy;
            }
            return Ok(Got::Warm(host));
        }
        pool.forget_old_starts(now);
        let needs_one = pool.coming() + pool.returning(now) <= pool.waiting.len();
        let has_none = pool.coming() == 0 && pool.busy == 0 && pool.answered.is_empty();
        if needs_one && pool.starts.len() >= limits.burst && has_none {
            return Err(ApiError::throttled("FunctionInvocationRateLimitExceeded", 1));
        }
        let (sender, receiver) = oneshot::channel();
        *last_ticket += 1;
        pool.waiting.push_back(Waiting { ticket: *last_ticket, to: sender });
        usage.begin(key);
        let wish = if needs_one && pool.starts.len() < limits.burst {
            pool.starting += 1;
            pool.starts.push_back(now);
            Wish::Start
        } else {
            Wish::Nothing
        };
        Ok(Got::Later(receiver, wish, *last_ticket))
    }

    /// A sandbox that was wished for is being started, and will come as this.
    pub(crate) fn starting(&self, sandbox: &str, key: &Key, is_provisioned: bool) {
        let member = Member { key: key.clone(), phase: Phase::Starting, is_provisioned };
        self.lock().of.insert(sandbox.to_owned(), member);
    }

    /// How many more are to be started for there to be so many that are kept, and no more than `most`: they count as starting then.
    pub(crate) fn provision(&self, key: &Key, wanted: usize, most: usize) -> usize {
        let mut state = self.lock();
        let pool = state.pools.entry(key.clone()).or_default();
        let missing = wanted.saturating_sub(pool.provisioned).min(most);
        pool.provisioned += missing;
        pool.starting += missing;
        pool.starting_kept += missing;
        missing
    }

    /// How many are kept, and how many of them have started.
    pub(crate) fn provisioned(&self, key: &Key) -> (usize, usize) {
        let state = self.lock();
        let allocated = state.pools.get(key).map_or(0, |pool| pool.provisioned);
        let is_ready = |member: &Member| member.is_provisioned && member.phase != Phase::Starting && member.key == *key;
        (allocated, state.of.values().filter(|member| is_ready(member)).count())
    }

    /// A sandbox of a service before this one: it counts as starting until it comes.
    pub(crate) fn expect(&self, sandbox: &str, key: &Key, is_provisioned: bool) {
        let mut state = self.lock();
        let pool = state.pools.entry(key.clone()).or_default();
        pool.starting += 1;
        pool.starting_kept += usize::from(is_provisioned);
        state.enter(sandbox, Member { key: key.clone(), phase: Phase::Starting, is_provisioned });
    }

    /// It has answered, and waits for an invocation soon.
    pub(crate) fn answered(&self, sandbox: &str, now: Instant) {
        let mut state = self.lock();
        if state.of.get(sandbox).is_none_or(|member| member.phase != Phase::Busy) {
            return;
        }
        let Some(member) = state.leave(sandbox) else { return };
        state.usage.begin(&member.key);
        state.pools.entry(member.key.clone()).or_default().answered.push((sandbox.to_owned(), now));
        state.enter(sandbox, Member { phase: Phase::Answered, ..member });
    }

    /// It waits for an invocation. True if somebody is given it at once.
    pub(crate) fn free(&self, host: &Host, now: Instant) -> bool {
        let mut state = self.lock();
        if state.of.get(&host.sandbox).is_none_or(|member| member.phase == Phase::Idle) {
            return false;
        }
        let Some(member) = state.leave(&host.sandbox) else { return false };
        let State { pools, usage, .. } = &mut *state;
        let pool = pools.entry(member.key.clone()).or_default();
        while let Some(waiting) = pool.waiting.pop_front() {
            if waiting.to.send(Ok(host.clone())).is_ok() {
                pool.busy += 1;
                state.enter(&host.sandbox, Member { phase: Phase::Busy, ..member });
                return true;
            }
            // Who waited has gone.
            usage.end(&member.key);
        }
        pool.idle.push(Idle { host: host.clone(), since: now, is_provisioned: member.is_provisioned });
        state.enter(&host.sandbox, Member { phase: Phase::Idle, ..member });
        false
    }

    /// It is at an invocation that began before this service did.
    pub(crate) fn adopt_busy(&self, host: &Host) {
        let mut state = self.lock();
        if let Some(member) = state.leave(&host.sandbox) {
            state.pools.entry(member.key.clone()).or_default().busy += 1;
            state.usage.begin(&member.key);
            state.enter(&host.sandbox, Member { phase: Phase::Busy, ..member });
        }
    }

    /// It is no more. Where it never came to its first invocation, the first who waits is told why. Gives whether another is to be
    /// started for who waits.
    pub(crate) fn gone(&self, sandbox: &str, failure: Option<&StartFailure>) -> Option<(Key, Wish)> {
        let mut state = self.lock();
        let Member { key, phase, .. } = state.leave(sandbox)?;
        let State { pools, usage, .. } = &mut *state;
        let pool = pools.entry(key.clone()).or_default();
        if let (Phase::Starting, Some(failure)) = (phase, failure) {
            while let Some(waiting) = pool.waiting.pop_front() {
                usage.end(&key);
                if waiting.to.send(Err(failure.clone())).is_ok() {
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
        let State { pools, usage, .. } = &mut *state;
        let Some(pool) = pools.get_mut(key) else { return };
        pool.starting = pool.starting.saturating_sub(1);
        for waiting in pool.waiting.drain(..) {
            usage.end(key);
            // Who waited may have gone.
            let _ = waiting.to.send(Err(failure.clone()));
        }
    }

    /// Those who wait and had no sandbox started for them, since there had been too many starts, or one was about to be free that is not: what
    /// is to be started for them.
    pub(crate) fn overdue(&self, burst: usize, now: Instant) -> Vec<Key> {
        let mut state = self.lock();
        let mut found = Vec::new();
        for (key, pool) in &mut state.pools {
            found.extend(std::iter::repeat_n(key, pool.overdue(burst, now)).cloned());
        }
        found
    }

    /// What is to become of somebody who has waited for one that was about to be free.
    pub(crate) fn still_waits(&self, key: &Key, ticket: u64, limits: &Limits, now: Instant) -> StillWaits {
        let mut state = self.lock();
        let State { pools, usage, .. } = &mut *state;
        let Some(pool) = pools.get_mut(key) else { return StillWaits::Given };
        let Some(at) = pool.waiting.iter().position(|waiting| waiting.ticket == ticket) else {
            return StillWaits::Given;
        };
        if pool.waiting.len() <= pool.coming() {
            return StillWaits::Long(0);
        }
        if pool.returning(now) > 0 {
            return StillWaits::Shortly;
        }
        // As if it came now: nobody is about to make room for it any more.
        usage.end(key);
        if let Err(refusal) = usage.check(key, limits.account_concurrency, 0) {
            pool.waiting.remove(at);
            return StillWaits::Refused(refusal);
        }
        usage.begin(key);
        StillWaits::Long(pool.overdue(limits.burst, now))
    }

    /// What there are pools of.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.lock().pools.keys().cloned().collect()
    }

    /// Whether there is a sandbox of those that fit, or somebody waits for one.
    pub(crate) fn has_any(&self, fits: &dyn Fn(&Key) -> bool) -> bool {
        self.lock().pools.iter().any(|(key, pool)| !pool.is_empty() && fits(key))
    }

    /// Sandboxes that have been idle for too long, or run what is not current any more: they are taken out, and are to be ended. `kept` says
    /// how many of a kind are not to be; `None` of what is not current.
    pub(crate) fn reap(&self, idle: Duration, now: Instant, kept: &dyn Fn(&Key) -> Option<usize>) -> Vec<Host> {
        let mut state = self.lock();
        let mut reaped = Vec::new();
        for (key, pool) in &mut state.pools {
            let kept = kept(key);
            let mut spare = pool.provisioned.saturating_sub(kept.unwrap_or(0));
            let (stay, old): (Vec<Idle>, Vec<Idle>) = pool.idle.drain(..).partition(|sandbox| {
                if kept.is_none() {
                    return false;
                }
                if sandbox.is_provisioned {
                    let is_spare = spare > 0;
                    spare -= usize::from(is_spare);
                    return !is_spare;
                }
                now.duration_since(sandbox.since) < idle
            });
            pool.idle = stay;
            pool.provisioned -= old.iter().filter(|sandbox| sandbox.is_provisioned).count();
            reaped.extend(old.into_iter().map(|sandbox| sandbox.host));
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
        self.lock().of.iter().map(|(id, member)| (id.clone(), member.key.clone(), member.phase)).collect()
    }

    /// How many there are of each function, by tenant and name.
    pub(crate) fn counts_by_function(&self) -> BTreeMap<(String, String), Counts> {
        let mut sums = BTreeMap::<_, Counts>::new();
        for (key, pool) in &self.lock().pools {
            let sum = sums.entry((key.tenant.clone(), key.function.clone())).or_default();
            *sum = *sum + pool.counts();
        }
        sums
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
