//! An overlay that goes on in another process.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::states::{Found, REGION_PAGES, State, States};
use super::{Overlay, PAGE, sealed_key};
use crate::Error;

/// What a successor needs of an overlay: duplicates of its descriptors, and its key, sealed.
pub(crate) struct OverlayHandover {
    pub(crate) pages: OwnedFd,
    pub(crate) states: OwnedFd,
    pub(crate) sealed_key: Vec<u8>,
}

impl Overlay {
    /// For a successor; this process goes on with the overlay.
    pub(crate) fn handover(&self, sealing_key: &[u8; 32]) -> Result<OverlayHandover, Error> {
        let failed = |error| self.error("duplicate", error);
        Ok(OverlayHandover {
            pages: self.slots.file.as_fd().try_clone_to_owned().map_err(failed)?,
            states: self.states.as_fd().try_clone_to_owned().map_err(failed)?,
            sealed_key: sealed_key::seal(sealing_key, self.states.id(), &self.secret)?,
        })
    }

    /// Goes on with the overlay of a process that is gone. If it is not, it can write no more.
    pub(crate) fn resume(
        image: &str,
        handover: OverlayHandover,
        sealing_key: &[u8; 32],
        budget_bytes: u64,
        size_bytes: u64,
    ) -> Result<Self, Error> {
        let mut states = States::open(handover.states, size_bytes.div_ceil(PAGE))?;
        let secret = sealed_key::open(sealing_key, states.id(), &handover.sealed_key)?;
        let Found { regions, stored_pages } = states.take_over()?;
        let overlay = Self::with(image, File::from(handover.pages), states, secret, budget_bytes);
        overlay.used_pages.store(stored_pages, Ordering::Relaxed);
        overlay.written.store(!regions.is_empty(), Ordering::Relaxed);
        for region in regions {
            overlay.find_stale(region);
        }
        Ok(overlay)
    }

    /// Which slots have content that is not needed is not known: any may that is not in use.
    fn find_stale(&self, region: u64) {
        let mut stale = self.shard(region).write().unwrap_or_else(PoisonError::into_inner);
        let states = self.states.region(region, 0..REGION_PAGES as usize).unwrap_or(&[]);
        let mut count = 0;
        for (index, state) in states.iter().map(|state| State::of(state.load(Ordering::Acquire))).enumerate() {
            let not_in_use: &[usize] = match state {
                State::Stored { slot: 0, .. } => &[1],
                State::Stored { .. } => &[0],
                State::Zero => &[0, 1],
                State::Base | State::Invalid => &[],
            };
            for slot in not_in_use {
                count += u64::from(stale.insert(region, index, *slot));
            }
        }
        self.stale_pages.fetch_add(count, Ordering::Relaxed);
    }
}
