//! A host's own thread: what comes from the service, from the container and from the log, and what goes where.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::beginning::{Began, Mounted};
use super::lifecycle::{Lifecycle, Reason};
use super::logs::{Log, Tail};
use super::memory::memory_used_mb;
use super::network::Namespace;
use super::report::{self, Report};
use super::supervisor::{self, Order, Said};
use super::telemetry::Telemetry;
use super::{HostConfig, runtime_api};
use crate::assignment::payload;
use crate::link::{self, FromHost, Invocation, ToHost};

/// How long until a service that is gone is looked for again.
const COME_BACK_AFTER: Duration = Duration::from_millis(100);
/// After so long without one nobody will come any more.
const ABANDONED_AFTER: Duration = Duration::from_mins(10);
/// Messages for a service that is gone. What it does not get then is lost with it.
const MOST_KEPT: usize = 256;
/// How long lines of the log may wait for what follows them: mostly an invocation's end, which they then cost nothing beside.
const LINES_WAIT: Duration = Duration::from_millis(5);
/// How long the last messages may wait for a service that is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How the container ended.
pub(super) enum Outcome {
    /// With an exit code.
    Exited(u8),
    /// Its command could not be started.
    NoCommand(String),
    /// There was none, or it was lost.
    Failed(String),
}

/// Whether the container has a first process of ours, which starts the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstProcess {
    None,
    /// It has one, which starts extensions.
    Starting,
    /// It has started all that there are.
    Started,
}

/// What has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Nothing,
    Runtime,
    /// And so everything in it.
    Container,
}

/// What the sandbox and the service do here.
pub(super) struct Shared {
    pub(super) config: HostConfig,
    pub(super) state: Mutex<State>,
    /// Something in the state is not as it was.
    changes: watch::Sender<()>,
    to_service: mpsc::Sender<(FromHost, Bytes)>,
    orders: mpsc::Sender<Order>,
    log: Log,
    /// When this host was ready.
    pub(super) ready: Instant,
    pub(super) began: Began,
    pub(super) telemetry: Telemetry,
    /// Of bodies that are read at once.
    pub(super) bodies: Semaphore,
}

pub(super) struct State {
    pub(super) lifecycle: Lifecycle,
    /// When the container was started.
    pub(super) started: Option<Instant>,
    /// How long it took to begin, until that was reported.
    pub(super) init: Option<Duration>,
    pub(super) tail: Tail,
    /// Of the invocation that the runtime is done with, until the extensions are.
    pub(super) report: Option<Report>,
    pub(super) first_process: FirstProcess,
    pub(super) ended: Ended,
}

/// What a host's thread is made from.
pub(super) struct Sockets {
    pub(super) runtime_api: std::net::TcpListener,
    pub(super) first_process: UnixListener,
    pub(super) log: OwnedFd,
}

/// Starts the thread. It is told that the image is mounted by what it gives, and of its end by `ended`.
pub(super) fn start(
    config: &HostConfig,
    namespace: Arc<Namespace>,
    sockets: Sockets,
    ended: oneshot::Receiver<Outcome>,
) -> std::io::Result<(JoinHandle<()>, oneshot::Sender<Mounted>)> {
    let config = config.clone();
    let (mounted, is_mounted) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("host".into()).spawn(move || {
        match runtime.block_on(serve(config, namespace, sockets, is_mounted, ended)) {
            Ok(true) => {}
            // The container is there still: the agent takes it down behind this process.
            Ok(false) => std::process::exit(1),
            Err(error) => {
                tracing::error!(%error, "a sandbox's host gives up");
                std::process::exit(1);
            }
        }
    })?;
    Ok((thread, mounted))
}

/// Serves until all is said. Gives whether the container has ended.
async fn serve(
    config: HostConfig,
    namespace: Arc<Namespace>,
    sockets: Sockets,
    mounted: oneshot::Receiver<Mounted>,
    ended: oneshot::Receiver<Outcome>,
) -> std::io::Result<bool> {
    let (to_service, mut from_here) = mpsc::channel(MOST_KEPT);
    let (orders, to_first_process) = mpsc::channel(16);
    let state = State {
        lifecycle: Lifecycle::default(),
        started: None,
        init: None,
        tail: Tail::default(),
        report: None,
        first_process: FirstProcess::None,
        ended: Ended::Nothing,
    };
    let shared = Arc::new(Shared {
        config,
        state: Mutex::new(state),
        changes: watch::Sender::new(()),
        to_service,
        orders,
        log: Log::new(sockets.log)?,
        ready: Instant::now(),
        began: Began::default(),
        telemetry: Telemetry::new(namespace),
        bodies: Semaphore::new(runtime_api::MOST_BODIES),
    });
    sockets.runtime_api.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(sockets.runtime_api)?;
    tokio::spawn(runtime_api::serve(listener, Arc::clone(&shared)));
    tokio::spawn(supervisor::serve(sockets.first_process, Arc::clone(&shared), to_first_process));
    tokio::spawn(begin(Arc::clone(&shared), mounted));
    let logging = tokio::spawn(read_log(Arc::clone(&shared)));
    let ending = Arc::clone(&shared);
    tokio::spawn(async move {
        let outcome = ended.await.unwrap_or_else(|_| Outcome::Failed("its host ended".into()));
        // All that it wrote comes before its end.
        let _ = logging.await;
        ending.container_ended(outcome).await;
    });
    // As a task: what a runtime's first future waits for costs another call to the system each time.
    let connecting = Arc::clone(&shared);
    let connected = tokio::spawn(async move { connect(&connecting, &mut from_here).await });
    connected.await.map_err(std::io::Error::other)?;
    let has_ended = shared.lock().ended == Ended::Container;
    Ok(has_ended)
}

