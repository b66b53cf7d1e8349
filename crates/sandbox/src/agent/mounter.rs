//! A process of an agent's own that does what waits for the device: attaches it, mounts it, reads ahead, unmounts it.
//!
//! The kernel waits for a device without end and heeds no signal meanwhile. If the process that serves the device also waited
//! for it, and were killed then, it would wait for itself: its descriptors stay open while one of its threads waits, so the
//! kernel would not see that nobody serves any more, and with it every `sync` of the machine would hang. This process has none
//! of these descriptors. Killed, whoever serves, the device fails and nobody waits; killed, this one, it is served to its end.
//!
//! For the same reason the agent of a run is not in the mount namespace in which the file system is mounted (see
//! [`Mounter::leave_its_namespace`]): with its last process a namespace ends, and that process then waits for everything that is
//! not written yet. So the FUSE file is mounted where only the agent sees it, and this process is handed a descriptor of it.
//!
//! It is forked from the agent before that has other threads or files, and does what it is told, one thing at a time. When the
//! agent is gone it unmounts what is mounted and ends.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::unistd::{ForkResult, fork};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
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
    /// What the file that is the device is called below what was mounted for it; empty where it is that itself.
    pub(super) file: PathBuf,
    /// Bytes of the device.
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
    /// Descriptors go by a way of their own.
    descriptors: UnixStream,
    answers: Lines,
    process: Pid,
    directory: PathBuf,
}

impl Mounter {
    /// Forks it. To be called while this process has one thread.
    #[allow(unsafe_code)]
    pub(super) fn start() -> Result<Self, Error> {
        let io = |source| Error::io("start", "the process that mounts", source);
        let (ours, theirs) = UnixStream::pair().map_err(io)?;
        let (descriptors, their_descriptors) = UnixStream::pair().map_err(io)?;
        let answers = Lines::new(ours.try_clone().map_err(io)?.into());
        // SAFETY: there is one thread only, so the child finds no lock held by another.
        match unsafe { fork() }.map_err(|error| io(error.into()))? {
            ForkResult::Parent { child } => {
                let process =
                    Pid::from_raw(child.as_raw()).ok_or_else(|| io(std::io::Error::other("no process id")))?;
                Ok(Self { stream: Some(ours), descriptors, answers, process, directory: PathBuf::new() })
            }
            ForkResult::Child => {
                drop((ours, answers, descriptors));
                // The pipes and sockets are the agent's: who is at their other ends learns of its end.
                if let Ok(nothing) = std::fs::File::options().read(true).write(true).open("/dev/null") {
                    let _ = rustix::stdio::dup2_stdin(nothing.as_fd());
                    let _ = rustix::stdio::dup2_stdout(nothing.as_fd());
                }
                close_all_but([theirs.as_raw_fd(), their_descriptors.as_raw_fd()]);
                serve(&theirs, &their_descriptors);
                std::process::exit(0)
            }
        }
    }

    /// The mounter of an agent that is gone.
    pub(super) fn resume(stream: OwnedFd, descriptors: OwnedFd, process: i32, directory: &Path) -> Result<Self, Error> {
        let stream = UnixStream::from(stream);
        let answers = stream.try_clone().map_err(|source| Error::io("take over", "the process that mounts", source))?;
        let process = Pid::from_raw(process)
            .ok_or_else(|| Error::invalid("the process that mounts", "has no number: this is a bug"))?;
        Ok(Self {
            stream: Some(stream),
            descriptors: descriptors.into(),
            answers: Lines::new(answers.into()),
            process,
            directory: directory.to_owned(),
        })
    }

    /// The number of its process, and the sockets that reach it, which are to be held for [`Mounter::resume`].
    pub(super) fn to_hand_over(&self) -> Result<(i32, [OwnedFd; 2]), Error> {
        let io = |source| Error::io("hand over", "the process that mounts", source);
        let stream = self.stream.as_ref().ok_or_else(|| io(std::io::Error::other("it has ended")))?;
        let sockets = [stream.try_clone().map_err(io)?.into(), self.descriptors.try_clone().map_err(io)?.into()];
        Ok((self.process.as_raw_nonzero().get(), sockets))
    }

