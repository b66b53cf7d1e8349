//! The sandboxes of a worker: who serves each, what is held for a successor, and what happens when an agent ends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snowmelt_store::{ImageLease, NameRecord, Store};

use super::admission::{Admitted, Spared};
use super::kept::{self, Kept};
use super::messages::{Begin, Ending, FromAgent, HandedOver, StartRead, ToAgent};
use super::started::Started;
use super::stores::Stores;
use super::{WorkerOptions, kill_container};
use crate::agent::lease::LeaseKeeper;
use crate::agent::protocol::Request;
use crate::agent::start_logs::StartLogs;
use crate::channel::Channel;
use crate::identity::ProcessId;
use crate::state::{Kind, Leftovers, Record};
use crate::{Error, StateDir};

/// The first user that an agent may become, and how many there are. No package or directory service gives out such numbers.
const FIRST_USER: u32 = 1_878_000_000;
const USERS: u32 = 65_536;
/// How long an agent that has closed its connection may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// An agent that ended so often within that time is not replaced any more: it would go on so.
const MOST_DEATHS: usize = 5;
const DEATHS_WITHIN: Duration = Duration::from_mins(1);
/// Of the descriptors of a [`HandedOver`], those that every agent gets.
const COMMON: usize = 3;

/// All of them.
pub(super) struct Sandboxes {
    pub(super) options: WorkerOptions,
    pub(super) state: StateDir,
    table: Mutex<HashMap<String, Sandbox>>,
    stores: Stores,
    users: Mutex<HashSet<u32>>,
    replaced: std::sync::atomic::AtomicU64,
}

/// One sandbox.
struct Sandbox {
    kept: Kept,
    agent: Option<ProcessId>,
    /// Of an agent that this worker started.
    child: Option<Child>,
    /// The process that opens the image for it, and where that writes, until the agent has it.
    opener: Option<Child>,
    opened: Option<OwnedFd>,
    channel: Option<Arc<Channel>>,
    /// Control, reports and messages of the command that started it.
    pipes: Vec<OwnedFd>,
    /// The mount namespace to mount in; not needed any more once that is done.
    namespace: Option<OwnedFd>,
    store: Option<Arc<Store>>,
    lease: Option<LeaseKeeper>,
    handed_over: Option<(HandedOver, Vec<OwnedFd>)>,
    /// Until it has mounted.
    admitted: Option<Admitted>,
    /// Whether it asked for a chunk that was not on this machine.
    has_fetched: bool,
    /// From its mount on, where it has not.
    spared: Option<Spared>,
    deaths: VecDeque<Instant>,
    /// Whether its agent has, which it does once: after that it is confined, and not believed as much.
    has_handed_over: bool,
}

