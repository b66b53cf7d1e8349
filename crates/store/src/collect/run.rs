//! All steps by configured ages: what a timer runs, on as many machines as one likes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Blockers, MigrateProgress, Migrated, Retire, delete, expire, migrate, rotate, sweep};
use crate::intents::whoami;
use crate::roots::{random_hex, seconds};
use crate::{Change, CollectorLease, Error, RootState, Store};

/// How long a collector keeps others from the same work between two steps.
const LEASE: Duration = Duration::from_mins(10);
/// Deleted roots are looked at again for so long: a publisher that slept may have put chunks there.
const SWEEP_AGAIN: Duration = Duration::from_hours(30 * 24);

/// When what is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Age at which an active root is retired for a new one; never where it is not set.
    pub rotate_every: Option<Duration>,
    /// How long a root is retired at least.
    pub retire_for: Duration,
    /// How long a root is expired at least: the time in which an alarm can be raised.
    pub expire_for: Duration,
    /// Age at which salts are rotated; never where it is not set.
    pub salt_every: Option<Duration>,
}

/// The shortest time that a root is expired: sandboxes take a lease half a minute after their start.
const LEAST_EXPIRED: Duration = Duration::from_mins(5);

impl Policy {
    /// What it must not be.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(&self) -> Result<(), Error> {
        if self.expire_for < LEAST_EXPIRED {
            return Err(Error::Invalid(format!(
                "roots expired for {} s only: at least {} s, so that whoever still reads from one can raise an alarm",
                self.expire_for.as_secs(),
                LEAST_EXPIRED.as_secs()
            )));
        }
        Ok(())
    }
}

impl Default for Policy {
    fn default() -> Self {
        let days = |days: u64| Duration::from_hours(24 * days);
        Self { rotate_every: Some(days(30)), retire_for: days(1), expire_for: days(7), salt_every: None }
    }
}

/// What happened, as it happens.
#[derive(Debug)]
pub enum Event {
    /// Salts were rotated.
    SaltRotated {
        /// Its number.
        epoch: u32,
    },
    /// There is a new active root.
    Rotated {
        /// Its name.
        to: String,
        /// Those that it follows.
        retired: Vec<String>,
    },
    /// A root's images are being copied.
    Migrating(MigrateProgress),
    /// A root's images were copied.
    Migrated {
        /// From where.
        root: String,
        /// What was copied.
        done: Migrated,
    },
    /// A root has expired.
    Expired {
        /// Which.
        root: String,
    },
    /// A root cannot go on.
    Blocked {
        /// Which.
        root: String,
        /// In which state it stays.
        state: RootState,
        /// Why.
        by: Blockers,
    },
    /// A root is deleted.
    Deleted {
        /// Which.
        root: String,
    },
    /// A deleted root's objects were removed.
    Swept {
        /// Which.
        root: String,
        /// How many.
        objects: u64,
    },
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Ran {
    /// Who else is at it, if nothing was done because of that.
    pub busy: Option<CollectorLease>,
    /// Images that could not be copied.
    pub failed: usize,
    /// Alarms that nobody has cleared.
    pub alarms: u64,
}

/// Does every step that is due.
///
/// # Errors
/// Those of the store. Whatever was done stays done, and another run goes on from there.
pub fn run(store: &Store, policy: &Policy, report: &(dyn Fn(Event) + Sync)) -> Result<Ran, Error> {
    policy.check()?;
    // Most of an image is copied by the server, so waiting is most of the work.
    let threads = if store.is_local() { 2 } else { 8 };
    let lease = match OwnCollectorLease::acquire(store)? {
        Ok(lease) => lease,
        Err(busy) => return Ok(Ran { busy: Some(busy), ..Ran::default() }),
    };
    let ran = steps(store, policy, threads, &lease, report);
    // After a failure too: whoever mends it and runs this again must not be told that somebody is at it.
    let released = lease.release(store);
    let ran = ran?;
    released?;
    Ok(ran)
}

fn steps(
    store: &Store,
    policy: &Policy,
    threads: usize,
    lease: &OwnCollectorLease,
    report: &(dyn Fn(Event) + Sync),
) -> Result<Ran, Error> {
    store.remove_other_abandoned_drafts();
    let mut ran = Ran::default();
    let now = seconds(store.now()?);
    let is_due = |since: u64, every: Option<Duration>| every.is_some_and(|every| now >= since + every.as_secs());
    // Roots that were made without a collector have no age yet.
    let state = store.change_state(|state| {
        let unknown = |since: &mut u64| *since == 0 && std::mem::replace(since, now) == 0;
        let mut changed = unknown(&mut state.salt.since);
        for root in state.roots.values_mut() {
            changed |= unknown(&mut root.since);
        }
        Ok(if changed { Change::Put(state.clone()) } else { Change::Leave(state.clone()) })
    })?;
    if is_due(state.salt.since, policy.salt_every) {
        let epoch = store.rotate_salt()?.epoch;
        report(Event::SaltRotated { epoch });
    }
    let old: Vec<String> = state
        .roots_in(RootState::Active)
        .into_iter()
        .filter(|root| is_due(state.roots[root].since, policy.rotate_every))
        .collect();
    if !old.is_empty() {
        let to = rotate(store, None, Retire::Named(&old))?;
        report(Event::Rotated { to, retired: old });
    }
    for root in store.read_state()?.roots_in(RootState::Retired) {
        lease.renew(store)?;
        let done = migrate(store, &root, threads, &|progress| {
            lease.keep(store);
            report(Event::Migrating(progress));
        })?;
        ran.failed += done.failed.len();
        report(Event::Migrated { root: root.clone(), done });
        let by = expire(store, &root, policy.retire_for)?;
        report(if by.is_empty() {
            Event::Expired { root }
        } else {
            Event::Blocked { root, state: RootState::Retired, by }
        });
    }
    for root in store.read_state()?.roots_in(RootState::Expired) {
        lease.renew(store)?;
        let now = store.now()?;
        if store.list_leases(&root)?.iter().any(|lease| lease.is_live(now)) {
            let done = migrate(store, &root, threads, &|_| lease.keep(store))?;
            ran.failed += done.failed.len();
            report(Event::Migrated { root: root.clone(), done });
        }
        let by = delete(store, &root, policy.expire_for)?;
        ran.alarms += by.alarms;
        report(if by.is_empty() {
            Event::Deleted { root }
        } else {
            Event::Blocked { root, state: RootState::Expired, by }
        });
    }
    for (root, found) in &store.read_state()?.roots {
        if found.state == RootState::Deleted && now < found.since + SWEEP_AGAIN.as_secs() {
            lease.renew(store)?;
            let objects = sweep(store, root, &|_| lease.keep(store))?;
            if objects > 0 {
                report(Event::Swept { root: root.clone(), objects });
            }
        }
    }
    Ok(ran)
}

/// The collector's lease, while this process has it.
struct OwnCollectorLease {
    token: String,
    renewed: Mutex<Instant>,
}

impl OwnCollectorLease {
    /// `AcquireLease`; `Err` is who has it.
    fn acquire(store: &Store) -> Result<Result<Self, CollectorLease>, Error> {
        let now = seconds(store.now()?);
        let token = random_hex()?;
        store.change_state(|state| {
            if let Some(other) = state.lease.as_ref().filter(|lease| lease.until > now) {
                return Ok(Change::Leave(Err(other.clone())));
            }
            let until = now + LEASE.as_secs();
            state.lease = Some(CollectorLease { holder: whoami(), token: token.clone(), until });
            Ok(Change::Put(Ok(Self { token: token.clone(), renewed: Mutex::new(Instant::now()) })))
        })
    }

