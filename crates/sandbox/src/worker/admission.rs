//! How many sandboxes may be starting at once: as many as the tiers beyond this machine bear.
//!
//! A start reads what nobody read before, so from an empty cache many starts at once ask more of the origin than it can give; each then
//! takes longer, more are under way, and it gets worse. So the limit follows what chunks take that somebody waits for: while
//! they take about as long as they do at best, it grows by one for each round of starts that used it up; once they take
//! twice as long, it shrinks by a quarter. (Additive increase, multiplicative decrease, as TCP has it; what is compared with is the
//! best of late, so it adapts where the origin moves.)

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Chunks by which the limit is judged.
const WINDOW: usize = 32;
/// Slower than this many times the best is too slow; less than so much more never is: that is noise.
const TOLERANCE: f64 = 2.0;
const SLACK: Duration = Duration::from_millis(5);
/// By which the best is forgotten at each window.
const FORGET: f64 = 1.02;
const SHRINK: f64 = 0.75;

/// What a worker is told to do about starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionOptions {
    /// So many starts at once are always let in.
    pub least: usize,
    /// More never are.
    pub most: usize,
    /// How long a start waits for its turn. Zero refuses at once.
    pub patience: Duration,
    /// Starts that may wait. More are refused at once.
    pub most_waiting: usize,
    /// How long after its mount a start counts, since it goes on reading.
    pub counts_for: Duration,
}

impl Default for AdmissionOptions {
    fn default() -> Self {
        Self {
            least: 2,
            most: 256,
            patience: Duration::from_secs(30),
            most_waiting: 1024,
            counts_for: Duration::from_secs(2),
        }
    }
}

/// Lets starts in.
#[derive(Debug)]
pub(crate) struct Admission {
    options: AdmissionOptions,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    limit: f64,
    running: usize,
    waiting: VecDeque<u64>,
    next: u64,
    was_full: bool,
    window: Vec<Duration>,
    best: Option<f64>,
    refused: u64,
}

/// A start that was let in. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<Admission>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.changed.notify_all();
    }
}

impl Admitted {
    /// It has mounted, and all that it asked for was on this machine: it asks nothing of the tiers beyond, and counts no longer; but
    /// once more where it does ask for something before the time is over for which starts count.
    pub(crate) fn spare(self) -> Spared {
        Spared { until: Instant::now() + self.0.options.counts_for, admission: Arc::clone(&self.0) }
    }
}

/// A start that did not need to be counted so far.
#[derive(Debug)]
pub(crate) struct Spared {
    admission: Arc<Admission>,
    until: Instant,
}

impl Spared {
    /// It asks the tiers beyond after all. Gives what counts it, though there may be no room, and for how long; `None` where that is
    /// over.
    pub(crate) fn count(self) -> Option<(Admitted, Duration)> {
        let left = self.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        self.admission.lock().running += 1;
        Some((Admitted(self.admission), left))
    }
}

/// Why a start was not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Starts that are under way.
    pub(crate) running: usize,
    /// Starts that wait.
    pub(crate) waiting: usize,
    /// How long it waited.
    pub(crate) waited: Duration,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "this machine starts {} sandboxes already, which is as many as its store bears now, and {} wait",
            self.running, self.waiting
        )?;
        if !self.waited.is_zero() {
            write!(f, "; it was not its turn within {:.1} s", self.waited.as_secs_f64())?;
        }
        f.write_str(": try again later")
    }
}

/// What is let in at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AdmissionStats {
    pub(crate) limit: usize,
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) refused: u64,
}

