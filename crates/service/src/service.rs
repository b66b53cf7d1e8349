//! The service: functions, their sandboxes, and what goes on between them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use snowmelt_sandbox::AgentConfig;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::Place;
use crate::assignment::{Assignment, Key, Limits, StartFailure, Wish, payload};
use crate::events::{self, Events};
use crate::host::OutgoingNetwork;
use crate::hosts::{self, Came, Host, Table};
use crate::journal::{Journal, Sandboxes};
use crate::link::{FromHost, Reason, ToHost};
use crate::logs::Logs;
use crate::measures::Board;
use crate::model::{Version, new_id};
use crate::package::Packages;
use crate::placement::{Machine, StartFor, Wanted};
use crate::provisioning::{Provisioning, WELL_AFTER};
use crate::publishing;
use crate::registry::Registry;
use crate::url::UrlBase;

/// A key that callers sign with.
#[derive(Clone)]
pub struct AccessKey {
    /// As it is in signatures.
    pub id: String,
    /// What signs.
    pub secret: String,
    /// Whose functions it reaches.
    pub tenant: String,
    /// What goes with it, where it is temporary.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// How a service is to be.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Its own folder: what it knows and what functions write.
    pub folder: PathBuf,
    /// For ARNs.
    pub place: Place,
    /// Who may call. Without any, everybody may, as the tenant `default`.
    pub access_keys: Vec<AccessKey>,
    /// Whether code may come from files of this machine.
    pub allows_local_images: bool,
    /// This program.
    pub program: PathBuf,
    /// How images are opened and served.
    pub agent: AgentConfig,
    /// Where sandboxes are recorded.
    pub state: PathBuf,
    /// Invocations at once of a tenant.
    pub account_concurrency: u32,
    /// New sandboxes of a function in ten seconds.
    pub burst: usize,
    /// For how long a sandbox may be idle.
    pub idle: Duration,
    /// How long until a failed event is run again; the second time it waits twice as long.
    pub retry_after: Duration,
    /// The folder that records of events may be written to, by tenant, if any may.
    pub destinations: Option<PathBuf>,
    /// Whether records of events may be sent to addresses: this machine reaches what callers may not.
    pub allows_http_destinations: bool,
    /// Who has it may see what all tenants' functions do, where there are access keys.
    pub status_token: Option<String>,
    /// Images that packages run on, by the names of their runtimes.
    pub runtimes: BTreeMap<String, String>,
    /// What URLs of functions begin and end with.
    pub urls: UrlBase,
    /// Where functions may connect to.
    pub outgoing: OutgoingNetwork,
    /// How this program is to be set up when it publishes: variables, as it reads them.
    pub environment: Vec<(String, String)>,
}

/// A part of an answer.
#[derive(Debug)]
pub(crate) enum Piece {
    /// It begins with the head of an answer of HTTP.
    Http,
    /// More of it.
    Data(Bytes),
    /// Its end.
    Done { body: Bytes, tail: Option<String> },
    /// The function failed, with this for its answer.
    Failed { kind: String, body: Bytes, tail: Option<String> },
}

/// A sandbox that was started.
struct Sandbox {
    key: Key,
    start: StartFor,
    since: Instant,
    host: Option<Host>,
    /// How often its runtime has asked for an invocation, as far as it is known.
    asks: u64,
    invocation: Option<String>,
    /// When it must have asked again, or ended.
    deadline: Option<Instant>,
    /// It is no sandbox for anybody any more, and writes its last lines.
    is_ending: bool,
    /// How much of its first invocation's time it took to begin.
    spent: Duration,
}

impl Sandbox {
    fn new(key: Key, deadline: Option<Instant>, start: StartFor) -> Self {
        let spent = Duration::ZERO;
        Self {
            key,
            start,
            since: Instant::now(),
            host: None,
            asks: 0,
            invocation: None,
            deadline,
            is_ending: false,
            spent,
        }
    }

    fn has_begun(&self) -> bool {
        self.asks > 0
    }
}

