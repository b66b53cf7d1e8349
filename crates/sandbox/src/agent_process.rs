//! An agent as seen by the command that starts it.

use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::agent::protocol::{AgentConfig, Control, Lines, Report, Request, send};
use crate::identity::{ProcessId, wait_readable};
use crate::state::Record;
use crate::{Error, StateDir, Stats};

/// A running agent. Dropped, it is stopped and waited for.
pub(crate) struct AgentProcess {
    process: Child,
    control: Option<ChildStdin>,
    pub(crate) reports: Lines,
}

impl AgentProcess {
    pub(crate) fn start(
        config: &AgentConfig,
        state: &StateDir,
        record: &Record,
        messages: Stdio,
    ) -> Result<Self, Error> {
        let mut command = Command::new(&config.agent_command);
        command.arg("agent").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(messages);
        let io = |source| Error::io("start", config.agent_command.display(), source);
        let mut process = command.spawn().map_err(io)?;
        let (Some(mut control), Some(reports)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io(std::io::Error::other("no pipes")));
        };
        let request = Request { config: config.clone(), state: state.path().to_owned(), record: record.clone() };
        // An agent that is gone already is noticed where its report is missing.
        let _ = send(&mut control, &request);
        Ok(Self { process, control: Some(control), reports: Lines::new(OwnedFd::from(reports)) })
    }

    pub(crate) fn id(&self) -> Option<ProcessId> {
        ProcessId::of(self.process.id())
    }

    pub(crate) fn send(&mut self, control: &Control) {
        if let Some(to) = &mut self.control {
            let _ = send(to, control);
        }
    }

    /// Lets it live on. From now on only its socket reaches it.
    pub(crate) fn detach(mut self) {
        self.send(&Control::Detach);
        self.control = None;
        // Its process is nobody's child once we end; until then it is a zombie at most.
        std::mem::forget(self);
    }

    /// Has it unmount and end; kills it if it does not in time. Gives what it served, if it could say so.
    pub(crate) fn stop(&mut self, orderly: bool, patience: Duration) -> Option<Stats> {
        let mut stats = None;
        if let Some(mut control) = self.control.take()
            && orderly
        {
            let _ = send(&mut control, &Control::Stop);
        }
        loop {
            while let Ok(Some(report)) = self.reports.buffered() {
                if let Report::Finished(figures) = report {
                    stats = Some(*figures);
                }
            }
            if !wait_readable(&self.reports, patience) {
                let _ = self.process.kill();
                break;
            }
            if !self.reports.fill().unwrap_or(false) {
                break;
            }
        }
        let _ = self.process.wait();
        stats
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if self.control.is_some() {
            self.stop(false, Duration::from_secs(5));
        }
    }
}
