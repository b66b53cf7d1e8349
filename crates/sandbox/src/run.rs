//! `run`: a container on an image that loads on demand.
//!
//! The agent and the runtime start at the same time. The runtime is given a configuration file that is a pipe: it gets
//! through its own start-up (5 of the 30 to 40 ms that a run takes) while the agent opens and mounts the image, and
//! waits where it reads the configuration, which is written once the root is mounted.
//!
//! All this happens in a mount namespace of its own, which the agent and the runtime inherit: nobody else sees the
//! mounts, and the kernel removes them when the last of these processes is gone, however it went.
//!
//! Who dies, and what then happens:
//! - the command ends: the runtime ends with its status, which is passed on; the agent unmounts and ends;
//! - this process is killed: the agent sees its input end, kills runtime and container, unmounts, removes the state;
//! - the agent is killed: this process sees its output end, kills the container and removes the state;
//! - the runtime ends once the command runs, where it is to ([`RunSpec::detach_runtime`]): the command is then watched in its place;
//! - the runtime is killed: as if the command had ended, and the container is killed;
//! - several of them are killed: the next command removes what is left ([`StateDir::cleanup_stale`]).
//!
//! Signals (for a runtime that leaves the command, as soon as it has: to the command itself): HUP, INT, QUIT, USR1, USR2, ALRM, CONT and WINCH go on to the runtime, which passes them to the command; for
//! TERM it gets the image's stop signal; `stopping` has the rules by which they end it. Before there is a command, HUP,
//! INT, QUIT and TERM end the run. The runtime has a process group of its own, so a signal from the terminal or to the whole group is passed on
//! once. Only where the command reads from this terminal must the runtime stay in the terminal's foreground group; there
//! the kernel gives it the terminal's signals itself, and those are not passed on a second time.

mod container;
mod output;
mod signals;
mod stopping;
mod terminal;

use std::io::IsTerminal;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use snowmelt_image::ImageConfig;

use self::container::Container;
use self::output::Output;
use self::signals::{Received, Signals};
use self::stopping::{Answer, Killed, Stopping};
use self::terminal::Terminal;
use crate::agent::protocol::{Control, Report};
use crate::agent_process::AgentProcess;
use crate::error::exit_code_of_signal;
use crate::identity::ProcessId;
use crate::oci::{self, CgroupVersion, EtcFiles};
use crate::root::Root;
use crate::runtime::Runtime;
use crate::state::{Kind, Leftovers, Record};
use crate::worker::Interruption;
use crate::{AgentConfig, Error, Network, RunSpec, StateDir, Stats, Timings};

/// How long the agent may take to unmount, once the container is gone.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

/// What a caller is told while it waits.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// So many bytes of so many are here, while a start waits for all of its image.
    Loading {
        /// Here.
        bytes: u64,
        /// Of so many.
        total: u64,
    },
    /// The image is mounted, in the thread that tells of it, and the runtime is about to start the command.
    Mounted(&'a Record),
}

/// Is told of steps. An error ends the start.
pub type Progress<'a> = dyn Fn(Step<'_>) -> Result<(), Error> + Sync + 'a;

/// How a run went.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// The command's exit status, or 128 + n if signal n ended it.
    pub exit_code: u8,
    /// What the image's device did; `None` if its agent was killed.
    pub stats: Option<Stats>,
    /// When the steps were reached.
    pub timings: Timings,
}