/// The service itself.
pub struct Service {
    pub(crate) options: ServiceOptions,
    pub(crate) registry: Registry,
    pub(crate) events: Events,
    pub(crate) assignment: Assignment,
    pub(crate) limits: Limits,
    pub(crate) logs: Logs,
    pub(crate) board: Board,
    pub(crate) started: SystemTime,
    pub(crate) packages: Packages,
    pub(crate) provisioning: Provisioning,
    /// What signs addresses that packages are fetched from, while this service is there.
    pub(crate) address_key: [u8; 32],
    /// Of its folder, and of the state directory: hosts come to one service.
    _locks: [Flock<File>; 2],
    machine: Machine,
    journal: Journal,
    background: Mutex<JoinSet<()>>,
    /// Told of each host that is gone without a word.
    pub(crate) lost_hosts: Arc<Notify>,
    sandboxes: Table<Sandbox>,
    /// Who waits for which invocation's answer.
    waiting: Table<mpsc::Sender<Piece>>,
    is_closing: AtomicBool,
    pub(crate) publishing: Semaphore,
    /// Room for readers of logs.
    pub(crate) readers: Arc<Semaphore>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Service {
    /// Opens what is known, and listens for hosts.
    ///
    /// # Errors
    /// Those of the folder and of the database in it.
    pub fn start(options: ServiceOptions) -> Result<Arc<Self>, Box<dyn std::error::Error + Send + Sync>> {
        // What functions are given and write is for nobody else.
        std::fs::create_dir_all(&options.folder)?;
        std::fs::set_permissions(&options.folder, std::fs::Permissions::from_mode(0o700))?;
        // Sockets have short names, and state is where the machine's sandboxes are.
        let socket = options.state.join("functions.sock");
        std::fs::create_dir_all(&options.state)?;
        let locks = [lock(&options.state)?, lock(&options.folder)?];
        let registry = Registry::open(&options.folder.join("functions.redb"))?;
        let (journal, before) = Journal::open(&options.folder.join("sandboxes.log"))?;
        let events = Events::open(&options.folder.join("events.redb"), options.retry_after)?;
        let machine = Machine {
            program: options.program.clone(),
            socket: socket.clone(),
            agent: options.agent.clone(),
            state: options.state.clone(),
            place: options.place.clone(),
            outgoing: options.outgoing,
        };
        let limits =
            Limits { account_concurrency: options.account_concurrency, burst: options.burst, idle: options.idle };
        let logs = Logs::new(&options.folder.join("logs"));
        let packages = Packages::new(&options.folder.join("packages"));
        let mut address_key = [0; 32];
        getrandom::fill(&mut address_key)?;
        let service = Arc::new(Self {
            options,
            _locks: locks,
            registry,
            events,
            assignment: Assignment::default(),
            limits,
            logs,
            board: Board::default(),
            started: SystemTime::now(),
            packages,
            provisioning: Provisioning::default(),
            address_key,
            machine,
            journal,
            background: Mutex::default(),
            lost_hosts: Arc::default(),
            sandboxes: Table::default(),
            waiting: Table::default(),
            is_closing: AtomicBool::new(false),
            publishing: Semaphore::new(publishing::MOST_AT_ONCE),
            readers: Arc::new(Semaphore::new(MOST_READERS)),
        });
        for function in service.registry.all() {
            service.set_aside(&function);
        }
        service.expect_hosts(before);
        service.remove_leftovers();
        // A service before this one may have lost some.
        service.lost_hosts.notify_one();
        tokio::spawn(hosts::remove_what_is_left(service.options.state.clone(), Arc::clone(&service.lost_hosts)));
        hosts::listen(&socket, Arc::clone(&service))?;
        tokio::spawn(reap(Arc::downgrade(&service)));
        tokio::spawn(events::dispatch(Arc::downgrade(&service)));
        for function in service.registry.all() {
            if function.latest.is_changing() {
                service.publish(&function);
            }
        }
        Ok(service)
    }

    /// Knows the sandboxes of a service before this one, whose hosts are to come soon, if they are still there.
    fn expect_hosts(self: &Arc<Self>, before: Sandboxes) {
        for (id, (key, is_provisioned)) in before {
            self.assignment.expect(&id, &key, is_provisioned);
            self.board.sandboxes.expected(&id, &key);
            let start = if is_provisioned { StartFor::Provisioned } else { StartFor::InvocationAgain };
            let entry = Sandbox::new(key, None, start);
            self.sandboxes.lock().insert(id.clone(), entry);
            let service = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep(COME_BACK_WITHIN).await;
                let Some(service) = service.upgrade() else { return };
                let has_come = service.sandboxes.lock().get(&id).is_none_or(|sandbox| sandbox.host.is_some());
                // That it has gone is no failure of the function's: who waits for it gets another.
                if !has_come && service.remove(&id).is_some() {
                    let gone = service.assignment.gone(&id, None);
                    service.follow(gone, StartFor::Invocation);
                }
            });
        }
    }

    /// Does something that the service waits for when it ends.
    pub(crate) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background.spawn(work);
    }

    /// Ends every sandbox and what is done in the background, and waits until they are gone or for so long.
    pub async fn end(&self, patience: Duration) {
        self.is_closing.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        // Those that are at something end when they are done with it; the next service knows those that are not in time.
        let mut told = HashSet::new();
        while !self.sandboxes.lock().is_empty() && Instant::now() < deadline {
            for (id, sandbox) in self.sandboxes.lock().iter().filter(|(_, sandbox)| sandbox.invocation.is_none()) {
                if let Some(host) = &sandbox.host
                    && told.insert(id.clone())
                {
                    host.tell_now(ToHost::End(Reason::Spindown));
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut background = std::mem::take(&mut *self.background.lock().unwrap_or_else(PoisonError::into_inner));
        let finish = async { while background.join_next().await.is_some() {} };
        let _ = tokio::time::timeout_at((deadline + patience).into(), finish).await;
    }

    /// Whether it takes nothing new.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Starts a sandbox of this kind, in the background.
    pub(crate) fn start_sandbox(self: &Arc<Self>, key: Key, version: Version, start: StartFor) {
        let service = Arc::clone(self);
        let is_provisioned = start == StartFor::Provisioned;
        tokio::spawn(async move {
            let id = new_id();
            service.board.sandboxes.wished(&id, &key);
            let limit = START_LIMIT + start.init_limit(version.settings.timeout);
            let entry = Sandbox::new(key.clone(), Some(Instant::now() + limit), start);
            service.sandboxes.lock().insert(id.clone(), entry);
            service.assignment.starting(&id, &key, is_provisioned);
            // Before it is there, so that none is ever there that the next service does not know.
            service.journal.started(&id, &key, is_provisioned);
            let wanted = Wanted {
                sandbox: &id,
                tenant: &key.tenant,
                function: &key.function,
                number: &key.number,
                version: &version,
                start,
            };
            match service.machine.start(&wanted).await {
                Ok(mut child) => {
                    let _ = child.wait().await;
                    // One that came has said how it ended, which may not have been read yet.
                    let has_come = service.sandboxes.lock().get(&id).is_some_and(|sandbox| sandbox.host.is_some());
                    if !has_come {
                        service.ended(&id, "its host ended before it came");
                    }
                }
                Err(error) => service.ended(&id, &error.to_string()),
            }
        });
    }

    /// Waits for answers to an invocation from now on, until [`Service::forget_answers`].
    pub(crate) fn expect(&self, id: &str) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(MOST_PIECES);
        self.waiting.lock().insert(id.to_owned(), sender);
        receiver
    }

    pub(crate) fn forget_answers(&self, id: &str) {
        self.waiting.lock().remove(id);
    }

    /// A sandbox is at an invocation from now on, and is to be done by then. False where it has gone.
    pub(crate) fn gave(&self, sandbox: &str, invocation: &str, deadline: Instant) -> bool {
        let mut sandboxes = self.sandboxes.lock();
        let Some(sandbox) = sandboxes.get_mut(sandbox).filter(|sandbox| !sandbox.is_ending) else { return false };
        sandbox.invocation = Some(invocation.to_owned());
        sandbox.deadline = Some(deadline + GRACE);
        true
    }

    /// How much of the time of its first invocation a sandbox took to begin: it is asked once.
    pub(crate) fn spent_on_init(&self, sandbox: &str) -> Duration {
        self.sandboxes.lock().get_mut(sandbox).map(|sandbox| std::mem::take(&mut sandbox.spent)).unwrap_or_default()
    }

    /// Who reads the answer slowly has its sandbox wait.
    async fn answer(&self, id: &str, piece: Piece) {
        let sender = self.waiting.lock().get(id).cloned();
        if let Some(sender) = sender {
            // Who waited may be gone.
            let _ = sender.send(piece).await;
        }
    }

    /// It has answered, and is free once it asks for more.
    fn is_done(&self, host: &Host, invocation: &str) {
        if let Some(sandbox) = self.sandboxes.lock().get_mut(&host.sandbox)
            && sandbox.invocation.as_deref() == Some(invocation)
        {
            sandbox.invocation = None;
        }
        self.assignment.answered(&host.sandbox, Instant::now());
    }

    /// It asks for the how many-th time; what is heard twice counts once.
    fn asks(&self, host: &Host, number: u64, init_ms: Option<u64>) {
        {
            let mut sandboxes = self.sandboxes.lock();
            let Some(sandbox) =
                sandboxes.get_mut(&host.sandbox).filter(|sandbox| !sandbox.is_ending && number > sandbox.asks)
            else {
                return;
            };
            sandbox.asks = number;
            sandbox.invocation = None;
            sandbox.deadline = None;
            sandbox.spent = Duration::from_millis(init_ms.unwrap_or(0));
        }
        self.assignment.free(host, Instant::now());
    }

    /// Ends a sandbox if it is at that invocation; whoever waits for that is told by who calls.
    pub(crate) fn kill_at(self: &Arc<Self>, host: &Host, invocation: &str) {
        if self.ends(host, Reason::Timeout, |sandbox| sandbox.invocation.as_deref() == Some(invocation)).is_some() {
            let gone = self.assignment.gone(&host.sandbox, None);
            self.follow(gone, StartFor::Invocation);
        }
    }

    /// Has a sandbox end if it is so; it stays known until it has, since what it writes then is for its log. Gives what it ran, and what for.
    fn ends(&self, host: &Host, reason: Reason, is_so: impl Fn(&Sandbox) -> bool) -> Option<(Key, StartFor)> {
        let ended = {
            let mut sandboxes = self.sandboxes.lock();
            let sandbox = sandboxes.get_mut(&host.sandbox).filter(|sandbox| !sandbox.is_ending && is_so(sandbox))?;
            sandbox.is_ending = true;
            sandbox.invocation = None;
            sandbox.deadline = Some(Instant::now() + GRACE);
            (sandbox.key.clone(), sandbox.start)
        };
        host.end(reason);
        Some(ended)
    }

    /// Adds to a function's log. One that was deleted has none any more.
    pub(crate) fn log(&self, tenant: &str, function: &str, bytes: &[u8]) {
        if self.registry.find(tenant, function).is_some() {
            self.logs.add(tenant, function, bytes);
        }
    }

    fn remove(&self, sandbox: &str) -> Option<Sandbox> {
        let removed = self.sandboxes.lock().remove(sandbox);
        if removed.is_some() {
            self.board.sandboxes.ended(sandbox);
            self.journal.ended(sandbox);
        }
        removed
    }

    pub(crate) fn follow(self: &Arc<Self>, wish: Option<(Key, Wish)>, start: StartFor) {
        let Some((key, Wish::Start)) = wish else { return };
        let function = self.registry.find(&key.tenant, &key.function);
        let version =
            function.as_ref().and_then(|function| function.with_revision(&key.number, &key.revision)).cloned();
        if let Some(version) = version.filter(|_| !self.is_closing()) {
            return self.start_sandbox(key, version, start);
        }
        let message = format!("{} was changed or deleted", key.function);
        let error = json!({ "errorType": "Runtime.ExitError", "errorMessage": message });
        self.assignment.give_up(&key, &StartFailure::new("Runtime.ExitError", &message, error.to_string().into()));
    }

    /// A sandbox has ended.
    fn ended(self: &Arc<Self>, id: &str, how: &str) {
        // Of what ended in order its host has said how, and nobody waits for it any more.
        let Some(sandbox) = self.remove(id).filter(|sandbox| !sandbox.is_ending) else { return };
        let (kind, message) = ("Runtime.ExitError", format!("Runtime exited with error: {how}"));
        if sandbox.start == StartFor::Provisioned && sandbox.since.elapsed() < WELL_AFTER {
            self.provisioning.failed(&sandbox.key, how, Instant::now());
        }
        let failure = if sandbox.has_begun() {
            None
        } else {
            let line = format!("INIT_REPORT Status: error\tError Type: {kind}\t{how}\n");
            self.log(&sandbox.key.tenant, &sandbox.key.function, line.as_bytes());
            Some(StartFailure::new(kind, &message, Bytes::new()))
        };
        if let Some(invocation) = sandbox.invocation.clone() {
            let body = payload(&invocation, kind, &message);
            let service = Arc::clone(self);
            tokio::spawn(async move {
                let piece = Piece::Failed { kind: kind.into(), body, tail: None };
                service.answer(&invocation, piece).await;
            });
        }
        let gone = self.assignment.gone(id, failure.as_ref());
        self.follow(gone, StartFor::Invocation);
    }

    /// A sandbox cannot begin. One that somebody waits for is tried once more, as a part of the invocation.
    fn init_failed(self: &Arc<Self>, host: &Host, kind: &str, message: &str, said: Bytes) {
        let Some((key, start)) = self.ends(host, Reason::Failure, |_| true) else { return };
        if start == StartFor::Provisioned {
            let why = if said.is_empty() { message.into() } else { String::from_utf8_lossy(&said) };
            self.provisioning.failed(&key, &why, Instant::now());
        }
        let failure = (start == StartFor::InvocationAgain).then(|| StartFailure::new(kind, message, said));
        let gone = self.assignment.gone(&host.sandbox, failure.as_ref());
        let next = if start == StartFor::Invocation { StartFor::InvocationAgain } else { StartFor::Invocation };
        self.follow(gone, next);
    }

    /// Ends what is late: starts that do not begin, and runtimes that answered and ask for nothing more.
    fn end_late(self: &Arc<Self>) {
        let now = Instant::now();
        let late: Vec<(String, Option<Host>)> = {
            let sandboxes = self.sandboxes.lock();
            let late = sandboxes.iter().filter(|(_, sandbox)| sandbox.deadline.is_some_and(|deadline| deadline < now));
            late.map(|(id, sandbox)| (id.clone(), sandbox.host.clone())).collect()
        };
        for (id, host) in late {
            if let Some(host) = host {
                host.end(Reason::Timeout);
            }
            self.ended(&id, "it did not ask for an invocation in time");
        }
    }
}

/// Takes a folder for this service alone.
fn lock(folder: &Path) -> Result<Flock<File>, Box<dyn std::error::Error + Send + Sync>> {
    let file = File::options().write(true).create(true).truncate(false).open(folder.join("functions.lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => format!(
            "another service uses {}: stop it, or give this one another --folder and --state-dir",
            folder.display()
        )
        .into(),
        error => error.into(),
    })
}

