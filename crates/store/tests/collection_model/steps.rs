//! The steps of each kind of process.

use crate::store::{
    EXPIRED_AGE, LEASE_AFTER, Late, NAMES, Pc, Process, Record, RootState, SANDBOXES, State, TTL, generation, is_at,
};

/// What a process is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Publisher { name: u8, image: u8 },
    Remover { name: u8 },
    Sandbox { name: u8, number: u8 },
    Collector,
}

/// What a collector can take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    Rotate,
    Migrate,
    Expire,
    Delete,
    Sweep,
}

/// Ways to get the protocol wrong. With none of them it is the protocol.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Mistakes {
    pub check_root_before_read_name: bool,
    pub publish_without_intent: bool,
    pub no_fence: bool,
    pub fence_after_removing_intent: bool,
    pub fence_ignores_etag: bool,
    pub fence_leaves_intent: bool,
    pub migrate_names_before_intents: bool,
    pub expire_names_before_intents: bool,
    pub migrate_without_intent: bool,
    pub migrate_without_reading_again: bool,
    pub expire_ignores_names: bool,
    pub expire_ignores_intents: bool,
    pub expire_ignores_leases: bool,
    pub delete_ignores_leases: bool,
    pub delete_ignores_names: bool,
    pub delete_ignores_alarms: bool,
    pub delete_at_once: bool,
    pub stamp_before_listing: bool,
    pub relocate_without_check: bool,
    pub no_alarm: bool,
    pub purge_tombstones: bool,
    pub remove_intent_after_timeout: bool,
    pub same_intent_again: bool,
}

/// How the processes are set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub roles: Vec<Role>,
    pub names: u8,
    pub chunk_of: [u8; 2],
    pub mistakes: Mistakes,
}

impl Setup {
    /// An intent has an id that is never used again. Two for each process are enough here: one that a timeout left behind,
    /// and the next.
    fn intent(index: usize, process: &Process, name: u8) -> u32 {
        1 << ((2 * index + usize::from(process.second_intent)) * NAMES + usize::from(name))
    }

    pub(crate) fn has_image(&self, state: &State, root: u8, image: u8) -> bool {
        state.root(root).manifests >> image & 1 == 1 && self.has_chunks(state, root, image)
    }

    fn has_chunks(&self, state: &State, root: u8, image: u8) -> bool {
        state.root(root).chunks >> self.chunk_of[usize::from(image)] & 1 == 1
    }

    fn put_chunks(&self, state: &mut State, root: u8, image: u8) {
        state.root_mut(root).chunks |= 1 << self.chunk_of[usize::from(image)];
    }

    /// Does the next action of a process. None where it has none left.
    pub(crate) fn step(&self, state: &State, index: usize, times_out: bool) -> Option<State> {
        let mut next = state.clone();
        let mut process = state.processes.get(index).copied()?;
        match self.roles.get(index).copied().unwrap_or(Role::Collector) {
            Role::Publisher { name, image } => {
                self.publisher(&mut next, &mut process, index, (name, image), times_out)?;
            }
            Role::Remover { name } => Self::remover(&mut next, &mut process, name)?,
            Role::Sandbox { name, number } => self.sandbox(&mut next, &mut process, name, number)?,
            Role::Collector => self.collector(&mut next, &mut process, index, times_out)?,
        }
        next.processes[index] = process;
        // A late CAS whose etag is gone can do nothing: contents of records do not come again.
        if next.late.is_some_and(|l| next.names[usize::from(l.name)] != l.etag) {
            next.late = None;
        }
        Some(next)
    }

    pub(crate) fn begin(state: &State, index: usize, root: u8) -> State {
        let mut next = state.clone();
        let process = &mut next.processes[index];
        (process.pc, process.root) = (Pc::Intend, root);
        next
    }

