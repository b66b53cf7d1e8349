//! The roots of a store: which there are, what state each is in, and who may change that.
//!
//! All of it is one object, `gc/state`, that is only ever compared and swapped. Chunks are never counted and never deleted one by one:
//! images move from a *retired* root to an *active* one, and what nobody moved goes with the root. docs/operations.md says how that is
//! run, `collect` does it, and tests/collection_model checks that nothing live is lost, whoever crashes or sleeps at any step.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::objects::Version;
use crate::store::check_root;
use crate::{DEFAULT_ROOT, Error, Store};

const PATH: &str = "gc/state";
const SUBJECT: &str = "the state of the roots (gc/state)";
/// A root has about 100 bytes, and deleted ones stay listed.
const MOST_BYTES: u64 = 16 << 20;
/// Alarms of one root that are kept in full; further ones are only counted.
const MOST_ALARMS: usize = 16;
/// No count and no time in seconds that snowmelt puts is larger, and what is added to one does not overflow.
pub(crate) const MOST_COUNT: u64 = 1 << 53;
/// How often a change is tried while others change the state too.
const MOST_TRIES: usize = 50;

/// What may be done with a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootState {
    /// Images are published to it.
    Active,
    /// Only read. What is live in it is copied to its successor.
    Retired,
    /// Nothing live should be in it any more: reading from it raises an alarm, which stops its deletion.
    Expired,
    /// Its objects are being removed, or have been. Its name is never used again.
    Deleted,
}

impl std::fmt::Display for RootState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
        })
    }
}

/// Somebody read from an expired root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Seconds since 1970, by the clock of who raised it.
    pub at: u64,
    /// The tenant whose image was read.
    pub tenant: String,
    /// The image's manifest.
    pub manifest: String,
    /// Which sandbox or command, on which machine.
    pub by: String,
}

/// A root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// What may be done with it.
    pub state: RootState,
    /// Since when, in seconds since 1970 by the store's clock.
    pub since: u64,
    /// Where a retired root's images are copied to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<String>,
    /// Who read from it since it expired, until an operator clears that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<Alarm>,
    /// How many alarms there were, those that are not kept included.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub alarm_count: u64,
}

impl Root {
    fn active(since: u64) -> Self {
        Self { state: RootState::Active, since, successor: None, alarms: Vec::new(), alarm_count: 0 }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Which salts new chunks get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaltEpoch {
    /// Counts rotations.
    pub epoch: u32,
    /// Since when, in seconds since 1970 by the store's clock.
    pub since: u64,
}

/// Who collects at the moment. It only keeps two collectors from doing the same work: what is safe does not depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorLease {
    /// Who, for people.
    pub holder: String,
    /// Told apart by this: 32 hexadecimal digits.
    pub token: String,
    /// Until when, in seconds since 1970 by the store's clock.
    pub until: u64,
}

/// The state of all roots of a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of this record: 1.
    pub version: u32,
    /// Counts changes.
    pub sequence: u64,
    /// Chance, so that no two writers put the same bytes.
    nonce: String,
    /// The active root that is published to unless another is asked for.
    pub active: String,
    /// Every root that ever was, by name.
    pub roots: BTreeMap<String, Root>,
    /// Which salts new chunks get.
    pub salt: SaltEpoch,
    /// Who collects, or did so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<CollectorLease>,
}

