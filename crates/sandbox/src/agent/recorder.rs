//! Keeps what a start read once it is over: after the time that is set, or at the sandbox's end if that comes first. A server that
//! runs for weeks, or is killed, is known to the next one that starts.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use snowmelt_device::{Device, StartLog};

use super::start_logs::{Expected, Kept, StartLogs};

pub(super) struct Recorder {
    work: Work,
    /// The thread that waits for the time to come, and what tells it that nobody waits any more; `true` if it has kept it.
    waiting: Option<(Sender<()>, JoinHandle<bool>)>,
}

/// What there is to do, once.
#[derive(Clone)]
struct Work {
    device: Arc<Device>,
    starts: StartLogs,
    expected: Expected,
    record_for: Duration,
}

impl Recorder {
    pub(super) fn start(device: &Arc<Device>, starts: &StartLogs, expected: &Expected, record_for: Duration) -> Self {
        let work = Work { device: Arc::clone(device), starts: starts.clone(), expected: expected.clone(), record_for };
        let (stop, stopped) = channel::<()>();
        let waiter = work.clone();
        let wait = move || {
            let is_time = stopped.recv_timeout(waiter.record_for) == Err(RecvTimeoutError::Timeout);
            if is_time && let Some(kept) = waiter.keep() {
                waiter.starts.share(&kept);
            }
            is_time
        };
        // Without a thread it is kept at the end.
        let thread = std::thread::Builder::new().name("start-recorder".into()).spawn(wait);
        Self { work, waiting: thread.ok().map(|thread| (stop, thread)) }
    }

    /// Keeps what the start read, unless that has been done; gives what is to be shared with others.
    pub(super) fn finish(self) -> Option<Kept> {
        let is_done = self.waiting.is_some_and(|(stop, thread)| {
            drop(stop);
            thread.join().unwrap_or(false)
        });
        if is_done { None } else { self.work.keep() }
    }
}

impl Work {
    fn keep(&self) -> Option<Kept> {
        if self.record_for.is_zero() || !self.starts.has_command() {
            return None;
        }
        self.starts.keep(StartLog::record(&self.device), &self.expected)
    }
}
