//! Keeps the lease on the image in use, in a thread of its own, and follows the image to another root.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use snowmelt_cache::Tiers;
use snowmelt_store::ImageLease;

/// How long until a store that did not take the lease is asked again, at most.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Ends the lease when it is dropped.
pub(super) struct LeaseKeeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LeaseKeeper {
    /// Nothing is asked of the store before [`ImageLease::keep_again_after`]: a start has other things to wait for, and most
    /// sandboxes end before. `None` where there is no thread for it.
    pub(super) fn start(mut lease: ImageLease, tiers: Arc<Tiers>) -> Option<Self> {
        let (stop, stopped) = channel::<()>();
        let work = move || {
            let mut wait = lease.keep_again_after();
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                match lease.keep() {
                    Ok(moved) => {
                        if let Some(store) = moved {
                            tiers.set_store(Arc::new(store));
                        }
                        wait = lease.keep_again_after();
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the lease on the image in use was not renewed");
                        wait = lease.keep_again_after().min(TRY_AGAIN);
                    }
                }
            }
            lease.end();
        };
        let thread = std::thread::Builder::new().name("lease".into()).spawn(work);
        Some(Self { stop: Some(stop), thread: Some(thread.ok()?) })
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
