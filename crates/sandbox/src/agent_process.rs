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
        command: Option<Vec<String>>,
        messages: Stdio,
    ) -> Result<Self, Error> {
        let mut agent = Command::new(&config.agent_command);
        agent.arg("agent").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(messages);
        let io = |source| Error::io("start", config.agent_command.display(), source);
        let mut process = agent.spawn().map_err(io)?;
        let (Some(mut control), Some(reports)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io(std::io::Error::other("no pipes")));
        };
        let request =
            Request { config: config.clone(), state: state.path().to_owned(), record: record.clone(), command };
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
        self.leave();
    }

    /// Leaves it to itself: it knows what to do.
    pub(crate) fn leave(&mut self) {
        // Its process is nobody's child once we end; until then it is a zombie at most.
        self.control = None;
    }

    /// Tells it that the container has ended: it will unmount, remove the sandbox and end. Gives what it served; `None` if it
    /// cannot say so in time, and then it has been killed and has removed nothing.
    pub(crate) fn stop(&mut self, patience: Duration) -> Option<Stats> {
        self.send(&Control::Stop);
        loop {
            while let Ok(Some(report)) = self.reports.buffered() {
                if let Report::Finished(stats) = report {
                    return Some(*stats);
                }
            }
            if !wait_readable(&self.reports, patience) || !self.reports.fill().unwrap_or(false) {
                self.kill();
                return None;
            }
        }
    }

    /// Waits for its end; kills it if it does not end in time.
    pub(crate) fn wait(&mut self, patience: Duration) {
        self.control = None;
        while wait_readable(&self.reports, patience) {
            if !self.reports.fill().unwrap_or(false) {
                let _ = self.process.wait();
                return;
            }
        }
        self.kill();
    }

    fn kill(&mut self) {
        self.control = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if self.control.is_some() {
            // It sees its input end, as if we had died.
            self.wait(Duration::from_secs(5));
        }
    }
}
