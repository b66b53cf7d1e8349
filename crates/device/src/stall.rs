//! Tells the operator when a read waits long: after a second, then at doubling intervals; and ends the wait at its deadline,
//! where a tier does not come back by itself. One thread per device, which sleeps while nothing is slow.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::loader::{Flight, Shared};
use crate::options::Stall;

/// When a stall is first reported.
pub(crate) const FIRST: Duration = Duration::from_secs(1);
/// How long after the deadline a read whose reader is stuck is told so.
pub(crate) const GRACE: Duration = Duration::from_millis(50);
/// How long the watcher sleeps when nothing is on its way; it is woken before.
const IDLE: Duration = Duration::from_hours(1);

/// Begins watching. The thread ends with the device.
pub(crate) fn spawn_watcher(shared: &Arc<Shared>) {
    let watched = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name("stall-watcher".into()).spawn(move || watch(&watched));
    if let Err(error) = spawned {
        tracing::warn!(image = shared.reader.image(), %error, "no thread to watch for stalls with");
    }
}

fn watch(shared: &Shared) {
    let clock = &shared.options.clock;
    while !shared.is_stopping() {
        shared.look_again.store(false, Ordering::Release);
        let now = clock.now();
        let (mut stalls, mut expired) = (Vec::new(), Vec::new());
        let mut state = shared.lock();
        for (index, flight) in &mut state.flights {
            let tier = flight.request.tier();
            let since = flight.since;
            expired.extend(flight.take_expired(now).into_iter().map(|waiter| (*index, since, tier, waiter)));
            if flight.stall_at > now {
                continue;
            }
            // A prefetch that nobody waits for stalls nobody.
            if flight.readers() > 0 {
                stalls.push(Stall {
                    image: shared.reader.image().to_owned(),
                    chunk: shared.reader.chunk_name(*index),
                    tier: flight.request.tier(),
                    waited: now.saturating_duration_since(flight.since),
                    readers: flight.readers(),
                });
            }
            while flight.stall_at <= now {
                flight.stall_at += flight.stall_step;
                flight.stall_step *= 2;
            }
        }
        let until = state.flights.values().map(Flight::watch_at).min().unwrap_or(now + IDLE);
        state.watched_until = Some(until);
        drop(state);
        for stall in &stalls {
            shared.counters.stalls.add(1);
            tracing::warn!(
                image = stall.image,
                chunk = stall.chunk,
                tier = %stall.tier,
                waited_ms = stall.waited.as_millis() as u64,
                readers = stall.readers,
                "a read stalls"
            );
            if let Some(observer) = &shared.options.stall_observer {
                (observer.0)(stall);
            }
        }
        for (index, since, tier, waiter) in expired {
            let error = shared.expired(index, tier);
            shared.lock().note_failure(index, since, now, &error);
            shared.counters.failures.add(1);
            tracing::error!(image = shared.reader.image(), error = error.chain(), "a reader gets an I/O error");
            waiter(Err(error));
        }
        clock.wait_until(until, &|| shared.is_stopping() || shared.look_again.load(Ordering::Acquire));
    }
}
