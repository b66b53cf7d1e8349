//! A process of an agent's own that does what waits for the device: attaches it, mounts it, reads ahead, unmounts it.
//!
//! The kernel waits for a device without end and heeds no signal meanwhile. If the process that serves the device also waited
//! for it, and were killed then, it would wait for itself: its descriptors stay open while one of its threads waits, so the
//! kernel would not see that nobody serves any more, and with it every `sync` of the machine would hang. This process has none
//! of these descriptors. Killed, whoever serves, the device fails and nobody waits; killed, this one, it is served to its end.
//!
//! It is forked from the agent before that has other threads or files, and does what it is told, one thing at a time. When the
//! agent is gone it unmounts what is mounted and ends.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{ForkResult, fork};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, waitpid};
use serde::{Deserialize, Serialize};
use snowmelt_device::StartLog;
use snowmelt_device::loop_device::{self, LoopDevice};
use snowmelt_device::mount::{mount_ext4, mount_ext4_for_all};

use super::image::device_error;
use super::protocol::{Lines, send};
use crate::identity::wait_readable;
use crate::{Cause, Error};

/// How long it may take to end once it has nothing to do. What was lazily unmounted may be in use for a while.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// What to mount, and where.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MountOrder {
    /// The file that is the device, and its bytes.
    pub(super) file: PathBuf,
    pub(super) size_bytes: u64,
    pub(super) read_only: bool,
    /// The mount point.
    pub(super) directory: PathBuf,
    /// Whether every user of this machine will see it.
    pub(super) for_all: bool,
    /// What will be read, as text: see [`StartLog`].
    pub(super) expected: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Mount(MountOrder),
    Unmount { lazily: bool },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Done,
    Busy,
    Failed { cause: Cause, message: String },
}

/// The process, as its agent sees it.
pub(super) struct Mounter {
    stream: Option<UnixStream>,
    answers: Lines,
    process: Pid,
    directory: PathBuf,
}

impl Mounter {
    /// Forks it. To be called while this process has one thread, and no descriptor that the other must not have.
    #[allow(unsafe_code)]
    pub(super) fn start() -> Result<Self, Error> {
        let io = |source| Error::io("start", "the process that mounts", source);
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        let answers = Lines::new(ours.try_clone().map_err(io)?.into());
        // SAFETY: there is one thread only, so the child finds no lock held by another.
        match unsafe { fork() }.map_err(|error| io(error.into()))? {
            ForkResult::Parent { child } => {
                let process =
                    Pid::from_raw(child.as_raw()).ok_or_else(|| io(std::io::Error::other("no process id")))?;
                Ok(Self { stream: Some(ours), answers, process, directory: PathBuf::new() })
            }
            ForkResult::Child => {
                drop((ours, answers));
                // The pipes are the agent's: who reads or writes them learns of its end.
                if let Ok(nothing) = std::fs::File::options().read(true).write(true).open("/dev/null") {
                    let _ = rustix::stdio::dup2_stdin(nothing.as_fd());
                    let _ = rustix::stdio::dup2_stdout(nothing.as_fd());
                }
                serve(&theirs);
                std::process::exit(0)
            }
        }
    }

    /// Attaches and mounts a device. Reading ahead goes on after that.
    pub(super) fn mount(&mut self, order: MountOrder) -> Result<(), Error> {
        self.directory.clone_from(&order.directory);
        self.ask(&Order::Mount(order))
    }

    /// Unmounts it. One that is in use stays, unless it is to go `lazily`: then it goes with its last user.
    pub(super) fn unmount(&mut self, lazily: bool) -> Result<(), Error> {
        self.ask(&Order::Unmount { lazily })
    }

    fn ask(&mut self, order: &Order) -> Result<(), Error> {
        let gone =
            || Error::Image { cause: Cause::Other, message: "the process that mounts ended unexpectedly".into() };
        let stream = self.stream.as_ref().ok_or_else(gone)?;
        send(stream, order).map_err(|_| gone())?;
        match self.answers.next()?.ok_or_else(gone)? {
            Outcome::Done => Ok(()),
            Outcome::Busy => Err(Error::Busy { directory: self.directory.clone() }),
            Outcome::Failed { cause, message } => Err(Error::Image { cause, message }),
        }
    }
}

impl Drop for Mounter {
    fn drop(&mut self) {
        // What reads the answers holds it open too.
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Ok(pidfd) = pidfd_open(self.process, PidfdFlags::empty())
            && !wait_readable(&pidfd, END_PATIENCE)
        {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        let _ = waitpid(Some(self.process), rustix::process::WaitOptions::NOHANG);
    }
}

/// The whole of the process.
fn serve(stream: &UnixStream) {
    let Ok(orders) = stream.try_clone() else { return };
    let mut orders = Lines::new(orders.into());
    let mut mounted: Option<(PathBuf, LoopDevice)> = None;
    while let Ok(Some(order)) = orders.next::<Order>() {
        let outcome = match order {
            Order::Mount(order) => match attach_and_mount(&order) {
                Ok((device, log)) => {
                    let _ = send(stream, &Outcome::Done);
                    // Until it is told something else, it has the kernel read ahead.
                    let _ = log.replay_files(&order.directory, || wait_readable(stream, Duration::ZERO));
                    mounted = Some((order.directory, device));
                    continue;
                }
                Err(error) => Outcome::Failed { cause: error.cause(), message: error.to_string() },
            },
            Order::Unmount { lazily } => match &mounted {
                Some((directory, _)) => unmount_root(directory, lazily),
                None => Outcome::Done,
            },
        };
        if matches!(outcome, Outcome::Done) {
            // The device detaches itself with its last user.
            mounted = None;
        }
        if send(stream, &outcome).is_err() {
            break;
        }
    }
    if let Some((directory, _)) = &mounted {
        unmount_root(directory, true);
    }
}

fn attach_and_mount(order: &MountOrder) -> Result<(LoopDevice, StartLog), Error> {
    let failed = |error: snowmelt_device::Error| device_error(&error);
    let log = StartLog::decode(&order.expected).unwrap_or_default();
    let device = loop_device::attach(&order.file, order.read_only, order.size_bytes).map_err(failed)?;
    // Before the mount, which reads the first of it.
    log.replay_metadata(&device);
    let mount = if order.for_all { mount_ext4_for_all } else { mount_ext4 };
    mount(&device, &order.directory, order.read_only).map_err(failed)?;
    Ok((device, log))
}

fn unmount_root(directory: &Path, lazily: bool) -> Outcome {
    let failed = |error: rustix::io::Errno| Outcome::Failed {
        cause: Cause::Other,
        message: Error::io("unmount", directory.display(), error).to_string(),
    };
    match unmount(directory, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) if lazily => {
            let detached = unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            detached.map_or_else(failed, |()| Outcome::Done)
        }
        Err(rustix::io::Errno::BUSY) => Outcome::Busy,
        // Somebody else unmounted it, by hand.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) | Ok(()) => Outcome::Done,
        Err(error) => failed(error),
    }
}
