//! The configurations, the steps that are possible in a state, and what has to hold in it.

use stateright::{Model, Property};

use crate::steps::{Job, Mistakes, Role, Setup};
use crate::store::{EXPIRED_AGE, NAMES, Pc, Process, ROOTS, Record, RootState, State, TTL, generation};

const JOBS: [Job; 5] = [Job::Rotate, Job::Migrate, Job::Expire, Job::Delete, Job::Sweep];

/// One atomic step. Processes are counted in the order of the configuration's roles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    /// A publisher reads gc/state and takes an active root.
    Begin {
        process: usize,
        root: u8,
    },
    /// A collector reads gc/state and begins with a job.
    Start {
        process: usize,
        job: Job,
        root: u8,
    },
    /// A process does its next action.
    Do {
        process: usize,
        action: Pc,
    },
    /// A process sends a CAS of a name and stops waiting for the answer.
    TimesOut {
        process: usize,
        action: Pc,
    },
    /// Such a CAS reaches the store.
    Land,
    Tick,
    ClearAlarms {
        root: u8,
    },
    PurgeTombstone {
        name: u8,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub setup: Setup,
    /// Roots that are active in the beginning, and how many there may be in all.
    pub active: u8,
    pub roots: u8,
    /// Names that show image 0, in root 0, in the beginning.
    pub published: u8,
    /// How far the clock goes. Without sandboxes it only has to let roots expire.
    pub last_tick: u8,
    pub timeouts: u8,
    pub clears: u8,
    pub reached: &'static [Reached],
}