/// Runs a container to its end, with this process's standard streams. Removes what killed commands left, first.
///
/// TERM does what `docker stop` does: the command gets the image's stop signal in its place, and KILL if it has not ended
/// 10 s later. So does the loss of the terminal. The third INT or TERM kills at once. Other signals are passed on.
///
/// Call it while the process has no other threads, or only such that block the signals named above: one that does not
/// would be ended by them. `progress` is told of [`Step::Loading`] where
/// [`LoadMode::All`](crate::LoadMode::All) is set.
///
/// # Errors
/// Those of opening and mounting the image, [`Error::CommandNotFound`], [`Error::CommandNotExecutable`],
/// [`Error::Runtime`], [`Error::Killed`] for a container that did not end when asked to, [`Error::Io`] also for output that
/// could not be written, [`Error::Invalid`] for options that cannot be kept; [`Error::exit_code`] has the status that
/// `docker run` would give.
pub fn run(
    spec: &RunSpec,
    config: &AgentConfig,
    state: &StateDir,
    progress: &Progress<'_>,
) -> Result<RunOutcome, Error> {
    let start = Instant::now();
    if !rustix::process::geteuid().is_root() {
        return Err(Error::invalid("run", "mounting images needs root: use sudo"));
    }
    state.cleanup_stale()?;
    let signals = Signals::block()?;
    // A thread's mount namespace is its own and its children's; the caller's other threads keep theirs.
    let run = || {
        enter_mount_namespace()?;
        Run::begin(spec, config, state, &signals, start)?.finish(progress)
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Mounts made from here on are seen here only; those that others make and remove are still seen here.
fn enter_mount_namespace() -> Result<(), Error> {
    let io = |source| Error::io("make", "a mount namespace", source);
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(io)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>).map_err(io)
}

struct Run<'a> {
    spec: &'a RunSpec,
    signals: &'a Signals,
    start: Instant,
    timings: Timings,
    cgroups: CgroupVersion,
    hostname: String,
    runtime: Runtime,
    /// Removes the sandbox's directory when the run is over, however it is.
    sandbox: Sandbox<'a>,
    agent: AgentProcess,
    container: Container,
    output: Output,
    etc: EtcFiles,
    stopping: Stopping,
    /// Signals for the command that came before it was there.
    held: Vec<Received>,
    /// After the container, which has it in use.
    terminal: Option<Terminal>,
}

impl<'a> Run<'a> {
    fn begin(
        spec: &'a RunSpec,
        config: &AgentConfig,
        state: &'a StateDir,
        signals: &'a Signals,
        start: Instant,
    ) -> Result<Self, Error> {
        let cgroups = CgroupVersion::probe();
        oci::check_limits(spec, cgroups)?;
        check_terminal(spec)?;
        if spec.detach_runtime && (spec.tty || spec.interactive || spec.stats) {
            return Err(Error::invalid(
                "run",
                "a command that the runtime leaves has no terminal, no input and no figures",
            ));
        }
        let runtime = Runtime::choose(cgroups, &state.runtime_state(), spec.detach_runtime)?;
        let mut sandbox = Sandbox {
            state,
            record: state.create(Kind::Run, &spec.image, true, None, Some(&runtime))?,
            is_removed: false,
        };
        let directory = state.directory(&sandbox.record.id);
        let bundle = directory.join("bundle");
        for path in [&bundle, &sandbox.record.directory] {
            std::fs::create_dir(path).map_err(|source| Error::io("make", path.display(), source))?;
        }
        let messages = std::io::stderr().as_fd().try_clone_to_owned();
        let messages = messages.map_err(|source| Error::io("use", "standard error", source))?;
        let (command, mut waiting) = (Some(asked_for(spec)), Waiting { signals });
        let mut agent = AgentProcess::start(config, state, &sandbox.record, command, messages, &mut waiting)?;
        sandbox.record.agent = agent.id();
        sandbox.record.worker = agent.worker();
        let timings = Timings { agent_started: start.elapsed(), ..Timings::default() };
        let mut output = Output::default();
        let terminal = Terminal::of_caller(spec);
        let container = Container::start(&runtime, &sandbox.record.container(), &bundle, spec, &mut output)?;
        if let Some(process) = ProcessId::of(container.process.id()) {
            agent.send(&Control::Runtime(process));
        }
        state.update(&sandbox.record)?;
        output.start(start);
        let hostname = hostname(spec, &sandbox.record.id);
        let etc = EtcFiles::write(&bundle, &hostname, spec)?;
        let (stopping, held) = (Stopping::new(libc::SIGTERM), Vec::new());
        Ok(Self {
            spec,
            signals,
            start,
            timings,
            cgroups,
            hostname,
            runtime,
            sandbox,
            agent,
            container,
            output,
            etc,
            stopping,
            held,
            terminal,
        })
    }

    fn finish(mut self, progress: &Progress<'_>) -> Result<RunOutcome, Error> {
        let started = self.start_command(progress);
        let result = match started {
            Ok(command) => self.wait_for_command(&command),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.container.kill(&self.runtime, &self.sandbox.record.container());
        }
        self.timings.exited = self.start.elapsed();
        // Before the agent removes what is left, which would do the same at the same time.
        if self.container.is_detached()
            && result.is_ok()
            && let Err(error) = self.runtime.delete(&self.sandbox.record.container())
        {
            eprintln!("snowmelt: warning: {error}");
        }
        let stats = if result.is_ok() { self.agent.stop(UNMOUNT_PATIENCE) } else { None };
        // Who will have it killed does not wait for a reader of its output either.
        let (first_output, written) =
            if matches!(result, Err(Error::Killed { .. })) { (None, Ok(())) } else { self.output.finish() };
        self.timings.first_output = first_output;
        self.hint_at_memory(&result);
        self.clean_up(stats.is_some());
        self.timings.finished = self.start.elapsed();
        let exit_code = result?;
        written?;
        Ok(RunOutcome { exit_code, stats, timings: self.timings })
    }

