//! The agent: one process for each sandbox, which alone has the image's keys. It opens the image, serves it as a FUSE
//! file, attaches a loop device, mounts it, says so, and then waits until it is asked to stop, or until whoever started
//! it dies; then it takes everything down again, in the reverse order.
//!
//! It is this same program run again with the argument `agent`. Its standard input brings a [`Request`] and then
//! [`Control`]s, its standard output takes [`Report`]s, and a Unix socket in the sandbox's directory answers
//! [`Query`]s. Messages about the image (damaged chunks, stalls, an origin that does not answer) go to its standard
//! error: that of the `run`, or the log of a mount.
//!
//! Started by a worker it is given all but the request over a socket ([`link`]), reads chunks through the worker, leaves with it what a
//! successor needs, and is [confined](confine) once it has mounted. It may then be killed, or told to let go: the next agent
//! goes on with the same device, of which the kernel keeps those waiting who use it.

mod confine;
mod image;
pub(crate) mod lease;
mod link;
mod manifests;
mod mounter;
pub(crate) mod opener;
mod opening;
pub(crate) mod protocol;
mod recorder;
pub(crate) mod start_logs;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::image::{Mounted, Opened, Way};
use self::link::{Begun, Link};
use self::mounter::Mounter;
use self::protocol::{Answer, Control, Lines, Query, Report, Request, send};
use crate::identity::{ProcessId, wait_readable};
use crate::state::{Kind, Leftovers};
use crate::worker::{Begin, Ending, FromAgent, HandedOver, Place, ToAgent, kill_container};
use crate::{Error, StateDir};

/// How long somebody who connected to the socket may take to say what they want.
const QUERY_PATIENCE: Duration = Duration::from_secs(1);
/// How long opening and mounting may go on once nobody waits for it.
const ABANDON_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried to reach a worker that is gone.
const COME_BACK_AFTER: Duration = Duration::from_millis(200);

/// The whole of the hidden `agent` subcommand. Gives the exit status: 0, or 1 after a failure, which it has reported.
pub fn agent_main() -> u8 {
    set_up_process();
    match run() {
        Ok(()) => 0,
        Err(()) => 1,
    }
}

/// The same for `agent --open`, which opens an image for an agent that a worker starts.
pub fn opener_main() -> u8 {
    set_up_process();
    opener::main()
}