impl State {
    /// That of a store in which nothing was ever done: one active root.
    fn initial() -> Self {
        Self {
            version: 1,
            sequence: 0,
            nonce: String::new(),
            active: DEFAULT_ROOT.into(),
            roots: [(DEFAULT_ROOT.to_owned(), Root::active(0))].into(),
            salt: SaltEpoch::default(),
            lease: None,
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let corrupt = |reason: String| Error::corrupt(SUBJECT, reason);
        let state: Self = serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
        if state.version != 1 {
            return Err(corrupt(format!("its version is {}: upgrade snowmelt", state.version)));
        }
        let successors = state.roots.values().filter_map(|root| root.successor.as_ref());
        for name in state.roots.keys().chain(successors) {
            check_root(name).map_err(|error| corrupt(error.to_string()))?;
        }
        let counts = [state.sequence, state.salt.since, u64::from(state.salt.epoch)].into_iter();
        let counts = counts.chain(state.lease.as_ref().map(|lease| lease.until));
        if counts.chain(state.roots.values().flat_map(|root| [root.since, root.alarm_count])).any(|it| it > MOST_COUNT)
            || state.salt.epoch == u32::MAX
        {
            return Err(corrupt("a count or a time in it is too large to be one".into()));
        }
        if state.state_of(&state.active) != Some(RootState::Active) {
            return Err(corrupt(format!("its active root {:?} is not among its active roots", state.active)));
        }
        Ok(state)
    }

    /// The state of a root; `None` for one that was never heard of.
    pub fn state_of(&self, root: &str) -> Option<RootState> {
        self.roots.get(root).map(|root| root.state)
    }

    /// Roots in a state, by name.
    pub fn roots_in(&self, state: RootState) -> Vec<String> {
        self.roots.iter().filter(|(_, root)| root.state == state).map(|(name, _)| name.clone()).collect()
    }

    /// The active root to which the images of a retired one go: its successor, or that one's successor, and so on.
    pub fn heir_of(&self, root: &str) -> Option<String> {
        let mut name = root;
        // Each step goes to a root that was made later, so this ends; damage must not keep it from ending.
        for _ in 0..=self.roots.len() {
            name = self.roots.get(name)?.successor.as_deref()?;
            if self.state_of(name) == Some(RootState::Active) {
                return Some(name.to_owned());
            }
        }
        None
    }

    /// A name for a new root that was never used.
    pub fn fresh_root_name(&self) -> String {
        let mut number = self.sequence + 1;
        while self.roots.contains_key(&format!("r{number}")) {
            number += 1;
        }
        format!("r{number}")
    }
}

/// What [`Store::change_state`] is to do.
pub enum Change<T> {
    /// Put the state as it was changed.
    Put(T),
    /// Nothing needs to be changed.
    Leave(T),
}

impl Store {
    /// Reads the state of all roots. One request.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Unavailable`], [`Error::Refused`].
    pub fn read_state(&self) -> Result<State, Error> {
        Ok(self.read_state_version()?.0)
    }

    /// The state, and what it is for a swap.
    pub(crate) fn read_state_version(&self) -> Result<(State, Version), Error> {
        let (bytes, version) = self.objects().get_version(PATH, SUBJECT, MOST_BYTES)?;
        Ok((bytes.map_or_else(|| Ok(State::initial()), |bytes| State::decode(&bytes))?, version))
    }

    /// Changes the state of the roots by compare-and-swap: `change` is called again with what is there then, where somebody else was
    /// first.
    ///
    /// # Errors
    /// Those of `change`, of reading and of writing.
    pub fn change_state<T>(&self, mut change: impl FnMut(&mut State) -> Result<Change<T>, Error>) -> Result<T, Error> {
        for _ in 0..MOST_TRIES {
            let (mut state, version) = self.read_state_version()?;
            let result = match change(&mut state)? {
                Change::Leave(result) => return Ok(result),
                Change::Put(result) => result,
            };
            if self.swap_state(state, &version)? {
                return Ok(result);
            }
        }
        Err(Error::Busy { subject: SUBJECT.into() })
    }

    /// Puts a state if it still is what it was; whether it was.
    pub(crate) fn swap_state(&self, mut state: State, was: &Version) -> Result<bool, Error> {
        state.sequence += 1;
        state.nonce = random_hex()?;
        let bytes = Bytes::from(serde_json::to_vec_pretty(&state).expect("a state of plain fields is JSON"));
        Ok(self.objects().swap(PATH, SUBJECT, &bytes, was)?.is_done())
    }

    /// `CheckRoot`: whether images may still be published to a root.
    ///
    /// # Errors
    /// Those of [`Store::read_state`].
    pub(crate) fn check_root_is_active(&self, root: &str) -> Result<bool, Error> {
        Ok(self.read_state()?.state_of(root) == Some(RootState::Active))
    }

