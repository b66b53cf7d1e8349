//! Work that nobody waits for, in a thread of its own with a bounded queue: what comes while it is full is not done.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Condvar, Thread, Threads};

/// Does jobs one after the other. Ends, with all that it has taken, when dropped.
#[derive(Debug)]
pub struct Background<J> {
    shared: Arc<Shared<J>>,
    thread: Option<Thread>,
}

#[derive(Debug)]
struct Shared<J> {
    state: Mutex<State<J>>,
    most: usize,
    changed: Condvar,
}

#[derive(Debug)]
struct State<J> {
    queue: VecDeque<J>,
    /// Jobs that were taken, and that are done.
    taken: u64,
    done: u64,
    is_ending: bool,
    /// Whether anybody does them.
    has_thread: bool,
}

/// Whether a job will be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It will.
    Yes,
    /// The queue is full, or nobody is there.
    No,
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Send + 'static> Background<J> {
    /// Does with `work` what it is given; up to `most` jobs wait.
    pub fn start(threads: &Threads, name: &str, most: usize, work: impl FnMut(J) + Send + 'static) -> Self {
        let state = State { queue: VecDeque::new(), taken: 0, done: 0, is_ending: false, has_thread: true };
        let shared = Arc::new(Shared { state: Mutex::new(state), most, changed: threads.condvar() });
        let working = Working(Arc::clone(&shared));
        let thread = threads.spawn(name, move || working.run(work));
        let thread = thread.inspect_err(|error| tracing::warn!(%error, name, "no thread for it")).ok();
        shared.lock().has_thread = thread.is_some();
        Self { shared, thread }
    }

    /// Does not wait.
    pub fn give(&self, job: J) -> Taken {
        let mut state = self.shared.lock();
        if state.queue.len() >= self.shared.most || !state.has_thread {
            return Taken::No;
        }
        state.queue.push_back(job);
        state.taken += 1;
        drop(state);
        self.shared.changed.notify_all();
        Taken::Yes
    }

    /// Waits until all that was taken is done.
    pub fn flush(&self) {
        let mut state = self.shared.lock();
        let until = state.taken;
        while state.done < until && state.has_thread {
            state = self.shared.changed.wait(&self.shared.state, state);
        }
    }
}

impl<J> Drop for Background<J> {
    fn drop(&mut self) {
        self.shared.lock().is_ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

/// The thread's side. A panic ends it, which those who wait must learn.
struct Working<J>(Arc<Shared<J>>);

impl<J> Working<J> {
    fn run(self, mut work: impl FnMut(J)) {
        let mut state = self.0.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                work(job);
                state = self.0.lock();
                state.done += 1;
                self.0.changed.notify_all();
            } else if state.is_ending {
                return;
            } else {
                state = self.0.changed.wait(&self.0.state, state);
            }
        }
    }
}

impl<J> Drop for Working<J> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_thread = false;
        state.queue.clear();
        drop(state);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn jobs_are_done_in_order_and_before_the_end() {
        let (done, all) = channel();
        let background = Background::start(&Threads::Real, "test", 1000, move |job: u32| done.send(job).unwrap());
        (0..1000).for_each(|job| assert_eq!(background.give(job), Taken::Yes));
        drop(background);
        assert_eq!(all.iter().collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let (go, wait) = channel::<()>();
        let (begun, has_begun) = channel();
        let work = move |job: u32| {
            begun.send(job).unwrap();
            wait.recv().unwrap();
        };
        let background = Background::start(&Threads::Real, "test", 2, work);
        assert_eq!(background.give(0), Taken::Yes);
        has_begun.recv().unwrap();
        assert_eq!([1, 2, 3].map(|job| background.give(job)), [Taken::Yes, Taken::Yes, Taken::No]);
        (0..3).for_each(|_| go.send(()).unwrap());
        background.flush();
        assert_eq!(background.give(4), Taken::Yes);
        go.send(()).unwrap();
    }

    #[test]
    fn nobody_waits_for_one_that_panicked() {
        let background = Background::start(&Threads::Real, "test", 9, |_: u32| panic!("as the test wants it"));
        background.give(1);
        background.flush();
        // It is gone before those who wait are told.
        assert_eq!(background.give(2), Taken::No);
    }
}
