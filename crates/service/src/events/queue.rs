//! Which event is run next: the first that is due, of a tenant of which there are not as many being run as may be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// When it is due, in milliseconds since 1970, and its number.
type Place = (u64, u64);

/// What is to be run, without the events themselves: those are on the disk.
#[derive(Default)]
pub(super) struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    due: BTreeMap<Place, Arc<str>>,
    /// Those that are due and wait for another of their tenant's to end: nobody looks at them before.
    parked: HashMap<Arc<str>, BTreeSet<Place>>,
    running: HashMap<Arc<str>, usize>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Run the event of this number, of that tenant. It counts as running until [`Queue::ended`].
    Run(u64, Arc<str>),
    /// Nothing before so many milliseconds since 1970, or before something changes.
    Wait(Option<u64>),
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, due_ms: u64, number: u64, tenant: &str) {
        self.lock().due.insert((due_ms, number), tenant.into());
    }

    /// The next, of which a tenant may have `most` at once.
    pub(super) fn next(&self, now_ms: u64, most: usize) -> Next {
        let mut state = self.lock();
        loop {
            let Some(first) = state.due.first_entry() else { return Next::Wait(None) };
            if first.key().0 > now_ms {
                return Next::Wait(Some(first.key().0));
            }
            let (place, tenant) = first.remove_entry();
            let running = state.running.entry(Arc::clone(&tenant)).or_default();
            if *running < most {
                *running += 1;
                return Next::Run(place.1, tenant);
            }
            state.parked.entry(tenant).or_default().insert(place);
        }
    }

    /// One of a tenant's is not being run any more.
    pub(super) fn ended(&self, tenant: &Arc<str>) {
        let mut state = self.lock();
        if let Some(count) = state.running.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(tenant);
            }
        }
        let Some(parked) = state.parked.get_mut(tenant) else { return };
        let first = parked.pop_first();
        if parked.is_empty() {
            state.parked.remove(tenant);
        }
        if let Some(place) = first {
            state.due.insert(place, Arc::clone(tenant));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn those_of_others_have_their_turn() {
        let queue = Queue::default();
        for number in 0..10 {
            queue.add(number, number, "many");
        }
        queue.add(50, 50, "one");
        assert_eq!(queue.next(100, 2), Next::Run(0, "many".into()));
        assert_eq!(queue.next(100, 2), Next::Run(1, "many".into()));
        assert_eq!(queue.next(40, 2), Next::Wait(Some(50)));
        assert_eq!(queue.next(100, 2), Next::Run(50, "one".into()));
        assert_eq!(queue.next(100, 2), Next::Wait(None));
        queue.ended(&"many".into());
        assert_eq!(queue.next(100, 2), Next::Run(2, "many".into()));
        assert_eq!(queue.next(100, 2), Next::Wait(None));
    }

    proptest! {
        #[test]
        fn each_is_run_once_and_never_too_many_at_once(events in proptest::collection::vec((0_u64..100, 0_u8..3), 0..60), ends in any::<u64>()) {
            let queue = Queue::default();
            for (number, (due, tenant)) in events.iter().enumerate() {
                queue.add(*due, number as u64, &tenant.to_string());
            }
            let (mut running, mut seen, mut ends) = (Vec::new(), BTreeSet::new(), ends);
            loop {
                match queue.next(100, 2) {
                    Next::Run(number, tenant) => {
                        prop_assert!(seen.insert(number));
                        prop_assert_eq!(&*tenant, events[number as usize].1.to_string());
                        running.push(tenant);
                        for tenant in &running {
                            prop_assert!(running.iter().filter(|other| *other == tenant).count() <= 2);
                        }
                    }
                    Next::Wait(_) if running.is_empty() => break,
                    Next::Wait(_) => {
                        ends = ends.rotate_left(7).wrapping_add(1);
                        let at = (ends % running.len() as u64) as usize;
                        queue.ended(&running.swap_remove(at));
                    }
                }
            }
            prop_assert_eq!(seen.len(), events.len());
        }
    }
}
