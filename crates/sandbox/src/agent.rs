//! The agent: one process for each sandbox, which alone has the image's keys. It opens the image, serves it as a FUSE
//! file, attaches a loop device, mounts it, says so, and then waits until it is asked to stop, or until whoever started
//! it dies; then it takes everything down again, in the reverse order.
//!
//! It is this same program run again with the argument `agent`. Its standard input brings a [`Request`] and then
//! [`Control`]s, its standard output takes [`Report`]s, and a Unix socket in the sandbox's directory answers
//! [`Query`]s. Messages about the image (damaged chunks, stalls, an origin that does not answer) go to its standard
//! error: that of the `run`, or the log of a mount.

mod image;
mod lease;
mod mounter;
pub(crate) mod protocol;
mod start_logs;

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};

use self::image::{Mounted, Opened};
use self::mounter::Mounter;
use self::protocol::{Answer, Control, Lines, Query, Report, Request, send};
use crate::identity::{ProcessId, wait_readable};
use crate::runtime::Runtime;
use crate::state::{Kind, Leftovers};
use crate::{Error, StateDir};

/// How long somebody who connected to the socket may take to say what they want.
const QUERY_PATIENCE: Duration = Duration::from_secs(1);
/// How long opening and mounting may go on once nobody waits for it.
const ABANDON_PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed runtime may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// The whole of the hidden `agent` subcommand. Gives the exit status: 0, or 1 after a failure, which it has reported.
pub fn agent_main() -> u8 {
    snowmelt_chunk::no_core_files();
    // Out of reach of the terminal's signals: those are for the command; we end when it has.
    let _ = rustix::process::setsid();
    // The FUSE library complains where a reply comes too late, because the mount is gone: nobody waits for it then. What an SDK
    // tries in vain is said by the error that comes of it.
    let filter = tracing_subscriber::EnvFilter::try_from_env("SNOWMELT_LOG");
    let filter = filter.unwrap_or_else(|_| "warn,fuser=off,aws_config=off".into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let subscriber = subscriber.with_ansi(std::io::stderr().is_terminal());
    let _ = subscriber.try_init();
    match Agent::start().and_then(Agent::serve) {
        Ok(()) => 0,
        Err(error) => {
            let _ =
                send(std::io::stdout().lock(), &Report::Failed { cause: error.cause(), message: error.to_string() });
            1
        }
    }
}

struct Agent {
    request: Request,
    /// Until the image is mounted, which then has it.
    mounter: Option<Mounter>,
    control: Lines,
    signals: SignalFd,
    state: StateDir,
    runtime: Option<ProcessId>,
    /// Nobody's death matters any more.
    detached: bool,
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
}

impl Agent {
    fn start() -> Result<Self, Error> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        // Before any thread exists, so that all have it.
        signals.thread_block().map_err(|source| Error::io("block", "signals", source))?;
        // Now, while there is nothing that it must not have.
        let mounter = Some(Mounter::start()?);
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
            .map_err(|source| Error::io("make", "a signal descriptor", source))?;
        let input: OwnedFd = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| Error::io("use", "standard input", source))?;
        let mut control = Lines::new(input);
        let request = control.next::<Request>()?;
        let request = request.ok_or_else(|| Error::invalid("agent", "is started by other commands, not by hand"))?;
        let state = StateDir::new(&request.state)?;
        // A mount is for all to see, so its agent stays where all are.
        if request.record.kind == Kind::Run {
            Mounter::leave_its_namespace()?;
        }
        Ok(Self { request, mounter, control, signals, state, runtime: None, detached: false })
    }

    fn serve(mut self) -> Result<(), Error> {
        let directory = self.state.directory(&self.request.record.id);
        let Some(mounted) = self.mount(&directory)? else { return Ok(()) };
        report(&Report::Mounted);
        let socket = directory.join("agent.sock");
        let listener =
            UnixListener::bind(&socket).map_err(|source| Error::io("listen on", socket.display(), source))?;
        let end = self.wait(&mounted, &listener)?;
        if matches!(end, End::Abandoned | End::Signal) {
            self.kill_container();
        }
        let stats = Box::new(mounted.stats());
        match end {
            End::Stopped => {
                // Who said so need not wait for the rest, which takes longer than starting a process does.
                report(&Report::Finished(stats));
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
            End::Abandoned | End::Signal => {
                mounted.discard_root()?;
                mounted.close();
                self.remove_state();
            }
        }
        Ok(())
    }

    /// Opens and mounts the image in a thread, so that even a store that does not answer does not keep us from noticing
    /// that nobody waits any more: then `None`.
    fn mount(&mut self, directory: &Path) -> Result<Option<Mounted>, Error> {
        let (done, mut finished) = std::io::pipe().map_err(|source| Error::io("make", "a pipe", source))?;
        let record = self.request.record.clone();
        let config = self.request.config.clone();
        let command = self.request.command.clone();
        let inside = directory.to_owned();
        let mounter = self.mounter.take();
        let mounter = mounter.ok_or_else(|| Error::invalid("agent", "mounts twice: this is a bug"))?;
        let work = move || {
            let result = Opened::open(&config, &record, command.as_deref()).and_then(|opened| {
                report(&Report::Opened(Box::new(opened.config().clone())));
                opened.mount(&inside, &record, mounter)
            });
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
        loop {
            if let Some(end) = self.controlled_by_buffer()? {
                return Ok(end);
            }
            let mut events = [
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(listener, PollFlags::IN),
            ];
            // Once detached, the end of the input says nothing and would be readable for ever.
            let detached = self.detached;
            let watched = if detached { &mut events[1..] } else { &mut events[..] };
            wait_for_events(watched)?;
            let [is_control, is_signal, is_query] = events.map(|event| !event.revents().is_empty());
            if is_signal {
                return Ok(End::Signal);
            }
            if is_control && let Some(end) = self.controlled()? {
                return Ok(end);
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

    /// The maker is dead or we were told to end: so must the container. First the runtime, so that it starts nothing
    /// more; then what it has started.
    fn kill_container(&self) {
        if let Some(process) = self.runtime {
            process.kill(KILL_PATIENCE);
        }
        let record = &self.request.record;
        if let Some(Err(error)) = record.runtime.as_ref().map(|runtime: &Runtime| runtime.delete(&record.container())) {
            tracing::error!(sandbox = record.id, %error, "the container was not removed");
        }
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

fn report(message: &Report) {
    // Who does not listen any more is dead, which the control side notices.
    let _ = send(std::io::stdout().lock(), message);
}

fn wait_for_events(events: &mut [PollFd<'_>]) -> Result<(), Error> {
    loop {
        match poll(events, None) {
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