impl Sandboxes {
    pub(super) fn new(options: WorkerOptions, state: StateDir) -> Arc<Self> {
        // Agents of a worker before may come back at any time: nobody else gets their users.
        let users = kept::users(&state);
        Arc::new(Self {
            options,
            state,
            table: Mutex::default(),
            stores: Stores::default(),
            users: Mutex::new(users),
            replaced: std::sync::atomic::AtomicU64::new(0),
        })
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Sandbox>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sandboxes, and agents that were replaced.
    pub(super) fn counts(&self) -> (usize, u64) {
        (self.table().len(), self.replaced.load(std::sync::atomic::Ordering::Relaxed))
    }

    /// Where a sandbox's chunks come from. Asked when its agent wants one that is not on this machine, as root until it has mounted and as
    /// its own user after that.
    pub(super) fn store_of(&self, sandbox: &str, user: u32) -> Option<Arc<Store>> {
        let mut table = self.table();
        let sandbox = table.get_mut(sandbox).filter(|sandbox| user == 0 || user == sandbox.kept.user)?;
        sandbox.has_fetched = true;
        if let Some((admitted, left)) = sandbox.spared.take().and_then(Spared::count) {
            release_later(admitted, left);
        }
        sandbox.store.clone()
    }

    /// Starts the agent of a new sandbox. Gives the processes of agent and worker.
    pub(super) fn start(
        self: &Arc<Self>,
        request: Request,
        descriptors: Vec<OwnedFd>,
        admitted: Admitted,
    ) -> Result<(ProcessId, ProcessId), Error> {
        let user = self.take_user()?;
        let started = self.start_as(user, request, descriptors, admitted);
        if started.is_err() {
            self.users.lock().unwrap_or_else(PoisonError::into_inner).remove(&user);
        }
        started
    }

    fn start_as(
        self: &Arc<Self>,
        user: u32,
        request: Request,
        mut descriptors: Vec<OwnedFd>,
        admitted: Admitted,
    ) -> Result<(ProcessId, ProcessId), Error> {
        if descriptors.len() != COMMON + 1 {
            return Err(Error::invalid("the worker", "was sent other descriptors than it expects"));
        }
        let id = request.record.id.clone();
        let worker = ProcessId::own().ok_or_else(|| Error::invalid("the worker", "does not find itself in /proc"))?;
        let namespace = descriptors.pop();
        let mut kept = Kept { request, user, mounter: None, root: None };
        kept.request.record.worker = Some(worker);
        kept.write(&self.state)?;
        let mut table = self.table();
        let mut sandbox = Sandbox {
            kept,
            agent: None,
            child: None,
            opener: None,
            opened: None,
            channel: None,
            pipes: descriptors,
            namespace,
            store: None,
            lease: None,
            handed_over: None,
            admitted: Some(admitted),
            has_fetched: false,
            spared: None,
            deaths: VecDeque::new(),
            has_handed_over: false,
        };
        // Under the lock: the agent may say hello before this knows it.
        let agent = self.spawn(&mut sandbox)?;
        table.insert(id, sandbox);
        Ok((agent, worker))
    }

    fn take_user(&self) -> Result<u32, Error> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (FIRST_USER..FIRST_USER + USERS).find(|user| !users.contains(user));
        let free = free.ok_or_else(|| Error::invalid("the worker", "has no user left for another agent"))?;
        users.insert(free);
        Ok(free)
    }

    /// Starts a process that serves the sandbox.
    fn spawn(&self, sandbox: &mut Sandbox) -> Result<ProcessId, Error> {
        let record = sandbox.handed_over.as_ref().map(|(handed_over, _)| handed_over.record.clone());
        let started = Started::new(&self.options.agent_command, &sandbox.kept.request, &sandbox.pipes, record)?;
        sandbox.stop_opener();
        sandbox.opener = Some(started.opener);
        sandbox.opened = Some(started.opened);
        sandbox.has_handed_over = false;
        sandbox.child = Some(started.child);
        sandbox.agent = Some(started.agent);
        sandbox.kept.request.record.agent = Some(started.agent);
        Ok(started.agent)
    }

