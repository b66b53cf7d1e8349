//! The one place where requests to a store are tried again.

use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// Waits before the second and later tries. Short: a publisher or an operator waits in front of it. Reads of chunks by a
/// device are not tried again here; the device decides that by its own deadline.
const WAITS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1600)];

/// Tries `operation` until it gives anything but [`Error::Unavailable`], four times at most, and not again once `patience` has
/// passed.
pub(crate) fn retrying<T>(patience: Duration, mut operation: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let begun = Instant::now();
    for wait in WAITS {
        match operation() {
            Err(error) if error.is_unavailable() && begun.elapsed() + wait < patience => {
                if begun.elapsed() >= WORTH_SAYING {
                    tracing::warn!(%error, "trying again");
                }
                thread::sleep(wait + jitter(wait));
            }
            result => return result,
        }
    }
    operation()
}

/// Whoever waits for longer is told why.
const WORTH_SAYING: Duration = Duration::from_secs(1);

/// Up to a quarter more, so that many publishers do not come back at once.
fn jitter(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes there is no jitter, and nothing is lost.
    let _ = getrandom::fill(&mut byte);
    wait / 4 * u32::from(byte[0]) / 255
}
