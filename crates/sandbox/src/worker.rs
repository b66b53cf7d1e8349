//! The worker of a machine: one process that has the chunks of all sandboxes, starts an agent for each, and stays when agents go.
//!
//! It has no keys and sees ciphertext only. For each sandbox it holds what a successor of its agent needs (see
//! [`messages::HandedOver`]), so that one that is killed, or is replaced by a newer version, is missed for as long as it takes to start
//! another. When the worker itself is gone, agents go on with what is in their memory, wait for a worker to come back, and hand it what
//! the one before held.
//!
//! What an agent may not do any more once it is confined is done here: leases, the logs of starts, and taking down what is left of a
//! sandbox.

mod admission;
mod kept;
mod messages;
mod metrics;
mod sandboxes;
mod started;
mod stores;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use snowmelt_cache::{ChunkServer, FetchLimits, Fetcher, L1, L1Options, Priority, Tier, Upstream};
use snowmelt_zone::node::Operated;
use snowmelt_zone::{Client, Follower};

use self::admission::Admission;
pub use self::admission::AdmissionOptions;
pub(crate) use self::messages::{
    Begin, Ending, FromAgent, FromWorker, HandedOver, Place, StartRead, ToAgent, ToWorker,
};
use self::metrics::Metrics;
use self::sandboxes::Sandboxes;
use crate::channel::{Channel, listen};
use crate::identity::ProcessId;
use crate::runtime::Runtime;
use crate::state::Record;
use crate::{Error, StateDir};

/// How long a killed runtime may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The chunks that it has.
    pub l1: L1Options,
    /// How much it asks of others at once.
    pub fetch: FetchLimits,
    /// How many sandboxes start at once.
    pub admission: AdmissionOptions,
    /// Private memory that one agent may use, in bytes.
    pub agent_memory_bytes: u64,
    /// The program that runs [`crate::agent_main`] when it is given the one argument `agent`.
    pub agent_command: PathBuf,
}

/// How a worker is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its process.
    pub process: u32,
    /// Its version.
    pub version: String,
    /// Sandboxes that it serves.
    pub sandboxes: usize,
    /// Agents that it has replaced.
    pub replaced_agents: u64,
    /// Chunks in memory, their bytes, and the most that they may be.
    pub memory: [u64; 3],
    /// The same on disk.
    pub disk: [u64; 3],
    /// Chunks that the disk did not take, since it was too slow, full or broken.
    #[serde(default)]
    pub unkept: u64,
    /// Copies on disk that were damaged, and were dropped.
    #[serde(default)]
    pub damaged: u64,
    /// Requests for chunks that memory and disk answered, and that they could not.
    pub hits_and_misses: [u64; 3],
    /// Chunks that are being fetched.
    pub flights: u64,
    /// Requests that joined one.
    pub joined: u64,
    /// Chunks that could not be had.
    pub failed: u64,
    /// Starts that may be under way at once, are under way, and wait.
    pub starts: [usize; 3],
    /// Starts that were refused.
    pub refused_starts: u64,
}

/// A worker that runs. Dropped, it ends; sandboxes stay, and wait for another.
pub struct Worker {
    sandboxes: Arc<Sandboxes>,
    admission: Arc<Admission>,
    l1: Arc<L1>,
    fetcher: Arc<Fetcher>,
    control: OwnedFd,
    agents: OwnedFd,
    metrics: Arc<Metrics>,
    _chunks: ChunkServer,
}