async fn read_log(shared: Arc<Shared>) {
    while let Ok(bytes) = shared.log.read().await {
        if bytes.is_empty() {
            return;
        }
        shared.logged(bytes).await;
    }
}

/// Bounds the time in which the sandbox must have begun.
async fn begin(shared: Arc<Shared>, mounted: oneshot::Receiver<Mounted>) {
    let Ok(mounted) = mounted.await else { return };
    tokio::spawn(Arc::clone(&shared).see_executed(mounted));
    shared.lock().started = Some(Instant::now());
    shared.telemetry.platform("platform.initStart", || report::init_start(&shared.config));
    let limit = Duration::from_millis(shared.config.init_limit_ms);
    if tokio::time::timeout(limit, shared.until(|state| state.lifecycle.has_begun())).await.is_err() {
        let message = format!("Task timed out after {:.2} seconds", limit.as_secs_f64());
        shared.fail(Reason::Timeout, "Sandbox.Timedout", &message, None).await;
    }
}

/// Speaks to the service, to each that comes, until the last word was said.
async fn connect(shared: &Arc<Shared>, from_here: &mut mpsc::Receiver<(FromHost, Bytes)>) {
    let mut alone_since = Instant::now();
    loop {
        let connected = UnixStream::connect(&shared.config.socket).await;
        if let Ok((from, mut to)) = connected.and_then(link::split) {
            let mut from = BufReader::new(from);
            if link::send(&mut to, &shared.hello(), &[]).await.is_ok() && shared.tell_again(&mut to).await.is_ok() {
                shared.is_placed();
                let listen = async {
                    while let Ok(Some((message, body))) = link::receive::<ToHost>(&mut from).await {
                        shared.hear(message, body);
                    }
                };
                let speak = speak(BufWriter::new(to), from_here);
                tokio::select! {
                    () = listen => {}
                    is_over = speak => {
                        if is_over {
                            return;
                        }
                    }
                }
            }
            alone_since = Instant::now();
        }
        let is_over = {
            let state = shared.lock();
            state.ended == Ended::Container || state.lifecycle.is_ending()
        };
        let patience = if is_over { LAST_WORDS } else { ABANDONED_AFTER };
        if alone_since.elapsed() > patience {
            // Nobody to tell.
            std::process::exit(1);
        }
        tokio::time::sleep(COME_BACK_AFTER).await;
    }
}