    fn publisher(
        &self,
        state: &mut State,
        process: &mut Process,
        index: usize,
        (name, image): (u8, u8),
        times_out: bool,
    ) -> Option<()> {
        let (root, intent) = (process.root, Self::intent(index, process, name));
        let check_first = self.mistakes.check_root_before_read_name;
        process.pc = match process.pc {
            Pc::Intend => {
                if !self.mistakes.publish_without_intent {
                    state.root_mut(root).intents |= intent;
                }
                Pc::PutChunks
            }
            Pc::PutChunks => {
                self.put_chunks(state, root, image);
                Pc::PutManifest
            }
            Pc::PutManifest => {
                state.root_mut(root).manifests |= 1 << image;
                if check_first { Pc::CheckRoot } else { Pc::ReadName }
            }
            Pc::ReadName => {
                process.seen = state.names[usize::from(name)];
                if process.unknown.is_some_and(|etag| etag != process.seen) {
                    process.unknown = None;
                }
                if check_first { Pc::CommitName } else { Pc::CheckRoot }
            }
            Pc::CheckRoot if state.is_active(root) => {
                if check_first {
                    Pc::ReadName
                } else {
                    Pc::CommitName
                }
            }
            Pc::CheckRoot => {
                let leave = process.unknown.is_some() && !self.mistakes.remove_intent_after_timeout;
                (process.seen, process.unknown, process.again) = (None, None, true);
                if leave { Pc::Begin } else { Pc::GiveUp }
            }
            Pc::CommitName => {
                let etag = process.seen.take();
                let record = Record { at: Some((image, root)), generation: generation(etag) + 1, fence: 0 };
                if times_out {
                    state.timeouts_left -= 1;
                    state.late = Some(Late { name, etag, record });
                    process.unknown = Some(etag);
                    Pc::ReadName
                } else if state.cas_name(name, etag, record) {
                    state.given[usize::from(name)] = (Some(image), record.generation);
                    process.unknown = None;
                    Pc::RemoveIntent
                } else if check_first {
                    Pc::CheckRoot
                } else {
                    Pc::ReadName
                }
            }
            Pc::RemoveIntent => {
                state.root_mut(root).intents &= !intent;
                Pc::Done
            }
            Pc::GiveUp => {
                state.root_mut(root).intents &= !intent;
                Pc::Begin
            }
            _ => return None,
        };
        if matches!(process.pc, Pc::Begin | Pc::Done) {
            process.root = 0;
        }
        Some(())
    }

    fn remover(state: &mut State, process: &mut Process, name: u8) -> Option<()> {
        process.pc = match process.pc {
            Pc::ReadName => {
                process.seen = state.names[usize::from(name)];
                if process.seen.is_some_and(|r| r.at.is_some()) { Pc::CommitTombstone } else { Pc::ReadName }
            }
            Pc::CommitTombstone => {
                let etag = process.seen.take()?;
                if state.cas_name(name, Some(etag), Record { at: None, ..etag }) {
                    state.given[usize::from(name)] = (None, etag.generation);
                    Pc::Done
                } else {
                    Pc::ReadName
                }
            }
            _ => return None,
        };
        if process.pc == Pc::ReadName {
            process.seen = None;
        }
        Some(())
    }

