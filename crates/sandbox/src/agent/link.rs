//! An agent's way to its worker.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use snowmelt_cache::{ChunkServer, WorkerClient};
use snowmelt_store::NameRecord;

use crate::Error;
use crate::channel::Channel;
use crate::identity::ProcessId;
use crate::worker::{Begin, FromAgent, HandedOver, Place, ToAgent};

/// The connection to the worker, which may be gone for a while. Clones are one.
#[derive(Clone, Debug)]
pub(super) struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sandbox: String,
    /// The folder with the worker's sockets: only who was root once gets there.
    folder: OwnedFd,
    channel: Mutex<Option<Arc<Channel>>>,
}

/// What a worker sends its agent at the beginning.
pub(super) struct Begun {
    pub(super) begin: Begin,
    pub(super) control: OwnedFd,
    pub(super) reports: OwnedFd,
    pub(super) messages: OwnedFd,
    /// Where what was opened comes from.
    pub(super) opener: OwnedFd,
    /// Of a new sandbox.
    pub(super) namespace: Option<OwnedFd>,
    /// Of one that had an agent before.
    pub(super) held: Vec<OwnedFd>,
}

impl Link {
    /// Connects, says whose agent this is, and hears how to begin.
    pub(super) fn begin(place: &Place, sandbox: &str) -> Result<(Self, Begun), Error> {
        let io = |source| Error::io("reach", "the worker", source);
        let folder = rustix::fs::open(place.folder(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io(error.into()))?;
        let channel = Channel::connect(&place.agents()).map_err(io)?;
        channel.send(&FromAgent::Hello { sandbox: sandbox.into() }, &[]).map_err(io)?;
        let (ToAgent::Begin(begin), descriptors) = channel.expect::<ToAgent>()? else { return Err(unexpected()) };
        let mut descriptors = descriptors.into_iter();
        let (Some(control), Some(reports), Some(messages), Some(opener)) =
            (descriptors.next(), descriptors.next(), descriptors.next(), descriptors.next())
        else {
            return Err(unexpected());
        };
        let namespace = if begin.resume.is_none() { descriptors.next() } else { None };
        let begun = Begun { begin: *begin, control, reports, messages, opener, namespace, held: descriptors.collect() };
        let channel = Mutex::new(Some(Arc::new(channel)));
        Ok((Self(Arc::new(Shared { sandbox: sandbox.into(), folder, channel })), begun))
    }

    /// Asks the worker for this sandbox's chunks.
    pub(super) fn chunks(&self, patience: Duration) -> Result<WorkerClient, Error> {
        let folder = self.0.folder.try_clone().map_err(|source| Error::io("reach", "the worker", source))?;
        let connect = move || ChunkServer::connect(&in_folder(&folder, "chunks.sock"));
        Ok(WorkerClient::new(&self.0.sandbox, patience, connect))
    }

    /// Tells the worker what the image's name stands for, and waits until it knows.
    pub(super) fn opened(&self, record: &NameRecord) -> Result<(), Error> {
        self.send(&FromAgent::Opened(Box::new(record.clone())), &[])?;
        match self.channel()?.expect::<ToAgent>()? {
            (ToAgent::Known, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Gives the worker what a successor will need.
    pub(super) fn hand_over(&self, handed_over: HandedOver, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send(&FromAgent::HandedOver(Box::new(handed_over)), descriptors)
    }

    /// Has the worker kill what runs on the image, and waits until it has. One that is gone cannot: then nobody does.
    pub(super) fn kill_container(&self, runtime: Option<ProcessId>) {
        let killed = self.send(&FromAgent::KillContainer { runtime }, &[]).and_then(|()| {
            let channel = self.channel()?;
            // The order to let go may have come before; there is nothing to be left to a successor any more.
            while !matches!(channel.expect::<ToAgent>()?, (ToAgent::Known, _)) {}
            Ok(())
        });
        if let Err(error) = killed {
            tracing::error!(%error, "the container was not killed");
        }
    }

    /// Tells the worker anything else. One that is gone is not told.
    pub(super) fn tell(&self, message: &FromAgent) {
        if let Err(error) = self.send(message, &[]) {
            tracing::debug!(%error, "the worker was not told");
        }
    }

    /// Connects to a worker that was started again. `handed_over` is as [`Link::hand_over`] has it.
    pub(super) fn adopt(&self, handed_over: HandedOver, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let channel = Channel::connect(&in_folder(&self.0.folder, "agents.sock"))?;
        let sandbox = self.0.sandbox.clone();
        channel.send(&FromAgent::Adopt { sandbox, handed_over: Box::new(handed_over) }, descriptors)?;
        *self.lock() = Some(Arc::new(channel));
        Ok(())
    }

    /// What the worker says, once its channel is readable; `None` where it is gone.
    pub(super) fn receive(&self) -> Option<ToAgent> {
        let received = self.channel().ok()?.receive::<ToAgent>();
        if let Ok(Some((message, _))) = received {
            return Some(message);
        }
        *self.lock() = None;
        None
    }

    /// Where the worker is heard.
    ///
    /// # Errors
    /// [`Error::Io`] while it is gone.
    pub(super) fn channel(&self) -> Result<Arc<Channel>, Error> {
        let channel = self.lock().clone();
        channel.ok_or_else(|| Error::io("reach", "the worker", io::Error::other("it is gone")))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.0.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: &FromAgent, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.channel()?.send(message, descriptors).map_err(|source| Error::io("tell", "the worker", source))
    }
}

/// A socket in a folder that this process has open: it may not reach it by its path.
fn in_folder(folder: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn unexpected() -> Error {
    Error::invalid("the worker", "gave the wrong answer: are two versions at work?")
}