    /// Makes sure that the state names a root, so that collectors know of it; the root to publish to if none is asked for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a root that is not active, and those of changing the state.
    pub fn open_root(&self, asked: Option<&str>) -> Result<(String, SaltEpoch), Error> {
        if let Some(root) = asked {
            check_root(root)?;
        }
        self.change_state(|state| {
            let root = asked.unwrap_or(&state.active).to_owned();
            match state.state_of(&root) {
                Some(RootState::Active) if state.sequence > 0 => Ok(Change::Leave((root, state.salt))),
                Some(RootState::Active) => Ok(Change::Put((root, state.salt))),
                Some(other) => Err(Error::Invalid(format!(
                    "root {root} is {other}: publish to an active one ({}), or leave --root out",
                    state.roots_in(RootState::Active).join(", ")
                ))),
                None => {
                    state.roots.insert(root.clone(), Root::active(0));
                    Ok(Change::Put((root, state.salt)))
                }
            }
        })
    }

    /// `RaiseAlarm`: says that a root that has expired was read. Whether it was recorded: an active or retired root has no alarms,
    /// and for a deleted one it is too late.
    ///
    /// # Errors
    /// Those of changing the state.
    pub fn raise_alarm(&self, root: &str, alarm: &Alarm) -> Result<bool, Error> {
        tracing::error!(
            root,
            tenant = alarm.tenant,
            manifest = alarm.manifest,
            by = alarm.by,
            "an expired root was read"
        );
        self.change_state(|state| {
            let Some(found) = state.roots.get_mut(root).filter(|root| root.state == RootState::Expired) else {
                return Ok(Change::Leave(false));
            };
            let same = |other: &Alarm| other.manifest == alarm.manifest && other.by == alarm.by;
            if found.alarms.iter().any(same) {
                return Ok(Change::Leave(true));
            }
            found.alarm_count += 1;
            if found.alarms.len() < MOST_ALARMS {
                found.alarms.push(alarm.clone());
            }
            Ok(Change::Put(true))
        })
    }
}

/// 32 hexadecimal digits by chance.
pub(crate) fn random_hex() -> Result<String, Error> {
    let mut number = [0; 16];
    getrandom::fill(&mut number)
        .map_err(|error| Error::Invalid(format!("the system gives no random bytes: {error}")))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(number)))
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn images_of_a_retired_root_go_to_the_first_active_one_behind_it() {
        let mut state = State::initial();
        state
            .roots
            .insert("r2".into(), Root { successor: Some("r3".into()), state: RootState::Deleted, ..Root::active(1) });
        state.roots.insert("r3".into(), Root::active(2));
        state.roots.insert(
            DEFAULT_ROOT.into(),
            Root { successor: Some("r2".into()), state: RootState::Retired, ..Root::active(0) },
        );
        assert_eq!(state.heir_of(DEFAULT_ROOT).unwrap(), "r3");
        assert_eq!(state.heir_of("r3"), None);
        assert_eq!(state.heir_of("unheard-of"), None);
        // Damage: a circle.
        state.roots.get_mut("r3").unwrap().state = RootState::Retired;
        state.roots.get_mut("r3").unwrap().successor = Some("r2".into());
        assert_eq!(state.heir_of(DEFAULT_ROOT), None);
    }

    #[test]
    fn names_of_roots_are_never_used_again() {
        let mut state = State::initial();
        assert_eq!(state.fresh_root_name(), "r1");
        state.roots.insert("r1".into(), Root { state: RootState::Deleted, ..Root::active(0) });
        assert_eq!(state.fresh_root_name(), "r2");
    }

    #[test]
    fn damaged_states_are_refused() {
        let good = serde_json::to_string(&State::initial()).unwrap();
        assert_eq!(State::decode(good.as_bytes()).unwrap(), State::initial());
        for bad in [
            String::new(),
            "{}".into(),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace("\"active\":\"main\"", "\"active\":\"other\""),
            good.replace("\"main\"", "\"../x\""),
            good.replace("\"state\":\"active\"", "\"state\":\"expired\""),
            good.replace("\"sequence\":0", "\"sequence\":18446744073709551615"),
            good.replace("\"since\":0", "\"since\":18446744073709551615"),
            good.replace("\"epoch\":0", "\"epoch\":4294967295"),
        ] {
            assert!(matches!(State::decode(bad.as_bytes()), Err(Error::Corrupt { .. })), "{bad}");
        }
    }
}
