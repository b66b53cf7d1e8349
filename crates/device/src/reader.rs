//! The seam between a device and where its chunks come from.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use snowmelt_chunk::Geometry;

use crate::Error;

/// Gives the plaintext of an image's chunks. Two implementations: [`ImageChunks`](crate::ImageChunks) over a manifest and the
/// tiers, and [`MemoryChunks`](crate::MemoryChunks) in memory, which injects faults.
///
/// Every method may be called from several threads at once.
pub trait ChunkReader: Send + Sync {
    /// The size of the image and of its chunks.
    fn geometry(&self) -> Geometry;

    /// Bytes of the chunk that are stored; the rest of its slot is zeros. 0 for a hole and past the end of the image.
    fn stored_length(&self, index: u64) -> u32;

    /// Fills `plaintext`, which is as long as [`ChunkReader::stored_length`], with verified bytes. Blocks, at most until the
    /// request's deadline; after the deadline it answers only from where no waiting is needed.
    ///
    /// # Errors
    /// Any; [`Error::Unavailable`] is the one that is tried again. `plaintext` then holds nothing of use.
    fn read_chunk(&self, index: u64, request: &LoadRequest, plaintext: &mut [u8]) -> Result<(), Error>;

    /// Brings the chunk nearer without opening it, where there is a nearer place.
    ///
    /// # Errors
    /// As [`ChunkReader::read_chunk`].
    fn warm_chunk(&self, index: u64, request: &LoadRequest) -> Result<(), Error>;

    /// Which of the chunks lie on this machine (or are holes), so that they can be read without waiting for another.
    fn are_near(&self, indices: &[u64]) -> Vec<bool> {
        vec![false; indices.len()]
    }

    /// Time spent so far, summed over threads, where the reader measures it.
    fn spent(&self) -> Spent {
        Spent::default()
    }

    /// How messages call the image.
    fn image(&self) -> &str;

    /// How messages call the chunk.
    fn chunk_name(&self, index: u64) -> String;
}

/// Where the time of [`ChunkReader::read_chunk`] went, beside waiting for bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spent {
    /// Checking ids.
    pub verifying: Duration,
    /// Decrypting, and checking tags.
    pub decrypting: Duration,
}

/// Who waits for a chunk; the later ones go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Priority {
    /// Nobody, perhaps ever.
    Background,
    /// Nobody yet.
    Prefetch,
    /// A read of the device.
    Demand,
}

/// Where a chunk came from, or is being asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
#[repr(u8)]
pub enum Tier {
    /// Not known (yet).
    #[default]
    Unknown,
    /// Memory of this machine.
    Memory,
    /// A disk of this machine.
    Disk,
    /// The cache of the zone.
    Zone,
    /// Object storage.
    Origin,
}

impl Tier {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Memory, Self::Disk, Self::Zone, Self::Origin];
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Zone => "zone",
            Self::Origin => "origin",
        })
    }
}

/// One load of a chunk: what the reader has to know, and what it tells while it works.
pub struct LoadRequest {
    /// Who waits.
    pub priority: Priority,
    /// When waiting ends; `None` is never.
    pub deadline: Option<Instant>,
    tier: AtomicU8,
    /// Called when the load stops to need a core of its own, once.
    leaves_core: Option<Box<dyn Fn() + Send + Sync>>,
    has_left_core: AtomicBool,
}

impl fmt::Debug for LoadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadRequest")
            .field("priority", &self.priority)
            .field("deadline", &self.deadline)
            .field("tier", &self.tier())
            .finish_non_exhaustive()
    }
}

impl LoadRequest {
    /// A load that begins now.
    pub fn new(priority: Priority, deadline: Option<Instant>) -> Self {
        Self { priority, deadline, tier: AtomicU8::new(0), leaves_core: None, has_left_core: AtomicBool::new(false) }
    }

    /// Has `action` called when the reader comes to ask a tier that it merely waits for.
    pub(crate) fn when_it_leaves_its_core(mut self, action: impl Fn() + Send + Sync + 'static) -> Self {
        self.leaves_core = Some(Box::new(action));
        self
    }

    /// The reader now asks this tier; at the end, the one that answered.
    pub fn set_tier(&self, tier: Tier) {
        self.tier.store(tier as u8, Ordering::Relaxed);
        // The disk's answer is in the page cache more often than not: to get it is work and not waiting.
        if tier != Tier::Disk
            && self.leave_core()
            && let Some(action) = &self.leaves_core
        {
            action();
        }
    }

    /// The load needs no core any more, because it waits or is done. True if it needed one until now.
    pub(crate) fn leave_core(&self) -> bool {
        !self.has_left_core.swap(true, Ordering::AcqRel)
    }

    /// The tier that was asked last.
    pub fn tier(&self) -> Tier {
        Tier::ALL[usize::from(self.tier.load(Ordering::Relaxed)).min(Tier::ALL.len() - 1)]
    }
}
