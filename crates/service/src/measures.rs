//! What the service counts and times: for each function, and for each tenant as a whole.
//!
//! A function's measures go with it; a tenant's stay, so that they never fall. They are this process's own: they begin at nothing with it.
//! What is true at one moment, such as how many sandboxes are idle, is not kept here but looked up when somebody asks (`status`).

mod histogram;
mod prometheus;
mod sandboxes;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use snowmelt_sandbox::TierLoads;

use self::histogram::Histogram;
pub(crate) use self::sandboxes::Taken;
use crate::api::ApiError;
use crate::assignment::Key;
use crate::invoke::Invoked;
use crate::link::Beginning;

/// What a cold start consists of, in its order. `publish` is the wait for an image after a function was made or given new code, which a start
/// does not wait for: it is there once for each image.
const PHASES: [&str; 6] = ["publish", "place", "mount", "start", "init", "first_byte"];
/// The places that chunks are read from.
const TIERS: [&str; 4] = ["memory", "disk", "zone", "origin"];

/// Measures of one function, or of all of a tenant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measures {
    /// Invocations that got a sandbox or were to get one.
    invocations: u64,
    /// Of those, answers that say that the function failed,
    errors: u64,
    /// and those that were our own fault.
    faults: u64,
    /// Invocations that were turned away.
    throttles: u64,
    /// Invocations that a sandbox was started for, and those that found one.
    cold: u64,
    warm: u64,
    /// Of this moment.
    running: u64,
    /// What functions took, by their sandbox's clock.
    duration: Histogram,
    /// What a warm invocation took beyond that.
    overhead: Histogram,
    /// From a cold invocation's request until its sandbox was given it.
    cold_start: Histogram,
    /// By [`PHASES`].
    phases: [Histogram; 6],
    /// Chunks and bytes that sandboxes had read from where, when they asked for their first invocation: by [`TIERS`].
    reads: [(u64, u64); 4],
}

impl Measures {
    fn phase(&mut self, name: &str, time: Duration) {
        if let Some(at) = PHASES.iter().position(|phase| *phase == name) {
            self.phases[at].add(time);
        }
    }

    fn read(&mut self, loads: &[TierLoads]) {
        for (tier, (chunks, bytes)) in TIERS.iter().zip(&mut self.reads) {
            for loads in loads.iter().filter(|loads| loads.tier == *tier) {
                *chunks += loads.chunks;
                *bytes += loads.bytes;
            }
        }
    }

    /// As clients see them.
    pub(crate) fn show(&self) -> Value {
        let phases: Map<String, Value> =
            PHASES.iter().zip(&self.phases).map(|(name, times)| ((*name).to_owned(), times.show())).collect();
        let reads = TIERS.iter().zip(&self.reads);
        let reads: Map<String, Value> = reads
            .map(|(name, (chunks, bytes))| ((*name).to_owned(), json!({ "chunks": chunks, "bytes": bytes })))
            .collect();
        json!({
            "invocations": self.invocations,
            "errors": self.errors,
            "faults": self.faults,
            "throttles": self.throttles,
            "cold_starts": self.cold,
            "warm_starts": self.warm,
            "running": self.running,
            "duration": self.duration.show(),
            "warm_overhead": self.overhead.show(),
            "cold_start": self.cold_start.show(),
            "phases": phases,
            "reads": reads,
        })
    }

    /// What several tenants have together.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (own, more) in [
            (&mut self.invocations, other.invocations),
            (&mut self.errors, other.errors),
            (&mut self.faults, other.faults),
            (&mut self.throttles, other.throttles),
            (&mut self.cold, other.cold),
            (&mut self.warm, other.warm),
            (&mut self.running, other.running),
        ] {
            *own += more;
        }
        self.duration.merge(&other.duration);
        self.overhead.merge(&other.overhead);
        self.cold_start.merge(&other.cold_start);
        self.phases.iter_mut().zip(&other.phases).for_each(|(own, more)| own.merge(more));
        for (own, more) in self.reads.iter_mut().zip(&other.reads) {
            own.0 += more.0;
            own.1 += more.1;
        }
    }
}

/// All measures of a service.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    pub(crate) sandboxes: sandboxes::Sandboxes,
}

#[derive(Debug, Default)]
struct State {
    functions: HashMap<(String, String), Measures>,
    tenants: HashMap<String, Measures>,
}

impl State {
    /// Changes a function's measures and its tenant's alike.
    fn change(&mut self, tenant: &str, function: &str, change: impl Fn(&mut Measures)) {
        change(self.functions.entry((tenant.to_owned(), function.to_owned())).or_default());
        self.of_tenant(tenant, change);
    }

    fn of_tenant(&mut self, tenant: &str, change: impl Fn(&mut Measures)) {
        change(self.tenants.entry(tenant.to_owned()).or_default());
    }

    /// The same for something that has begun before: the function may be gone.
    fn change_if_there(&mut self, tenant: &str, function: &str, change: impl Fn(&mut Measures)) {
        if let Some(measures) = self.functions.get_mut(&(tenant.to_owned(), function.to_owned())) {
            change(measures);
        }
        self.of_tenant(tenant, change);
    }
}

