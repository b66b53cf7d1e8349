//! What the signals that reach a run do to its command. Most are passed on as they are. Those that mean an end come with a
//! promise to whoever sends them: the container ends, whatever its command does about it.
//!
//! - TERM is what `docker stop` is: the command gets the image's stop signal, and KILL after [`GRACE`].
//! - INT is passed on. The third INT or TERM is KILL: as the first process of its PID namespace, a command that handles
//!   neither would ignore them for ever.
//! - HUP is passed on, since daemons reload at it. Where it says that the terminal is gone, the command gets the stop
//!   signal too, and KILL after [`GRACE`]: nobody could reach it any more.

use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

/// How long a command may take to end in order; that of `docker stop`.
const GRACE: Duration = Duration::from_secs(10);
/// This many requests to end are no longer a question; that of docker's client.
const REQUESTS: u32 = 3;

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Pass it on.
    Pass,
    /// Send the command this signal in its place.
    Stop(i32),
    /// Send the command this signal, and pass the one that came on.
    StopAndPass(i32),
    /// Kill the container.
    Kill(Killed),
}

/// Why a container is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Killed {
    /// What asked for the end.
    pub(super) signal: i32,
    pub(super) reason: &'static str,
}

/// What has been asked for so far.
pub(super) struct Stopping {
    stop_signal: i32,
    requests: u32,
    deadline: Option<(Instant, Killed)>,
}

impl Stopping {
    pub(super) fn new(stop_signal: i32) -> Self {
        Self { stop_signal, requests: 0, deadline: None }
    }

    /// A signal has come. `is_terminal_gone` is asked if that matters.
    pub(super) fn answer(&mut self, signal: i32, is_terminal_gone: impl FnOnce() -> bool, now: Instant) -> Answer {
        let is_request = matches!(signal, libc::SIGINT | libc::SIGTERM);
        if is_request {
            self.requests += 1;
            if self.requests >= REQUESTS {
                return Answer::Kill(Killed { signal, reason: "it was asked to end three times" });
            }
        }
        let (answer, reason) = match signal {
            libc::SIGTERM => (Answer::Stop(self.stop_signal), "it did not end within 10 s of being asked to"),
            libc::SIGHUP if is_terminal_gone() => {
                (Answer::StopAndPass(self.stop_signal), "its terminal is gone and it did not end within 10 s")
            }
            _ => return Answer::Pass,
        };
        let killed = Killed { signal, reason };
        if self.stop_signal == libc::SIGKILL {
            return Answer::Kill(Killed { reason: "that is the image's stop signal", ..killed });
        }
        // The first one counts: asking again must not put the end off.
        self.deadline.get_or_insert((now + GRACE, killed));
        answer
    }

    /// How long until the command must have ended; `None` if nobody has asked for that.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        self.deadline.map(|(deadline, _)| deadline.saturating_duration_since(now))
    }

    /// Whether that time is over.
    pub(super) fn overdue(&self, now: Instant) -> Option<Killed> {
        self.deadline.filter(|(deadline, _)| *deadline <= now).map(|(_, killed)| killed)
    }
}

/// The stop signal of an image: a name with or without `SIG`, a number, or `RTMIN+n` and `RTMAX-n` (the image
/// specification's config.md, `StopSignal`). TERM if it names none or nonsense.
pub(super) fn stop_signal(name: Option<&str>) -> i32 {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return libc::SIGTERM };
    parse(name).unwrap_or_else(|| {
        tracing::warn!("the image's stop signal `{name}` is none: TERM is used");
        libc::SIGTERM
    })
}

fn parse(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = |text: &str| text.parse::<i32>().ok();
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let signal = match short {
        "RTMIN" => Some(first),
        "RTMAX" => Some(last),
        _ => short
            .strip_prefix("RTMIN+")
            .and_then(number)
            .and_then(|offset| first.checked_add(offset))
            .or_else(|| short.strip_prefix("RTMAX-").and_then(number).and_then(|offset| last.checked_sub(offset)))
            .or_else(|| number(short))
            .or_else(|| format!("SIG{short}").parse::<Signal>().ok().map(|signal| signal as i32)),
    };
    signal.filter(|signal| (1..=last).contains(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: fn() -> bool = || false;
    const GONE: fn() -> bool = || true;

    #[test]
    fn names_of_stop_signals() {
        for (name, expected) in [
            ("SIGTERM", 15),
            ("usr1", 10),
            ("SIGQUIT", 3),
            ("SIGWINCH", 28),
            ("9", 9),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("RTMAX-1", libc::SIGRTMAX() - 1),
            ("RTMIN", libc::SIGRTMIN()),
        ] {
            assert_eq!(parse(name), Some(expected), "{name}");
        }
        for name in ["", "SIG", "0", "-1", "65", "NONSENSE", "RTMIN+99", "RTMIN+-99", "SIGSIGTERM"] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert_eq!(stop_signal(None), libc::SIGTERM);
        assert_eq!(stop_signal(Some("NONSENSE")), libc::SIGTERM);
    }

    #[test]
    fn term_is_the_images_stop_signal_and_then_kill() {
        let now = Instant::now();
        let mut stopping = Stopping::new(libc::SIGUSR1);
        assert_eq!(stopping.time_left(now), None);
        assert_eq!(stopping.answer(libc::SIGTERM, ALIVE, now), Answer::Stop(libc::SIGUSR1));
        assert_eq!(stopping.time_left(now), Some(GRACE));
        // Asked again, it has no more time.
        let later = now + Duration::from_secs(9);
        assert_eq!(stopping.answer(libc::SIGTERM, ALIVE, later), Answer::Stop(libc::SIGUSR1));
        assert_eq!(stopping.overdue(later), None);
        assert_eq!(stopping.overdue(now + GRACE).map(|killed| killed.signal), Some(libc::SIGTERM));
        let mut stopping = Stopping::new(libc::SIGKILL);
        assert!(matches!(stopping.answer(libc::SIGTERM, ALIVE, now), Answer::Kill(_)));
    }

    #[test]
    fn the_third_request_kills() {
        let now = Instant::now();
        let mut stopping = Stopping::new(libc::SIGTERM);
        assert_eq!(stopping.answer(libc::SIGINT, ALIVE, now), Answer::Pass);
        assert_eq!(stopping.answer(libc::SIGUSR1, ALIVE, now), Answer::Pass);
        assert_eq!(stopping.answer(libc::SIGTERM, ALIVE, now), Answer::Stop(libc::SIGTERM));
        assert!(matches!(stopping.answer(libc::SIGINT, ALIVE, now), Answer::Kill(Killed { signal: libc::SIGINT, .. })));
    }

    #[test]
    fn a_hangup_ends_only_what_has_lost_its_terminal() {
        let now = Instant::now();
        let mut stopping = Stopping::new(libc::SIGTERM);
        for _ in 0..5 {
            assert_eq!(stopping.answer(libc::SIGHUP, ALIVE, now), Answer::Pass);
        }
        assert_eq!(stopping.time_left(now), None);
        assert_eq!(stopping.answer(libc::SIGHUP, GONE, now), Answer::StopAndPass(libc::SIGTERM));
        assert_eq!(stopping.overdue(now + GRACE).map(|killed| killed.signal), Some(libc::SIGHUP));
    }
}
