//! A host's own thread: what comes from the service, from the runtime and from the log, and what goes where.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};

use super::beginning::{Began, Mounted};
use super::logs::{Log, Tail};
use super::memory::memory_used_mb;
use super::{HostConfig, runtime_api};
use crate::link::{self, FromHost, Invocation, ToHost};

/// How long until a service that is gone is looked for again.
const COME_BACK_AFTER: Duration = Duration::from_millis(100);
/// After so long without one nobody will come any more.
const ABANDONED_AFTER: Duration = Duration::from_mins(10);
/// Messages for a service that is gone. What it does not get then is lost with it.
const MOST_KEPT: usize = 1024;

/// How the container ended: its exit code, or what went wrong.
pub(super) type Ended = (Option<u8>, Option<String>);

/// What the runtime and the service do here.
pub(super) struct Shared {
    pub(super) config: HostConfig,
    state: Mutex<State>,
    /// The runtime waits for this.
    pub(super) given: Notify,
    to_service: mpsc::Sender<(FromHost, Bytes)>,
    log: Log,
    pub(super) started: Instant,
    pub(super) began: Began,
}

struct State {
    /// An invocation that the runtime has not taken yet.
    next: Option<(Invocation, Bytes)>,
    /// The one that it is at.
    running: Option<Running>,
    /// How often it has asked for an invocation.
    asks: u64,
    /// It waits for one.
    is_asking: bool,
    init: Option<Duration>,
    tail: Tail,
}

struct Running {
    invocation: Invocation,
    since: Instant,
}

/// Starts the thread.
pub(super) fn start(
    config: &HostConfig,
    listener: TcpListener,
    log: OwnedFd,
    ended: oneshot::Receiver<Ended>,
    mounted: oneshot::Receiver<Mounted>,
) -> std::io::Result<JoinHandle<()>> {
    let config = config.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("host".into()).spawn(move || {
        if let Err(error) = runtime.block_on(serve(config, listener, log, ended, mounted)) {
            tracing::error!(%error, "a sandbox's host gives up");
        }
    })
}

async fn serve(
    config: HostConfig,
    listener: TcpListener,
    log: OwnedFd,
    ended: oneshot::Receiver<Ended>,
    mounted: oneshot::Receiver<Mounted>,
) -> std::io::Result<()> {
    let (to_service, mut from_here) = mpsc::channel(MOST_KEPT);
    let state = State { next: None, running: None, asks: 0, is_asking: false, init: None, tail: Tail::default() };
    let shared = Arc::new(Shared {
        config,
        state: Mutex::new(state),
        given: Notify::new(),
        to_service,
        log: Log::new(log)?,
        started: Instant::now(),
        began: Began::default(),
    });
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(runtime_api::serve(listener, Arc::clone(&shared)));
    tokio::spawn(Arc::clone(&shared).see_mounted(mounted));
    let logging = tokio::spawn(read_log(Arc::clone(&shared)));
    let ending = Arc::clone(&shared);
    let end = tokio::spawn(async move {
        let (code, message) = ended.await.unwrap_or((None, Some("its host ended".into())));
        // All that it wrote comes before its end.
        let _ = logging.await;
        ending.send(FromHost::Exited { code, message }, Bytes::new()).await;
    });
    connect(&shared, &mut from_here, end).await;
    Ok(())
}

async fn read_log(shared: Arc<Shared>) {
    while let Ok(bytes) = shared.log.read().await {
        if bytes.is_empty() {
            return;
        }
        shared.logged(bytes).await;
    }
}