impl Worker {
    /// Opens the cache and the sockets, and takes over sandboxes of a worker that was here before as their agents come back.
    ///
    /// # Errors
    /// [`Error::Invalid`] where another worker is here, [`Error::Io`].
    pub fn start(
        options: WorkerOptions,
        state: &StateDir,
        zone: Option<(Arc<Client>, Follower)>,
    ) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::invalid("worker", "starting sandboxes needs root: use sudo"));
        }
        let place = Place::below(state.path());
        if Channel::connect(&place.control()).is_ok() {
            return Err(Error::invalid(
                state.path().display().to_string(),
                "another worker runs there already: stop it first, or give this one another --state-dir",
            ));
        }
        let folder = place.folder();
        std::fs::create_dir_all(folder).map_err(|source| Error::io("make", folder.display(), source))?;
        // Agents have users of their own. They come here by a descriptor; nobody else gets past the folder above.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
            .map_err(|source| Error::io("open up", folder.display(), source))?;
        let cache = |error: snowmelt_cache::Error| match error {
            error @ snowmelt_cache::Error::InUse { .. } => Error::invalid("worker", error.to_string()),
            error => Error::io("open", "the worker's cache", std::io::Error::other(error.to_string())),
        };
        let l1 = Arc::new(L1::open(options.l1.clone()).map_err(cache)?);
        let admission = Admission::new(options.admission);
        let metrics = Arc::new(Metrics::default());
        let (watched, measured) = (Arc::clone(&admission), Arc::clone(&metrics));
        let observe = move |tier: Tier, priority: Priority, took: Duration| {
            measured.fetched(tier, priority, took);
            if priority == Priority::Demand {
                watched.observe(took);
            }
        };
        let fetcher = Arc::new(Fetcher::new(Upstream::new(zone), Arc::clone(&l1), options.fetch, observe));
        let sandboxes = Sandboxes::new(options, state.clone());
        let chunks = place.chunks();
        let listener = ChunkServer::listen(&chunks).map_err(cache)?;
        std::fs::set_permissions(&chunks, std::fs::Permissions::from_mode(0o666))
            .map_err(|source| Error::io("open up", chunks.display(), source))?;
        let stores = Arc::clone(&sandboxes);
        let store_of = move |sandbox: &str, user: u32| stores.store_of(sandbox, user);
        let server = ChunkServer::start(listener, Arc::clone(&l1), Arc::clone(&fetcher), store_of).map_err(cache)?;
        Ok(Self {
            sandboxes,
            admission,
            l1,
            fetcher,
            control: listen(&place.control(), 0o600)?,
            agents: listen(&place.agents(), 0o666)?,
            metrics,
            _chunks: server,
        })
    }

    /// Serves until `end` is readable.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn serve(&self, end: BorrowedFd<'_>) -> Result<(), Error> {
        loop {
            let mut events = [
                PollFd::new(&end, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(&self.agents, PollFlags::IN),
            ];
            match poll(&mut events, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled.map_err(|source| Error::io("wait for", "sandboxes", source))?,
            };
            let [is_end, is_control, is_agent] = events.map(|event| !event.revents().is_empty());
            if is_end {
                self.l1.flush();
                return Ok(());
            }
            if is_control {
                self.take(&self.control, "command", |serving, channel| Self::command(serving, &channel));
            }
            if is_agent {
                self.take(&self.agents, "agent", |serving, channel| serving.sandboxes.supervise(channel));
            }
        }
    }

    fn take(&self, listener: &OwnedFd, name: &str, serve: impl FnOnce(&Serving, Channel) + Send + 'static) {
        let channel = match Channel::accept(listener) {
            Ok(channel) => channel,
            Err(error) => {
                // Such as no descriptor left. It would be ready again at once.
                tracing::warn!(%error, "a connection was not accepted");
                std::thread::sleep(Duration::from_millis(10));
                return;
            }
        };
        let serving = self.serving();
        let thread = std::thread::Builder::new().name(name.into()).stack_size(512 << 10);
        if let Err(error) = thread.spawn(move || serve(&serving, channel)) {
            tracing::error!(%error, "no thread to serve a connection with");
        }
    }

    fn command(serving: &Serving, channel: &Channel) {
        if let Err(error) = serving.command(channel) {
            tracing::debug!(%error, "a command was not answered");
        }
    }

    /// How it is doing.
    pub fn status(&self) -> WorkerStatus {
        self.serving().status()
    }

    /// Answers operators at `HOST:PORT`, for as long as this process lives; gives the address that it has.
    ///
    /// # Errors
    /// [`Error::Invalid`] where that is no address, [`Error::Io`] where it cannot be listened on.
    pub fn serve_admin(&self, address: &str) -> Result<std::net::SocketAddr, Error> {
        metrics::serve(address, Operator { metrics: Arc::clone(&self.metrics), serving: Arc::new(self.serving()) })
    }

    fn serving(&self) -> Serving {
        Serving {
            sandboxes: Arc::clone(&self.sandboxes),
            admission: Arc::clone(&self.admission),
            l1: Arc::clone(&self.l1),
            fetcher: Arc::clone(&self.fetcher),
        }
    }
}

