//! Collection: what nobody uses any more goes, root by root.
//!
//! ```text
//! active ──rotate──► retired ──expire──► expired ──delete──► deleted
//!                    migrate: copies what is live           sweep: removes the objects
//! ```
//!
//! Every step may be cut off anywhere, done twice, and done by several machines at once: what decides is a compare-and-swap on the state
//! of the roots or on a name, and objects are only removed from roots whose deletion is decided for good. Ages are by the store's clock.
//! The functions are named as the actions of tests/collection_model.

mod migrate;
mod run;
mod status;

use std::time::Duration;

pub use migrate::{MigrateProgress, Migrated, migrate};
pub use run::{Event, Policy, Ran, run};
pub use status::{RootStatus, Status, status};

use crate::names::Entry;
use crate::roots::seconds;
use crate::{Change, Error, ImageName, Root, RootState, Store};

/// Why a root cannot go on to its next state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blockers {
    /// It is in this state for less long than was asked for: seconds that are missing.
    pub seconds_left: u64,
    /// Names that stand for something in it, as `tenant/name:tag`.
    pub names: Vec<String>,
    /// Live leases of sandboxes.
    pub leases: usize,
    /// Publishers that may still be at it.
    pub intents: usize,
    /// Alarms that nobody has cleared.
    pub alarms: u64,
}

impl Blockers {
    /// Whether nothing is in the way.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Blockers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        if self.alarms > 0 {
            parts.push(format!(
                "{} (`snowmelt gc clear` says that they are dealt with)",
                count(self.alarms as usize, "alarm", "alarms")
            ));
        }
        if !self.names.is_empty() {
            let some = self.names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if self.names.len() > 3 { ", …" } else { "" };
            parts.push(format!("{} ({some}{more})", count(self.names.len(), "image", "images")));
        }
        if self.leases > 0 {
            parts.push(count(self.leases, "sandbox in use", "sandboxes in use"));
        }
        if self.intents > 0 {
            parts.push(count(self.intents, "publish under way", "publishes under way"));
        }
        if self.seconds_left > 0 {
            parts.push(format!("its age: {} s to go", self.seconds_left));
        }
        f.write_str(&parts.join(", "))
    }
}

/// `Rotate`: a new active root; with `retire`, the active ones (or those named) are retired and migrate to it. Returns its name.
///
/// # Errors
/// [`Error::Invalid`] for a name that is or was a root's, and those of changing the state.
pub fn rotate(store: &Store, to: Option<&str>, retire: Retire<'_>) -> Result<String, Error> {
    if let Some(name) = to {
        crate::store::check_root(name)?;
    }
    let now = seconds(store.now()?);
    store.change_state(|state| {
        let name = to.map_or_else(|| state.fresh_root_name(), str::to_owned);
        if let Some(found) = state.state_of(&name) {
            return Err(Error::Invalid(format!(
                "root {name} is {found} already: names of roots are never used again, so choose another"
            )));
        }
        let retired = match retire {
            Retire::All => state.roots_in(RootState::Active),
            Retire::None => Vec::new(),
            Retire::Named(names) => names.to_vec(),
        };
        for old in &retired {
            let Some(root) = state.roots.get_mut(old).filter(|root| root.state == RootState::Active) else {
                return Err(Error::Invalid(format!("root {old} is not active, so it cannot be retired")));
            };
            *root = Root { state: RootState::Retired, since: now, successor: Some(name.clone()), ..root.clone() };
        }
        let root = Root { state: RootState::Active, since: now, successor: None, alarms: Vec::new(), alarm_count: 0 };
        state.roots.insert(name.clone(), root);
        // Another one that stays active stays the one that is published to.
        if state.state_of(&state.active) != Some(RootState::Active) {
            state.active.clone_from(&name);
        }
        Ok(Change::Put(name))
    })
}

/// Which roots a rotation retires.
#[derive(Clone, Copy, Debug)]
pub enum Retire<'a> {
    /// All active ones.
    All,
    /// None: one more is active.
    None,
    /// These.
    Named(&'a [String]),
}

/// `Expire`: a retired root becomes expired if it is retired for `age` and nothing live is in it.
///
/// # Errors
/// [`Error::Invalid`] where it is not retired, and those of the store.
pub fn expire(store: &Store, root: &str, age: Duration) -> Result<Blockers, Error> {
    step(store, root, RootState::Retired, RootState::Expired, age, |blockers| {
        // Intents before names: a publisher that is done removes its intent after its name was swapped.
        blockers.intents = store.list_intents(root)?.len();
        Ok(())
    })
}

/// `Delete`: an expired root becomes deleted, for good, if it is expired for `age`, nobody has read from it, and no sandbox has come to
/// lease something in it. Its objects are still there until [`sweep`].
///
/// # Errors
/// [`Error::Invalid`] where it is not expired, and those of the store.
pub fn delete(store: &Store, root: &str, age: Duration) -> Result<Blockers, Error> {
    step(store, root, RootState::Expired, RootState::Deleted, age, |_| Ok(()))
}