/// Speaks to the service, to each that comes, until the container has ended and that was said.
async fn connect(
    shared: &Arc<Shared>,
    from_here: &mut mpsc::Receiver<(FromHost, Bytes)>,
    mut end: tokio::task::JoinHandle<()>,
) {
    let mut alone_since = Instant::now();
    loop {
        if let Ok(mut stream) = UnixStream::connect(&shared.config.socket).await {
            let (mut from, mut to) = stream.split();
            if link::send(&mut to, &shared.hello(), &[]).await.is_ok() && shared.tell_again(&mut to).await.is_ok() {
                shared.is_placed();
                let listen = async {
                    while let Ok(Some((message, body))) = link::receive::<ToHost>(&mut from).await {
                        shared.hear(message, body);
                    }
                };
                let speak = async {
                    while let Some((message, body)) = from_here.recv().await {
                        let is_last = matches!(message, FromHost::Exited { .. });
                        if link::send(&mut to, &message, &body).await.is_err() {
                            return is_last;
                        }
                        if is_last {
                            return true;
                        }
                    }
                    true
                };
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
        if end.is_finished() || alone_since.elapsed() > ABANDONED_AFTER {
            // Nobody to tell.
            std::process::exit(1);
        }
        tokio::select! {
            () = tokio::time::sleep(COME_BACK_AFTER) => {}
            _ = &mut end => {}
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hello(&self) -> FromHost {
        let state = self.lock();
        let invocation = state.running.as_ref().map(|running| &running.invocation);
        let invocation = invocation.or(state.next.as_ref().map(|(invocation, _)| invocation));
        FromHost::Hello {
            sandbox: self.config.sandbox.clone(),
            asks: state.asks,
            is_asking: state.is_asking && state.next.is_none(),
            invocation: invocation.map(|invocation| invocation.id.clone()),
        }
    }

    fn hear(&self, message: ToHost, body: Bytes) {
        match message {
            ToHost::Invoke(invocation) => {
                self.lock().next = Some((*invocation, body));
                self.given.notify_one();
            }
            // The run has a stop signal for the command, and an agent that takes all down behind this process.
            ToHost::Shutdown => drop(nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGTERM)),
            ToHost::Kill => std::process::exit(1),
        }
    }

    pub(super) async fn send(&self, message: FromHost, body: Bytes) {
        // An error means that the other task has ended, and with it this process does.
        let _ = self.to_service.send((message, body)).await;
    }

    async fn logged(&self, bytes: Vec<u8>) {
        self.lock().tail.add(&bytes);
        self.send(FromHost::Log, bytes.into()).await;
    }

    /// The runtime asks for an invocation: waits for one. `None` while it is at another.
    pub(super) async fn next(self: &Arc<Self>) -> Option<(Invocation, Bytes)> {
        let number = {
            let mut state = self.lock();
            if state.running.is_some() {
                return None;
            }
            // Who asks again before it is given anything, as after a timeout of its own, asks for the same.
            (!std::mem::replace(&mut state.is_asking, true)).then(|| {
                state.asks += 1;
                if state.asks == 1 {
                    state.init = Some(self.started.elapsed());
                }
                state.asks
            })
        };
        if let Some(number) = number {
            self.send(FromHost::Asks { number }, Bytes::new()).await;
            if number == 1 {
                self.tell_beginning();
            }
        }
        let (invocation, body) = loop {
            // What was written before does not belong to it.
            let before = self.log.read_now();
            let taken = {
                let mut state = self.lock();
                let taken = state.next.take();
                if let Some((invocation, _)) = &taken {
                    state.tail.clear();
                    state.is_asking = false;
                    state.running = Some(Running { invocation: invocation.clone(), since: Instant::now() });
                }
                taken
            };
            if !before.is_empty() {
                self.send(FromHost::Log, before.into()).await;
            }
            match taken {
                Some(taken) => break taken,
                None => self.given.notified().await,
            }
        };
        let line = format!("START RequestId: {} Version: {}\n", invocation.id, self.config.version);
        self.logged(line.into_bytes()).await;
        Some((invocation, body))
    }

    /// Whether the runtime has begun: errors of its beginning come before.
    pub(super) fn has_begun(&self) -> bool {
        self.lock().asks > 0
    }

    /// The runtime has something to say of the invocation `id`; whether it is at that one.
    pub(super) fn is_at(&self, id: &str) -> bool {
        self.lock().running.as_ref().is_some_and(|running| running.invocation.id == id)
    }

    /// Ends an invocation: writes the end of its log, and gives that where it was asked for. `None` where the runtime is not at this one.
    pub(super) async fn finish(&self, id: &str) -> Option<Option<String>> {
        let (running, init) = {
            let mut state = self.lock();
            if state.running.as_ref().is_none_or(|running| running.invocation.id != id) {
                return None;
            }
            (state.running.take()?, state.init.take())
        };
        let written = self.log.read_now();
        if !written.is_empty() {
            self.logged(written).await;
        }
        let took = running.since.elapsed();
        let duration = took.as_secs_f64() * 1000.0;
        let init_ms = init.map(|init| init.as_secs_f64() * 1000.0);
        let line = report(id, duration, init_ms, self.config.memory_mb);
        self.logged(line.into_bytes()).await;
        self.send(FromHost::Ran { id: id.to_owned(), took_us: took.as_micros() as u64 }, Bytes::new()).await;
        Some(running.invocation.wants_tail.then(|| self.lock().tail.encoded()))
    }

    /// Tells the service of an answer, or of a part of one.
    pub(super) async fn answer(&self, message: FromHost, body: Bytes) {
        self.send(message, body).await;
    }
}

/// The last lines of an invocation's log, as Lambda writes them.
fn report(id: &str, duration_ms: f64, init_ms: Option<f64>, memory_mb: u32) -> String {
    let billed = (duration_ms + init_ms.unwrap_or(0.0)).ceil().max(1.0);
    let used = memory_used_mb();
    let mut line = format!(
        "END RequestId: {id}\nREPORT RequestId: {id}\tDuration: {duration_ms:.2} ms\tBilled Duration: {billed:.0} ms\tMemory Size: {memory_mb} MB\tMax Memory Used: {used} MB\t"
    );
    if let Some(init_ms) = init_ms {
        let _ = write!(line, "Init Duration: {init_ms:.2} ms\t");
    }
    line.push('\n');
    line
}