    /// Keeps it while a step goes on, however long that takes. That another collector has taken over is found out by the next step:
    /// two that do the same harm nothing.
    fn keep(&self, store: &Store) {
        let is_due = self.renewed.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > LEASE / 5;
        if is_due && let Err(error) = self.renew(store) {
            tracing::warn!(%error, "the collector's lease is not renewed");
        }
    }

    /// Keeps it for the next step.
    fn renew(&self, store: &Store) -> Result<(), Error> {
        // Before it is tried, so that one of many threads does so.
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let until = seconds(store.now()?) + LEASE.as_secs();
        store.change_state(|state| match &mut state.lease {
            Some(lease) if lease.token == self.token => {
                lease.until = until;
                Ok(Change::Put(()))
            }
            _ => Err(Error::Invalid(
                "another collector has taken over: this one has not renewed its lease in time".into(),
            )),
        })
    }

    fn release(self, store: &Store) -> Result<(), Error> {
        store.change_state(|state| match &state.lease {
            Some(lease) if lease.token == self.token => {
                state.lease = None;
                Ok(Change::Put(()))
            }
            _ => Ok(Change::Leave(())),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::{Root, StoreOptions};

    fn store() -> Store {
        Store::over_objects(Arc::new(InMemory::new()), &StoreOptions::default())
    }

    #[test]
    fn a_run_that_fails_leaves_the_lease_to_the_next() {
        let store = store();
        let orphan = Root { state: RootState::Retired, since: 1, successor: None, alarms: Vec::new(), alarm_count: 0 };
        let orphaned = |state: &mut crate::State| {
            state.roots.insert("orphan".into(), orphan.clone());
            Ok(Change::Put(()))
        };
        store.change_state(orphaned).unwrap();
        for _ in 0..2 {
            let error = run(&store, &Policy::default(), &|_| {}).unwrap_err().to_string();
            assert!(error.contains("no active root follows root orphan"), "{error}");
        }
        assert!(store.read_state().unwrap().lease.is_none());
    }

    #[test]
    fn one_runs_and_others_are_told_who() {
        let store = store();
        let lease = OwnCollectorLease::acquire(&store).unwrap().unwrap();
        let busy = run(&store, &Policy::default(), &|_| panic!("nothing is done")).unwrap().busy;
        assert_eq!(busy.unwrap().token, lease.token);
        lease.release(&store).unwrap();
        assert!(run(&store, &Policy::default(), &|_| {}).unwrap().busy.is_none());
    }

    #[test]
    fn a_root_that_stays_active_goes_on_to_be_published_to() {
        let store = store();
        let second = rotate(&store, None, Retire::None).unwrap();
        let third = rotate(&store, None, Retire::Named(&[second])).unwrap();
        let state = store.read_state().unwrap();
        assert_eq!((state.active.as_str(), state.state_of(&third)), ("main", Some(RootState::Active)));
        let fourth = rotate(&store, None, Retire::All).unwrap();
        assert_eq!(store.read_state().unwrap().active, fourth);
    }
}