    /// Leaves it to a successor of this process.
    pub(super) fn leave(mut self) {
        self.stream = None;
    }

    /// Enters a mount namespace, which the mounter then is in, too. To be called while this process has one thread.
    pub(super) fn enter_namespace(namespace: BorrowedFd<'_>) -> Result<(), Error> {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNS)
            .map_err(|error| Error::io("enter", "the mount namespace of the sandbox", std::io::Error::from(error)))
    }

    /// Leaves the mount namespace that the mounter is in, and stays in, for one like it. To be called while this process has one
    /// thread: each thread is in a namespace of its own accord.
    pub(super) fn leave_its_namespace() -> Result<(), Error> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .map_err(|error| Error::io("make", "a mount namespace", std::io::Error::from(error)))
    }

    /// Attaches and mounts a device; `served` is what was mounted for it. Reading ahead goes on after that.
    pub(super) fn mount(&mut self, served: &Path, order: MountOrder) -> Result<(), Error> {
        // Not opened: that would ask the device, and it is served here.
        let served = rustix::fs::open(served, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io("find", served.display(), error))?;
        hand_over(&self.descriptors, served.as_fd())
            .map_err(|source| Error::io("hand over", "the device's file", source))?;
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

/// Closes every descriptor from 3 on but two.
#[allow(unsafe_code)]
fn close_all_but(kept: [RawFd; 2]) {
    let [low, high] = [kept[0].min(kept[1]).cast_unsigned(), kept[0].max(kept[1]).cast_unsigned()];
    for (first, last) in [(3, low.saturating_sub(1)), (low + 1, high.saturating_sub(1)), (high + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process is the child of a fork that goes on with the two descriptors alone and ends without dropping
            // any other value, so nobody uses the others again.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

impl Drop for Mounter {
    fn drop(&mut self) {
        // What reads the answers holds it open too.
        let Some(stream) = self.stream.take() else { return };
        let _ = stream.shutdown(std::net::Shutdown::Both);
        if let Ok(pidfd) = pidfd_open(self.process, PidfdFlags::empty())
            && !wait_readable(&pidfd, END_PATIENCE)
        {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        let _ = waitpid(Some(self.process), rustix::process::WaitOptions::NOHANG);
    }
}

fn hand_over(to: &UnixStream, descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(to, &[IoSlice::new(b".")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn take_over(from: &UnixStream) -> std::io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut messages = ancillary.drain();
    let descriptor = messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| std::io::Error::other("no descriptor came"))
}

/// The whole of the process.
fn serve(stream: &UnixStream, descriptors: &UnixStream) {
    let Ok(orders) = stream.try_clone() else { return };
    let mut orders = Lines::new(orders.into());
    let mut mounted: Option<(PathBuf, LoopDevice)> = None;
    // Once: who asks may by then be an agent that somebody has broken into, and this process may mount anything anywhere.
    let mut has_mounted = false;
    while let Ok(Some(order)) = orders.next::<Order>() {
        let outcome = match order {
            Order::Mount(_) if std::mem::replace(&mut has_mounted, true) => {
                Outcome::Failed { cause: Cause::Other, message: "it mounts one device, once".into() }
            }
            Order::Mount(order) => match attach_and_mount(&order, descriptors) {
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

fn attach_and_mount(order: &MountOrder, descriptors: &UnixStream) -> Result<(LoopDevice, StartLog), Error> {
    let failed = |error: snowmelt_device::Error| device_error(&error);
    let log = StartLog::decode(&order.expected).unwrap_or_default();
    let served = take_over(descriptors).map_err(|source| Error::io("take over", "the device's file", source))?;
    // Opened anew: what was handed over only names it.
    let mut file = PathBuf::from(format!("/proc/self/fd/{}", served.as_raw_fd()));
    if !order.file.as_os_str().is_empty() {
        file.push(&order.file);
    }
    let device = loop_device::attach(&file, order.read_only, order.size_bytes).map_err(failed)?;
    drop(served);
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
