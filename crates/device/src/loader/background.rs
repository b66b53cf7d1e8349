//! What is fetched although nobody has asked for it: the rest of an image, while nothing else is to be done or before a start.

use std::collections::{HashSet, VecDeque};
use std::sync::PoisonError;

use super::threads::{FIRST_PAUSE, LONGEST_PAUSE};
use super::{Loader, Shared};
use crate::Error;
use crate::options::OnUnavailable;

/// The chunks that are fetched in the background, and how that goes.
#[derive(Debug)]
pub(super) struct Rest {
    queue: VecDeque<u64>,
    running: usize,
    most: usize,
    /// Bytes that are near since somebody began to count.
    bytes: u64,
    /// What could not be fetched; kept only where somebody waits for all.
    failed: Vec<(u64, Error)>,
    is_awaited: bool,
}

impl Rest {
    pub(super) fn new(most: usize) -> Self {
        Self { queue: VecDeque::new(), running: 0, most, bytes: 0, failed: Vec::new(), is_awaited: false }
    }

    /// How many more may begin now.
    pub(super) fn startable(&self) -> usize {
        self.queue.len().min(self.most.saturating_sub(self.running))
    }

    /// The next chunk, if one may begin.
    pub(super) fn take(&mut self) -> Option<u64> {
        if self.running < self.most { self.queue.pop_front() } else { None }
    }

    pub(super) fn begin(&mut self) {
        self.running += 1;
    }

    pub(super) fn end(&mut self, index: u64, result: Result<(), Error>, stored_length: u32) {
        self.running -= 1;
        match result {
            Ok(()) => self.bytes += u64::from(stored_length),
            Err(error) if self.is_awaited => self.failed.push((index, error)),
            // Whoever reads it learns why.
            Err(_) => {}
        }
    }

    fn is_over(&self) -> bool {
        self.running == 0 && self.queue.is_empty()
    }
}

impl Loader {
    /// Brings chunks near whenever nothing else is to be loaded and no read waits.
    pub(crate) fn fetch_in_background(&self, indices: impl IntoIterator<Item = u64>) {
        let shared = &self.0;
        let mut state = shared.lock();
        state.rest.queue.extend(indices.into_iter().filter(|index| shared.reader.stored_length(*index) != 0));
        shared.staff(state);
    }

    /// Brings chunks near, as many at once as may be prefetched, and waits for all.
    pub(crate) fn fetch_all(
        &self,
        indices: impl IntoIterator<Item = u64>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        let shared = &self.0;
        let mut seen = HashSet::new();
        let is_wanted = |index: &u64| seen.insert(*index) && shared.reader.stored_length(*index) != 0;
        let wanted: Vec<u64> = indices.into_iter().filter(is_wanted).collect();
        let near = shared.reader.are_near(&wanted);
        let mut missing: Vec<u64> =
            wanted.into_iter().zip(near).filter(|(_, is_near)| !is_near).map(|(index, _)| index).collect();
        let total = missing.iter().map(|index| u64::from(shared.reader.stored_length(*index))).sum();
        {
            let mut state = shared.lock();
            state.rest.is_awaited = true;
            state.rest.most = shared.options.most_prefetches.max(1);
            state.rest.bytes = 0;
        }
        let result = self.fetch_until_done(&mut missing, total, progress);
        let mut state = shared.lock();
        state.rest.queue.clear();
        state.rest.is_awaited = false;
        state.rest.most = shared.options.most_in_background;
        result
    }

    fn fetch_until_done(
        &self,
        missing: &mut Vec<u64>,
        total: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        let shared = &self.0;
        let clock = &shared.options.clock;
        let (mut pause, mut before) = (FIRST_PAUSE, 0);
        let mut gives_up = shared.deadline(clock.now());
        while !missing.is_empty() {
            self.fetch_in_background(missing.drain(..));
            let failed = self.await_rest(total, progress);
            let Some((_, error)) = failed.first() else { break };
            let (now, fetched) = (clock.now(), shared.lock().rest.bytes);
            if fetched > before {
                (pause, before) = (FIRST_PAUSE, fetched);
                gives_up = shared.deadline(now);
            }
            if !shared.may_try_again(error) || gives_up.is_some_and(|until| now >= until) {
                return Err(error.clone());
            }
            shared.counters.retries.add(failed.len() as u64);
            clock.wait_until(gives_up.map_or(now + pause, |until| until.min(now + pause)), &|| shared.is_stopping());
            pause = (pause * 2).min(LONGEST_PAUSE);
            missing.extend(failed.into_iter().map(|(index, _)| index));
        }
        Ok(())
    }

    /// Waits until everything was fetched or could not be; gives what could not, as soon as there is something hopeless.
    fn await_rest(&self, total: u64, progress: &mut dyn FnMut(u64, u64)) -> Vec<(u64, Error)> {
        let shared = &self.0;
        let mut state = shared.lock();
        loop {
            if let Some(at) = state.rest.failed.iter().position(|(_, error)| !shared.may_try_again(error)) {
                return vec![state.rest.failed.swap_remove(at)];
            }
            let (is_over, bytes) = (state.rest.is_over(), state.rest.bytes);
            if is_over {
                let failed = std::mem::take(&mut state.rest.failed);
                drop(state);
                progress(bytes, total);
                return failed;
            }
            drop(state);
            progress(bytes, total);
            state = shared.lock();
            if state.rest.bytes == bytes && !state.rest.is_over() {
                state = shared.rest_changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Shared {
    fn may_try_again(&self, error: &Error) -> bool {
        matches!(error, Error::Unavailable { .. })
            && self.options.on_unavailable == OnUnavailable::Block
            && !self.is_stopping()
    }
}
