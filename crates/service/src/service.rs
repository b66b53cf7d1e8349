//! The service: functions, their sandboxes, and what goes on between them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use snowmelt_sandbox::AgentConfig;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Place;
use crate::assignment::{Assignment, Key, Limits, StartFailure, Wish};
use crate::events::{self, Events};
use crate::hosts::{self, Came, Host, Listener, Table};
use crate::journal::Journal;
use crate::link::{FromHost, ToHost};
use crate::logs::Logs;
use crate::model::{Function, State, Update, Version, new_id};
use crate::placement::{Machine, Wanted};
use crate::publishing::{self, NoImage};
use crate::registry::Registry;

/// A key that callers sign with.
#[derive(Clone, Debug)]
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
    /// The folder that records of events may be written to, if any may.
    pub destinations: Option<PathBuf>,
}

/// A part of an answer.
#[derive(Debug)]
pub(crate) enum Piece {
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
    host: Option<Host>,
    is_ready: bool,
    invocation: Option<String>,
}

/// The service itself.
pub struct Service {
    pub(crate) options: ServiceOptions,
    pub(crate) registry: Registry,
    pub(crate) events: Events,
    pub(crate) assignment: Assignment,
    pub(crate) limits: Limits,
    pub(crate) logs: Logs,
    machine: Machine,
    journal: Journal,
    background: Mutex<JoinSet<()>>,
    sandboxes: Table<Sandbox>,
    /// Who waits for which invocation's answer.
    waiting: Table<mpsc::UnboundedSender<Piece>>,
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
        std::fs::create_dir_all(&options.folder)?;
        // Sockets have short names, and state is where the machine's sandboxes are.
        let socket = options.state.join("functions.sock");
        std::fs::create_dir_all(&options.state)?;
        let registry = Registry::open(&options.folder.join("functions.redb"))?;
        let (journal, before) = Journal::open(&options.folder.join("sandboxes.log"))?;
        let events = Events::open(&options.folder.join("events.redb"), options.retry_after)?;
        let machine = Machine {
            program: options.program.clone(),
            socket: socket.clone(),
            agent: options.agent.clone(),
            state: options.state.clone(),
            place: options.place.clone(),
        };
        let limits =
            Limits { account_concurrency: options.account_concurrency, burst: options.burst, idle: options.idle };
        let logs = Logs::new(&options.folder.join("logs"));
        let service = Arc::new(Self {
            options,
            registry,
            events,
            assignment: Assignment::default(),
            limits,
            logs,
            machine,
            journal,
            background: Mutex::default(),
            sandboxes: Table::default(),
            waiting: Table::default(),
        });
        service.expect_hosts(before);
        hosts::listen(&socket, Arc::new(ServiceHandle(Arc::clone(&service))))?;
        tokio::spawn(reap(Arc::downgrade(&service)));
        tokio::spawn(events::dispatch(Arc::downgrade(&service)));
        for function in service.registry.all() {
            if function.latest.state == State::Pending || function.latest.last_update == Update::InProgress {
                service.publish(&function);
            }
        }
        Ok(service)
    }

    /// Knows the sandboxes of a service before this one, whose hosts are to come soon, if they are still there.
    fn expect_hosts(self: &Arc<Self>, before: BTreeMap<String, Key>) {
        for (id, key) in before {
            self.assignment.starting(&id, &key);
            let entry = Sandbox { key, host: None, is_ready: true, invocation: None };
            self.sandboxes.lock().insert(id.clone(), entry);
            let service = Arc::downgrade(self);
            tokio::spawn(async move {
                tokio::time::sleep(COME_BACK_WITHIN).await;
                let Some(service) = service.upgrade() else { return };
                let has_come = service.sandboxes.lock().get(&id).is_none_or(|sandbox| sandbox.host.is_some());
                if !has_come {
                    service.ended(&id, None, Some("its host did not come back"));
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
        let hosts: Vec<Host> = self.sandboxes.lock().values().filter_map(|sandbox| sandbox.host.clone()).collect();
        for host in hosts {
            host.tell_now(ToHost::Shutdown);
        }
        let mut background = std::mem::take(&mut *self.background.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + patience;
        let _ = tokio::time::timeout(patience, async { while background.join_next().await.is_some() {} }).await;
        while !self.sandboxes.lock().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Has the code of a function's latest version published, in the background.
    pub(crate) fn publish(self: &Arc<Self>, function: &Arc<Function>) {
        let (service, function) = (Arc::clone(self), Arc::clone(function));
        self.in_background(async move {
            let uri = function.latest.code.image_uri.clone();
            let revision = function.latest.revision.clone();
            let name = image_name(&function.name, &new_id());
            let program = &service.options.program;
            let published = publishing::publish(program, &function.tenant, &uri, &name).await;
            let mut before = None;
            let is_ours = |latest: &Version| latest.code.image_uri == uri && latest.revision == revision;
            let changed = service.registry.change(&function.tenant, &function.name, |function| {
                let latest = &mut function.latest;
                if !is_ours(latest) {
                    return Ok(false);
                }
                match published.clone() {
                    Ok(code) => {
                        before = std::mem::replace(&mut latest.code, code).image;
                        latest.state = State::Active;
                        latest.last_update = Update::Successful;
                    }
                    Err(NoImage { code, reason }) => {
                        let code = code.to_owned();
                        if latest.state == State::Pending {
                            latest.state = State::Failed { code: code.clone(), reason: reason.clone() };
                        }
                        latest.last_update = Update::Failed { code, reason };
                    }
                }
                latest.revision = new_id();
                before = before.take().filter(|image| !function.uses(image));
                Ok(true)
            });
            if let Some(before) = before {
                publishing::remove(program, &function.tenant, &before).await;
            }
            if !matches!(changed, Ok((_, true))) && published.is_ok() {
                // Deleted or changed meanwhile.
                publishing::remove(program, &function.tenant, &name).await;
            }
        });
    }

    /// Starts a sandbox of this kind, in the background.
    pub(crate) fn start_sandbox(self: &Arc<Self>, key: Key, version: Version) {
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let id = new_id();
            let entry = Sandbox { key: key.clone(), host: None, is_ready: false, invocation: None };
            service.sandboxes.lock().insert(id.clone(), entry);
            service.assignment.starting(&id, &key);
            // Before it is there, so that none is ever there that the next service does not know.
            service.journal.started(&id, &key);
            let wanted = Wanted {
                sandbox: &id,
                tenant: &key.tenant,
                function: &key.function,
                number: &key.number,
                version: &version,
            };
            match service.machine.start(&wanted).await {
                Ok(mut child) => {
                    let limit = INIT_LIMIT + Duration::from_secs(version.settings.timeout.into());
                    tokio::spawn(end_late_start(Arc::downgrade(&service), id.clone(), limit));
                    let _ = child.wait().await;
                    // One that came has said how it ended, which may not have been read yet.
                    let has_come = service.sandboxes.lock().get(&id).is_some_and(|sandbox| sandbox.host.is_some());
                    if !has_come {
                        service.ended(&id, None, Some("its host ended before it came"));
                    }
                }
                Err(error) => service.ended(&id, None, Some(&error.to_string())),
            }
        });
    }

    /// Waits for answers to an invocation from now on.
    pub(crate) fn expect(&self, id: &str) -> mpsc::UnboundedReceiver<Piece> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.waiting.lock().insert(id.to_owned(), sender);
        receiver
    }

    /// A sandbox is at an invocation.
    pub(crate) fn gave(&self, sandbox: &str, invocation: &str) {
        if let Some(sandbox) = self.sandboxes.lock().get_mut(sandbox) {
            sandbox.invocation = Some(invocation.to_owned());
        }
    }

    fn answer(&self, id: &str, piece: Piece) {
        let mut waiting = self.waiting.lock();
        let is_last = !matches!(piece, Piece::Data(_));
        if let Some(sender) = waiting.get(id) {
            // Who waited may be gone.
            let _ = sender.send(piece);
        }
        if is_last {
            waiting.remove(id);
        }
    }

    /// It has answered, and is free once it asks for more.
    fn is_done(&self, host: &Host) {
        if let Some(sandbox) = self.sandboxes.lock().get_mut(&host.sandbox) {
            sandbox.invocation = None;
        }
    }

    fn is_free(&self, host: &Host, is_new: bool) {
        if let Some(sandbox) = self.sandboxes.lock().get_mut(&host.sandbox) {
            sandbox.invocation = None;
            sandbox.is_ready = true;
        }
        self.assignment.free(host, is_new, Instant::now());
    }

    /// A sandbox is to end at once; whoever waits for it has been told.
    pub(crate) async fn kill(self: &Arc<Self>, host: &Host) {
        host.tell(ToHost::Kill, Bytes::new()).await;
        self.forget(&host.sandbox);
    }

    fn forget(self: &Arc<Self>, sandbox: &str) {
        let removed = self.remove(sandbox);
        if removed.is_some_and(|sandbox| sandbox.is_ready) {
            let gone = self.assignment.gone(sandbox);
            self.follow(gone);
        }
    }

    fn remove(&self, sandbox: &str) -> Option<Sandbox> {
        let removed = self.sandboxes.lock().remove(sandbox);
        if removed.is_some() {
            self.journal.ended(sandbox);
        }
        removed
    }

    fn follow(self: &Arc<Self>, wish: Option<(Key, Wish)>) {
        let Some((key, Wish::Start)) = wish else { return };
        let function = self.registry.find(&key.tenant, &key.function);
        let version = function.and_then(|function| {
            let qualifier = crate::Qualifier::parse(&key.number).ok()?;
            function.resolve(Some(&qualifier), 0.0).map(|(_, version)| version.clone())
        });
        if let Some(version) = version {
            self.start_sandbox(key, version);
        }
    }

    /// A sandbox has ended.
    fn ended(self: &Arc<Self>, id: &str, code: Option<u8>, message: Option<&str>) {
        let Some(sandbox) = self.remove(id) else { return };
        let how = match (code, message) {
            (Some(code), _) if code > 128 => format!("signal: {}", signal_name(code - 128)),
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(message)) => message.to_owned(),
            (None, None) => "it ended".into(),
        };
        let error = |request: &str| {
            let message = format!("RequestId: {request} Error: Runtime exited with error: {how}");
            let kind = if message.contains("signal: killed") { "Runtime.OutOfMemory" } else { "Runtime.ExitError" };
            (kind, Bytes::from(json!({ "errorType": kind, "errorMessage": message }).to_string()))
        };
        if sandbox.is_ready {
            if let Some(invocation) = &sandbox.invocation {
                let (kind, body) = error(invocation);
                self.answer(invocation, Piece::Failed { kind: kind.into(), body, tail: None });
            }
            let gone = self.assignment.gone(id);
            self.follow(gone);
        } else {
            let (_, payload) = error(&new_id());
            let line = format!("INIT_REPORT Status: error\tError Type: Runtime.ExitError\t{how}\n");
            self.logs.add(&sandbox.key.tenant, &sandbox.key.function, line.as_bytes());
            let gone = self.assignment.failed_to_start(id, &StartFailure { payload });
            self.follow(gone);
        }
    }

    fn init_failed(self: &Arc<Self>, host: &Host, body: Bytes) {
        let removed = self.remove(&host.sandbox);
        if removed.is_some() {
            let gone = self.assignment.failed_to_start(&host.sandbox, &StartFailure { payload: body });
            self.follow(gone);
        }
        host.tell_now(ToHost::Kill);
    }
}

/// Hosts look for a service ten times a second.
const COME_BACK_WITHIN: Duration = Duration::from_secs(5);

/// How long a runtime may take before it asks for its first invocation, beside the function's own timeout.
const INIT_LIMIT: Duration = Duration::from_secs(10);

async fn end_late_start(service: std::sync::Weak<Service>, id: String, limit: Duration) {
    tokio::time::sleep(limit).await;
    let Some(service) = service.upgrade() else { return };
    let late = {
        let sandboxes = service.sandboxes.lock();
        sandboxes.get(&id).filter(|sandbox| !sandbox.is_ready).map(|sandbox| sandbox.host.clone())
    };
    let Some(host) = late else { return };
    if let Some(host) = host {
        host.tell_now(ToHost::Kill);
    }
    let seconds = limit.as_secs();
    service.ended(&id, None, Some(&format!("it asked for no invocation within {seconds} seconds")));
}

/// Ends sandboxes that nobody needs.
async fn reap(service: std::sync::Weak<Service>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let Some(service) = service.upgrade() else { return };
        let is_current = |key: &Key| {
            let Some(function) = service.registry.find(&key.tenant, &key.function) else { return false };
            let Ok(qualifier) = crate::Qualifier::parse(&key.number) else { return false };
            function.resolve(Some(&qualifier), 0.0).is_some_and(|(_, version)| version.revision == key.revision)
        };
        for host in service.assignment.reap(service.limits.idle, Instant::now(), &is_current) {
            host.tell(ToHost::Shutdown, Bytes::new()).await;
        }
    }
}

