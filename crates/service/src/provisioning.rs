//! Provisioned concurrency: so many sandboxes of a version are kept started, whether they are needed or not.
//!
//! Nothing is remembered but what is wanted: twice a second what there is is compared with that, and what is missing is started, a few at
//! a time. So sandboxes that end are replaced, and a service that is started again goes on with those that it finds. Where starts fail,
//! the next ones wait for longer and longer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Qualifier;
use crate::assignment::{Aside, Key};
use crate::model::{Function, State, Version};
use crate::placement::StartFor;
use crate::service::Service;

/// Of one version, each time that is looked.
const MOST_STARTS: usize = 8;
/// After a start that failed; twice as long after each that follows.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A sandbox that ends before it is so old has not worked.
pub(crate) const WELL_AFTER: Duration = Duration::from_mins(1);
/// After so many one says that it does not work.
const FAILURES_TOLD: u32 = 3;

/// What goes wrong.
#[derive(Default)]
pub(crate) struct Provisioning(Mutex<HashMap<Key, Failing>>);

struct Failing {
    times: u32,
    until: Instant,
    reason: String,
}

impl Provisioning {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Failing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is wanted is there: what failed once is forgotten when it has been so for a while.
    fn is_well(&self, key: &Key, now: Instant) {
        let mut failing = self.lock();
        if failing.get(key).is_some_and(|failing| now > failing.until + WELL_AFTER) {
            failing.remove(key);
        }
    }

    /// Forgets what nobody wants any more.
    fn retain(&self, is_wanted: impl Fn(&Key) -> bool) {
        self.lock().retain(|key, _| is_wanted(key));
    }

    pub(crate) fn failed(&self, key: &Key, reason: &str, now: Instant) {
        let mut failing = self.lock();
        let times = failing.get(key).map_or(0, |failing| failing.times).saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << times.min(8).saturating_sub(1)).min(LONGEST_PAUSE);
        failing.insert(key.clone(), Failing { times, until: now + pause, reason: reason.chars().take(1000).collect() });
    }

    fn waits(&self, key: &Key, now: Instant) -> bool {
        self.lock().get(key).is_some_and(|failing| failing.until > now)
    }

    /// Why it does not work, once it has not worked for a while.
    fn reason(&self, key: &Key) -> Option<String> {
        self.lock().get(key).filter(|failing| failing.times >= FAILURES_TOLD).map(|failing| failing.reason.clone())
    }
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) allocated: usize,
    pub(crate) available: usize,
    pub(crate) failure: Option<String>,
}

fn key_of(function: &Function, number: &Qualifier, version: &Version) -> Key {
    Key {
        tenant: function.tenant.clone(),
        function: function.name.clone(),
        number: number.to_string(),
        revision: version.revision.clone(),
    }
}

impl Service {
    /// Tells what a function has for itself.
    pub(crate) fn set_aside(&self, function: &Function) {
        let aside = Aside { reserved: function.reserved_concurrency, provisioned: function.provisioned_total() };
        self.assignment.set_aside(&function.tenant, &function.name, aside);
    }

    /// Starts what is missing.
    pub(crate) fn provision(self: &Arc<Self>) {
        if self.is_closing() {
            return;
        }
        self.provisioning.retain(|key| self.kept(key).is_some_and(|wanted| wanted > 0));
        for function in self.registry.all() {
            for (number, wanted) in function.provisioned_versions() {
                let found = function.resolve(Some(&number), 0.0).filter(|(_, version)| version.state == State::Active);
                let Some((number, version)) = found else { continue };
                let key = key_of(&function, &number, version);
                if self.provisioning.waits(&key, Instant::now()) {
                    continue;
                }
                let missing = self.assignment.provision(&key, wanted as usize, MOST_STARTS);
                if missing == 0 {
                    self.provisioning.is_well(&key, Instant::now());
                }
                for _ in 0..missing {
                    self.start_sandbox(key.clone(), version.clone(), StartFor::Provisioned);
                }
            }
        }
    }

    /// How far it is with what is wanted of a version or an alias.
    pub(crate) fn progress(&self, function: &Function, qualifier: &Qualifier) -> Progress {
        let found = function.resolve_first(qualifier);
        let Some((number, version)) = found else { return Progress { allocated: 0, available: 0, failure: None } };
        let key = key_of(function, &number, version);
        let (allocated, available) = self.assignment.provisioned(&key);
        Progress { allocated, available, failure: self.provisioning.reason(&key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_that_fail_wait_for_longer_and_longer() {
        let provisioning = Provisioning::default();
        let key = Key { tenant: "t".into(), function: "f".into(), number: "1".into(), revision: "r".into() };
        let now = Instant::now();
        let waits_for = |pause: u64| {
            provisioning.waits(&key, now + Duration::from_millis(pause * 1000 - 1))
                && !provisioning.waits(&key, now + Duration::from_secs(pause))
        };
        assert!(!provisioning.waits(&key, now));
        for pause in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            provisioning.failed(&key, "why", now);
            assert!(waits_for(pause), "{pause}");
            assert_eq!(provisioning.reason(&key).is_some(), pause > 2);
        }
        let well = now + Duration::from_mins(2);
        provisioning.is_well(&key, well);
        assert!(provisioning.reason(&key).is_some());
        provisioning.is_well(&key, well + Duration::from_secs(1));
        assert!(!provisioning.waits(&key, now) && provisioning.reason(&key).is_none());
    }
}
