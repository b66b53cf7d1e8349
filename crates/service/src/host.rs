//! The host of one sandbox: a process that runs the container, gives the runtime in it the Runtime API, and speaks to the service.
//!
//! It lives on when the service dies, with all that the function has in memory, and comes back to the next one. The API listens where only
//! the container is: on the loopback interface of its network namespace, which is made here. What the container writes comes by a pipe.
//!
//! Where the image has extensions, the container's first process is a small program of ours that starts them and the runtime
//! (`supervisor`). `lifecycle` knows what each of them is at, `ending` what is done when one of them fails or nobody needs the sandbox.

mod beginning;
mod ending;
mod extensions_api;
mod lifecycle;
mod logs;
mod memory;
mod network;
mod outgoing;
mod report;
mod runtime_api;
mod serving;
mod supervisor;
mod telemetry;

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use serde::{Deserialize, Serialize};
use snowmelt_sandbox::{AgentConfig, Error, FirstProcess, Network, RunSpec, StateDir, Step, run};

pub(crate) use self::lifecycle::Reason;
use self::network::Namespace;
use self::outgoing::Outgoing;
pub use self::outgoing::OutgoingNetwork;
pub use self::outgoing::PROGRAMS as OUTGOING_PROGRAMS;
use self::serving::{Outcome, Sockets};

/// Where the Runtime API is, as the container sees it.
const RUNTIME_API: &str = "127.0.0.1:9001";

/// The one line that a host reads: everything it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostConfig {
    pub(crate) sandbox: String,
    /// Where the service listens.
    pub(crate) socket: PathBuf,
    pub(crate) agent: AgentConfig,
    pub(crate) state: PathBuf,
    pub(crate) image: String,
    pub(crate) entry_point: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) working_directory: Option<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Processor time, in cores.
    pub(crate) cpus: f64,
    /// Which version runs, for its log.
    pub(crate) version: String,
    /// Memory that the container may have, in MiB.
    pub(crate) memory_mb: u32,
    /// What extensions are told of the function.
    pub(crate) function: String,
    pub(crate) handler: String,
    pub(crate) account: String,
    /// How long it may take to begin.
    pub(crate) init_limit_ms: u64,
    /// It did not begin before: this is a part of an invocation, and nobody tries again.
    pub(crate) is_last_try: bool,
    /// As in `AWS_LAMBDA_INITIALIZATION_TYPE`.
    pub(crate) initialization_type: String,
    /// Where the function may connect to.
    pub(crate) outgoing: OutgoingNetwork,
}

/// The whole of the hidden `function-host` subcommand.
pub fn host_main() -> ExitCode {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("SNOWMELT_LOG").unwrap_or_else(|_| "warn,aws_config=off".into());
    // Where the service's messages go.
    let messages = match std::io::stderr().as_fd().try_clone_to_owned() {
        Ok(messages) => std::fs::File::from(messages),
        Err(_) => return ExitCode::FAILURE,
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::sync::Mutex::new(messages));
    let _ = subscriber.with_ansi(false).with_target(false).try_init();
    match host() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "a sandbox has no host");
            ExitCode::FAILURE
        }
    }
}

fn host() -> std::io::Result<()> {
    // Before any thread exists: those that the run passes on reach the run alone.
    let mut signals = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
        Signal::SIGCHLD,
        Signal::SIGPIPE,
    ] {
        signals.remove(fault);
    }
    signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let _ = rustix::process::setsid();
    let mut line = String::new();
    BufReader::new(std::io::stdin()).read_line(&mut line)?;
    let config: HostConfig = serde_json::from_str(&line)?;
    let namespace = Namespace::new()?;
    // It is connected while the image is opened.
    let outgoing = Outgoing::start(&namespace, config.outgoing);
    let runtime_api = namespace.listen(RUNTIME_API)?;
    let first_process = supervisor::listen(&namespace, &config.sandbox)?;
    // The container's output is this process's: from here on it goes into the pipe.
    let (log, output) = std::io::pipe()?;
    rustix::stdio::dup2_stdout(&output)?;
    rustix::stdio::dup2_stderr(&output)?;
    drop(output);
    let (end, ended) = tokio::sync::oneshot::channel();
    let spec = spec(&config, &namespace);
    let namespace = Arc::new(namespace);
    let sockets = Sockets { runtime_api, first_process, log: OwnedFd::from(log) };
    let (serving, mounted) = serving::start(&config, Arc::clone(&namespace), sockets, ended)?;
    let mounted = Mutex::new(Some(mounted));
    // The container's way out is there as long as this, and ready before the command is.
    let outgoing = Mutex::new(outgoing);
    let progress = |step: Step<'_>| {
        let Step::Mounted(record) = step else { return Ok(()) };
        beginning::tell(&mounted, record);
        let mut outgoing = outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = outgoing.as_mut().map_err(|error| std::io::Error::other(error.to_string()));
        ready
            .and_then(|outgoing| outgoing.as_mut().map_or(Ok(()), |outgoing| outgoing.wait(&namespace)))
            .map_err(|source| Error::Io { operation: "connect", subject: "the sandbox to the network".into(), source })
    };
    let outcome = StateDir::new(&config.state).and_then(|state| run(&spec, &config.agent, &state, &progress));
    let ended = match outcome {
        Ok(outcome) => Outcome::Exited(outcome.exit_code),
        Err(error @ (Error::CommandNotFound { .. } | Error::CommandNotExecutable { .. })) => {
            Outcome::NoCommand(error.to_string())
        }
        Err(error) => Outcome::Failed(error.to_string()),
    };
    // The last writers of the pipe: its reader comes to the end.
    let nothing = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    let _ = end.send(ended);
    let _ = serving.join();
    Ok(())
}

fn spec(config: &HostConfig, namespace: &Namespace) -> RunSpec {
    let mut env = config.environment.clone();
    env.push(("AWS_LAMBDA_RUNTIME_API".into(), RUNTIME_API.into()));
    RunSpec {
        image: config.image.clone(),
        command: config.command.clone(),
        entrypoint: (!config.entry_point.is_empty()).then(|| config.entry_point.clone()),
        env,
        // The command is the handler, as in Lambda's own base images.
        command_variable: config.handler.is_empty().then(|| "_HANDLER".into()),
        workdir: config.working_directory.clone(),
        read_only: true,
        writable: vec!["/tmp".into()],
        network: Network::None,
        network_namespace: Some(namespace.path()),
        first_process: Some(FirstProcess {
            program: supervisor::PROGRAM,
            where_in_use: supervisor::EXTENSIONS.into(),
            arguments: vec![supervisor::socket_name(&config.sandbox)],
        }),
        // With these it could send what its network does not let it, and make devices.
        without_capabilities: vec!["CAP_NET_RAW".into(), "CAP_MKNOD".into()],
        name_servers: match config.outgoing {
            OutgoingNetwork::None => Vec::new(),
            OutgoingNetwork::Public | OutgoingNetwork::All => vec![outgoing::NAME_SERVER.into()],
        },
        own_names: vec!["sandbox.localdomain".into(), "sandbox".into()],
        memory_bytes: Some(u64::from(config.memory_mb) << 20),
        cpus: Some(config.cpus),
        // What was written before an answer is in the pipe when that comes.
        detach_runtime: true,
        ..RunSpec::default()
    }
}