/// Takes a root on to its next state if nothing is in the way. What is in the way is looked for after the state was read, and the
/// state is swapped from what was read then: an alarm that was raised since stops it, even one that was cleared again.
fn step(
    store: &Store,
    root: &str,
    from: RootState,
    to: RootState,
    age: Duration,
    look: impl Fn(&mut Blockers) -> Result<(), Error>,
) -> Result<Blockers, Error> {
    for _ in 0..MOST_TRIES {
        let now = store.now()?;
        let (state, version) = store.read_state_version()?;
        let found = in_state(&state, root, from)?;
        let mut blockers = Blockers {
            seconds_left: left(found.since, age, seconds(now)),
            alarms: found.alarm_count,
            ..Blockers::default()
        };
        look(&mut blockers)?;
        blockers.names =
            names_in(store, root, Damaged::Counted)?.iter().map(|(tenant, name)| format!("{tenant}/{name}")).collect();
        blockers.leases = store.list_leases(root)?.iter().filter(|lease| lease.is_live(now)).count();
        if !blockers.is_empty() {
            return Ok(blockers);
        }
        // Taken after everything was listed: a name that was read before is older than the state, and its sandbox has leased it by
        // the time that the next step may be taken.
        let since = seconds(store.now()?);
        let mut next = state.clone();
        if let Some(found) = next.roots.get_mut(root) {
            found.state = to;
            found.since = since;
        }
        if store.swap_state(next, &version)? {
            return Ok(blockers);
        }
    }
    Err(Error::Busy { subject: format!("the state of root {root}") })
}

/// How often a step is tried while others change the state.
const MOST_TRIES: usize = 10;

/// `Sweep`: removes the objects of a deleted root. Returns how many there were.
///
/// # Errors
/// [`Error::Invalid`] where it is not deleted, or where a name stands for something in it: then the state is not what collection made
/// of it, but damaged, edited, or put back from a backup. Those of the store: what is left is removed by another try.
pub fn sweep(store: &Store, root: &str, progress: &dyn Fn(u64)) -> Result<u64, Error> {
    const AT_ONCE: usize = 10_000;
    in_state(&store.read_state()?, root, RootState::Deleted)?;
    let folder = format!("roots/{root}");
    if !store.objects().has_any(&folder)? {
        return Ok(0);
    }
    let mut live = names_in(store, root, Damaged::Ignored)?;
    if let Some((tenant, name)) = live.pop() {
        return Err(Error::Invalid(format!(
            "root {root} is deleted, and {tenant}/{name} and {} more images are in it: somebody changed gc/state, so nothing is \
             removed (docs/security.md says what to do)",
            live.len()
        )));
    }
    if let Some(removed) = store.objects().remove_folder(&folder)? {
        progress(removed);
        return Ok(removed);
    }
    let (mut removed, mut first) = (0, None);
    loop {
        let mut paths = Vec::new();
        store.objects().list_each(&folder, &mut |listed| {
            paths.push(listed.path);
            paths.len() < AT_ONCE
        })?;
        let is_last = paths.len() < AT_ONCE;
        if !paths.is_empty() && paths.first() == first.as_ref() {
            let path = first.unwrap_or_default();
            return Err(Error::Invalid(format!(
                "{path} of the deleted root {root} stays after it was removed: remove it by hand"
            )));
        }
        first = paths.first().cloned();
        removed += store.objects().delete_all(paths)?;
        progress(removed);
        if is_last {
            return Ok(removed);
        }
    }
}

/// `ClearAlarm`: an operator says that the alarms of a root are dealt with. Returns how many there were.
///
/// # Errors
/// [`Error::Invalid`] for a root that is not there, and those of changing the state.
pub fn clear_alarms(store: &Store, root: &str) -> Result<u64, Error> {
    store.change_state(|state| {
        let Some(found) = state.roots.get_mut(root) else {
            return Err(Error::Invalid(format!("there is no root {root}: `snowmelt gc status` lists them")));
        };
        let count = found.alarm_count;
        if count == 0 {
            return Ok(Change::Leave(0));
        }
        found.alarms.clear();
        found.alarm_count = 0;
        Ok(Change::Put(count))
    })
}

/// Whether names that cannot be read are taken for ones that stand for something in a root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Damaged {
    Counted,
    Ignored,
}

/// The names of all tenants that stand for something in a root.
fn names_in(store: &Store, root: &str, damaged: Damaged) -> Result<Vec<(String, ImageName)>, Error> {
    let mut found = Vec::new();
    for tenant in store.list_tenants()? {
        for (name, entry) in store.list_entries(&tenant)? {
            match entry {
                Entry::Image(record) if record.root == root => found.push((tenant.clone(), name)),
                // What cannot be read may stand for anything.
                Entry::Damaged(_) if damaged == Damaged::Counted => found.push((tenant.clone(), name)),
                _ => {}
            }
        }
    }
    Ok(found)
}

fn in_state<'a>(state: &'a crate::State, root: &str, wanted: RootState) -> Result<&'a Root, Error> {
    match state.roots.get(root) {
        Some(found) if found.state == wanted => Ok(found),
        Some(found) => Err(Error::Invalid(format!("root {root} is {}, not {wanted}", found.state))),
        None => Err(Error::Invalid(format!("there is no root {root}: `snowmelt gc status` lists them"))),
    }
}

fn left(since: u64, age: Duration, now: u64) -> u64 {
    age.as_secs().saturating_sub(now.saturating_sub(since))
}
