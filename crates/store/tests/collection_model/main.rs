#![allow(clippy::unwrap_used, missing_docs)]
//! The protocol of names, roots and collection, explored state by state. What is modelled: `gc/state`, name records,
//! chunks, manifests, intents and leases in up to three roots; publishers, removers, sandboxes, collectors and an operator,
//! each of whose actions is one atomic step on the store, in every order there is; a clock of a few ticks, which is the
//! store's. A process has no clock: it acts at any time, and a sandbox that slept past its lease goes on as if it had not.
//! A process that crashes is one that is never scheduled again, so that there is no step for it; L1 is checked from every
//! state with everybody gone but a fresh collector. A CAS of a name may come through after its sender gave up on it. What
//! is not modelled: contents of chunks, lists of names that are longer than two, tenants, the lease of collectors (it only
//! saves work), advice on starts, retries of what is not a CAS, and a store whose lists are behind.
//!
//! What holds in every state of every configuration:
//! - S1: a name's root is active or retired, and has the manifest and the chunks. (It is stricter than not deleted, as a
//!   root that is expired with a name in it is only saved by what looks again before it is deleted.)
//! - S2: a sandbox finds its chunks if it read its name at most `LEASE_AFTER` ago, or has had a live lease ever since, or was
//!   late but put a lease and then saw its root active or retired, or raised an alarm.
//! - record shown: a name shows what the last publish or removal that happened gave it, and its generation.
//! - alarm stops deletion: no root is deleted while it has an alarm.
//! - steady lease keeps root: a root is not expired under a lease that was put while it was active and was live ever since.
//! - L1: if everybody stops, alarms are cleared and time passes, then a collector deletes and sweeps all retired and expired
//!   roots, and S1 still holds.
//!
//! What the model showed to be needed, besides the order of steps:
//! - Delete lists leases, after it read `gc/state`. Alarms are not enough: one comes late, or is cleared too early.
//! - `since` of an expired root is a time of the store taken after the names were listed.
//! - Tombstones stay: a fence that is purged lets a sleeper through.
//! - Who does not know whether a CAS of a name happened leaves its intent to the next Fence, unless it saw the etag change.
//!   Ids of intents are never used again, not by the next attempt of the same process either.
//!
//! Each of the [`Mistakes`] is caught, but for the three that `not_needed` shows to be none. `cargo test --test
//! collection_model mistakes -- --nocapture` prints the shortest ways to trouble.

mod model;
mod steps;
mod store;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use crate::model::{Config, Reached};
use crate::steps::{Mistakes, Role};
use crate::store::{Pc, RootState, State, generation};

const PUBLISHER: Role = Role::Publisher { name: 0, image: 0 };
const OTHER_PUBLISHER: Role = Role::Publisher { name: 0, image: 1 };
const REMOVER: Role = Role::Remover { name: 0 };
const SANDBOX: Role = Role::Sandbox { name: 0, number: 0 };
const SECOND_SANDBOX: Role = Role::Sandbox { name: 0, number: 1 };
const COLLECTOR: Role = Role::Collector;

/// A root was deleted and swept, and the image that was in it is shown out of another.
const MIGRATED: Reached = ("migrated", |_, state| {
    let swept = state.root(0).state == RootState::Deleted && state.root(0).is_empty();
    swept && state.names.iter().flatten().any(|r| r.at.is_some_and(|(_, root)| root != 0))
});

/// A publisher is about to commit to a root that was deleted, and nothing is in its way but the fence.
const FENCED: Reached = ("fenced", |_, state| {
    state.processes.iter().any(|p| {
        p.pc == Pc::CommitName
            && state.root(p.root).state == RootState::Deleted
            && generation(p.seen) == generation(state.names[0])
            && p.seen.and_then(|r| r.at) == state.names[0].and_then(|r| r.at)
    })
});

/// A publisher began again after its root was retired, and is through.
const BEGAN_AGAIN: Reached = ("began again", |_, state| state.processes.iter().any(|p| p.again && p.pc == Pc::Done));

/// A collector found no alarm and is about to delete, and now there is one.
const ALARMED: Reached =
    ("alarmed", |_, state| state.processes.iter().any(|p| p.pc == Pc::Delete && state.root(p.root).alarms != 0));

/// A sandbox went over to the successor of its root.
const RELOCATED: Reached = ("relocated", |_, state| state.processes.iter().any(|p| p.pc == Pc::RemoveLease));

