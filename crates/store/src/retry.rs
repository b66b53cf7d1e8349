//! The one place where requests to a store are tried again.

use std::thread;
use std::time::Duration;

use crate::Error;

/// Waits before the second and later tries. Short: a publisher or an operator waits in front of it. Reads of chunks by a
/// device are not tried again here; the device decides that by its own deadline.
const WAITS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(1600)];

/// Tries `operation` until it gives anything but [`Error::Unavailable`], four times at most.
pub(crate) fn retrying<T>(mut operation: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for wait in WAITS {
        match operation() {
            Err(error) if error.is_unavailable() => thread::sleep(wait + jitter(wait)),
            result => return result,
        }
    }
    operation()
}

/// Up to a quarter more, so that many publishers do not come back at once.
fn jitter(wait: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes there is no jitter, and nothing is lost.
    let _ = getrandom::fill(&mut byte);
    wait / 4 * u32::from(byte[0]) / 255
}