fn set_up_process() {
    snowmelt_chunk::no_core_files();
    // Out of reach of the terminal's signals: those are for the command; we end when it has.
    let _ = rustix::process::setsid();
    // What an SDK tries in vain is said by the error that comes of it.
    let filter = tracing_subscriber::EnvFilter::try_from_env("SNOWMELT_LOG");
    let filter = filter.unwrap_or_else(|_| "warn,aws_config=off".into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let subscriber = subscriber.with_ansi(std::io::stderr().is_terminal());
    let _ = subscriber.try_init();
}

/// Starts and serves; a failure is reported to who waits for the mount.
fn run() -> Result<(), ()> {
    let failed = |reports: &File, error: &Error| {
        report(reports, &Report::Failed { cause: error.cause(), message: error.to_string() });
    };
    let agent = Agent::start().map_err(|error| {
        if let Ok(output) = std::io::stdout().as_fd().try_clone_to_owned() {
            failed(&output.into(), &error);
        }
        // A worker's agent has nobody there.
        tracing::error!(%error, "not served");
    })?;
    let reports = Arc::clone(&agent.reports);
    let is_resumed = agent.worker.as_ref().is_some_and(|worker| worker.resumed.is_some());
    agent.serve().map_err(|error| {
        if is_resumed {
            // Who waited for the mount has it; the worker will try again.
            tracing::error!(%error, "the sandbox was not taken over");
        } else {
            failed(&reports, &error);
        }
    })
}

struct Agent {
    request: Request,
    /// Until the image is mounted, which then has it.
    mounter: Option<Mounter>,
    control: Lines,
    reports: Arc<File>,
    signals: SignalFd,
    state: StateDir,
    runtime: Option<ProcessId>,
    /// Nobody's death matters any more.
    detached: bool,
    /// On a machine with a worker.
    worker: Option<ByWorker>,
}

/// What an agent has that a worker started.
struct ByWorker {
    link: Link,
    begin: Begin,
    /// Where messages go, for a successor.
    messages: OwnedFd,
    /// Where what was opened comes from, until it is read.
    opener: Option<OwnedFd>,
    /// What the agent before left, until it is taken up.
    resumed: Option<Resumed>,
}

/// What an agent goes on with.
struct Resumed {
    handed_over: HandedOver,
    mounter: Mounter,
    /// Of the FUSE connection, and of the overlay where there is one.
    held: Vec<OwnedFd>,
}

/// Why serving ends.
enum End {
    /// The command that started it says so.
    Stopped,
    /// That command died.
    Abandoned,
    /// A signal to the agent itself.
    Signal,
    /// `unmount`, which has already unmounted it, and waits for the answer.
    Unmounted(UnixStream),
    /// The worker, which has a successor ready.
    LetGo,
}

impl Agent {
    fn start() -> Result<Self, Error> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        // Before any thread exists, so that all have it.
        signals.thread_block().map_err(|source| Error::io("block", "signals", source))?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
            .map_err(|source| Error::io("make", "a signal descriptor", source))?;
        let own = |stream: BorrowedFd<'_>| {
            stream.try_clone_to_owned().map_err(|source| Error::io("use", "a standard stream", source))
        };
        let mut control = Lines::new(own(std::io::stdin().as_fd())?);
        let request = control.next::<Request>()?;
        let request = request.ok_or_else(|| Error::invalid("agent", "is started by other commands, not by hand"))?;
        let state = StateDir::new(&request.state)?;
        let mut agent = Self {
            mounter: None,
            control,
            reports: Arc::new(own(std::io::stdout().as_fd())?.into()),
            signals,
            state,
            runtime: None,
            detached: false,
            worker: None,
            request,
        };
        match agent.request.worker.clone() {
            Some(place) => agent.begin_by_worker(&place)?,
            None => agent.mounter = Some(Mounter::start()?),
        }
        // A mount is for all to see, so its agent stays where all are.
        if agent.request.record.kind == Kind::Run {
            Mounter::leave_its_namespace()?;
        }
        Ok(agent)
    }

    fn begin_by_worker(&mut self, place: &Place) -> Result<(), Error> {
        let (link, begun) = Link::begin(place, &self.request.record.id)?;
        let Begun { mut begin, control, reports, messages, opener, namespace, held } = begun;
        self.control = Lines::new(control);
        self.reports = Arc::new(reports.into());
        if let Some(namespace) = namespace {
            Mounter::enter_namespace(namespace.as_fd())?;
        }
        let resumed = match begin.resume.take() {
            None => {
                self.mounter = Some(Mounter::start()?);
                None
            }
            Some(handed_over) => {
                let mut held = held.into_iter();
                let (Some(stream), Some(descriptors)) = (held.next(), held.next()) else {
                    return Err(Error::invalid("the worker", "holds too little for this agent to go on with"));
                };
                let directory = &self.request.record.directory;
                let mounter = Mounter::resume(stream, descriptors, handed_over.mounter, directory)?;
                self.runtime = handed_over.runtime;
                self.detached = handed_over.detached;
                Some(Resumed { handed_over: *handed_over, mounter, held: held.collect() })
            }
        };
        self.worker = Some(ByWorker { link, begin, messages, opener: Some(opener), resumed });
        Ok(())
    }

    fn serve(mut self) -> Result<(), Error> {
        let directory = self.state.directory(&self.request.record.id);
        let is_resumed = self.worker.as_ref().is_some_and(|worker| worker.resumed.is_some());
        let Some(mounted) = self.mount(&directory)? else { return Ok(()) };
        let socket = directory.join("agent.sock");
        if is_resumed {
            let _ = std::fs::remove_file(&socket);
        }
        let listener =
            UnixListener::bind(&socket).map_err(|source| Error::io("listen on", socket.display(), source))?;
        if let Some(worker) = &self.worker {
            self.hand_over(worker, &mounted)?;
            confine::confine(worker.begin.user, worker.begin.memory_bytes)?;
        }
        if !is_resumed {
            report(&self.reports, &Report::Mounted);
        }
        let end = self.wait(&mounted, &listener)?;
        match self.worker.take() {
            Some(worker) => self.end_by_worker(&worker.link, mounted, end),
            None => self.end(mounted, end),
        }
    }

    fn end(self, mounted: Mounted, end: End) -> Result<(), Error> {
        if matches!(end, End::Abandoned | End::Signal) {
            self.kill_container();
        }
        let stats = Box::new(mounted.stats());
        match end {
            End::Stopped => {
                // Who said so need not wait for the rest, which takes longer than starting a process does.
                report(&self.reports, &Report::Finished(stats));
                if let Err(error) = mounted.discard_root() {
                    // Nobody reads reports any more.
                    tracing::error!(sandbox = self.request.record.id, %error, "not unmounted");
                }
                mounted.close();
                self.dismantle(Leftovers::Files);
            }
            End::Unmounted(client) => {
                mounted.close();
                self.dismantle(Leftovers::Any);
                let _ = send(client, &Answer::Unmounted(stats));
            }
            End::Abandoned | End::Signal | End::LetGo => {
                mounted.discard_root()?;
                mounted.close();
                self.remove_state();
            }
        }
        Ok(())
    }

    /// The same where this process may not do what is left to do, and the worker does it.
    fn end_by_worker(self, link: &Link, mounted: Mounted, end: End) -> Result<(), Error> {
        let stats = Box::new(mounted.stats());
        let ending = match end {
            End::LetGo => {
                mounted.let_go();
                return Ok(());
            }
            End::Stopped => {
                report(&self.reports, &Report::Finished(stats));
                if let Err(error) = mounted.discard_root() {
                    tracing::error!(sandbox = self.request.record.id, %error, "not unmounted");
                }
                Ending::Stopped
            }
            End::Unmounted(client) => {
                let _ = send(client, &Answer::Unmounted(stats));
                Ending::Unmounted
            }
            End::Abandoned | End::Signal => {
                // First: what it has in use could not be taken down.
                link.kill_container(self.runtime);
                mounted.discard_root()?;
                Ending::Abandoned
            }
        };
        mounted.close();
        link.tell(&FromAgent::Ended(ending));
        Ok(())
    }

    /// Leaves with the worker what a successor needs. A kernel that cannot have it go on elsewhere is no reason not to serve.
    fn hand_over(&self, worker: &ByWorker, mounted: &Mounted) -> Result<(), Error> {
        if !mounted.can_be_taken_over() {
            tracing::info!("this kernel cannot have another process go on: the sandbox ends with its agent");
            return Ok(());
        }
        let (handed_over, held) = mounted.hand_over(self.runtime, self.detached)?;
        worker.link.hand_over(handed_over, &self.with_pipes(worker, &held))
    }

    /// Comes back to a worker that was started again; whether it is there.
    fn come_back(&self, worker: &ByWorker, mounted: &Mounted) -> bool {
        let handed_over = mounted.hand_over(self.runtime, self.detached);
        let Ok((handed_over, held)) = handed_over else { return false };
        worker.link.adopt(handed_over, &self.with_pipes(worker, &held)).is_ok()
    }

    fn with_pipes<'a>(&'a self, worker: &'a ByWorker, held: &'a [OwnedFd]) -> Vec<BorrowedFd<'a>> {
        let pipes = [self.control.as_fd(), self.reports.as_fd(), worker.messages.as_fd()];
        pipes.into_iter().chain(held.iter().map(AsFd::as_fd)).collect()
    }

    /// Opens and mounts the image in a thread, so that even a store that does not answer does not keep us from noticing
    /// that nobody waits any more: then `None`.
    fn mount(&mut self, directory: &Path) -> Result<Option<Mounted>, Error> {
        let (done, mut finished) = std::io::pipe().map_err(|source| Error::io("make", "a pipe", source))?;
        let record = self.request.record.clone();
        let config = self.request.config.clone();
        let command = self.request.command.clone();
        let inside = directory.to_owned();
        let reports = Arc::clone(&self.reports);
        let worker = self.worker.as_mut().map(|worker| (worker.link.clone(), worker.opener.take()));
        let resumed = self.worker.as_mut().and_then(|worker| worker.resumed.take());
        let mounter = self.mounter.take();
        let open_and_mount = move || {
            let again = || Error::invalid("agent", "mounts twice: this is a bug");
            let way = match worker {
                None => Way::Own,
                Some((link, opener)) => Way::Worker(link, opener.ok_or_else(again)?),
            };
            let way = match (resumed, way) {
                (Some(Resumed { handed_over, mounter, held }), Way::Worker(link, opener)) => {
                    return Opened::resume(&config, &record, link, opener, handed_over, held, mounter);
                }
                (_, way) => way,
            };
            let mounter = mounter.ok_or_else(again)?;
            let opened = Opened::open(&config, &record, command.as_deref(), way)?;
            report(&reports, &Report::Opened(Box::new(opened.config().clone())));
            opened.load_all(&|bytes, total| report(&reports, &Report::Loading { bytes, total }))?;
            opened.mount(&inside, &record, mounter)
        };
        let work = move || {
            let result = open_and_mount();
            let _ = finished.write_all(b".");
            result
        };
        let worker = std::thread::Builder::new().name("mount".into()).spawn(work);
        let worker = worker.map_err(|source| Error::io("start", "a thread", source))?;
        loop {
            let mut events = [
                PollFd::new(&done, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            wait_for_events(&mut events)?;
            let [is_done, is_control, is_signal] = events.map(|event| !event.revents().is_empty());
            if is_done {
                let panicked = |_| Err(Error::invalid("the mount", "was given up: this is a bug"));
                return worker.join().unwrap_or_else(panicked).map(Some);
            }
            if is_signal || is_control && self.controlled()?.is_some() {
                // The thread may be in the kernel, waiting for the file that this process serves. Cutting the file's
                // connection wakes it with an error.
                image::abort(directory);
                if wait_readable(&done, ABANDON_PATIENCE)
                    && let Ok(Ok(mounted)) = worker.join()
                {
                    let _ = mounted.unmount_root(true);
                }
                self.kill_container();
                self.remove_state();
                return Ok(None);
            }
        }
    }

    fn wait(&mut self, mounted: &Mounted, listener: &UnixListener) -> Result<End, Error> {
        let mut known = (self.runtime, self.detached);
        loop {
            if let Some(end) = self.controlled_by_buffer()? {
                return Ok(end);
            }
            if let Some(worker) = &self.worker {
                let (runtime, detached) = (self.runtime, self.detached);
                if std::mem::replace(&mut known, (runtime, detached)) != known {
                    worker.link.tell(&FromAgent::Changed { runtime, detached });
                }
            }
            let heard = self.worker.as_ref().map(|worker| worker.link.channel().ok());
            let is_worker_gone = matches!(heard, Some(None));
            let heard = heard.flatten();
            let mut events = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            // Once detached, the end of the input says nothing and would be readable for ever.
            let watches_control = !self.detached;
            if watches_control {
                events.push(PollFd::new(&self.control, PollFlags::IN));
            }
            if let Some(channel) = &heard {
                events.push(PollFd::new(channel, PollFlags::IN));
            }
            wait_for_events_until(&mut events, is_worker_gone.then_some(COME_BACK_AFTER))?;
            let ready: Vec<bool> = events.iter().map(|event| !event.revents().is_empty()).collect();
            let (is_signal, is_query) = (ready[0], ready[1]);
            let is_control = watches_control && ready[2];
            let is_worker = heard.is_some() && ready.last() == Some(&true);
            drop(events);
            if is_signal {
                return Ok(End::Signal);
            }
            if is_control && let Some(end) = self.controlled()? {
                return Ok(end);
            }
            if let Some(worker) = &self.worker {
                if is_worker_gone {
                    self.come_back(worker, mounted);
                } else if is_worker && let Some(ToAgent::LetGo) = worker.link.receive() {
                    return Ok(End::LetGo);
                }
            }
            if is_query && let Some(client) = answer(listener, mounted) {
                return Ok(End::Unmounted(client));
            }
        }
    }

    /// Reads what the maker says; `Some` if that ends the service.
    fn controlled(&mut self) -> Result<Option<End>, Error> {
        if !self.control.fill()? {
            // What was read before the end counts first.
            let end = self.controlled_by_buffer()?;
            return Ok(end.or(if self.detached { None } else { Some(End::Abandoned) }));
        }
        self.controlled_by_buffer()
    }

    fn controlled_by_buffer(&mut self) -> Result<Option<End>, Error> {
        while let Some(control) = self.control.buffered()? {
            match control {
                Control::Runtime(process) => self.runtime = Some(process),
                Control::Detach => self.detached = true,
                Control::Stop => return Ok(Some(End::Stopped)),
            }
        }
        Ok(None)
    }

    /// The maker is dead or we were told to end: so must the container.
    fn kill_container(&self) {
        kill_container(&self.request.record, self.runtime);
    }

    /// Removes the sandbox's directory, unless the command that made it lives and will.
    fn remove_state(&self) {
        if self.request.record.kind == Kind::Run && ProcessId::is_alive(&self.request.record.owner) {
            return;
        }
        self.dismantle(Leftovers::Any);
    }

    /// Removes the sandbox's directory and what else there may be of it.
    fn dismantle(&self, leftovers: Leftovers) {
        if let Err(error) = self.state.dismantle(&self.request.record, leftovers) {
            tracing::error!(sandbox = self.request.record.id, %error, "not everything was removed");
        }
    }
}

fn report(reports: &File, message: &Report) {
    // Who does not listen any more is dead, which the control side notices.
    let _ = send(reports, message);
}

fn wait_for_events(events: &mut [PollFd<'_>]) -> Result<(), Error> {
    wait_for_events_until(events, None)
}

fn wait_for_events_until(events: &mut [PollFd<'_>], patience: Option<Duration>) -> Result<(), Error> {
    let timeout = patience
        .map(|patience| Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) });
    loop {
        match poll(events, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).map_err(|source| Error::io("wait for", "events", source)),
        }
    }
}

/// Serves one client of the socket. Gives it back if it has had the image unmounted.
fn answer(listener: &UnixListener, mounted: &Mounted) -> Option<UnixStream> {
    let (client, _) = listener.accept().ok()?;
    client.set_read_timeout(Some(QUERY_PATIENCE)).ok()?;
    client.set_write_timeout(Some(QUERY_PATIENCE)).ok()?;
    let mut lines = Lines::new(client.try_clone().ok()?.into());
    let answer = match lines.next().ok()?? {
        Query::Stats => Answer::Stats(Box::new(mounted.stats())),
        Query::Unmount => match mounted.unmount_root(false) {
            Ok(()) => return Some(client),
            Err(Error::Busy { .. }) => Answer::Busy,
            Err(error) => Answer::Failed(error.to_string()),
        },
    };
    let _ = send(&client, &answer);
    None
}
