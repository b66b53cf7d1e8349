//! The threads that read requests, and how they stop.
//!
//! All read from one descriptor. Clones of it (`FUSE_DEV_IOC_CLONE`) would give each thread a list of its own of what it
//! has not answered, and measure the same with as few threads as there are; but the requests of a clone fail when its last
//! descriptor is closed, so whoever keeps a session for a successor would have to hold every one of them.
//!
//! A process may be killed at any instruction without anybody noticing, with one care: while the kernel copies a request it
//! has to find the buffer's pages in memory, since a process that is being killed is given no page, and the request would fail.
//! So every page of a buffer is touched before the first request. What answers are made of has been written just before.

use std::fs::File;
use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::file::DeviceFile;
use super::init::Negotiated;
use super::interrupt;
use super::protocol::{Malformed, Operation, Request, WRITE_PAYLOAD_AT};
use super::reply::{self, Reply};

/// Pages of memory are at least this large; the bytes of a write begin at a multiple of it.
const ALIGNMENT: usize = 4096;
/// How often a thread is interrupted that may have been about to read when it was interrupted before.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(2);

/// One connection to the kernel, and what is served through it.
pub(super) struct Session {
    connection: File,
    pub(super) file: DeviceFile,
    pub(super) negotiated: Negotiated,
    stopping: AtomicBool,
    /// Requests that an answer is owed for.
    open: AtomicUsize,
    /// Threads that read requests; changes of it, and of `open` while stopping, are told.
    reading: Mutex<usize>,
    changed: Condvar,
}

/// The threads of a session.
#[derive(Debug)]
pub(super) struct Threads(Vec<JoinHandle<io::Result<()>>>);

impl Session {
    pub(super) fn new(connection: File, file: DeviceFile, negotiated: Negotiated) -> Arc<Self> {
        Arc::new(Self {
            connection,
            file,
            negotiated,
            stopping: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            reading: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    pub(super) fn connection(&self) -> &File {
        &self.connection
    }

    pub(super) fn begin_request(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn end_request(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 && self.stopping.load(Ordering::Acquire) {
            // Under the lock, so that who is about to wait hears it.
            let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            self.changed.notify_all();
        }
    }

    /// Begins to serve.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<Threads> {
        // Waiting is done elsewhere, so more threads than cores would only take turns.
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
        let mut threads = Threads(Vec::with_capacity(count));
        for number in 0..count {
            let session = Arc::clone(self);
            *self.reading.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            let spawned = std::thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
                let _end = Leaving(Arc::clone(&session));
                if session.file.device.is_writable() {
                    avoid_writeback_deadlock();
                }
                session.run()
            });
            match spawned {
                Ok(thread) => threads.0.push(thread),
                Err(error) => {
                    *self.reading.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                    // One is enough to serve with.
                    if threads.0.is_empty() {
                        return Err(error);
                    }
                    tracing::warn!(%error, "fewer threads serve the device");
                }
            }
        }
        Ok(threads)
    }

    /// Reads requests and answers them, or has them answered, until the mount is gone or the session stops.
    fn run(self: &Arc<Self>) -> io::Result<()> {
        let length = self.negotiated.request_bytes();
        // Filled, not zeroed: memory that is asked for as zeros gets its pages when it is used.
        let mut memory = vec![1; length + 2 * ALIGNMENT];
        // Pages of a write lie on pages of memory: the kernel copies whole ones.
        let payload = memory.as_ptr().addr() + WRITE_PAYLOAD_AT;
        let start = payload.next_multiple_of(ALIGNMENT) - payload;
        let buffer = &mut memory[start..start + length];
        while !self.stopping.load(Ordering::Acquire) {
            match rustix::io::read(&self.connection, &mut *buffer) {
                Ok(length) => self.serve(buffer.get(..length).unwrap_or_default()),
                // Interrupted, by us or before anything was read; or the request was given up before it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                // How the kernel tells threads that still read requests that the mount is gone: which of the two depends on
                // who reads at that moment. Nobody has the file open then, and nothing is lost.
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, "a thread that serves the device ends");
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn serve(self: &Arc<Self>, bytes: &[u8]) {
        match Request::parse(bytes) {
            Ok(Request { operation: Operation::Unanswered, .. }) => {}
            Ok(request) => self.file.answer(&request, Reply::new(self, request.header.unique)),
            Err(Malformed { unique }) => {
                tracing::warn!(length = bytes.len(), "the kernel sent a request that is too short");
                if let Some(unique) = unique
                    && let Err(error) = reply::send_error(&self.connection, unique, libc::EIO)
                {
                    tracing::debug!(%error, "nobody waits for its answer");
                }
            }
        }
    }

    /// Reads no more requests, and waits until those that were read are answered, but no longer than `patience`. Gives how
    /// many are left.
    pub(super) fn stop(&self, threads: Threads, patience: Duration) -> io::Result<usize> {
        interrupt::prepare()?;
        let until = Instant::now().checked_add(patience);
        self.stopping.store(true, Ordering::Release);
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        while *reading > 0 {
            for thread in threads.0.iter().filter(|thread| !thread.is_finished()) {
                interrupt::interrupt(thread.as_pthread_t());
            }
            // One that was between looking and reading is interrupted again.
            (reading, _) = self.changed.wait_timeout(reading, INTERRUPT_AGAIN).unwrap_or_else(PoisonError::into_inner);
        }
        loop {
            let open = self.open.load(Ordering::Acquire);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if open == 0 || left == Some(Duration::ZERO) {
                break;
            }
            let wait = left.unwrap_or(Duration::from_hours(1));
            (reading, _) = self.changed.wait_timeout(reading, wait).unwrap_or_else(PoisonError::into_inner);
        }
        drop(reading);
        threads.join()?;
        Ok(self.open.load(Ordering::Acquire))
    }
}

impl Threads {
    /// Waits until they have ended, as they do when the mount is gone.
    pub(super) fn join(self) -> io::Result<()> {
        let ended = self.0.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread that serves the device panicked")))
        });
        ended.fold(Ok(()), Result::and)
    }
}

/// Tells that a thread reads no more, also when it panics.
struct Leaving(Arc<Session>);

impl Drop for Leaving {
    fn drop(&mut self) {
        *self.0.reading.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.changed.notify_all();
    }
}

/// Tells the kernel that this thread, and those that it spawns, serve a disk: memory that they ask for is not got by writing
/// to that disk (prctl(2), PR_SET_IO_FLUSHER).
#[allow(unsafe_code)]
fn avoid_writeback_deadlock() {
    /// linux/prctl.h
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: this option of prctl takes numbers only.
    let refused = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0;
    if refused {
        tracing::debug!(error = %io::Error::last_os_error(), "PR_SET_IO_FLUSHER was refused");
    }
}
