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
    retrying_the_rest(patience, |_| operation())
}

/// The same for an operation that is many requests and goes on where it was: it says whether any of them was answered in a try, and
/// tries and patience are counted from then on. Otherwise a long one would end at its first bad moment.
pub(crate) fn retrying_the_rest<T>(
    patience: Duration,
    mut operation: impl FnMut(&mut bool) -> Result<T, Error>,
) -> Result<T, Error> {
    let (mut begun, mut waits) = (Instant::now(), WAITS.iter());
    loop {
        let mut progress = false;
        let error = match operation(&mut progress) {
            Err(error) if error.is_unavailable() => error,
            result => return result,
        };
        if progress {
            (begun, waits) = (Instant::now(), WAITS.iter());
        }
        let Some(wait) = waits.next().filter(|wait| begun.elapsed() + **wait < patience) else { return Err(error) };
        if begun.elapsed() >= WORTH_SAYING {
            tracing::warn!(%error, "trying again");
        }
        thread::sleep(*wait + jitter(*wait));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> Error {
        Error::Unavailable { operation: "ask", subject: "x".into(), store: "s".into(), source: "busy".into() }
    }

    #[test]
    fn what_is_not_answered_is_tried_four_times() {
        let mut tries = 0;
        let result: Result<(), _> = retrying(Duration::from_mins(1), || {
            tries += 1;
            Err(unavailable())
        });
        assert!(result.is_err());
        assert_eq!(tries, 4);
        let result: Result<(), _> = retrying(Duration::ZERO, || {
            tries += 1;
            Err(unavailable())
        });
        assert!(result.is_err());
        assert_eq!(tries, 5);
    }

    #[test]
    fn what_goes_on_is_tried_as_long_as_it_does() {
        let mut left = 10;
        let result = retrying_the_rest(Duration::from_mins(1), |progress| {
            left -= 1;
            *progress = true;
            if left == 0 { Ok(()) } else { Err(unavailable()) }
        });
        assert!(result.is_ok());
    }
}
