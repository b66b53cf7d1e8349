//! The threads on which requests run, for callers that block.

use std::future::Future;
use std::sync::mpsc;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::Error;

/// Enough for fetching and hashing beside one or two cores that decompress.
const THREADS: usize = 2;

/// A runtime that may be used and dropped anywhere, also within another runtime.
pub(crate) struct Background(Option<Runtime>);

impl Background {
    pub(crate) fn start() -> Result<Background, Error> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| Error::io("start threads for", std::path::Path::new("the registry"), error))?;
        Ok(Background(Some(runtime)))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.0.as_ref().expect("the runtime is there until it is dropped").spawn(task)
    }

    /// Runs `task` and blocks until it is done.
    pub(crate) fn wait<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Result<T, Error> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.spawn(async move {
            // Room for one is there, so this never blocks; and the receiver waits.
            let _ = sender.send(task.await);
        });
        receiver.recv().map_err(|_| Error::unavailable("ask", "the registry", "the request ended early"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Waiting for tasks here would block, which a caller's own runtime forbids; nobody wants their results any more.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