    /// Removes the sandbox. What cannot be removed stays recorded for the next command, and does not change how this one
    /// went.
    fn clean_up(&mut self, has_agent_stopped: bool) {
        let leftovers = match (has_agent_stopped, self.spec.stats) {
            // The agent takes down and removes the rest. A command need not wait for that to end.
            (true, false) => {
                self.sandbox.is_removed = true;
                self.agent.leave();
                return;
            }
            // Figures are complete when all is done.
            (true, true) => Leftovers::Files,
            (false, _) => Leftovers::Any,
        };
        self.agent.wait(UNMOUNT_PATIENCE);
        if let Err(error) = self.sandbox.remove(leftovers) {
            eprintln!("snowmelt: warning: the next command will try again: {error}");
        }
    }

    /// The kernel kills in silence, and the cgroup that could say so goes with the command.
    fn hint_at_memory(&self, result: &Result<u8, Error>) {
        if let (Ok(code), Some(limit)) = (result, self.spec.memory_bytes)
            && *code == exit_code_of_signal(libc::SIGKILL)
        {
            let mib = (limit as f64 / f64::from(1 << 20) * 10.0).round() / 10.0;
            eprintln!("snowmelt: killed, perhaps by its memory limit of {mib} MiB");
        }
    }

    /// Until the runtime has its configuration. Gives the command as messages name it.
    fn start_command(&mut self, progress: &Progress<'_>) -> Result<String, Error> {
        let mut image: Option<Box<ImageConfig>> = None;
        loop {
            while let Some(report) = self.agent.reports.buffered()? {
                match report {
                    Report::Opened(config) => {
                        self.timings.manifest_opened = self.start.elapsed();
                        self.stopping = Stopping::new(stopping::stop_signal(config.stop_signal.as_deref()));
                        image = Some(config);
                    }
                    Report::Loading { bytes, total } => progress(Step::Loading { bytes, total })?,
                    Report::Mounted => {
                        self.timings.mounted = self.start.elapsed();
                        let image =
                            image.ok_or_else(|| Error::invalid("agent", "mounted before it opened: this is a bug"))?;
                        let (document, command) = self.configuration(&image)?;
                        progress(Step::Mounted(&self.sandbox.record))?;
                        self.container.configure(&document)?;
                        self.timings.runtime_started = self.start.elapsed();
                        for signal in self.held.extract_if(.., |_| !self.container.is_detaching()) {
                            self.container.forward(&self.runtime, &self.sandbox.record.container(), &signal);
                        }
                        return Ok(command);
                    }
                    Report::Failed { cause, message } => return Err(Error::Image { cause, message }),
                    Report::Finished(_) => return Err(self.agent_died()),
                }
            }
            let ready = self.wait_for_events()?;
            if let Some(signal) = ready.signal {
                match signal.number {
                    libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM => {
                        return Err(Error::Interrupted { signal: signal.number });
                    }
                    // A command will see for itself how large its terminal is.
                    libc::SIGCONT | libc::SIGWINCH => self.output.resize(),
                    _ => self.held.push(signal),
                }
            }
            if ready.report && !self.agent.reports.fill()? {
                return Err(self.agent_died());
            }
            if ready.exit {
                let reason = self.container.log_text();
                return Err(self.runtime.failure(reason.trim()));
            }
        }
    }

    fn configuration(&self, image: &ImageConfig) -> Result<(Value, String), Error> {
        let root_path = &self.sandbox.record.directory;
        let root = Root::open(root_path)?;
        oci::configuration(&oci::Inputs {
            spec: self.spec,
            image,
            root: &root,
            root_path,
            etc: &self.etc,
            hostname: &self.hostname,
            cgroups: self.cgroups,
        })
    }

    /// Until the runtime has ended.
    fn wait_for_command(&mut self, command: &str) -> Result<u8, Error> {
        loop {
            let ready = self.wait_for_events()?;
            match ready.signal {
                Some(signal) if self.container.is_detaching() => self.held.push(signal),
                Some(signal) => self.pass_on(&signal)?,
                None => {}
            }
            let has_agent_died = ready.report && !self.agent.reports.fill()?;
            if ready.exit {
                if self.container.follow_command()? {
                    for signal in std::mem::take(&mut self.held) {
                        self.pass_on(&signal)?;
                    }
                    continue;
                }
                let result = self.container.exit_code(&self.runtime, command, &self.spec.image);
                // Without its files a command fails; one that succeeded did not miss them.
                return if has_agent_died && !matches!(result, Ok(0)) { Err(self.agent_died()) } else { result };
            }
            if has_agent_died {
                return Err(self.agent_died());
            }
            if let Some(killed) = self.stopping.overdue(Instant::now()) {
                return Err(killed.into());
            }
        }
    }