impl Admission {
    pub(crate) fn new(options: AdmissionOptions) -> Arc<Self> {
        let state = State {
            limit: options.most.min(options.least.max(16)) as f64,
            running: 0,
            waiting: VecDeque::new(),
            next: 0,
            was_full: false,
            window: Vec::with_capacity(WINDOW),
            best: None,
            refused: 0,
        };
        Arc::new(Self { options, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a start: those who came before go first. `waits` is called once, if it has to wait; `is_wanted` says, now
    /// and then, whether anybody still wants it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        waits: impl FnOnce(&Refused),
        is_wanted: impl Fn() -> bool,
    ) -> Result<Admitted, Refused> {
        let begun = Instant::now();
        let mut state = self.lock();
        let refused = |state: &mut State, waited| {
            state.refused += 1;
            Refused { running: state.running, waiting: state.waiting.len(), waited }
        };
        if state.waiting.is_empty() && state.has_room() {
            state.running += 1;
            return Ok(Admitted(Arc::clone(self)));
        }
        state.was_full = true;
        if self.options.patience.is_zero() || state.waiting.len() >= self.options.most_waiting {
            return Err(refused(&mut state, Duration::ZERO));
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(number);
        let told = Refused { running: state.running, waiting: state.waiting.len(), waited: Duration::ZERO };
        drop(state);
        waits(&told);
        state = self.lock();
        loop {
            if state.waiting.front() == Some(&number) && state.has_room() {
                state.waiting.pop_front();
                state.running += 1;
                self.changed.notify_all();
                return Ok(Admitted(Arc::clone(self)));
            }
            let left = self.options.patience.saturating_sub(begun.elapsed());
            if left.is_zero() || !is_wanted() {
                state.waiting.retain(|waiting| *waiting != number);
                let refused = refused(&mut state, begun.elapsed());
                self.changed.notify_all();
                return Err(refused);
            }
            // Now and then it is looked whether anybody still wants it.
            let pause = left.min(Duration::from_millis(200));
            state = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A chunk that somebody waited for took so long.
    pub(crate) fn observe(&self, took: Duration) {
        let mut state = self.lock();
        state.window.push(took);
        if state.window.len() < WINDOW {
            return;
        }
        state.window.sort_unstable();
        let median = state.window[WINDOW / 2].as_secs_f64();
        state.window.clear();
        let best = state.best.map_or(median, |best| (best * FORGET).min(median));
        state.best = Some(best);
        let (least, most) = (self.options.least.max(1) as f64, self.options.most.max(1) as f64);
        if median > best * TOLERANCE + SLACK.as_secs_f64() {
            // Not below what is under way now would be no change at all.
            state.limit = (state.limit.min(state.running.max(1) as f64) * SHRINK).max(least);
            tracing::info!(limit = state.limit, median, best, "chunks take longer: fewer starts at once");
        } else if std::mem::take(&mut state.was_full) {
            state.limit = (state.limit + 1.0).min(most);
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn stats(&self) -> AdmissionStats {
        let state = self.lock();
        AdmissionStats {
            limit: state.limit as usize,
            running: state.running,
            waiting: state.waiting.len(),
            refused: state.refused,
        }
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.running < (self.limit as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::channel;

    use super::*;

    fn admission(least: usize, most: usize, patience: Duration) -> Arc<Admission> {
        Admission::new(AdmissionOptions { least, most, patience, most_waiting: 3, ..AdmissionOptions::default() })
    }

    fn observe(admission: &Admission, windows: usize, took: Duration) {
        (0..windows * WINDOW).for_each(|_| admission.observe(took));
    }

    #[test]
    fn starts_go_in_the_order_in_which_they_came() {
        let admission = admission(1, 1, Duration::from_mins(5));
        let first = admission.admit(|_| panic!("there is room"), || true).unwrap();
        let (told, order) = channel();
        let (waits, waiting) = channel();
        std::thread::scope(|scope| {
            for number in 0..3 {
                let (admission, told, waits) = (&admission, told.clone(), waits.clone());
                scope.spawn(move || {
                    let admitted = admission.admit(|_| waits.send(()).unwrap(), || true).unwrap();
                    told.send(number).unwrap();
                    drop(admitted);
                });
                waiting.recv().unwrap();
            }
            let refused = admission.admit(|_| panic!("too many wait"), || true).unwrap_err();
            assert_eq!((refused.running, refused.waiting), (1, 3));
            drop(first);
            assert_eq!(order.iter().take(3).collect::<Vec<_>>(), [0, 1, 2]);
        });
        assert_eq!(admission.stats().running, 0);
    }

    #[test]
    fn who_does_not_want_to_wait_is_refused_and_so_is_who_has_gone() {
        let strict = admission(1, 1, Duration::ZERO);
        let _first = strict.admit(|_| (), || true).unwrap();
        let refused = strict.admit(|_| panic!("it waits"), || true).unwrap_err().to_string();
        assert!(refused.contains("starts 1 sandboxes already") && refused.contains("try again later"), "{refused}");
        let patient = admission(1, 1, Duration::from_mins(5));
        let _first = patient.admit(|_| (), || true).unwrap();
        patient.admit(|_| (), || false).unwrap_err();
        assert_eq!(patient.stats().waiting, 0);
    }

    #[test]
    fn who_needs_nothing_from_beyond_counts_only_once_it_does() {
        let admission = admission(1, 1, Duration::ZERO);
        let spared = admission.admit(|_| (), || true).unwrap().spare();
        let second = admission.admit(|_| (), || true).unwrap();
        let (first, left) = spared.count().unwrap();
        assert!(left <= admission.options.counts_for);
        assert_eq!(admission.stats().running, 2);
        drop(second);
        admission.admit(|_| (), || true).unwrap_err();
        drop(first);
        let late = Spared { until: Instant::now(), ..admission.admit(|_| (), || true).unwrap().spare() };
        assert!(late.count().is_none());
        assert_eq!(admission.stats().running, 0);
    }

    #[test]
    fn the_limit_follows_what_chunks_take() {
        let admission = admission(2, 64, Duration::ZERO);
        observe(&admission, 4, Duration::from_millis(20));
        assert_eq!(admission.stats().limit, 16);
        let mut held: Vec<Admitted> = (0..16).map(|_| admission.admit(|_| (), || true).unwrap()).collect();
        // It grows only where it is used up.
        for windows in 0..8 {
            admission.admit(|_| (), || true).unwrap_err();
            observe(&admission, 1, Duration::from_millis(20));
            assert_eq!(admission.stats().limit, 17 + windows);
            held.push(admission.admit(|_| (), || true).unwrap());
        }
        observe(&admission, 1, Duration::from_millis(100));
        assert_eq!(admission.stats().limit, 18);
        observe(&admission, 40, Duration::from_millis(100));
        assert_eq!(admission.stats().limit, 2);
        held.clear();
        // An origin that has become slow for good is what it is compared with, after a while.
        observe(&admission, 200, Duration::from_millis(100));
        admission.admit(|_| (), || true).unwrap();
        let _held: Vec<Admitted> = (0..2).map(|_| admission.admit(|_| (), || true).unwrap()).collect();
        admission.admit(|_| (), || true).unwrap_err();
        observe(&admission, 1, Duration::from_millis(100));
        assert_eq!(admission.stats().limit, 3);
    }
}
