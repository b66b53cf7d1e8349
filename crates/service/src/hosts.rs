//! Sandboxes as the service sees them: each is a host that has come to our socket.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use snowmelt_sandbox::StateDir;
use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};

use crate::link::{self, FromHost, Reason, ToHost};
use crate::service::Service;

/// Messages for a host that does not read them yet.
const MOST_WAITING: usize = 64;
/// How often it is looked for what a lost host left, and for how often after the last that was lost: an agent that finds no worker takes some
/// seconds to end.
const LOOK_EVERY: Duration = Duration::from_secs(4);
const LOOKS: u32 = 16;
/// So much of a log is written at once, even where more is there.
const MOST_LINES: usize = 64 << 10;
/// How long a host may take to end by itself: with extensions it takes two seconds.
const KILL_AFTER: Duration = Duration::from_secs(4);

/// The way to one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) sandbox: String,
    /// Its process's number.
    pub(crate) pid: Option<u32>,
    to: mpsc::Sender<(ToHost, Bytes)>,
    /// Its process, held so that its number stays its own.
    process: Option<Arc<OwnedFd>>,
}

impl Host {
    /// One that nobody hears.
    #[cfg(test)]
    pub(crate) fn nowhere(sandbox: &str) -> Self {
        Self { sandbox: sandbox.to_owned(), pid: None, to: mpsc::channel(1).0, process: None }
    }

    /// Tells it something. One that is gone is not told, and is known to be gone soon.
    pub(crate) async fn tell(&self, message: ToHost, body: Bytes) {
        let _ = self.to.send((message, body)).await;
    }

    /// The same where nobody can wait.
    pub(crate) fn tell_now(&self, message: ToHost) {
        let _ = self.to.try_send((message, Bytes::new()));
    }

    /// Ends it, and with it its sandbox: by its own hand, or soon by the kernel's.
    pub(crate) fn end(&self, reason: Reason) {
        self.tell_now(ToHost::End(reason));
        let Some(process) = self.process.clone() else { return };
        tokio::spawn(async move {
            tokio::time::sleep(KILL_AFTER).await;
            // One that is gone is not there to be killed.
            let _ = pidfd_send_signal(&*process, Signal::KILL);
        });
    }
}

/// What a sandbox is doing when its host comes.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    /// How often its runtime has asked for an invocation.
    pub(crate) asks: u64,
    /// It waits for an invocation.
    pub(crate) is_asking: bool,
    /// What it is at.
    pub(crate) invocation: Option<String>,
}

/// Listens for hosts.
///
/// # Errors
/// Those of the system.
pub(crate) fn listen(socket: &Path, service: Arc<Service>) -> std::io::Result<tokio::task::JoinHandle<()>> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let hosts = UnixListener::bind(socket)?;
    Ok(tokio::spawn(async move {
        loop {
            match hosts.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&service)))),
                Err(error) => {
                    tracing::warn!(%error, "a sandbox's host is not heard");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
        }
    }))
}

async fn serve(stream: UnixStream, service: Arc<Service>) {
    // Whoever may connect is root: the socket's folder is root's. It may still be another's mistake.
    let pid = stream.peer_cred().ok().and_then(|peer| Pid::from_raw(peer.pid()?));
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).map(Arc::new);
    let Ok((from, mut to)) = link::split(stream) else { return };
    let mut from = BufReader::new(from);
    let hello = link::receive(&mut from).await;
    let Ok(Some((FromHost::Hello { sandbox, asks, is_asking, invocation }, _))) = hello else { return };
    let (sender, mut messages) = mpsc::channel::<(ToHost, Bytes)>(MOST_WAITING);
    let pid = pid.map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    let host = Host { sandbox, pid, to: sender, process };
    if !service.came(&host, &Came { asks, is_asking, invocation }) {
        let _ = link::send(&mut to, &ToHost::Kill, &[]).await;
        return;
    }
    let speak = tokio::spawn(async move {
        while let Some((message, body)) = messages.recv().await {
            if link::send(&mut to, &message, &body).await.is_err() {
                return;
            }
        }
    });
    // Of the log, what has come and is not written yet.
    let mut lines = Vec::new();
    let mut has_exited = false;
    loop {
        match link::receive::<FromHost>(&mut from).await {
            Ok(Some((FromHost::Log, body))) => {
                lines.extend_from_slice(&body);
                // What came with it is here already: mostly more lines.
                if from.buffer().is_empty() || lines.len() > MOST_LINES {
                    service.logged(&host, &std::mem::take(&mut lines));
                }
            }
            Ok(Some((message, body))) => {
                // Who hears of an invocation's end finds its lines.
                if !lines.is_empty() {
                    service.logged(&host, &std::mem::take(&mut lines));
                }
                has_exited = matches!(message, FromHost::Exited { .. });
                service.said(&host, message, body).await;
                if has_exited {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(sandbox = host.sandbox, %error, "a host is not understood");
                break;
            }
        }
    }
    if !lines.is_empty() {
        service.logged(&host, &lines);
    }
    speak.abort();
    service.host_gone(&host);
    if !has_exited {
        service.lost_hosts.notify_one();
    }
}

/// Removes what sandboxes leave whose hosts were killed. Their agents do that, or the next start, but agents may be killed too, and nobody
/// may start another. It can be that some of it is still in use at first. One looks for all, however many are lost at once: a look reads the
/// record of every sandbox.
pub(crate) async fn remove_what_is_left(state: PathBuf, lost: Arc<Notify>) {
    loop {
        lost.notified().await;
        let mut left = LOOKS;
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while left > 0 {
            tokio::select! {
                () = lost.notified() => left = LOOKS,
                _ = every.tick() => {
                    left -= 1;
                    let state = state.clone();
                    let removed = tokio::task::spawn_blocking(move || StateDir::new(&state)?.cleanup_stale()).await;
                    if let Ok(Err(error)) = removed {
                        tracing::warn!(%error, "what a sandbox left is not removed");
                    }
                }
            }
        }
    }
}

/// A table of what is there, by name.
#[derive(Debug)]
pub(crate) struct Table<T>(Mutex<HashMap<String, T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Table<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<String, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