    /// Talks to one agent until it ends, and then does what is to be done.
    pub(super) fn supervise(self: &Arc<Self>, channel: Channel) {
        let channel = Arc::new(channel);
        let (id, process) = match self.greet(&channel) {
            Ok(greeted) => greeted,
            Err(error) => return tracing::warn!(%error, "a process that is no agent of ours was turned away"),
        };
        let mut ending = None;
        loop {
            match channel.receive::<FromAgent>() {
                Ok(Some((FromAgent::Ended(how), _))) => ending = Some(how),
                Ok(Some((message, descriptors))) => {
                    if let Err(error) = self.hear(&id, &channel, message, descriptors) {
                        tracing::error!(sandbox = id, %error, "an agent cannot be served");
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(sandbox = id, %error, "an agent said what is not understood");
                    break;
                }
            }
        }
        drop(channel);
        if !process.wait(END_PATIENCE) {
            process.kill(END_PATIENCE);
        }
        self.ended(&id, process, ending);
    }

    fn greet(self: &Arc<Self>, channel: &Arc<Channel>) -> Result<(String, ProcessId), Error> {
        let io = |source| Error::io("hear from", "an agent", source);
        let (peer, _) = channel.peer().map_err(io)?;
        let stranger = |id: &str| Error::invalid(id, format!("process {peer} is not its agent"));
        match channel.expect::<FromAgent>()? {
            (FromAgent::Hello { sandbox: id }, _) => {
                let mut table = self.table();
                let sandbox = table.get_mut(&id).ok_or_else(|| stranger(&id))?;
                let process = sandbox.agent.filter(|agent| agent.pid == peer).ok_or_else(|| stranger(&id))?;
                let begin = Begin {
                    user: sandbox.kept.user,
                    memory_bytes: self.options.agent_memory_bytes,
                    resume: sandbox.handed_over.as_ref().map(|(handed_over, _)| Box::new(handed_over.clone())),
                };
                let held = sandbox.handed_over.iter().flat_map(|(_, held)| held);
                let all = sandbox.pipes.iter().chain(&sandbox.opened).chain(&sandbox.namespace).chain(held);
                let descriptors: Vec<BorrowedFd<'_>> = all.map(AsFd::as_fd).collect();
                channel.send(&ToAgent::Begin(Box::new(begin)), &descriptors).map_err(io)?;
                // Its writer is to learn when the agent has gone.
                sandbox.opened = None;
                sandbox.channel = Some(Arc::clone(channel));
                Ok((id, process))
            }
            (FromAgent::Adopt { sandbox: id, handed_over }, descriptors) => {
                let process = self.adopt(&id, peer, *handed_over, descriptors, channel)?;
                tracing::info!(sandbox = id, "an agent that served before is served again");
                Ok((id, process))
            }
            _ => Err(stranger("the first message")),
        }
    }

    fn adopt(
        self: &Arc<Self>,
        id: &str,
        peer: i32,
        mut handed_over: HandedOver,
        mut descriptors: Vec<OwnedFd>,
        channel: &Arc<Channel>,
    ) -> Result<ProcessId, Error> {
        let stranger = || Error::invalid(id, format!("process {peer} is not its agent"));
        let is_name = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_name || descriptors.len() < COMMON {
            return Err(stranger());
        }
        let mut kept = Kept::read(&self.state, id)?;
        let path = self.state.directory(id).join("record.json");
        let record = std::fs::read(&path).map_err(|source| Error::io("read", path.display(), source))?;
        let record: Record =
            serde_json::from_slice(&record).map_err(|source| Error::io("understand", path.display(), source))?;
        let process = record.agent.filter(|agent| agent.pid == peer && agent.is_alive()).ok_or_else(stranger)?;
        // It may be anybody's by now, but for what was written down while it was ours. One that is turned away is nobody's: what it leaves
        // is not this worker's, which its record would say from here on.
        if kept.mounter != Some(handed_over.mounter) {
            return Err(stranger());
        }
        kept.request.record = record;
        kept.request.record.worker = ProcessId::own();
        self.state.update(&kept.request.record)?;
        self.users.lock().unwrap_or_else(PoisonError::into_inner).insert(kept.user);
        let held = descriptors.split_off(COMMON);
        let mut table = self.table();
        if table.contains_key(id) {
            return Err(stranger());
        }
        if let Some(root) = &kept.root {
            handed_over.record.root.clone_from(root);
        }
        let name = handed_over.record.clone();
        let sandbox = Sandbox {
            kept,
            agent: Some(process),
            child: None,
            opener: None,
            opened: None,
            channel: Some(Arc::clone(channel)),
            pipes: descriptors,
            namespace: None,
            store: None,
            lease: None,
            handed_over: Some((handed_over, held)),
            admitted: None,
            has_fetched: false,
            spared: None,
            deaths: VecDeque::new(),
            has_handed_over: true,
        };
        table.insert(id.to_owned(), sandbox);
        drop(table);
        self.opened(id, &name)?;
        Ok(process)
    }

    fn hear(
        self: &Arc<Self>,
        id: &str,
        channel: &Channel,
        message: FromAgent,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), Error> {
        match message {
            FromAgent::Opened(record) => {
                self.opened(id, &record)?;
                channel.send(&ToAgent::Known, &[]).map_err(|source| Error::io("answer", "an agent", source))?;
            }
            FromAgent::HandedOver(handed_over) => {
                let held = descriptors.split_off(descriptors.len().min(COMMON));
                let counts_for = self.options.admission.counts_for;
                let mut table = self.table();
                if let Some(sandbox) = table.get_mut(id) {
                    let mounter = *sandbox.kept.mounter.get_or_insert(handed_over.mounter);
                    if std::mem::replace(&mut sandbox.has_handed_over, true) || mounter != handed_over.mounter {
                        return Err(Error::invalid(id, "its agent hands over what it did not begin with"));
                    }
                    // Without it nobody goes on after this worker's end, but with it they may.
                    if let Err(error) = sandbox.kept.write(&self.state) {
                        tracing::error!(sandbox = id, %error, "a worker that is started again will not know it");
                    }
                    sandbox.handed_over = Some((*handed_over, held));
                    sandbox.namespace = None;
                    if let Some(admitted) = sandbox.admitted.take() {
                        if sandbox.has_fetched {
                            release_later(admitted, counts_for);
                        } else {
                            sandbox.spared = Some(admitted.spare());
                        }
                    }
                }
            }
            FromAgent::Changed { runtime, detached } => {
                if let Some((handed_over, _)) =
                    self.table().get_mut(id).and_then(|sandbox| sandbox.handed_over.as_mut())
                {
                    handed_over.runtime = runtime;
                    handed_over.detached = detached;
                }
            }
            FromAgent::Read(read) => self.keep_start(id, &read),
            FromAgent::KillContainer { runtime } => {
                let record = self.table().get(id).map(|sandbox| sandbox.kept.request.record.clone());
                if let Some(record) = record {
                    kill_container(&record, runtime);
                }
                channel.send(&ToAgent::Known, &[]).map_err(|source| Error::io("answer", "an agent", source))?;
            }
            FromAgent::Hello { .. } | FromAgent::Adopt { .. } | FromAgent::Ended(_) => {
                return Err(Error::invalid(id, "its agent says again what it said already"));
            }
        }
        Ok(())
    }

    /// Knows from now on where a sandbox's chunks come from, and keeps its image.
    fn opened(self: &Arc<Self>, id: &str, record: &NameRecord) -> Result<(), Error> {
        let failed = |error: snowmelt_store::Error| Error::invalid(id, error.to_string());
        let config = match self.table().get(id) {
            Some(sandbox) => sandbox.kept.request.config.clone(),
            None => return Ok(()),
        };
        let store = self.stores.get(&config, &record.root)?;
        let manifest = record.manifest_id().map_err(failed)?;
        let lease = ImageLease::new(&store, &config.tenant, manifest, config.lease, &format!("sandbox {id}"));
        let lease = if store.is_object_storage() {
            let (sandboxes, id) = (Arc::downgrade(self), id.to_owned());
            LeaseKeeper::start(lease, move |store| {
                if let Some(sandboxes) = sandboxes.upgrade() {
                    sandboxes.moved(&id, &store);
                }
            })
        } else {
            None
        };
        if let Some(sandbox) = self.table().get_mut(id) {
            sandbox.store = Some(store);
            sandbox.lease = lease;
        }
        Ok(())
    }

    /// The image was copied to another root, which its chunks are read from now.
    fn moved(&self, id: &str, store: &Store) {
        let mut table = self.table();
        let Some(sandbox) = table.get_mut(id) else { return };
        if let Some((handed_over, _)) = &mut sandbox.handed_over {
            handed_over.record.root = store.root().into();
        }
        sandbox.kept.root = Some(store.root().into());
        if let Err(error) = sandbox.kept.write(&self.state) {
            tracing::error!(sandbox = id, %error, "the next worker will not know at once where its image is");
        }
        match self.stores.get(&sandbox.kept.request.config, store.root()) {
            Ok(store) => sandbox.store = Some(store),
            Err(error) => tracing::error!(sandbox = id, %error, "its image is read from its old root"),
        }
    }

    fn keep_start(&self, id: &str, read: &StartRead) {
        let found = self.table().get(id).and_then(|sandbox| {
            let (handed_over, _) = sandbox.handed_over.as_ref()?;
            let request = &sandbox.kept.request;
            let store = sandbox.store.clone()?;
            let manifest = handed_over.record.manifest_id().ok()?;
            Some((store, request.config.clone(), request.command.clone(), manifest))
        });
        let Some((store, config, command, manifest)) = found else { return };
        let logs = StartLogs::new(&store, &config.tenant, &config.cache_dir, &manifest, command.as_deref());
        logs.keep_text(&read.start, &read.expected, read.same_command);
    }

    /// An agent has ended.
    fn ended(self: &Arc<Self>, id: &str, process: ProcessId, ending: Option<Ending>) {
        let mut table = self.table();
        let Some(sandbox) = table.get_mut(id).filter(|sandbox| sandbox.agent == Some(process)) else { return };
        if let Some(mut child) = sandbox.child.take() {
            let _ = child.wait();
        }
        sandbox.stop_opener();
        sandbox.channel = None;
        sandbox.admitted = None;
        sandbox.spared = None;
        if ending.is_none() && sandbox.handed_over.is_some() && !sandbox.has_died_too_often() {
            tracing::warn!(sandbox = id, "the agent ended: another goes on with what it served");
            self.replaced.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            match self.spawn(sandbox).and_then(|_| self.state.update(&sandbox.kept.request.record)) {
                Ok(()) => return,
                Err(error) => tracing::error!(sandbox = id, %error, "it has no successor"),
            }
        }
        let Some(sandbox) = table.remove(id) else { return };
        drop(table);
        self.finish(sandbox, ending);
    }

    /// Takes down what is left of a sandbox that nobody serves any more.
    fn finish(&self, sandbox: Sandbox, ending: Option<Ending>) {
        let Sandbox { kept, lease, handed_over, pipes, namespace, .. } = sandbox;
        let record = &kept.request.record;
        let runtime = handed_over.as_ref().and_then(|(handed_over, _)| handed_over.runtime);
        // With the last descriptor of the device those who wait for it get errors; with the pipes the command that started it learns.
        drop((handed_over, namespace));
        if ending == Some(Ending::Abandoned) {
            kill_container(record, runtime);
        }
        let owner_lives = record.owner.is_alive();
        let leftovers = match ending {
            Some(Ending::Stopped) => Some(Leftovers::Files),
            // The command that started it lives and will.
            _ if owner_lives && record.kind == Kind::Run => None,
            _ => Some(Leftovers::Any),
        };
        if let Some(leftovers) = leftovers
            && let Err(error) = self.state.dismantle(record, leftovers)
        {
            tracing::error!(sandbox = record.id, %error, "not everything was removed");
        }
        drop(pipes);
        drop(lease);
        self.users.lock().unwrap_or_else(PoisonError::into_inner).remove(&kept.user);
    }

    /// Asks every agent to let go, for a successor of this worker's version. Gives how many were asked.
    pub(super) fn replace_all(&self) -> usize {
        let channels: Vec<_> = {
            let table = self.table();
            let served = table.values().filter(|sandbox| sandbox.handed_over.is_some());
            served.filter_map(|sandbox| sandbox.channel.clone()).collect()
        };
        channels.iter().filter(|channel| channel.send(&ToAgent::LetGo, &[]).is_ok()).count()
    }
}

impl Sandbox {
    /// It has done its work, or there is none any more.
    fn stop_opener(&mut self) {
        self.opened = None;
        if let Some(mut opener) = self.opener.take() {
            let _ = opener.kill();
            let _ = opener.wait();
        }
    }

    fn has_died_too_often(&mut self) -> bool {
        let now = Instant::now();
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|at| now.duration_since(*at) > DEATHS_WITHIN) {
            self.deaths.pop_front();
        }
        self.deaths.len() > MOST_DEATHS
    }
}

/// A start goes on reading for a while after its mount.
fn release_later(admitted: Admitted, after: Duration) {
    let work = move || {
        std::thread::sleep(after);
        drop(admitted);
    };
    // Without a thread it counts no longer, which is the safe side for the start.
    let _ = std::thread::Builder::new().name("admitted".into()).stack_size(64 << 10).spawn(work);
}
