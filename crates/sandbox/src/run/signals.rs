//! Signals that a run passes on, read from a descriptor.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Error;

const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Blocks them for this thread and the threads it starts, until it is dropped.
pub(super) struct Signals {
    descriptor: SignalFd,
    before: SigSet,
}

/// One signal.
pub(super) struct Received {
    pub(super) number: i32,
    /// The kernel sent it, as it does for the keys of a terminal, and not a process.
    pub(super) from_kernel: bool,
}

impl Signals {
    pub(super) fn block() -> Result<Self, Error> {
        let io = |source| Error::io("block", "signals", source);
        let mut set = SigSet::empty();
        for signal in FORWARDED {
            set.add(signal);
        }
        let before = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).map_err(io)?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io)?;
        Ok(Self { descriptor, before })
    }

    pub(super) fn read(&self) -> Option<Received> {
        // linux/include/uapi/asm-generic/siginfo.h
        const SI_KERNEL: i32 = 0x80;
        let info = self.descriptor.read_signal().ok()??;
        let number = i32::try_from(info.ssi_signo).ok()?;
        Some(Received { number, from_kernel: info.ssi_code == SI_KERNEL })
    }
}

/// Has the command begin with no signal blocked. It would inherit our mask, runc gives what it inherits to the container, and
/// there a blocked SIGUSR1 never arrives.
#[allow(unsafe_code)]
pub(super) fn unblock_in(command: &mut Command) {
    let unblock = || SigSet::empty().thread_set_mask().map_err(std::io::Error::from);
    // SAFETY: between fork and exec this calls only pthread_sigmask, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}
