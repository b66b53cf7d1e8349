//! What a worker, its agents, and the commands that start sandboxes say to each other.
//!
//! ```text
//! <state>/worker/control.sock   for root: commands
//!                agents.sock    for all: agents, which are known by their process
//!                chunks.sock    for all: agents, which are known by their user
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use snowmelt_device::DeviceState;
use snowmelt_device::fuse::SessionState;
use snowmelt_store::NameRecord;

use super::WorkerStatus;
use crate::agent::protocol::Request;
use crate::identity::ProcessId;

/// Where a worker listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place(PathBuf);

impl Place {
    /// Of the worker that keeps its sandboxes in a state directory.
    pub(crate) fn below(state: &Path) -> Self {
        Self(state.join("worker"))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    pub(crate) fn agents(&self) -> PathBuf {
        self.0.join("agents.sock")
    }

    pub(crate) fn chunks(&self) -> PathBuf {
        self.0.join("chunks.sock")
    }
}

/// From a command. [`ToWorker::Start`] brings four descriptors: where the agent reads [`Control`](crate::agent::protocol::Control)s,
/// where it writes reports and messages, and the mount namespace to mount in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToWorker {
    /// Start a sandbox's agent.
    Start(Box<Request>),
    /// Say how things are.
    Status,
    /// Replace every agent by one of the worker's own version.
    Replace,
}

/// To a command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromWorker {
    /// It is not its turn yet; another answer follows.
    Waits(String),
    /// These processes are the agent and the worker.
    Started { agent: ProcessId, worker: ProcessId },
    /// There will be none.
    Refused(String),
    /// How things are.
    Status(Box<WorkerStatus>),
    /// So many agents were asked to let go.
    Replaced(usize),
}

/// From an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromAgent {
    /// The first message of a new agent.
    Hello { sandbox: String },
    /// The first message to a worker that was started again, of an agent that serves; its descriptors are those of
    /// [`FromAgent::HandedOver`].
    Adopt { sandbox: String, handed_over: Box<HandedOver> },
    /// What the image's name stands for. Answered, so that its chunks can be asked for then.
    Opened(Box<NameRecord>),
    /// The device is mounted. With descriptors: see [`HandedOver`].
    HandedOver(Box<HandedOver>),
    /// It has learnt this since.
    Changed { runtime: Option<ProcessId>, detached: bool },
    /// What this start read.
    Read(Box<StartRead>),
    /// What runs on the image must end before it is unmounted. Answered, once it has.
    KillContainer { runtime: Option<ProcessId> },
    /// It unmounted, and ends: the sandbox is over.
    Ended(Ending),
}

/// To an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToAgent {
    /// The answer to [`FromAgent::Hello`]. Brings the first three descriptors of [`ToWorker::Start`], the pipe from the process that opens the
    /// image, and then the namespace, or where there was an agent before, those of its [`HandedOver`].
    Begin(Box<Begin>),
    /// The answer to [`FromAgent::Opened`] and [`FromAgent::KillContainer`].
    Known,
    /// A successor is to come: answer what was begun, then end, and leave everything as it is.
    LetGo,
}

/// How an agent begins.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    /// The user that it becomes once the device is mounted.
    pub(crate) user: u32,
    /// Private memory that it may use, in bytes.
    pub(crate) memory_bytes: u64,
    /// What the agent before left.
    pub(crate) resume: Option<Box<HandedOver>>,
}

/// What the worker holds for the successor of an agent. Its descriptors: control, reports, messages; the mounter's two sockets; the
/// FUSE connection; of a writable device its pages and their states.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HandedOver {
    pub(crate) record: NameRecord,
    pub(crate) device: DeviceState,
    pub(crate) session: SessionState,
    /// The number of the mounter's process.
    pub(crate) mounter: i32,
    pub(crate) runtime: Option<ProcessId>,
    pub(crate) detached: bool,
}

/// What a start read, to be kept by who may write to the store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartRead {
    pub(crate) start: String,
    pub(crate) expected: String,
    pub(crate) same_command: bool,
}

/// What is left to do when an agent has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The container has ended: only files are left.
    Stopped,
    /// It was unmounted by who asked for that.
    Unmounted,
    /// Who started it is dead, or the agent was told to end: the container must end too.
    Abandoned,
}
