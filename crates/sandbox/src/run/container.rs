//! The runtime's process: started before there is a root file system, given its configuration when there is. Where it leaves the command
//! (`runc run --detach`), that takes its place here once it has ended.

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::libc;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use super::output::Output;
use super::signals;
use crate::runtime::{Failure, Runtime};
use crate::{Error, RunSpec};

/// How long a command that was killed is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// The runtime's process, and the pipe that is its configuration file.
pub(super) struct Container {
    pub(super) process: Child,
    pub(super) pidfd: OwnedFd,
    pub(super) configuration: Option<(std::io::PipeReader, std::io::PipeWriter)>,
    /// Where the runtime writes which process the command is, before it leaves that and ends.
    process_file: Option<PathBuf>,
    /// The command, once the runtime has left it: then the descriptor is its, and it is this process's child.
    command: Option<Pid>,
    /// Its reading end, which must be there until the runtime has opened it.
    reader: Option<std::io::PipeReader>,
    log: PathBuf,
    /// It shares our process group, and so gets the terminal's signals.
    in_our_group: bool,
    tty: bool,
}

impl Container {
    pub(super) fn start(
        runtime: &Runtime,
        name: &str,
        bundle: &Path,
        spec: &RunSpec,
        output: &mut Output,
    ) -> Result<Self, Error> {
        let (reader, writer) = std::io::pipe().map_err(|source| Error::io("make", "a pipe", source))?;
        let link = bundle.join("config.json");
        // By path and not inherited, so that nothing of it can be in the container. If we die before it is opened, the
        // path leads nowhere; if later, the document is cut short; either way the runtime fails.
        std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd()), &link)
            .map_err(|source| Error::io("make", link.display(), source))?;
        let log = bundle.join("runtime.log");
        let mut command = runtime.command();
        command.arg("--log").arg(&log).args(["--log-format", "json", "run"]);
        let detaches = spec.detach_runtime && runtime.leaves_commands();
        let process_file = detaches.then(|| bundle.join("process"));
        if let Some(file) = &process_file {
            command.args(["--detach", "--pid-file"]).arg(file);
            // What the runtime leaves is this process's then, whose status nobody else can have.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                .map_err(|source| Error::io("adopt", "what the runtime starts", source))?;
        }
        command.arg("--bundle").arg(bundle).arg(name);
        let reads_terminal = spec.interactive && std::io::stdin().is_terminal();
        command.stdin(if spec.interactive { Stdio::inherit() } else { Stdio::null() });
        // A terminal that it does not read is not this one: see `terminal`.
        let in_our_group = reads_terminal;
        if !in_our_group {
            command.process_group(0);
        }
        output.prepare(&mut command, spec, &log, detaches)?;
        signals::unblock_in(&mut command);
        let process = command.spawn().map_err(|source| Error::io("run", runtime.program.display(), source))?;
        drop(command);
        let pid = Pid::from_child(&process);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|source| Error::io("watch", "the runtime", source))?;
        Ok(Self {
            process,
            pidfd,
            configuration: Some((reader, writer)),
            process_file,
            command: None,
            reader: None,
            log,
            in_our_group,
            tty: spec.tty,
        })
    }

    /// Writes the configuration, for which the runtime waits.
    pub(super) fn configure(&mut self, document: &Value) -> Result<(), Error> {
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

    /// Whether the runtime is to leave the command and has not yet: it passes no signals on.
    pub(super) fn is_detaching(&self) -> bool {
        self.process_file.is_some()
    }

    /// Whether the runtime has left the command, and what it keeps of the container with it.
    pub(super) fn is_detached(&self) -> bool {
        self.command.is_some()
    }

    /// The watched process has ended: where that is a runtime that leaves the command, watches the command from now on. False for an end.
    pub(super) fn follow_command(&mut self) -> Result<bool, Error> {
        let Some(file) = self.process_file.take() else { return Ok(false) };
        let status = self.process.wait().map_err(|source| Error::io("wait for", "the runtime", source))?;
        if !status.success() {
            return Ok(false);
        }
        let text = std::fs::read_to_string(&file).map_err(|source| Error::io("read", file.display(), source))?;
        let process = text.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(|| {
            Error::io("read", file.display(), std::io::Error::other(format!("{text:?} is no process")))
        })?;
        // One that has ended already is there until it was waited for.
        self.pidfd =
            pidfd_open(process, PidfdFlags::empty()).map_err(|source| Error::io("watch", "the command", source))?;
        self.command = Some(process);
        Ok(true)
    }

    /// Passes a signal on.
    pub(super) fn forward(&self, runtime: &Runtime, name: &str, signal: &signals::Received) {
        if self.in_our_group && signal.from_kernel {
            return;
        }
        self.send(runtime, name, signal.number, self.is_taken(signal.number));
    }

    /// Asks the command to end, with the image's stop signal.
    pub(super) fn stop(&self, runtime: &Runtime, name: &str, signal: i32) {
        // Where the terminal's size has changed, WINCH is for the runtime.
        self.send(runtime, name, signal, self.is_taken(signal) || signal == libc::SIGWINCH);
    }

    /// Whether the runtime takes a signal for itself. With a terminal, INT makes runc 1.1 put that back and end, with
    /// status 0 (its tty.go, `handleInterrupt`).
    fn is_taken(&self, signal: i32) -> bool {
        matches!(signal, libc::SIGCHLD | libc::SIGURG) || signal == libc::SIGINT && self.tty
    }

    fn send(&self, runtime: &Runtime, name: &str, number: i32, is_taken: bool) {
        // Real-time signals have no names here.
        match Signal::from_named_raw(number).filter(|_| !is_taken) {
            Some(signal) => drop(pidfd_send_signal(&self.pidfd, signal)),
            None => {
                if let Err(error) = runtime.signal(name, number) {
                    tracing::warn!("signal {number} was not sent to the command: {error}");
                }
            }
        }
    }

    /// Ends the runtime and whatever it has started.
    pub(super) fn kill(&mut self, runtime: &Runtime, name: &str) {
        self.configuration = None;
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.process.wait();
        // One that reads from an image which does not answer ends when that is taken away, which is after this.
        if self.command.is_some() && crate::identity::wait_readable(&self.pidfd, KILL_PATIENCE) {
            let _ = self.command_status();
        }
        if let Err(error) = runtime.delete(name) {
            eprintln!("snowmelt: {error}");
        }
    }

    /// How the command has ended that the runtime left.
    fn command_status(&self) -> std::io::Result<u8> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        let code =
            status.and_then(|status| status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
    }

    /// The command's status, once the runtime has ended, or the command where the runtime left it.
    pub(super) fn exit_code(&mut self, runtime: &Runtime, command: &str, image: &str) -> Result<u8, Error> {
        if self.command.is_some() {
            return self.command_status().map_err(|source| Error::io("wait for", "the command", source));
        }
        let status = self.process.wait().map_err(|source| Error::io("wait for", "the runtime", source))?;
        if let Some(signal) = status.signal() {
            // Once it has a command, a runtime passes these on and does not die of them.
            if matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGTERM) {
                return Err(Error::Interrupted { signal });
            }
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

    pub(super) fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
