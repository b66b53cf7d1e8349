//! Keeps the lease on the image in use, in a thread of its own, and follows the image to another root.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use snowmelt_store::{ImageLease, Store};

use super::start_logs::PATIENCE;

/// How long until a store that did not take the lease is asked again, at most.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Ends the lease when it is dropped. A store that does not answer is not waited for: a lease that stays ends by itself.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
}

impl LeaseKeeper {
    /// Nothing is asked of the store before [`ImageLease::keep_again_after`]: a start has other things to wait for, and most
    /// sandboxes end before. `moved` is told of the store at another root, where the image was copied to. `None` where there is no
    /// thread for it.
    pub(crate) fn start(mut lease: ImageLease, moved: impl Fn(Store) + Send + 'static) -> Option<Self> {
        let (stop, stopped) = channel::<()>();
        let (ends, ended) = channel();
        let work = move || {
            let mut wait = lease.keep_again_after();
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                match lease.keep() {
                    Ok(elsewhere) => {
                        if let Some(store) = elsewhere {
                            moved(store);
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
            // Whoever waited may have gone.
            let _ = ends.send(());
        };
        let thread = std::thread::Builder::new().name("lease".into()).spawn(work);
        thread.ok()?;
        Some(Self { stop: Some(stop), ended })
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}