/// One invocation while it goes on: what is known of it so far.
#[derive(Debug)]
pub(crate) struct Timing<'a> {
    board: &'a Board,
    tenant: String,
    function: String,
    began: Instant,
    given: OnceLock<Given>,
    first_byte: OnceLock<Instant>,
}

#[derive(Debug)]
struct Given {
    at: Instant,
    sandbox: String,
    /// The sandbox was started for it.
    is_cold: bool,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An invocation begins.
    pub(crate) fn begin(&self, tenant: &str, function: &str) -> Timing<'_> {
        self.lock().change(tenant, function, |measures| measures.running += 1);
        Timing {
            board: self,
            tenant: tenant.to_owned(),
            function: function.to_owned(),
            began: Instant::now(),
            given: OnceLock::new(),
            first_byte: OnceLock::new(),
        }
    }

    /// A function's image is there, so long after it was asked for.
    pub(crate) fn published(&self, tenant: &str, function: &str, took: Duration) {
        self.lock().change(tenant, function, |measures| measures.phase("publish", took));
    }

    /// A sandbox's runtime has asked for its first invocation.
    pub(crate) fn began(&self, sandbox: &str, beginning: &Beginning) {
        // One of a service before this one is known, but its start is not this one's.
        let Some((Key { tenant, function, .. }, place)) = self.sandboxes.began(sandbox, beginning) else { return };
        self.lock().change(&tenant, &function, |measures| {
            measures.phase("place", place);
            for (name, us) in
                [("mount", beginning.mount_us), ("start", beginning.start_us), ("init", beginning.init_us)]
            {
                if let Some(us) = us {
                    measures.phase(name, Duration::from_micros(us));
                }
            }
            measures.read(&beginning.loads);
        });
    }

    /// Forgets a function.
    pub(crate) fn forget(&self, tenant: &str, function: &str) {
        self.lock().functions.remove(&(tenant.to_owned(), function.to_owned()));
    }

    /// Keeps those of functions that are there: an invocation may have begun as its function was deleted.
    pub(crate) fn retain(&self, is_there: impl Fn(&str, &str) -> bool) {
        self.lock().functions.retain(|(tenant, function), _| is_there(tenant, function));
    }

    /// A function's.
    pub(crate) fn of_function(&self, tenant: &str, function: &str) -> Option<Measures> {
        self.lock().functions.get(&(tenant.to_owned(), function.to_owned())).cloned()
    }

    /// By tenant.
    pub(crate) fn by_tenant(&self) -> Vec<(String, Measures)> {
        self.lock().tenants.iter().map(|(tenant, measures)| (tenant.clone(), measures.clone())).collect()
    }
}

impl Timing<'_> {
    /// It is given to a sandbox, for the first time if the sandbox was `started` for those who wait.
    pub(crate) fn given(&self, sandbox: &str, was_waited_for: bool) {
        let is_first = self.board.sandboxes.is_given(sandbox);
        let given = Given { at: Instant::now(), sandbox: sandbox.to_owned(), is_cold: is_first && was_waited_for };
        // One that was given and lost is given again: what counts is how it went at last, and that is never told twice.
        let _ = self.given.set(given);
    }

    /// The first part of its answer is there.
    pub(crate) fn answered(&self) {
        self.first_byte.get_or_init(Instant::now);
    }

    /// It is over.
    pub(crate) fn end(self, outcome: &Result<Invoked, ApiError>) {
        let ran = self.given.get().and_then(|given| self.board.sandboxes.ran(&given.sandbox));
        let (is_throttled, is_fault) =
            outcome.as_ref().err().map_or((false, false), |error| (error.status() == 429, error.status() != 429));
        let is_error = outcome.as_ref().is_ok_and(|invoked| invoked.error.is_some());
        let took = self.began.elapsed();
        self.board.lock().change_if_there(&self.tenant, &self.function, |measures| {
            measures.throttles += u64::from(is_throttled);
            measures.faults += u64::from(is_fault);
            measures.errors += u64::from(is_error);
            measures.invocations += u64::from(!is_throttled);
            let Some(given) = self.given.get() else { return };
            // One that was stopped took at least until then.
            if outcome.is_ok() {
                measures.duration.add(ran.unwrap_or_else(|| given.at.elapsed()));
            }
            if given.is_cold {
                measures.cold += 1;
                measures.cold_start.add(given.at - self.began);
                if let Some(first_byte) = self.first_byte.get() {
                    measures.phase("first_byte", *first_byte - given.at);
                }
            } else {
                measures.warm += 1;
                if let Some(ran) = ran {
                    measures.overhead.add(took.saturating_sub(ran));
                }
            }
        });
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.board.lock().change_if_there(&self.tenant, &self.function, |measures| {
            measures.running = measures.running.saturating_sub(1);
        });
    }
}

#[cfg(test)]
mod tests;
