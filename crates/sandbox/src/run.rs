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
//! - the runtime is killed: as if the command had ended, and the container is killed;
//! - several of them are killed: the next command removes what is left ([`StateDir::cleanup_stale`]).
//!
//! Signals: HUP, INT, QUIT, TERM, USR1, USR2, ALRM, CONT and WINCH go on to the runtime, which passes them to the
//! command. The runtime has a process group of its own, so a signal from the terminal or to the whole group is passed on
//! once. Only where the command reads from a terminal must the runtime stay in the terminal's foreground group; there
//! the kernel gives it the terminal's signals itself, and those are not passed on a second time.

mod output;
mod signals;

use std::io::{IsTerminal, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use snowmelt_image::ImageConfig;

use self::output::Output;
use self::signals::Signals;
use crate::agent::protocol::{Control, Report};
use crate::agent_process::AgentProcess;
use crate::identity::ProcessId;
use crate::oci::{self, CgroupVersion, EtcFiles};
use crate::root::Root;
use crate::runtime::{Failure, Runtime};
use crate::state::{Kind, Leftovers, Record};
use crate::{AgentConfig, Error, Network, RunSpec, StateDir, Stats, Timings};

/// How long the agent may take to unmount, once the container is gone.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

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
/// Call it while the process has no other threads, or only such that block the signals named above: one that does not
/// would be ended by them.
///
/// # Errors
/// Those of opening and mounting the image, [`Error::CommandNotFound`], [`Error::CommandNotExecutable`],
/// [`Error::Runtime`], [`Error::Invalid`] for options that cannot be kept; [`Error::exit_code`] has the status that
/// `docker run` would give.
pub fn run(spec: &RunSpec, config: &AgentConfig, state: &StateDir) -> Result<RunOutcome, Error> {
    let start = Instant::now();
    if !rustix::process::geteuid().is_root() {
        return Err(Error::invalid("run", "mounting images needs root: use sudo"));
    }
    state.cleanup_stale()?;
    let signals = Signals::block()?;
    // A thread's mount namespace is its own and its children's; the caller's other threads keep theirs.
    let run = || {
        enter_mount_namespace()?;
        Run::begin(spec, config, state, &signals, start)?.finish()
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
}

/// The runtime's process, and the pipe that is its configuration file.
struct Container {
    process: Child,
    pidfd: OwnedFd,
    configuration: Option<(std::io::PipeReader, std::io::PipeWriter)>,
    /// Its reading end, which must be there until the runtime has opened it.
    reader: Option<std::io::PipeReader>,
    log: PathBuf,
    /// It shares our process group, and so gets the terminal's signals.
    in_our_group: bool,
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
        let runtime = Runtime::choose(cgroups, &state.runtime_state())?;
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
        let mut agent = AgentProcess::start(config, state, &sandbox.record, Some(asked_for(spec)), Stdio::inherit())?;
        sandbox.record.agent = agent.id();
        let timings = Timings { agent_started: start.elapsed(), ..Timings::default() };
        let mut output = Output::default();
        let container = Container::start(&runtime, &sandbox.record.container(), &bundle, spec, &mut output)?;
        if let Some(process) = ProcessId::of(container.process.id()) {
            agent.send(&Control::Runtime(process));
        }
        state.update(&sandbox.record)?;
        output.start(start);
        let hostname = hostname(spec, &sandbox.record.id);
        let etc = EtcFiles::write(&bundle, &hostname, spec.network)?;
        Ok(Self { spec, signals, start, timings, cgroups, hostname, runtime, sandbox, agent, container, output, etc })
    }

    fn finish(mut self) -> Result<RunOutcome, Error> {
        let started = self.start_command();
        let result = match started {
            Ok(command) => self.wait_for_command(&command),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.container.kill(&self.runtime, &self.sandbox.record.container());
        }
        self.timings.exited = self.start.elapsed();
        let stats = if result.is_ok() { self.agent.stop(UNMOUNT_PATIENCE) } else { None };
        self.timings.first_output = self.output.finish();
        match (&stats, self.spec.stats) {
            // Figures are complete when all is done.
            (Some(_), true) => {
                self.agent.wait(UNMOUNT_PATIENCE);
                self.sandbox.remove(Leftovers::Files)?;
            }
            // The agent takes down and removes the rest. A command need not wait for that to end.
            (Some(_), false) => {
                self.sandbox.is_removed = true;
                self.agent.leave();
            }
            (None, _) => {
                self.agent.wait(UNMOUNT_PATIENCE);
                self.sandbox.remove(Leftovers::Any)?;
            }
        }
        self.timings.finished = self.start.elapsed();
        Ok(RunOutcome { exit_code: result?, stats, timings: self.timings })
    }

    /// Until the runtime has its configuration. Gives the command as messages name it.
    fn start_command(&mut self) -> Result<String, Error> {
        let mut image: Option<Box<ImageConfig>> = None;
        loop {
            while let Some(report) = self.agent.reports.buffered()? {
                match report {
                    Report::Opened(config) => {
                        self.timings.manifest_opened = self.start.elapsed();
                        image = Some(config);
                    }
                    Report::Mounted => {
                        self.timings.mounted = self.start.elapsed();
                        let image =
                            image.ok_or_else(|| Error::invalid("agent", "mounted before it opened: this is a bug"))?;
                        let (document, command) = self.configuration(&image)?;
                        self.container.configure(&document)?;
                        self.timings.runtime_started = self.start.elapsed();
                        return Ok(command);
                    }
                    Report::Failed { cause, message } => return Err(Error::Image { cause, message }),
                    Report::Finished(_) => return Err(self.agent_died()),
                }
            }
            let ready = self.wait_for_events()?;
            if let Some(signal) = ready.signal {
                return Err(Error::Interrupted { signal: signal.number });
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
            if let Some(signal) = ready.signal {
                self.container.forward(&signal);
            }
            if ready.report && !self.agent.reports.fill()? {
                return Err(self.agent_died());
            }
            if ready.exit {
                return self.container.exit_code(&self.runtime, command, &self.spec.image);
            }
        }
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
            match poll(&mut events, None) {
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

struct Ready {
    signal: Option<signals::Received>,
    report: bool,
    exit: bool,
}

impl Container {
    fn start(runtime: &Runtime, name: &str, bundle: &Path, spec: &RunSpec, output: &mut Output) -> Result<Self, Error> {
        let (reader, writer) = std::io::pipe().map_err(|source| Error::io("make", "a pipe", source))?;
        let link = bundle.join("config.json");
        // By path and not inherited, so that nothing of it can be in the container. If we die before it is opened, the
        // path leads nowhere; if later, the document is cut short; either way the runtime fails.
        std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd()), &link)
            .map_err(|source| Error::io("make", link.display(), source))?;
        let log = bundle.join("runtime.log");
        let mut command = runtime.command();
        command.arg("--log").arg(&log).args(["--log-format", "json", "run", "--bundle"]).arg(bundle).arg(name);
        let reads_terminal = spec.interactive && std::io::stdin().is_terminal();
        command.stdin(if spec.interactive { Stdio::inherit() } else { Stdio::null() });
        let in_our_group = reads_terminal || spec.tty;
        if !in_our_group {
            command.process_group(0);
        }
        output.prepare(&mut command, spec)?;
        signals::unblock_in(&mut command);
        let process = command.spawn().map_err(|source| Error::io("run", runtime.program.display(), source))?;
        drop(command);
        let pid = Pid::from_child(&process);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|source| Error::io("watch", "the runtime", source))?;
        Ok(Self { process, pidfd, configuration: Some((reader, writer)), reader: None, log, in_our_group })
    }

    /// Writes the configuration, for which the runtime waits.
    fn configure(&mut self, document: &Value) -> Result<(), Error> {
        let Some((reader, mut writer)) = self.configuration.take() else { return Ok(()) };
        let io = |source| Error::io("write", "the runtime's configuration", source);
        let bytes = serde_json::to_vec(document).map_err(|source| io(source.into()))?;
        // All of it must fit, since nobody may be there to read it and we hold the reading end too.
        let size = rustix::pipe::fcntl_getpipe_size(&writer).map_err(|source| io(source.into()))?;
        if bytes.len() > size {
            rustix::pipe::fcntl_setpipe_size(&writer, bytes.len().next_power_of_two())
                .map_err(|source| io(source.into()))?;
        }
        writer.write_all(&bytes).map_err(io)?;
        // The runtime sees the end when the last writer is gone, and may not have opened the reader yet.
        self.reader = Some(reader);
        Ok(())
    }

    fn forward(&self, signal: &signals::Received) {
        if self.in_our_group && signal.from_kernel {
            return;
        }
        if let Some(signal) = Signal::from_named_raw(signal.number) {
            let _ = pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// Ends the runtime and whatever it has started.
    fn kill(&mut self, runtime: &Runtime, name: &str) {
        self.configuration = None;
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.process.wait();
        if let Err(error) = runtime.delete(name) {
            eprintln!("snowmelt: {error}");
        }
    }

    /// The command's status, once the runtime has ended.
    fn exit_code(&mut self, runtime: &Runtime, command: &str, image: &str) -> Result<u8, Error> {
        let status = self.process.wait().map_err(|source| Error::io("wait for", "the runtime", source))?;
        if let Some(signal) = status.signal() {
            return Err(runtime.failure(&format!("it was killed by signal {signal}")));
        }
        let code = u8::try_from(status.code().unwrap_or(255)).unwrap_or(255);
        if code == 0 {
            return Ok(0);
        }
        let (command, image) = (command.to_owned(), image.to_owned());
        match Failure::from_log(&self.log_text()) {
            None => Ok(code),
            Some(Failure::NotFound(reason)) => Err(Error::CommandNotFound { command, image, reason }),
            Some(Failure::NotExecutable(reason)) => Err(Error::CommandNotExecutable { command, image, reason }),
            Some(Failure::Other(reason)) => Err(runtime.failure(&reason)),
        }
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
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
