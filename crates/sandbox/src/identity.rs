//! Processes named so that a reused number is not taken for the old one: number and start time.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How long a program may take to become what it was started as.
const EXEC_PATIENCE: Duration = Duration::from_millis(100);

/// One process of this machine since it booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`proc(5)`, `/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has this number now; `None` if none has, or it has ended and waits to be reaped.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_ticks = start_ticks(&stat)?;
        Some(Self { pid: i32::try_from(pid).ok()?, start_ticks })
    }

    pub(crate) fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        u32::try_from(self.pid).ok().and_then(Self::of) == Some(*self)
    }

    /// Whether it runs, and was started with this argument.
    pub(crate) fn has_argument(&self, argument: &str) -> bool {
        let deadline = Instant::now() + EXEC_PATIENCE;
        loop {
            let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
            // The number may have been another's when it was read.
            if !self.is_alive() {
                return false;
            }
            if line.split(|byte| *byte == 0).any(|found| found == argument.as_bytes()) {
                return true;
            }
            // Who started it goes on before its arguments are seen.
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Kills it and waits until it has ended, at most `patience`. True if it has.
    pub(crate) fn kill(&self, patience: Duration) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return true };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
        // Only now, with the number held by the pidfd, says the start time who it is.
        if !self.is_alive() {
            return true;
        }
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        wait_readable(&pidfd, patience)
    }

    /// Waits until it has ended, at most `patience`. True if it has.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return true };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) if self.is_alive() => wait_readable(&pidfd, patience),
            _ => true,
        }
    }
}

/// Whether a descriptor becomes readable, or its other end goes, within `patience`.
pub(crate) fn wait_readable(fd: &impl std::os::fd::AsFd, patience: Duration) -> bool {
    let deadline = std::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}

/// Field 22 of a stat line; `None` for a zombie. The command's name, in parentheses, may contain anything.
fn start_ticks(stat: &str) -> Option<u64> {
    let fields = &stat[stat.rfind(')')? + 1..];
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_and_its_end() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start_ticks: own.start_ticks + 1, ..own }.is_alive());
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(!id.wait(Duration::ZERO));
        // A stranger with the same number is left alone.
        assert!(ProcessId { start_ticks: id.start_ticks + 1, ..id }.kill(Duration::from_mins(1)));
        assert!(id.is_alive());
        assert!(id.kill(Duration::from_mins(1)));
        assert!(!id.is_alive(), "a zombie is not alive");
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_known_by_its_arguments() {
        let mut shell = std::process::Command::new("sh");
        let waits = shell.args(["-c", "read line; exit", "snowmelt-0123"]).stdin(std::process::Stdio::piped());
        let mut child = waits.spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.has_argument("snowmelt-0123"));
        assert!(!id.has_argument("snowmelt-012") && !id.has_argument("0123"));
        assert!(!ProcessId { start_ticks: id.start_ticks + 1, ..id }.has_argument("snowmelt-0123"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!id.has_argument("snowmelt-0123"));
    }

    #[test]
    fn names_with_parentheses() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(start_ticks(&format!("9 (a) b) {tail}")), Some(777));
        assert_eq!(start_ticks("9 (a) Z 1 2"), None);
        for bad in ["", ")", "9 (a) S", "9 (a"] {
            assert_eq!(start_ticks(bad), None);
        }
    }
}
