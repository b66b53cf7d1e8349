//! What is shared: the objects of the store, and what each process knows.

/// Roots, names and sandboxes there is room for; a configuration may use fewer.
pub(crate) const ROOTS: usize = 3;
pub(crate) const NAMES: usize = 2;
pub(crate) const SANDBOXES: usize = 2;

/// A sandbox puts its lease at most this long after it read the name.
pub(crate) const LEASE_AFTER: u8 = 1;
/// A lease is live this long after it was put.
pub(crate) const TTL: u8 = 1;
/// An expired root is kept this long at least.
pub(crate) const EXPIRED_AGE: u8 = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum RootState {
    #[default]
    Unused,
    Active,
    Retired,
    Expired,
    Deleted,
}

/// One root: its entry in gc/state and the objects below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Root {
    pub state: RootState,
    pub since: u8,
    pub successor: u8,
    /// One bit for each sandbox that raised one.
    pub alarms: u8,
    /// One bit for each chunk.
    pub chunks: u8,
    /// One bit for each image.
    pub manifests: u8,
    /// One bit for each process, attempt and name.
    pub intents: u32,
    /// For each sandbox: the image, and when the lease was put.
    pub leases: [Option<(u8, u8)>; SANDBOXES],
}

impl Root {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks == 0 && self.manifests == 0 && self.intents == 0 && self.leases == [None; SANDBOXES]
    }

    pub(crate) fn is_kept(&self) -> bool {
        matches!(self.state, RootState::Active | RootState::Retired)
    }
}

/// A name record. Its contents are its etag, as with stores whose etags are digests: nothing else tells versions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Record {
    /// Image and root; none in a tombstone.
    pub at: Option<(u8, u8)>,
    pub generation: u8,
    pub fence: u8,
}

pub(crate) fn generation(record: Option<Record>) -> u8 {
    record.map_or(0, |r| r.generation)
}

pub(crate) fn is_at(record: Option<Record>, root: u8) -> bool {
    record.and_then(|r| r.at).is_some_and(|(_, r)| r == root)
}

/// The next action of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Pc {
    // Publisher; some are also steps of a sandbox or of a remover.
    #[default]
    Begin,
    Intend,
    PutChunks,
    PutManifest,
    ReadName,
    CheckRoot,
    CommitName,
    RemoveIntent,
    GiveUp,
    Done,
    // Remover
    CommitTombstone,
    // Sandbox
    PutLease,
    Relocate,
    PutLeaseThere,
    CheckRootThere,
    RemoveLease,
    RaiseAlarm,
    // Collector
    Idle,
    Rotate,
    ListIntents,
    ListNames,
    MoveIntend,
    CopyChunks,
    CopyManifest,
    MoveReadName,
    MoveCheckRoot,
    MoveCommit,
    MoveRemoveIntent,
    ListLeases,
    CopyLeasedChunks,
    CopyLeasedManifest,
    FenceReadName,
    FenceCommit,
    FenceRemoveIntent,
    ExpireListIntents,
    ExpireListNames,
    ExpireListLeases,
    Expire,
    DeleteListLeases,
    DeleteListNames,
    Delete,
    SweepChunks,
    SweepRest,
}

/// A process: its next action and what it remembers. What is not needed any more is forgotten, so that equal is equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Process {
    pub pc: Pc,
    /// The root it publishes to, reads from, or collects.
    pub root: u8,
    /// The root it copies to or wants to read from.
    pub target: u8,
    /// The etag of gc/state.
    pub sequence: u8,
    /// The record it read, which is also its etag.
    pub seen: Option<Record>,
    /// The etag of a CAS of which it does not know whether it happened.
    #[allow(clippy::option_option)]
    pub unknown: Option<Option<Record>>,
    /// It left an intent behind and goes on with another.
    pub second_intent: bool,
    /// Intents as listed.
    pub intents: u32,
    /// Images of live leases as listed.
    pub leased: u8,
    /// Where it is in a list of names.
    pub name: u8,
    pub image: u8,
    /// Time of the store after names were listed.
    pub stamp: u8,
    /// It began again because its root was retired.
    pub again: bool,
    /// Until when S2 promises this sandbox its chunks.
    pub promised: Option<u8>,
    /// This sandbox has had a live lease ever since its root was seen active.
    pub steady: bool,
}

/// A CAS that was sent, and whose sender stopped waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Late {
    pub name: u8,
    pub etag: Option<Record>,
    pub record: Record,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub clock: u8,
    /// The etag of gc/state.
    pub sequence: u8,
    pub roots: [Root; ROOTS],
    pub names: [Option<Record>; NAMES],
    /// No object: the image and generation that the last publish or removal gave to each name.
    pub given: [(Option<u8>, u8); NAMES],
    pub late: Option<Late>,
    pub timeouts_left: u8,
    pub clears_left: u8,
    /// The last two processes are collectors, so that it does not matter which is which.
    pub twins: bool,
    pub processes: Vec<Process>,
}

impl State {
    /// The same for two states that differ only in which collector is which.
    pub(crate) fn representative(&self) -> State {
        let mut state = self.clone();
        let count = state.processes.len();
        if state.twins && state.processes[count - 2] > state.processes[count - 1] {
            state.processes.swap(count - 2, count - 1);
            let width = 2 * NAMES;
            let (low, high, mask) = ((count - 2) * width, (count - 1) * width, (1 << width) - 1);
            let swap = |intents: u32| {
                let (first, second) = (intents >> low & mask, intents >> high & mask);
                intents & !(mask << low | mask << high) | second << low | first << high
            };
            for root in &mut state.roots {
                root.intents = swap(root.intents);
            }
            for process in &mut state.processes {
                process.intents = swap(process.intents);
            }
        }
        state
    }

    pub(crate) fn root(&self, root: u8) -> &Root {
        &self.roots[usize::from(root)]
    }

    pub(crate) fn root_mut(&mut self, root: u8) -> &mut Root {
        &mut self.roots[usize::from(root)]
    }

    pub(crate) fn is_active(&self, root: u8) -> bool {
        self.root(root).state == RootState::Active
    }

    /// The first active root after this one.
    pub(crate) fn successor(&self, root: u8) -> u8 {
        let mut root = root;
        while !self.is_active(root) {
            root = self.root(root).successor;
        }
        root
    }

    pub(crate) fn is_live(&self, lease: (u8, u8)) -> bool {
        self.clock <= lease.1 + TTL
    }

    /// Images of the leases of a root that are live.
    pub(crate) fn leased(&self, root: u8) -> u8 {
        self.root(root).leases.iter().flatten().filter(|l| self.is_live(**l)).fold(0, |mask, l| mask | 1 << l.0)
    }

    pub(crate) fn cas_name(&mut self, name: u8, etag: Option<Record>, record: Record) -> bool {
        let held = &mut self.names[usize::from(name)];
        let matches = *held == etag;
        if matches {
            *held = Some(record);
        }
        matches
    }

    /// Replaces gc/state if its etag is the one given.
    pub(crate) fn cas_state(&mut self, etag: u8, change: impl FnOnce(&mut [Root; ROOTS])) -> bool {
        let matches = self.sequence == etag;
        if matches {
            self.sequence += 1;
            change(&mut self.roots);
        }
        matches
    }
}