    fn sandbox(&self, state: &mut State, process: &mut Process, name: u8, number: u8) -> Option<()> {
        let root = process.root;
        let lease = |state: &State, root: u8| state.root(root).leases[usize::from(number)];
        // A lease that was put before the root was found in a state in which it will be seen holds from now on.
        let promise = |state: &State, root: u8| lease(state, root).filter(|l| state.is_live(*l)).map(|l| l.1 + TTL);
        process.pc = match process.pc {
            Pc::ReadName => {
                let (image, root) = state.names[usize::from(name)].and_then(|r| r.at)?;
                (process.image, process.root) = (image, root);
                process.promised = Some(state.clock + LEASE_AFTER);
                Pc::PutLease
            }
            Pc::PutLease => {
                state.root_mut(root).leases[usize::from(number)] = Some((process.image, state.clock));
                if process.promised.is_some() {
                    process.promised = promise(state, root);
                }
                Pc::CheckRoot
            }
            Pc::CheckRoot => match state.root(root).state {
                RootState::Active => {
                    process.promised = promise(state, root).or(process.promised);
                    process.steady = promise(state, root).is_some();
                    Pc::PutLease
                }
                RootState::Retired => {
                    process.promised = promise(state, root).or(process.promised);
                    process.target = state.successor(root);
                    Pc::Relocate
                }
                RootState::Expired => {
                    if self.mistakes.no_alarm {
                        process.promised = promise(state, root).or(process.promised);
                    }
                    process.target = state.successor(root);
                    Pc::Relocate
                }
                RootState::Unused | RootState::Deleted => Pc::Done,
            },
            Pc::Relocate if state.root(process.target).manifests >> process.image & 1 == 1 => Pc::PutLeaseThere,
            Pc::PutLeaseThere => {
                state.root_mut(process.target).leases[usize::from(number)] = Some((process.image, state.clock));
                Pc::CheckRootThere
            }
            Pc::CheckRootThere if state.is_active(process.target) || self.mistakes.relocate_without_check => {
                (process.root, process.target) = (process.target, root);
                process.promised = promise(state, process.root);
                process.steady = process.promised.is_some();
                Pc::RemoveLease
            }
            Pc::Relocate | Pc::CheckRootThere => {
                process.target = 0;
                if state.root(root).state == RootState::Expired && !self.mistakes.no_alarm {
                    Pc::RaiseAlarm
                } else {
                    Pc::PutLease
                }
            }
            Pc::RemoveLease => {
                state.root_mut(process.target).leases[usize::from(number)] = None;
                process.target = 0;
                Pc::PutLease
            }
            Pc::RaiseAlarm => match state.root(root).state {
                RootState::Expired => {
                    if state.root(root).alarms >> number & 1 == 0 {
                        state.sequence += 1;
                        state.root_mut(root).alarms |= 1 << number;
                    }
                    process.promised = promise(state, root).or(process.promised);
                    Pc::PutLease
                }
                _ => Pc::Done,
            },
            _ => return None,
        };
        Some(())
    }

    /// Reads gc/state and takes on a job, if there is something to do.
    pub(crate) fn start(&self, state: &State, index: usize, job: Job, root: u8) -> Option<State> {
        let at = state.root(root);
        let wrong = self.mistakes;
        let (allowed, pc) = match job {
            Job::Rotate => {
                (at.state == RootState::Active && state.roots.iter().any(|r| r.state == RootState::Unused), Pc::Rotate)
            }
            Job::Migrate if wrong.migrate_names_before_intents => (at.state == RootState::Retired, Pc::ListNames),
            Job::Migrate => (at.state == RootState::Retired, Pc::ListIntents),
            Job::Expire if wrong.expire_names_before_intents => (at.state == RootState::Retired, Pc::ExpireListNames),
            Job::Expire => (at.state == RootState::Retired, Pc::ExpireListIntents),
            Job::Delete => {
                let old = state.clock >= at.since + EXPIRED_AGE || wrong.delete_at_once;
                let quiet = at.alarms == 0 || wrong.delete_ignores_alarms;
                (at.state == RootState::Expired && old && quiet, Pc::DeleteListLeases)
            }
            Job::Sweep => (at.state == RootState::Deleted && !at.is_empty(), Pc::SweepChunks),
        };
        if !allowed {
            return None;
        }
        let mut next = state.clone();
        let process = &mut next.processes[index];
        (process.pc, process.root) = (pc, root);
        if job == Job::Migrate {
            process.target = state.successor(root);
        } else if job != Job::Sweep {
            process.sequence = state.sequence;
        }
        if job == Job::Expire {
            process.stamp = state.clock;
        }
        Some(next)
    }

    /// After the intents were listed in a migration that lists them last, or after the leases were copied.
    fn next_fence(process: &mut Process) -> Pc {
        if process.intents == 0 {
            return Pc::Idle;
        }
        process.name = (process.intents.trailing_zeros() as usize % NAMES) as u8;
        Pc::FenceReadName
    }

    fn next_lease(&self, process: &mut Process) -> Pc {
        if process.leased == 0 {
            return if self.mistakes.migrate_names_before_intents {
                Pc::ListIntents
            } else {
                Self::next_fence(process)
            };
        }
        process.image = process.leased.trailing_zeros() as u8;
        Pc::CopyLeasedChunks
    }