/// Readers of logs at once.
const MOST_READERS: usize = 256;
/// Parts of an answer that wait for who reads it.
const MOST_PIECES: usize = 8;
/// How long after its timeout a sandbox must have asked for more.
const GRACE: Duration = Duration::from_secs(5);
/// What a sandbox is given whose beginning this service did not see: Lambda's longest timeout, and more.
const LONGEST: Duration = Duration::from_secs(920);

/// Hosts look for a service ten times a second.
const COME_BACK_WITHIN: Duration = Duration::from_secs(5);

/// How long a sandbox may take until it has begun, beside the function's own timeout: for its image, and what its host allows it.
const START_LIMIT: Duration = Duration::from_mins(1);

/// Ends sandboxes that nobody needs.
async fn reap(service: std::sync::Weak<Service>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Some(service) = service.upgrade() else { return };
        service.end_late();
        service.board.retain(|tenant, function| service.registry.find(tenant, function).is_some());
        service.provision();
        for key in service.assignment.overdue(service.limits.burst, Instant::now()) {
            service.follow(Some((key, Wish::Start)), StartFor::Invocation);
        }
        let keys = service.assignment.keys().into_iter();
        let current: HashMap<Key, usize> = keys.filter_map(|key| Some((key.clone(), service.kept(&key)?))).collect();
        let kept = |key: &Key| current.get(key).copied();
        for host in service.assignment.reap(service.limits.idle, Instant::now(), &kept) {
            service.ends(&host, Reason::Spindown, |_| true);
        }
    }
}