/// Says what there is to say, until the last word, which gives true, or until nobody hears it.
async fn speak(mut to: BufWriter<impl AsyncWrite + Unpin>, from_here: &mut mpsc::Receiver<(FromHost, Bytes)>) -> bool {
    // One for all, set again only when it has passed: to set one for each invocation would cost a call to the system.
    let mut tick = tokio::time::interval(LINES_WAIT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next = from_here.recv().await;
    // What has been written and not sent is lines of the log only.
    let mut may_wait = true;
    while let Some((message, body)) = next {
        let is_last = matches!(message, FromHost::Exited { .. });
        if link::write(&mut to, &message, &body).await.is_err() {
            return is_last;
        }
        if is_last {
            let _ = to.flush().await;
            return true;
        }
        may_wait &= matches!(message, FromHost::Log);
        // What waits with it goes in the same call, and lines go with what soon follows them.
        let more = match from_here.try_recv() {
            Ok(more) => Some(more),
            Err(_) if may_wait => tokio::select! {
                biased;
                more = from_here.recv() => more,
                _ = tick.tick() => None,
            },
            Err(_) => None,
        };
        if more.is_none() {
            if to.flush().await.is_err() {
                return false;
            }
            may_wait = true;
        }
        next = match more {
            Some(more) => Some(more),
            None => from_here.recv().await,
        };
    }
    true
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells whoever waits for that.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changes.send_replace(());
        result
    }

    /// Waits until something is so.
    pub(super) async fn until(&self, is_so: impl Fn(&State) -> bool) {
        self.until_some(|state| is_so(state).then_some(())).await;
    }

    /// Waits until there is something.
    pub(super) async fn until_some<T>(&self, mut find: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            if let Some(found) = find(&mut self.lock()) {
                return found;
            }
            if changes.changed().await.is_err() {
                // Not while this is there.
                std::future::pending::<()>().await;
            }
        }
    }

    fn hello(&self) -> FromHost {
        let state = self.lock();
        let invocation = state.lifecycle.invocation().map(|invocation| invocation.id.clone());
        FromHost::Hello {
            sandbox: self.config.sandbox.clone(),
            asks: state.lifecycle.asks(),
            is_asking: state.lifecycle.is_free(),
            invocation,
        }
    }

    fn hear(self: &Arc<Self>, message: ToHost, body: Bytes) {
        match message {
            ToHost::Invoke(invocation) if self.lock().lifecycle.is_ending() => {
                // It was given before it was known that nobody will take it.
                let (kind, message) = ("Runtime.ExitError", "Runtime exited before it was given the invocation");
                let body = payload(&invocation.id, kind, message);
                let failed = FromHost::Failed { id: invocation.id, kind: kind.into(), tail: None };
                let shared = Arc::clone(self);
                tokio::spawn(async move { shared.send(failed, body).await });
            }
            ToHost::Invoke(invocation) => self.change(|state| state.lifecycle.give(*invocation, body)),
            ToHost::End(reason) => {
                let shared = Arc::clone(self);
                tokio::spawn(async move { shared.end(reason).await });
            }
            ToHost::Kill => std::process::exit(1),
        }
    }

    /// Tells the service something, after all that it was told before.
    pub(super) async fn send(&self, message: FromHost, body: Bytes) {
        // An error means that the other task has ended, and with it this process does.
        let _ = self.to_service.send((message, body)).await;
    }

    /// The runtime, or the sandbox itself, writes to the log.
    pub(super) async fn logged(&self, bytes: Vec<u8>) {
        self.telemetry.function(&bytes);
        self.log_line(bytes).await;
    }

    /// A line that is ours.
    pub(super) async fn log_line(&self, bytes: Vec<u8>) {
        self.lock().tail.add(&bytes);
        self.send(FromHost::Log, bytes.into()).await;
    }

    pub(super) async fn extension_logged(&self, bytes: &[u8]) {
        self.telemetry.extension(bytes);
        self.log_line(bytes.to_vec()).await;
    }

    /// Gives the first process an order.
    pub(super) async fn order(&self, order: Order) {
        let _ = self.orders.send(order).await;
    }

    pub(super) fn has_first_process(&self) {
        self.change(|state| state.first_process = FirstProcess::Starting);
    }

    /// What the first process says of the others.
    pub(super) async fn first_process_said(self: &Arc<Self>, said: Said) {
        match said {
            Said::Launched(name) if name.is_empty() => {}
            Said::Launched(name) => {
                if !self.change(|state| state.lifecycle.launched(&name)) {
                    let message = format!("{} has more extensions than there may be", supervisor::EXTENSIONS);
                    self.fail(Reason::Failure, "Extension.TooManyExtensions", &message, None).await;
                }
            }
            Said::LaunchedAll => {
                self.change(|state| state.first_process = FirstProcess::Started);
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    // As in Lambda: the runtime is started when all of them have made themselves known.
                    shared.until(|state| state.lifecycle.are_all_registered()).await;
                    shared.order(Order::Run).await;
                });
            }
            Said::Failed(code, name) if name.is_empty() => {
                self.change(|state| state.ended = Ended::Runtime);
                let why = if code == 127 { "no such file or directory" } else { "it cannot be executed" };
                self.fail(Reason::Failure, "Runtime.InvalidEntrypoint", &format!("fork/exec: {why}"), None).await;
            }
            Said::Failed(_, name) => {
                let message = format!("{}/{name} cannot be executed", supervisor::EXTENSIONS);
                self.fail(Reason::Failure, "Extension.LaunchError", &message, None).await;
            }
            Said::Ended(code, name) if name.is_empty() => {
                self.change(|state| state.ended = Ended::Runtime);
                self.runtime_ended(&how_it_ended(code)).await;
            }
            Said::Ended(code, name) => {
                self.change(|state| state.lifecycle.extension_ended(&name));
                self.fail(Reason::Failure, "Extension.Crash", &how_it_ended(code), None).await;
            }
        }
    }

    async fn runtime_ended(self: &Arc<Self>, how: &str) {
        let kind = if how == "signal: killed" { "Runtime.OutOfMemory" } else { "Runtime.ExitError" };
        self.fail(Reason::Failure, kind, &format!("Runtime exited with error: {how}"), None).await;
    }

    /// The container has ended, by itself or by our hand.
    async fn container_ended(self: &Arc<Self>, outcome: Outcome) {
        self.change(|state| state.ended = Ended::Container);
        // This is its end, where it was not about to end anyway; else what ends it says the last word.
        match outcome {
            Outcome::Exited(code) => self.runtime_ended(&how_it_ended(code)).await,
            Outcome::NoCommand(why) => self.fail(Reason::Failure, "Runtime.InvalidEntrypoint", &why, None).await,
            Outcome::Failed(why) => self.runtime_ended(&why).await,
        }
    }

    /// The runtime asks for an invocation: waits for one. `None` while it is at another.
    pub(super) async fn next(self: &Arc<Self>) -> Option<(Arc<Invocation>, Bytes)> {
        let (is_first, asks) = self
            .change(|state| {
                let is_first = !state.lifecycle.has_runtime_asked();
                state.lifecycle.runtime_asks().map(|asks| (is_first, asks))
            })
            .ok()?;
        if is_first {
            self.runtime_has_begun();
        }
        self.told_of_asking(asks).await;
        if is_first {
            self.tell_beginning();
        }
        let (invocation, body) = loop {
            self.until(|state| state.lifecycle.invocation().is_some()).await;
            // What was written before does not belong to it.
            let before = self.log.read_now();
            if !before.is_empty() {
                self.telemetry.function(&before);
                self.send(FromHost::Log, before.into()).await;
            }
            let taken = self.change(|state| {
                let taken = state.lifecycle.take_invocation(Instant::now());
                if taken.is_some() {
                    state.tail.clear();
                }
                taken
            });
            match taken {
                Some(taken) => break taken,
                // Another connection of the same runtime has it, or the end has come.
                None => self.until(|state| state.lifecycle.is_free()).await,
            }
        };
        let version = &self.config.version;
        self.telemetry.platform("platform.start", || report::start(&invocation, version));
        let line = format!("START RequestId: {} Version: {version}\n", invocation.id);
        self.log_line(line.into_bytes()).await;
        Some((invocation, body))
    }

    /// Everybody asks for what is next, for the how many-th time, if they do.
    pub(super) async fn told_of_asking(&self, asks: Option<u64>) {
        let Some(number) = asks else { return };
        let mut init_ms = None;
        if number == 1 {
            init_ms = self.has_begun().await;
        }
        self.report_invocation();
        self.send(FromHost::Asks { number, init_ms }, Bytes::new()).await;
    }

    /// Whether the runtime has begun: errors of its beginning come before.
    pub(super) fn has_runtime_begun(&self) -> bool {
        self.lock().lifecycle.has_runtime_asked()
    }

    /// The runtime has something to say of the invocation `id`; whether it is at that one.
    pub(super) fn is_at(&self, id: &str) -> bool {
        self.lock().lifecycle.is_at(id)
    }

    /// Ends an invocation: writes the end of its log, and gives that where it was asked for. `None` where the runtime is not at this one.
    /// `error` is how it failed, `bytes` how much it gave.
    pub(super) async fn finish(&self, id: &str, error: Option<&str>, bytes: usize) -> Option<Option<String>> {
        let (running, init) = {
            let mut state = self.lock();
            let running = state.lifecycle.finish(id)?;
            (running, state.init.take())
        };
        let duration = running.since.elapsed();
        let written = self.log.read_now();
        if !written.is_empty() {
            self.logged(written).await;
        }
        self.telemetry.end_of_lines();
        let report = Report {
            invocation: Arc::clone(&running.invocation),
            since: running.since,
            duration,
            init,
            error: error.map(str::to_owned),
            memory_mb: self.config.memory_mb,
            memory_used_mb: memory_used_mb(),
        };
        self.telemetry.platform("platform.runtimeDone", || report.runtime_done(bytes));
        self.log_line(report.lines().into_bytes()).await;
        self.lock().report = Some(report);
        self.send(FromHost::Ran { id: id.to_owned(), took_us: duration.as_micros() as u64 }, Bytes::new()).await;
        Some(running.invocation.wants_tail.then(|| self.lock().tail.encoded()))
    }

    /// The last of an invocation, when the extensions are done with it too.
    pub(super) fn report_invocation(&self) {
        if let Some(report) = self.lock().report.take() {
            self.telemetry.platform("platform.report", || report.platform());
        }
    }
}

/// In Lambda's words.
fn how_it_ended(code: u8) -> String {
    match code.checked_sub(128).filter(|signal| *signal > 0) {
        None => format!("exit status {code}"),
        Some(9) => "signal: killed".into(),
        Some(6) => "signal: aborted".into(),
        Some(11) => "signal: segmentation fault".into(),
        Some(15) => "signal: terminated".into(),
        Some(other) => format!("signal: signal {other}"),
    }
}
