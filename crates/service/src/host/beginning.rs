//! How a sandbox begins: when its image is mounted, when its command is executed, and when its runtime asks for the first time.
//!
//! The command is executed by the runtime that starts the container, which says nothing of it. The kernel does: it tells who watches a file
//! system that a program on it is executed (fanotify, `FAN_OPEN_EXEC`). The first one on the sandbox's root is the command.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use nix::libc;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snowmelt_sandbox::{Record, StateDir, stats};
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;

use super::memory::memory_file;
use super::serving::Shared;
use crate::link::{self, Beginning, FromHost};

/// A command that is not executed by then will hardly be.
const EXECUTED_WITHIN: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };

/// The image is mounted.
pub(super) struct Mounted {
    record: Record,
    at: Instant,
    /// When the first program on it was executed. Nothing where that cannot be known.
    executed: Option<oneshot::Receiver<Instant>>,
}

/// What is known so far.
#[derive(Default)]
pub(super) struct Began {
    /// The service was told of it for the first time: until then it was being placed.
    placed: OnceLock<Instant>,
    mounted: OnceLock<(Record, Instant)>,
    executed: OnceLock<Instant>,
    /// All of it, once it is known.
    whole: OnceLock<Beginning>,
}

/// Tells the serving thread that the image is mounted.
pub(super) fn tell(to: &Mutex<Option<oneshot::Sender<Mounted>>>, record: &Record) {
    if let Some(to) = to.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let mounted = Mounted { record: record.clone(), at: Instant::now(), executed: watch(record) };
        // A thread that has ended needs to know nothing.
        let _ = to.send(mounted);
    }
}

/// Watches for the first program that is executed, in a thread that ends with that. `None` where the kernel does not tell.
fn watch(record: &Record) -> Option<oneshot::Receiver<Instant>> {
    // Events without descriptors: one that is not read must not keep the image mounted.
    let flags = InitFlags::FAN_CLASS_NOTIF
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_NONBLOCK
        | InitFlags::from_bits_retain(libc::FAN_REPORT_FID);
    let watching = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).ok()?;
    let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    // The path is absolute: what it would be relative to does not matter.
    let here = std::fs::File::open("/").ok()?;
    watching.mark(flags, MaskFlags::FAN_OPEN_EXEC, &here, Some(&record.directory)).ok()?;
    let (executed, is_executed) = oneshot::channel();
    let wait = move || {
        let mut events = [PollFd::new(&watching, PollFlags::IN)];
        if poll(&mut events, Some(&EXECUTED_WITHIN)).is_ok_and(|count| count > 0) {
            // Who would hear it may be gone.
            let _ = executed.send(Instant::now());
        }
    };
    std::thread::Builder::new().name("executed".into()).spawn(wait).ok()?;
    Some(is_executed)
}

impl Shared {
    /// Sees when the command is executed.
    pub(super) async fn see_executed(self: Arc<Self>, mounted: Mounted) {
        let Mounted { record, at, executed } = mounted;
        let _ = self.began.mounted.set((record, at));
        let Some(executed) = executed else { return };
        if let Ok(at) = executed.await {
            let _ = self.began.executed.set(at);
        }
    }

    /// Tells the service how the sandbox began, without keeping anybody waiting for it.
    pub(super) fn tell_beginning(self: &Arc<Self>) {
        let (shared, asked) = (Arc::clone(self), Instant::now());
        tokio::spawn(async move {
            let (known, state) = (shared.began.mounted.get().cloned(), shared.config.state.clone());
            let record = known.as_ref().map(|(record, _)| record.clone());
            // The agent answers at once, unless there is something wrong with it.
            let asking = tokio::task::spawn_blocking(move || {
                let loads =
                    record.as_ref().and_then(|record| Some(stats(record, &StateDir::new(&state).ok()?).ok()?.loads));
                (loads, memory_file())
            });
            let (loads, memory_file) = asking.await.unwrap_or_default();
            let us = |from: Option<Instant>, to: Option<Instant>| {
                Some(to?.checked_duration_since(from?)?.as_micros() as u64)
            };
            let placed = shared.began.placed.get().copied().unwrap_or(shared.ready);
            let mounted = known.as_ref().map(|(_, at)| *at);
            let executed = shared.began.executed.get().copied().filter(|at| *at <= asked);
            let beginning = Beginning {
                // What was mounted before the service knew took it no time.
                mount_us: mounted.map(|at| at.saturating_duration_since(placed).as_micros() as u64),
                start_us: us(mounted, executed),
                init_us: us(executed.or(mounted), Some(asked)),
                loads: loads.unwrap_or_default(),
                agent: known.as_ref().and_then(|(record, _)| Some(record.agent?.pid.cast_unsigned())),
                memory_file,
            };
            let beginning = shared.began.whole.get_or_init(|| beginning).clone();
            shared.send(FromHost::Began(Box::new(beginning)), Bytes::new()).await;
        });
    }

    /// The service knows that there is a host.
    pub(super) fn is_placed(&self) {
        self.began.placed.get_or_init(Instant::now);
    }

    /// Tells a service that comes later the same.
    pub(super) async fn tell_again(&self, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        match self.began.whole.get() {
            Some(beginning) => link::send(to, &FromHost::Began(Box::new(beginning.clone())), &[]).await,
            None => Ok(()),
        }
    }
}