impl Service {
    /// How many sandboxes of a kind are kept whether they are needed or not; `None` where the function has not any more what they run.
    pub(crate) fn kept(&self, key: &Key) -> Option<usize> {
        let function = self.registry.find(&key.tenant, &key.function)?;
        function.with_revision(&key.number, &key.revision)?;
        Some(function.provisioned_of(&key.number) as usize)
    }

    /// A host has come. False if there is no such sandbox: it is then to end.
    pub(crate) fn came(&self, host: &Host, state: &Came) -> bool {
        let is_new = {
            let mut sandboxes = self.sandboxes.lock();
            let Some(sandbox) = sandboxes.get_mut(&host.sandbox) else { return false };
            sandbox.host = Some(host.clone());
            self.board.sandboxes.came(&host.sandbox, host.pid);
            sandbox.asks = state.asks;
            sandbox.invocation.clone_from(&state.invocation);
            if state.is_asking {
                sandbox.deadline = None;
            } else {
                sandbox.deadline.get_or_insert(Instant::now() + LONGEST);
            }
            state.asks == 0
        };
        match (is_new, state.is_asking) {
            (true, _) => {}
            (false, true) => drop(self.assignment.free(host, Instant::now())),
            // It asks when it is done with what a service before this gave it.
            (false, false) => self.assignment.adopt_busy(host),
        }
        true
    }