impl Listener for ServiceHandle {
    fn came(&self, host: &Host, state: &Came) -> bool {
        self.0.came(host, state)
    }

    fn said(&self, host: &Host, message: FromHost, body: Bytes) {
        self.0.said(host, message, body);
    }

    fn gone(&self, host: &Host) {
        self.0.ended(&host.sandbox, None, Some("its host ended"));
    }
}

/// The service as hosts see it.
pub(crate) struct ServiceHandle(Arc<Service>);

impl Service {
    fn came(&self, host: &Host, state: &Came) -> bool {
        let mut sandboxes = self.sandboxes.lock();
        let Some(sandbox) = sandboxes.get_mut(&host.sandbox) else { return false };
        sandbox.host = Some(host.clone());
        sandbox.is_ready = state.is_ready;
        sandbox.invocation.clone_from(&state.invocation);
        drop(sandboxes);
        match (state.is_ready, state.is_asking) {
            (true, true) => drop(self.assignment.free(host, false, Instant::now())),
            // It asks when it is done with what a service before this gave it.
            (true, false) => self.assignment.adopt_busy(host),
            (false, _) => {}
        }
        true
    }

    fn said(self: &Arc<Self>, host: &Host, message: FromHost, body: Bytes) {
        match message {
            FromHost::Hello { .. } => {}
            FromHost::Asks { init_ms } => self.is_free(host, init_ms.is_some()),
            FromHost::InitError { .. } => self.init_failed(host, body),
            FromHost::Response { id, tail, is_last, .. } => {
                if is_last {
                    self.is_done(host);
                    self.answer(&id, Piece::Done { body, tail });
                } else {
                    self.answer(&id, Piece::Data(body));
                }
            }
            FromHost::Failed { id, kind, tail } => {
                self.is_done(host);
                self.answer(&id, Piece::Failed { kind, body, tail });
            }
            FromHost::Broken { id, kind, tail } => {
                self.is_done(host);
                self.answer(&id, Piece::Failed { kind, body: Bytes::new(), tail });
            }
            FromHost::Log => {
                let key = self.sandboxes.lock().get(&host.sandbox).map(|sandbox| sandbox.key.clone());
                if let Some(key) = key {
                    self.logs.add(&key.tenant, &key.function, &body);
                }
            }
            FromHost::Exited { code, message } => self.ended(&host.sandbox, code, message.as_deref()),
        }
    }
}

/// What an image is called that holds a function's code.
fn image_name(function: &str, id: &str) -> String {
    use std::fmt::Write as _;
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, function.as_bytes());
    let hex = hash.as_ref()[..8].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("functions/{hex}:{}", id.replace('-', ""))
}

fn signal_name(number: u8) -> String {
    match number {
        9 => "killed".into(),
        6 => "aborted".into(),
        11 => "segmentation fault".into(),
        15 => "terminated".into(),
        other => format!("signal {other}"),
    }
}
