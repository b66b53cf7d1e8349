//! The terminal that a run was started at.
//!
//! With `-t`, runc makes the terminal that it is given raw and puts it back when it ends in order. With `-i` that is this
//! one, whose keys go to the command as they are. Without `-i` nobody reads keys, and a raw terminal would swallow Ctrl-C:
//! there runc gets a terminal in between, this one stays as it is, and its keys make signals, which are passed on.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::{Error, RunSpec};

/// The first of the standard streams that is a terminal, as it was at the start. Dropped, it is that again if the run had
/// it made raw: who made it so may have been killed.
pub(super) struct Terminal {
    stream: OwnedFd,
    before: Termios,
    restores: bool,
}

impl Terminal {
    pub(super) fn of_caller(spec: &RunSpec) -> Option<Self> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let streams: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let stream = streams.into_iter().find(BorrowedFd::is_terminal)?;
        Some(Self {
            before: tcgetattr(stream).ok()?,
            stream: stream.try_clone_to_owned().ok()?,
            // Without -t nothing of ours changes it, and whoever has changed it since meant it.
            restores: spec.tty,
        })
    }

    /// Whether it was closed: its window, or the connection that it came through.
    pub(super) fn is_gone(&self) -> bool {
        tcgetattr(&self.stream).is_err()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !self.restores {
            return;
        }
        // A job in the background would be stopped by TTOU for it, unless that is blocked.
        let mut set = SigSet::empty();
        set.add(Signal::SIGTTOU);
        let before = set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
        let _ = tcsetattr(&self.stream, OptionalActions::Now, &self.before);
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
    }
}

/// Our side of the terminal in between, of this one's size.
pub(super) struct Between {
    ours: OwnedFd,
}

impl Between {
    /// Gives the command's side too.
    pub(super) fn open() -> Result<(Self, OwnedFd), Error> {
        let io = |source: std::io::Error| Error::io("make", "a terminal", source);
        let pair = nix::pty::openpty(None, None).map_err(|source| io(source.into()))?;
        for side in [&pair.master, &pair.slave] {
            rustix::io::fcntl_setfd(side, rustix::io::FdFlags::CLOEXEC).map_err(|source| io(source.into()))?;
        }
        let between = Self { ours: pair.master };
        between.resize();
        Ok((between, pair.slave))
    }

    /// What the command writes.
    pub(super) fn output(&self) -> Result<File, Error> {
        self.ours.try_clone().map(File::from).map_err(|source| Error::io("use", "a terminal", source))
    }

    /// Takes over the size of the terminal that output goes to.
    pub(super) fn resize(&self) {
        if let Ok(size) = tcgetwinsize(std::io::stdout()) {
            let _ = tcsetwinsize(&self.ours, size);
        }
    }
}