/// What operators see.
#[derive(Clone)]
struct Operator {
    metrics: Arc<Metrics>,
    serving: Arc<Serving>,
}

impl Operated for Operator {
    fn metrics(&self) -> String {
        self.metrics.text(&self.serving.status(), self.serving.fetcher.upstream())
    }

    fn is_ready(&self) -> bool {
        true
    }
}

/// What the threads share that serve connections.
struct Serving {
    sandboxes: Arc<Sandboxes>,
    admission: Arc<Admission>,
    l1: Arc<L1>,
    fetcher: Arc<Fetcher>,
}

impl Serving {
    fn status(&self) -> WorkerStatus {
        let (count, replaced_agents) = self.sandboxes.counts();
        let (cached, fetched, starts) = (self.l1.stats(), self.fetcher.stats(), self.admission.stats());
        let disk_budget = self.l1.options().disk.as_ref().map_or(0, |(_, bytes)| *bytes);
        WorkerStatus {
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            sandboxes: count,
            replaced_agents,
            memory: [cached.memory_chunks, cached.memory_bytes, self.l1.options().memory_bytes],
            disk: [cached.disk_chunks, cached.disk_bytes, disk_budget],
            unkept: cached.unkept,
            damaged: cached.damaged,
            hits_and_misses: [cached.memory_hits, cached.disk_hits, cached.misses],
            flights: fetched.flights,
            joined: fetched.joined,
            failed: fetched.failed,
            starts: [starts.limit, starts.running, starts.waiting],
            refused_starts: starts.refused,
        }
    }

    fn command(&self, channel: &Channel) -> std::io::Result<()> {
        let Some((message, descriptors)) = channel.receive::<ToWorker>()? else { return Ok(()) };
        match message {
            ToWorker::Status => channel.send(&FromWorker::Status(Box::new(self.status())), &[]),
            ToWorker::Replace => channel.send(&FromWorker::Replaced(self.sandboxes.replace_all()), &[]),
            ToWorker::Start(request) => {
                let waits = |waits: &admission::Refused| {
                    let _ = channel.send(&FromWorker::Waits(waits.to_string()), &[]);
                };
                let admitted = match self.admission.admit(waits, || !is_gone(channel)) {
                    Ok(admitted) => admitted,
                    Err(refused) => return channel.send(&FromWorker::Refused(refused.to_string()), &[]),
                };
                match self.sandboxes.start(*request, descriptors, admitted) {
                    Ok((agent, worker)) => channel.send(&FromWorker::Started { agent, worker }, &[]),
                    Err(error) => channel.send(&FromWorker::Refused(error.to_string()), &[]),
                }
            }
        }
    }
}