/// Something that is to happen in a configuration, so that what holds does not hold for want of events.
pub(crate) type Reached = (&'static str, fn(&Config, &State) -> bool);

impl Config {
    pub(crate) fn new(roles: &[Role]) -> Config {
        Config {
            setup: Setup { roles: roles.to_vec(), names: 1, chunk_of: [0, 1], mistakes: Mistakes::default() },
            active: 1,
            roots: 3,
            published: 0,
            last_tick: 0,
            timeouts: 0,
            clears: 0,
            reached: &[],
        }
    }

    fn s1(&self, state: &State) -> bool {
        state
            .names
            .iter()
            .flatten()
            .filter_map(|r| r.at)
            .all(|(image, root)| state.root(root).is_kept() && self.setup.has_image(state, root, image))
    }

    fn s2(&self, state: &State) -> bool {
        state.processes.iter().all(|p| p.promised.is_none() || self.setup.has_image(state, p.root, p.image))
    }

    /// Everybody else stops; one collector and an operator run on, and time passes: does all garbage go?
    fn drains(&self, state: &State) -> bool {
        let mut state = state.clone();
        state.late = None;
        let collector = state.processes.len();
        state.processes.push(Process { pc: Pc::Idle, ..Process::default() });
        for _ in 0..2 * ROOTS {
            state.clock += EXPIRED_AGE + TTL + 1;
            for root in 0..ROOTS as u8 {
                state.root_mut(root).alarms = 0;
                for job in [Job::Migrate, Job::Expire, Job::Delete, Job::Sweep] {
                    let Some(begun) = self.setup.start(&state, collector, job, root) else { continue };
                    state = begun;
                    while let Some(next) = self.setup.step(&state, collector, false) {
                        state = next;
                    }
                }
            }
        }
        let collected = state.roots.iter().all(|r| match r.state {
            RootState::Unused | RootState::Active => true,
            RootState::Retired | RootState::Expired => false,
            RootState::Deleted => r.is_empty(),
        });
        collected && self.s1(&state) && shown(&state)
    }
}

/// Each name shows what was given to it last.
fn shown(state: &State) -> bool {
    state.names.iter().zip(&state.given).all(|(record, (image, number))| {
        record.and_then(|r| r.at).map(|(i, _)| i) == *image && generation(*record) == *number
    })
}

fn alarm_stops_deletion(state: &State) -> bool {
    state.roots.iter().all(|r| r.state != RootState::Deleted || r.alarms == 0)
}

fn steady_lease_keeps_root(state: &State) -> bool {
    state.processes.iter().all(|p| !p.steady || state.root(p.root).is_kept())
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = |role: &Role| match role {
            Role::Publisher { .. } => Pc::Begin,
            Role::Remover { .. } | Role::Sandbox { .. } => Pc::ReadName,
            Role::Collector => Pc::Idle,
        };
        let mut state = State {
            clock: 0,
            sequence: 0,
            roots: Default::default(),
            names: [None; NAMES],
            given: [(None, 0); NAMES],
            late: None,
            timeouts_left: self.timeouts,
            clears_left: self.clears,
            twins: self.setup.roles.ends_with(&[Role::Collector; 2]),
            processes: self.setup.roles.iter().map(|r| Process { pc: first(r), ..Process::default() }).collect(),
        };
        for root in &mut state.roots[..usize::from(self.active)] {
            root.state = RootState::Active;
        }
        // What may not be used is over already.
        for root in &mut state.roots[usize::from(self.roots)..] {
            root.state = RootState::Deleted;
        }
        for name in 0..usize::from(self.published) {
            state.names[name] = Some(Record { at: Some((0, 0)), generation: 1, fence: 0 });
            state.given[name] = (Some(0), 1);
            state.roots[0].manifests = 1;
            state.roots[0].chunks = 1 << self.setup.chunk_of[0];
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let roots = || 0..self.roots;
        for (process, p) in state.processes.iter().enumerate() {
            match (p.pc, self.setup.roles[process]) {
                (Pc::Begin, _) => {
                    actions.extend(roots().filter(|r| state.is_active(*r)).map(|root| Action::Begin { process, root }));
                }
                (Pc::Idle, _) => {
                    let all = roots().flat_map(|root| JOBS.map(|job| Action::Start { process, job, root }));
                    actions.extend(all);
                }
                (Pc::Done, _) => {}
                (action, _) => {
                    actions.push(Action::Do { process, action });
                    let cas = matches!(action, Pc::CommitName | Pc::MoveCommit);
                    if cas && state.timeouts_left > 0 && state.late.is_none() {
                        actions.push(Action::TimesOut { process, action });
                    }
                }
            }
        }
        if state.late.is_some() {
            actions.push(Action::Land);
        }
        if state.clock < self.last_tick {
            actions.push(Action::Tick);
        }
        if state.clears_left > 0 {
            let raised = |r: &u8| state.root(*r).state == RootState::Expired && state.root(*r).alarms != 0;
            actions.extend(roots().filter(raised).map(|root| Action::ClearAlarms { root }));
        }
        if self.setup.mistakes.purge_tombstones {
            let gone = |n: &u8| state.names[usize::from(*n)].is_some_and(|r| r.at.is_none());
            actions.extend((0..self.setup.names).filter(gone).map(|name| Action::PurgeTombstone { name }));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Begin { process, root } => return Some(Setup::begin(state, process, root)),
            Action::Start { process, job, root } => return self.setup.start(state, process, job, root),
            Action::Do { process, .. } => return self.setup.step(state, process, false),
            Action::TimesOut { process, .. } => return self.setup.step(state, process, true),
            Action::Land => {
                let late = next.late.take()?;
                if next.cas_name(late.name, late.etag, late.record) && late.record.generation != generation(late.etag) {
                    let image = late.record.at.map(|(image, _)| image);
                    next.given[usize::from(late.name)] = (image, late.record.generation);
                }
            }
            Action::Tick => {
                next.clock += 1;
                for index in 0..next.processes.len() {
                    if next.processes[index].promised.is_some_and(|until| until < next.clock) {
                        next.processes[index].promised = None;
                        next.processes[index].steady = false;
                    }
                }
            }
            Action::ClearAlarms { root } => {
                next.clears_left -= 1;
                next.sequence += 1;
                next.root_mut(root).alarms = 0;
            }
            Action::PurgeTombstone { name } => {
                next.names[usize::from(name)] = None;
                next.given[usize::from(name)] = (None, 0);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("S1", |c: &Config, s: &State| c.s1(s)),
            Property::always("S2", |c: &Config, s: &State| c.s2(s)),
            Property::always("record shown", |_, s: &State| shown(s)),
            Property::always("alarm stops deletion", |_, s: &State| alarm_stops_deletion(s)),
            Property::always("steady lease keeps root", |_, s: &State| steady_lease_keeps_root(s)),
            Property::always("L1", |c: &Config, s: &State| c.drains(s)),
        ];
        properties.extend(self.reached.iter().map(|(name, holds)| Property::sometimes(name, *holds)));
        properties
    }
}
