//! An agent as seen by the command that starts it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::agent::protocol::{AgentConfig, Control, Lines, Report, Request, UseWorker, send};
use crate::identity::{ProcessId, wait_readable};
use crate::state::Record;
use crate::worker::{Interruption, Place, WorkerControl};
use crate::{Error, StateDir, Stats};

/// How long a killed agent may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Whose child it is.
enum Process {
    Child(Child),
    OfWorker(ProcessId),
}

/// A running agent. Dropped, it is stopped and waited for.
pub(crate) struct AgentProcess {
    process: Process,
    /// The worker that started it, if one did.
    worker: Option<ProcessId>,
    control: Option<File>,
    pub(crate) reports: Lines,
}

impl AgentProcess {
    /// Starts an agent that writes its messages to `messages`: through the worker of this machine, where one runs. That may have to wait
    /// for its turn, which `interruption` is told and can end.
    pub(crate) fn start(
        config: &AgentConfig,
        state: &StateDir,
        record: &Record,
        command: Option<Vec<String>>,
        messages: OwnedFd,
        interruption: &mut dyn Interruption,
    ) -> Result<Self, Error> {
        let mut request = Request {
            config: config.clone(),
            state: state.path().to_owned(),
            record: record.clone(),
            command,
            worker: None,
        };
        let worker = if config.worker == UseWorker::Never { None } else { WorkerControl::find(state) };
        match (worker, config.worker) {
            (Some(worker), _) => {
                request.worker = Some(Place::below(state.path()));
                Self::by_worker(&worker, request, messages.as_fd(), interruption)
            }
            (None, UseWorker::Always) => Err(Error::Unavailable {
                subject: "the worker of this machine".into(),
                reason: format!(
                    "none listens in {}: start one with `snowmelt worker`, or allow doing without with `worker = \"auto\"`",
                    state.path().display()
                ),
            }),
            (None, _) => Self::by_ourselves(&request, messages),
        }
    }

    fn by_ourselves(request: &Request, messages: OwnedFd) -> Result<Self, Error> {
        let program = &request.config.agent_command;
        let mut agent = Command::new(program);
        agent.arg("agent").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(messages);
        let io = |source| Error::io("start", program.display(), source);
        let mut process = agent.spawn().map_err(io)?;
        let (Some(control), Some(reports)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io(std::io::Error::other("no pipes")));
        };
        let mut control = File::from(OwnedFd::from(control));
        // An agent that is gone already is noticed where its report is missing.
        let _ = send(&mut control, request);
        Ok(Self {
            process: Process::Child(process),
            worker: None,
            control: Some(control),
            reports: Lines::new(OwnedFd::from(reports)),
        })
    }

    fn by_worker(
        worker: &WorkerControl,
        request: Request,
        messages: BorrowedFd<'_>,
        interruption: &mut dyn Interruption,
    ) -> Result<Self, Error> {
        let io = |source| Error::io("make", "a pipe", source);
        let (their_control, control) = std::io::pipe().map_err(io)?;
        let (reports, their_reports) = std::io::pipe().map_err(io)?;
        let path = "/proc/thread-self/ns/mnt";
        let namespace = File::open(path).map_err(|source| Error::io("open", path, source))?;
        let descriptors = [their_control.as_fd(), their_reports.as_fd(), messages, namespace.as_fd()];
        let (agent, worker) = worker.start(request, &descriptors, interruption)?;
        Ok(Self {
            process: Process::OfWorker(agent),
            worker: Some(worker),
            control: Some(OwnedFd::from(control).into()),
            reports: Lines::new(reports.into()),
        })
    }

    pub(crate) fn id(&self) -> Option<ProcessId> {
        match &self.process {
            Process::Child(process) => ProcessId::of(process.id()),
            Process::OfWorker(process) => Some(*process),
        }
    }

    /// The worker that started it, if one did.
    pub(crate) fn worker(&self) -> Option<ProcessId> {
        self.worker
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
                if let Process::Child(process) = &mut self.process {
                    let _ = process.wait();
                }
                return;
            }
        }
        self.kill();
    }

    fn kill(&mut self) {
        self.control = None;
        match &mut self.process {
            Process::Child(process) => {
                let _ = process.kill();
                let _ = process.wait();
            }
            // The worker has a successor, which finds that nobody holds the other end of its pipe, and ends in order.
            Process::OfWorker(process) => {
                process.kill(KILL_PATIENCE);
            }
        }
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