/// A sandbox slept so long that its image is gone.
const LOST: Reached = ("lost", |config, state: &State| {
    let mut all = state.processes.iter().zip(&config.setup.roles);
    all.any(|(p, role)| matches!(role, Role::Sandbox { .. }) && p.pc == Pc::Done)
});

/// No time in it: roots may be deleted as soon as they are expired, which is the harder case where there is no sandbox.
fn timeless(roles: &[Role]) -> Config {
    let mut config = Config::new(roles);
    config.setup.mistakes.delete_at_once = true;
    config
}

/// A published image, in a store of two roots.
fn with_sandboxes(roles: &[Role], last_tick: u8) -> Config {
    Config { published: 1, roots: 2, last_tick, clears: 1, ..Config::new(roles) }
}

/// Explores all states: all properties hold.
fn holds(test: &str, config: Config) {
    let checker = config.checker().threads(2).symmetry_fn(State::representative).spawn_dfs().join();
    println!("{test}: {} states", checker.unique_state_count());
    assert!(checker.is_done());
    checker.assert_properties();
}

/// Makes the mistake: there is a counterexample to the property.
fn fails(property: &'static str, mut config: Config, mistake: fn(&mut Mistakes)) {
    mistake(&mut config.setup.mistakes);
    let finish = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = config.checker().threads(2).finish_when(finish).spawn_bfs().join();
    let path = checker.discovery(property);
    assert!(path.is_some(), "{property} holds in {} states", checker.unique_state_count());
    println!("{property} fails: {:#?}", path.unwrap().into_actions());
}

// 79300, 386487 and 72944 states.
#[test]
fn publishers() {
    let all = &[MIGRATED, FENCED, BEGAN_AGAIN];
    let two = [PUBLISHER, OTHER_PUBLISHER, COLLECTOR];
    holds("publishers", Config { roots: 2, reached: all, ..timeless(&two) });
    holds("publishers to two active roots", Config { active: 2, reached: all, ..timeless(&two) });
    holds("publish again", Config { published: 1, reached: all, ..timeless(&two[1..]) });
}

// 347749 states.
#[test]
fn publish_same_chunk() {
    let mut config = timeless(&[PUBLISHER, OTHER_PUBLISHER, COLLECTOR]);
    (config.active, config.setup.chunk_of) = (2, [0, 0]);
    holds("publishers of one chunk to two active roots", config);
}

// 1530907 and 2992129 states.
#[test]
fn publishers_and_two_collectors() {
    let all = &[MIGRATED, FENCED, BEGAN_AGAIN];
    holds("publisher, two collectors", Config { reached: all, ..timeless(&[PUBLISHER, COLLECTOR, COLLECTOR]) });
    let two = [PUBLISHER, OTHER_PUBLISHER, COLLECTOR, COLLECTOR];
    holds("publishers, two collectors", Config { roots: 2, reached: all, ..timeless(&two) });
}

// 467130 and 256742 states.
#[test]
fn remove_and_publish() {
    let config = timeless(&[OTHER_PUBLISHER, REMOVER, COLLECTOR]);
    holds("remove and publish", Config { published: 1, reached: &[MIGRATED, FENCED], ..config });
    let config = timeless(&[OTHER_PUBLISHER, REMOVER, COLLECTOR, COLLECTOR]);
    holds("remove and publish, two collectors", Config { published: 1, roots: 2, ..config });
}

// 30211 and 112407 states.
#[test]
fn two_collectors() {
    let mut config = Config { published: 1, reached: &[MIGRATED], ..timeless(&[COLLECTOR, COLLECTOR]) };
    holds("two collectors", config.clone());
    (config.published, config.setup.names) = (2, 2);
    holds("two collectors, two names", config);
}

// 67607 states.
#[test]
fn two_names() {
    let other = Role::Publisher { name: 1, image: 1 };
    let mut config = timeless(&[other, COLLECTOR]);
    (config.published, config.setup.names) = (1, 2);
    holds("two names", Config { reached: &[MIGRATED, BEGAN_AGAIN], ..config });
}

// 490979, 852193 and 188281 states.
#[test]
fn timeouts() {
    let config = timeless(&[PUBLISHER, OTHER_PUBLISHER, COLLECTOR]);
    holds("publishers, timeouts", Config { timeouts: 1, roots: 2, ..config });
    let config = timeless(&[PUBLISHER, COLLECTOR]);
    holds("publish again, timeouts", Config { timeouts: 2, published: 1, ..config });
    let config = timeless(&[COLLECTOR, COLLECTOR]);
    holds("two collectors, timeouts", Config { timeouts: 1, published: 1, ..config });
}

