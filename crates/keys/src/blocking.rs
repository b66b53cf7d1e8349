//! Waiting for a service: the clients are asynchronous, who asks for a key is not.

use std::future::Future;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use snowmelt_chunk::Error;
use tokio::runtime::{Builder, Runtime};

/// Runs requests to one service. Nothing is set up before the first.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// An `Option` so that it can be taken when dropped.
    runtime: OnceLock<Option<Runtime>>,
}

impl Requests {
    /// Waits for a request, but no longer than `patience`. `service` is who is told to be at fault.
    ///
    /// On a thread of its own, since a caller may itself be a task of another runtime, where waiting is not allowed.
    pub(crate) fn wait<T: Send>(
        &self,
        service: &str,
        patience: Duration,
        request: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::KeyService {
            service: service.into(),
            reason: format!("{what}: {error}"),
        };
        let runtime = self.runtime.get_or_init(|| Builder::new_current_thread().enable_all().build().ok());
        let runtime = runtime.as_ref().ok_or_else(|| failed("no runtime for requests", &"out of resources"))?;
        let work = async {
            tokio::time::timeout(patience, request).await.unwrap_or_else(|_| {
                let reason = format!("no answer within {} ms", patience.as_millis());
                Err(Error::KeyServiceUnavailable { service: service.into(), reason })
            })
        };
        thread::scope(|scope| {
            let waiting =
                thread::Builder::new().name("key-service".into()).spawn_scoped(scope, || runtime.block_on(work));
            let waiting = waiting.map_err(|error| failed("no thread for a request", &error))?;
            waiting.join().unwrap_or_else(|_| Err(failed("its client", &"panicked")))
        })
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // Waiting for its threads is not allowed everywhere either, and a look-up of a host's name may take long.
        if let Some(runtime) = self.runtime.take().flatten() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn waiting_is_allowed_everywhere_and_ends() {
        let outer = Builder::new_current_thread().enable_all().build().unwrap();
        outer.block_on(async {
            let requests = Requests::default();
            assert_eq!(requests.wait("x", Duration::from_secs(9), async { Ok(7) }).unwrap(), 7);
            let never = requests.wait::<()>("x", Duration::from_millis(5), std::future::pending());
            assert!(never.unwrap_err().is_unavailable());
        });
    }

    #[test]
    fn several_may_wait_at_once() {
        let requests = Requests::default();
        thread::scope(|scope| {
            for _ in 0..8 {
                let slow = async {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Ok(())
                };
                scope.spawn(|| requests.wait("x", Duration::from_secs(9), slow).unwrap());
            }
        });
    }
}