    fn next_name(&self, process: &mut Process, then: Pc) -> Pc {
        process.seen = None;
        process.name += 1;
        if process.name < self.names {
            return process.pc;
        }
        process.name = 0;
        then
    }

    fn collector(&self, state: &mut State, process: &mut Process, index: usize, times_out: bool) -> Option<()> {
        process.pc = match process.pc {
            Pc::Rotate => {
                let root = process.root;
                let new = state.roots.iter().position(|r| r.state == RootState::Unused).unwrap_or_default();
                state.cas_state(process.sequence, |roots| {
                    roots[new].state = RootState::Active;
                    let old = &mut roots[usize::from(root)];
                    (old.state, old.successor) = (RootState::Retired, new as u8);
                });
                Pc::Idle
            }
            Pc::ExpireListIntents
            | Pc::ExpireListNames
            | Pc::ExpireListLeases
            | Pc::Expire
            | Pc::DeleteListLeases
            | Pc::DeleteListNames
            | Pc::Delete => self.expire_or_delete(state, process),
            Pc::SweepChunks => {
                state.root_mut(process.root).chunks = 0;
                Pc::SweepRest
            }
            Pc::SweepRest => {
                let root = state.root_mut(process.root);
                (root.manifests, root.intents, root.leases) = (0, 0, [None; SANDBOXES]);
                Pc::Idle
            }
            Pc::Idle | Pc::Done => return None,
            _ => self.migrate(state, process, index, times_out)?,
        };
        if process.pc == Pc::Idle {
            *process = Process { pc: Pc::Idle, second_intent: process.second_intent, ..Process::default() };
        }
        Some(())
    }

    fn expire_or_delete(&self, state: &mut State, process: &mut Process) -> Pc {
        let (root, wrong) = (process.root, self.mistakes);
        let at = usize::from(root);
        match process.pc {
            Pc::ExpireListIntents if state.root(root).intents != 0 && !wrong.expire_ignores_intents => Pc::Idle,
            Pc::ExpireListIntents if wrong.expire_names_before_intents => Pc::ExpireListLeases,
            Pc::ExpireListIntents => Pc::ExpireListNames,
            Pc::ExpireListNames | Pc::DeleteListNames => {
                let ignore = if process.pc == Pc::DeleteListNames {
                    wrong.delete_ignores_names
                } else {
                    wrong.expire_ignores_names
                };
                let then = match process.pc {
                    Pc::DeleteListNames => Pc::Delete,
                    _ if wrong.expire_names_before_intents => Pc::ExpireListIntents,
                    _ => Pc::ExpireListLeases,
                };
                if is_at(state.names[usize::from(process.name)], root) && !ignore {
                    Pc::Idle
                } else {
                    self.next_name(process, then)
                }
            }
            Pc::ExpireListLeases if state.leased(root) != 0 && !wrong.expire_ignores_leases => Pc::Idle,
            Pc::ExpireListLeases => {
                if !wrong.stamp_before_listing {
                    process.stamp = state.clock;
                }
                Pc::Expire
            }
            Pc::Expire => {
                state.cas_state(process.sequence, |roots| {
                    (roots[at].state, roots[at].since) = (RootState::Expired, process.stamp);
                });
                Pc::Idle
            }
            Pc::DeleteListLeases if state.leased(root) != 0 && !wrong.delete_ignores_leases => Pc::Idle,
            Pc::DeleteListLeases => Pc::DeleteListNames,
            _ => {
                state.cas_state(process.sequence, |roots| roots[at].state = RootState::Deleted);
                Pc::Idle
            }
        }
    }