    /// Its connection has ended.
    pub(crate) fn host_gone(self: &Arc<Self>, host: &Host) {
        self.ended(&host.sandbox, "its host ended");
    }

    /// It gives lines of its function's log.
    pub(crate) fn logged(&self, host: &Host, lines: &[u8]) {
        let key = self.sandboxes.lock().get(&host.sandbox).map(|sandbox| sandbox.key.clone());
        if let Some(key) = key {
            self.log(&key.tenant, &key.function, lines);
        }
    }

    /// It says something.
    pub(crate) async fn said(self: &Arc<Self>, host: &Host, message: FromHost, body: Bytes) {
        match message {
            FromHost::Hello { .. } => {}
            FromHost::Asks { number, init_ms } => self.asks(host, number, init_ms),
            FromHost::Began(beginning) => self.board.began(&host.sandbox, &beginning),
            FromHost::Ran { took_us, .. } => {
                self.board.sandboxes.has_run(&host.sandbox, Duration::from_micros(took_us));
            }
            FromHost::InitFailed { kind, message } => self.init_failed(host, &kind, &message, body),
            FromHost::Response { id, tail, is_last } => {
                let piece = if is_last { Piece::Done { body, tail } } else { Piece::Data(body) };
                if is_last {
                    self.is_done(host, &id);
                }
                self.answer(&id, piece).await;
            }
            FromHost::Http { id } => self.answer(&id, Piece::Http).await,
            FromHost::Failed { id, kind, tail } => {
                self.is_done(host, &id);
                self.answer(&id, Piece::Failed { kind, body, tail }).await;
            }
            FromHost::Log => self.logged(host, &body),
            FromHost::Ending => {
                if let Some((key, start)) = self.ends(host, Reason::Failure, |sandbox| sandbox.invocation.is_none()) {
                    if start == StartFor::Provisioned {
                        self.provisioning.failed(&key, "it ended by itself", Instant::now());
                    }
                    let gone = self.assignment.gone(&host.sandbox, None);
                    self.follow(gone, StartFor::Invocation);
                }
            }
            FromHost::Exited { how } => self.ended(&host.sandbox, &how),
        }
    }
}
