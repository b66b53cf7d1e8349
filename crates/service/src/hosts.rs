//! Sandboxes as the service sees them: each is a host that has come to our socket.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::link::{self, FromHost, ToHost};

/// Messages for a host that does not read them yet.
const MOST_WAITING: usize = 64;

/// The way to one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) sandbox: String,
    to: mpsc::Sender<(ToHost, Bytes)>,
}

impl Host {
    /// One that nobody hears.
    #[cfg(test)]
    pub(crate) fn nowhere(sandbox: &str) -> Self {
        Self { sandbox: sandbox.to_owned(), to: mpsc::channel(1).0 }
    }

    /// Tells it something. One that is gone is not told, and is known to be gone soon.
    pub(crate) async fn tell(&self, message: ToHost, body: Bytes) {
        let _ = self.to.send((message, body)).await;
    }

    /// The same where nobody can wait.
    pub(crate) fn tell_now(&self, message: ToHost) {
        let _ = self.to.try_send((message, Bytes::new()));
    }
}

/// What a sandbox is doing when its host comes.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    /// Its runtime has begun.
    pub(crate) is_ready: bool,
    /// It waits for an invocation.
    pub(crate) is_asking: bool,
    /// What it is at.
    pub(crate) invocation: Option<String>,
}

/// Who hears what a host says.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A host has come. False if there is no such sandbox: it is then to end.
    fn came(&self, host: &Host, state: &Came) -> bool;
    /// It says something.
    fn said(&self, host: &Host, message: FromHost, body: Bytes);
    /// Its connection has ended.
    fn gone(&self, host: &Host);
}

/// Listens for hosts.
///
/// # Errors
/// Those of the system.
pub(crate) fn listen(socket: &Path, listener: Arc<dyn Listener>) -> std::io::Result<tokio::task::JoinHandle<()>> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let hosts = UnixListener::bind(socket)?;
    Ok(tokio::spawn(async move {
        loop {
            match hosts.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, Arc::clone(&listener)))),
                Err(error) => {
                    tracing::warn!(%error, "a sandbox's host is not heard");
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            }
        }
    }))
}

async fn serve(stream: UnixStream, listener: Arc<dyn Listener>) {
    // Whoever may connect is root: the socket's folder is root's. It may still be another's mistake.
    let (mut from, mut to) = stream.into_split();
    let hello = link::receive(&mut from).await;
    let Ok(Some((FromHost::Hello { sandbox, is_ready, is_asking, invocation }, _))) = hello else { return };
    let (sender, mut messages) = mpsc::channel::<(ToHost, Bytes)>(MOST_WAITING);
    let host = Host { sandbox, to: sender };
    if !listener.came(&host, &Came { is_ready, is_asking, invocation }) {
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
    loop {
        match link::receive::<FromHost>(&mut from).await {
            Ok(Some((message, body))) => {
                let is_last = matches!(message, FromHost::Exited { .. });
                listener.said(&host, message, body);
                if is_last {
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
    speak.abort();
    listener.gone(&host);
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