    fn migrate(&self, state: &mut State, process: &mut Process, index: usize, times_out: bool) -> Option<Pc> {
        let (root, target, name, wrong) = (process.root, process.target, process.name, self.mistakes);
        let record = state.names[usize::from(name)];
        let intent = Self::intent(index, process, name);
        let moved = process.seen.and_then(|r| r.at).map(|(image, _)| image);
        Some(match process.pc {
            Pc::ListIntents => {
                process.intents = state.root(root).intents;
                if wrong.migrate_names_before_intents { Self::next_fence(process) } else { Pc::ListNames }
            }
            Pc::ListNames if is_at(record, root) => {
                process.seen = record;
                if wrong.migrate_without_intent { Pc::CopyChunks } else { Pc::MoveIntend }
            }
            Pc::ListNames => self.next_name(process, Pc::ListLeases),
            Pc::MoveIntend => {
                state.root_mut(target).intents |= intent;
                Pc::CopyChunks
            }
            Pc::CopyChunks if self.has_chunks(state, root, moved?) => {
                self.put_chunks(state, target, moved?);
                Pc::CopyManifest
            }
            Pc::CopyManifest if state.root(root).manifests >> moved? & 1 == 1 => {
                state.root_mut(target).manifests |= 1 << moved?;
                Pc::MoveReadName
            }
            Pc::MoveReadName if wrong.migrate_without_reading_again || record == process.seen => Pc::MoveCheckRoot,
            Pc::MoveCheckRoot if state.is_active(target) => Pc::MoveCommit,
            Pc::MoveCommit => {
                let new = Record { at: Some((moved?, target)), ..process.seen? };
                if times_out {
                    state.timeouts_left -= 1;
                    state.late = Some(Late { name, etag: process.seen, record: new });
                    if !wrong.remove_intent_after_timeout {
                        process.second_intent = !wrong.same_intent_again;
                        process.pc = Pc::ListNames;
                        return Some(self.next_name(process, Pc::ListLeases));
                    }
                } else {
                    state.cas_name(name, process.seen, new);
                }
                Pc::MoveRemoveIntent
            }
            // The source or the target is gone, or the record is another now: a later run looks again.
            Pc::CopyChunks | Pc::CopyManifest | Pc::MoveReadName | Pc::MoveCheckRoot => Pc::MoveRemoveIntent,
            Pc::MoveRemoveIntent => {
                state.root_mut(target).intents &= !intent;
                process.pc = Pc::ListNames;
                self.next_name(process, Pc::ListLeases)
            }
            Pc::ListLeases => {
                process.leased = state.leased(root);
                self.next_lease(process)
            }
            Pc::CopyLeasedChunks if self.has_chunks(state, root, process.image) => {
                self.put_chunks(state, target, process.image);
                Pc::CopyLeasedManifest
            }
            Pc::CopyLeasedChunks | Pc::CopyLeasedManifest => {
                if process.pc == Pc::CopyLeasedManifest && state.root(root).manifests >> process.image & 1 == 1 {
                    state.root_mut(target).manifests |= 1 << process.image;
                }
                process.leased &= process.leased - 1;
                process.image = 0;
                self.next_lease(process)
            }
            _ => self.fence(state, process)?,
        })
    }

    fn fence(&self, state: &mut State, process: &mut Process) -> Option<Pc> {
        let (root, name, wrong) = (process.root, process.name, self.mistakes);
        let record = state.names[usize::from(name)];
        Some(match process.pc {
            Pc::FenceReadName if is_at(record, root) => {
                process.intents &= process.intents - 1;
                Self::next_fence(process)
            }
            Pc::FenceReadName => {
                process.seen = record;
                if wrong.no_fence || wrong.fence_after_removing_intent {
                    Pc::FenceRemoveIntent
                } else {
                    Pc::FenceCommit
                }
            }
            Pc::FenceCommit => {
                let mut etag = process.seen.take();
                let old = etag.unwrap_or(Record { at: None, generation: 0, fence: 0 });
                if wrong.fence_ignores_etag {
                    etag = record;
                }
                let done = state.cas_name(name, etag, Record { fence: old.fence + 1, ..old });
                if wrong.fence_after_removing_intent {
                    Self::next_fence(process)
                } else if done {
                    Pc::FenceRemoveIntent
                } else {
                    Pc::FenceReadName
                }
            }
            Pc::FenceRemoveIntent => {
                let rest = process.intents & (process.intents - 1);
                if !wrong.fence_leaves_intent {
                    state.root_mut(root).intents &= !(process.intents & !rest);
                }
                process.intents = rest;
                if wrong.fence_after_removing_intent {
                    Pc::FenceCommit
                } else {
                    process.seen = None;
                    Self::next_fence(process)
                }
            }
            _ => return None,
        })
    }
}