fn is_gone(channel: &Channel) -> bool {
    let mut events = [PollFd::new(channel, PollFlags::IN | PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut events, Some(&now)).is_ok_and(|count| count > 0)
}

/// Kills what runs on a sandbox's image. First the runtime, so that it starts nothing more; then what it has started. Which process is
/// the runtime, an agent says, and may say of any: only one that was started for this very container is killed.
pub(crate) fn kill_container(record: &Record, runtime: Option<ProcessId>) {
    match runtime {
        Some(process) if process.has_argument(&record.container()) => drop(process.kill(KILL_PATIENCE)),
        Some(process) if process.is_alive() => {
            tracing::error!(
                sandbox = record.id,
                process = process.pid,
                "its agent takes a stranger for its container's runtime"
            );
        }
        _ => {}
    }
    if let Some(Err(error)) = record.runtime.as_ref().map(|runtime: &Runtime| runtime.delete(&record.container())) {
        tracing::error!(sandbox = record.id, %error, "the container was not removed");
    }
}

/// A worker as commands see it.
#[derive(Debug)]
pub struct WorkerControl(Channel);

impl WorkerControl {
    /// The worker of this state directory; `None` where none runs.
    pub fn find(state: &StateDir) -> Option<Self> {
        Channel::connect(&Place::below(state.path()).control()).ok().map(Self)
    }

    /// How it is doing.
    ///
    /// # Errors
    /// [`Error::Io`] where it does not answer.
    pub fn status(&self) -> Result<WorkerStatus, Error> {
        match self.ask(&ToWorker::Status)? {
            FromWorker::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }

    /// Has every agent replaced by one of the worker's version, while sandboxes go on. Gives how many were asked to let go.
    ///
    /// # Errors
    /// [`Error::Io`] where it does not answer.
    pub fn replace_agents(&self) -> Result<usize, Error> {
        match self.ask(&ToWorker::Replace)? {
            FromWorker::Replaced(count) => Ok(count),
            _ => Err(unexpected()),
        }
    }

    /// Has it start an agent; see [`ToWorker::Start`]. Gives the processes of agent and worker.
    pub(crate) fn start(
        &self,
        request: crate::agent::protocol::Request,
        descriptors: &[BorrowedFd<'_>],
        interruption: &mut dyn Interruption,
    ) -> Result<(ProcessId, ProcessId), Error> {
        self.tell(&ToWorker::Start(Box::new(request)), descriptors)?;
        loop {
            self.wait(interruption)?;
            match self.answer()? {
                FromWorker::Waits(reason) => interruption.waits(&reason),
                FromWorker::Started { agent, worker } => return Ok((agent, worker)),
                FromWorker::Refused(reason) => {
                    return Err(Error::Unavailable { subject: "the worker of this machine".into(), reason });
                }
                FromWorker::Status(_) | FromWorker::Replaced(_) => return Err(unexpected()),
            }
        }
    }

    /// Until it says something.
    fn wait(&self, interruption: &mut dyn Interruption) -> Result<(), Error> {
        loop {
            let mut events = vec![PollFd::new(&self.0, PollFlags::IN)];
            let watched = interruption.watched();
            events.extend(watched.iter().map(|watched| PollFd::new(watched, PollFlags::IN)));
            match poll(&mut events, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled.map_err(|source| Error::io("wait for", "the worker", source))?,
            };
            let ready: Vec<bool> = events.iter().map(|event| !event.revents().is_empty()).collect();
            drop(events);
            if ready[0] {
                return Ok(());
            }
            if ready.get(1) == Some(&true) {
                interruption.check()?;
            }
        }
    }

    fn ask(&self, message: &ToWorker) -> Result<FromWorker, Error> {
        self.tell(message, &[])?;
        self.answer()
    }

    fn answer(&self) -> Result<FromWorker, Error> {
        self.0.expect::<FromWorker>().map(|(answer, _)| answer).map_err(|error| Error::Unavailable {
            subject: "the worker of this machine".into(),
            reason: format!("{error}. If it is of another version, restart it: sandboxes go on meanwhile"),
        })
    }

    fn tell(&self, message: &ToWorker, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.0.send(message, descriptors).map_err(|source| Error::io("tell", "the worker", source))
    }
}

/// What goes on in a command while it waits for the worker.
pub(crate) trait Interruption {
    /// It is not its turn yet, for this reason.
    fn waits(&mut self, reason: &str);

    /// Something to look at while waiting.
    fn watched(&self) -> Option<BorrowedFd<'_>>;

    /// What to do when that is readable.
    ///
    /// # Errors
    /// Whatever ends the waiting.
    fn check(&mut self) -> Result<(), Error>;
}

fn unexpected() -> Error {
    Error::invalid("the worker", "gave the wrong answer: are two versions at work?")
}