// 66527, 679320, 880343, 915070 and 922401 states.
#[test]
fn sandboxes() {
    let all = &[ALARMED, RELOCATED, LOST];
    holds("sandbox, remove", Config { reached: all, ..with_sandboxes(&[SANDBOX, REMOVER, COLLECTOR], 5) });
    holds("sandbox, publish", Config { reached: all, ..with_sandboxes(&[SANDBOX, OTHER_PUBLISHER, COLLECTOR], 4) });
    holds("sandbox, three roots", Config { roots: 3, ..with_sandboxes(&[SANDBOX, COLLECTOR], 4) });
    holds("sandbox, two collectors", with_sandboxes(&[SANDBOX, REMOVER, COLLECTOR, COLLECTOR], 4));
    holds("two sandboxes", with_sandboxes(&[SANDBOX, SECOND_SANDBOX, REMOVER, COLLECTOR], 3));
}

// A mistake takes thousands of states to find here, with sandboxes some hundred thousand.
#[test]
fn mistakes_in_publishing() {
    let publish = timeless(&[PUBLISHER, COLLECTOR]);
    fails("S1", publish.clone(), |m| m.check_root_before_read_name = true);
    fails("S1", publish.clone(), |m| m.publish_without_intent = true);
    // The sender gave up, took its intent away, and then its CAS came through.
    fails("S1", Config { timeouts: 1, ..publish.clone() }, |m| m.remove_intent_after_timeout = true);
    // A fence of a name that was not there is a tombstone: who sleeps may publish as soon as it is purged.
    fails("S1", publish, |m| m.purge_tombstones = true);
}

#[test]
fn mistakes_in_collecting() {
    let publish = timeless(&[PUBLISHER, COLLECTOR]);
    fails("S1", publish.clone(), |m| m.no_fence = true);
    fails("record shown", publish.clone(), |m| m.fence_ignores_etag = true);
    fails("L1", publish.clone(), |m| m.fence_leaves_intent = true);
    fails("S1", publish.clone(), |m| m.expire_names_before_intents = true);
    fails("S1", publish.clone(), |m| m.expire_ignores_names = true);
    fails("S1", publish, |m| m.expire_ignores_intents = true);
    fails("S1", timeless(&[PUBLISHER, COLLECTOR, COLLECTOR]), |m| m.fence_after_removing_intent = true);
    let migrate = Config { published: 1, ..timeless(&[COLLECTOR, COLLECTOR]) };
    fails("S1", migrate.clone(), |m| m.migrate_without_intent = true);
    // An intent that a timeout left behind has to stay when the next attempt takes its own away.
    fails("S1", Config { timeouts: 1, ..migrate }, |m| m.same_intent_again = true);
}

#[test]
fn mistakes_with_sandboxes() {
    let config = with_sandboxes(&[SANDBOX, REMOVER, COLLECTOR, COLLECTOR], 5);
    fails("steady lease keeps root", config.clone(), |m| m.expire_ignores_leases = true);
    // Alarms alone are not enough: one is raised late, or cleared while the sandbox lives.
    fails("S2", config.clone(), |m| m.delete_ignores_leases = true);
    fails("alarm stops deletion", config.clone(), |m| m.delete_ignores_alarms = true);
    fails("S2", config.clone(), |m| m.delete_at_once = true);
    fails("S2", config.clone(), |m| m.stamp_before_listing = true);
    // Who is late has to raise an alarm: leases may have been listed before.
    fails("S2", config, |m| m.no_alarm = true);
    let config = Config { roots: 3, ..with_sandboxes(&[SANDBOX, COLLECTOR], 3) };
    fails("S2", config, |m| m.relocate_without_check = true);
}

/// These steps may be left out or done in another order; they find trouble early.
// 30575, 43494 and 43494 states.
#[test]
fn not_needed() {
    let config = Config { published: 1, roots: 2, ..timeless(&[OTHER_PUBLISHER, COLLECTOR, COLLECTOR]) };
    let with = |mistake: fn(&mut Mistakes)| {
        let mut config = config.clone();
        mistake(&mut config.setup.mistakes);
        config
    };
    holds("migrate: names before intents", with(|m| m.migrate_names_before_intents = true));
    holds("migrate: without reading again", with(|m| m.migrate_without_reading_again = true));
    holds("delete: without listing names", with(|m| m.delete_ignores_names = true));
}