    fn pass_on(&mut self, signal: &Received) -> Result<(), Error> {
        self.output.resize();
        let is_terminal_gone = || self.terminal.as_ref().is_some_and(Terminal::is_gone);
        let answer = self.stopping.answer(signal.number, is_terminal_gone, Instant::now());
        let (runtime, name) = (&self.runtime, self.sandbox.record.container());
        if let Answer::Stop(stop) | Answer::StopAndPass(stop) = answer {
            self.container.stop(runtime, &name, stop);
        }
        match answer {
            Answer::Stop(_) => {}
            Answer::Pass | Answer::StopAndPass(_) => self.container.forward(runtime, &name, signal),
            Answer::Kill(killed) => return Err(killed.into()),
        }
        Ok(())
    }

    fn agent_died(&self) -> Error {
        let message = format!("{}: the process that serves the image ended unexpectedly", self.spec.image);
        Error::Image { cause: crate::Cause::Other, message }
    }

    fn wait_for_events(&self) -> Result<Ready, Error> {
        let mut events = [
            PollFd::new(self.signals, PollFlags::IN),
            PollFd::new(&self.agent.reports, PollFlags::IN),
            PollFd::new(&self.container.pidfd, PollFlags::IN),
        ];
        loop {
            let timeout = self
                .stopping
                .time_left(Instant::now())
                .map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) });
            match poll(&mut events, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Err(source) => return Err(Error::io("wait for", "the container", source)),
                Ok(_) => break,
            }
        }
        let [signal, report, exit] = events.map(|event| !event.revents().is_empty());
        let signal = if signal { self.signals.read() } else { None };
        Ok(Ready { signal, report, exit })
    }
}

/// A run that waits for the machine's worker to let it in.
struct Waiting<'a> {
    signals: &'a Signals,
}

impl Interruption for Waiting<'_> {
    fn waits(&mut self, reason: &str) {
        eprintln!("snowmelt: waiting: {reason}");
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        Some(self.signals.as_fd())
    }

    fn check(&mut self) -> Result<(), Error> {
        match self.signals.read() {
            Some(Received {
                number: number @ (libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM), ..
            }) => Err(Error::Interrupted { signal: number }),
            // There is no command yet that could be told.
            _ => Ok(()),
        }
    }
}

impl From<Killed> for Error {
    fn from(killed: Killed) -> Self {
        Self::Killed { signal: killed.signal, reason: killed.reason }
    }
}

struct Ready {
    signal: Option<Received>,
    report: bool,
    exit: bool,
}

/// The directory and record of this run, removed at the end.
struct Sandbox<'a> {
    state: &'a StateDir,
    record: Record,
    is_removed: bool,
}

impl Sandbox<'_> {
    fn remove(&mut self, leftovers: Leftovers) -> Result<(), Error> {
        self.is_removed = true;
        self.state.dismantle(&self.record, leftovers)
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if !self.is_removed {
            let _ = self.remove(Leftovers::Any);
        }
    }
}

/// The words that tell one command of an image from another.
fn asked_for(spec: &RunSpec) -> Vec<String> {
    let entrypoint =
        spec.entrypoint.iter().flat_map(|words| ["--entrypoint".to_owned()].into_iter().chain(words.clone()));
    entrypoint.chain(spec.command.clone()).collect()
}

fn check_terminal(spec: &RunSpec) -> Result<(), Error> {
    let invalid = |reason: &str| Err(Error::invalid("-t", reason));
    match (spec.tty, spec.interactive) {
        (true, true) if !std::io::stdin().is_terminal() => invalid("standard input is not a terminal: leave -t out"),
        (true, false) if !std::io::stdout().is_terminal() => invalid("standard output is not a terminal: leave -t out"),
        _ => Ok(()),
    }
}

fn hostname(spec: &RunSpec, id: &str) -> String {
    if let Some(name) = &spec.hostname {
        return name.clone();
    }
    let of_host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    (spec.network == Network::Host).then(of_host).flatten().unwrap_or_else(|| id.to_owned())
}

#[cfg(test)]
mod tests;
