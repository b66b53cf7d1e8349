//! What a run or a mount did, in figures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::LoadMode;

/// What a device served and where it came from, since it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Size of the image in bytes, holes included.
    pub image_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Chunks that the image has in the store.
    pub image_chunks: u64,
    /// Different chunks that were needed.
    pub touched_chunks: u64,
    /// Reads of the device.
    pub reads: u64,
    /// Bytes they read.
    pub read_bytes: u64,
    /// Writes to the device.
    pub writes: u64,
    /// Bytes they wrote.
    pub written_bytes: u64,
    /// Bytes that the overlay holds.
    pub overlay_bytes: u64,
    /// Where chunks came from.
    pub loads: Vec<TierLoads>,
    /// Chunks loaded before they were needed,
    pub prefetched: u64,
    /// those of them that the start has not needed so far,
    pub in_vain: u64,
    /// and chunks of the rest of the image, which nobody asked for.
    pub in_background: u64,
    /// How the image was loaded.
    pub load: LoadMode,
    /// Reads that failed.
    pub failures: u64,
    /// Loads that were tried again.
    pub retries: u64,
    /// Loads that took suspiciously long.
    pub stalls: u64,
    /// Time spent in serving reads, all threads added.
    pub serve_us: u64,
    /// Of that, waiting for a free thread,
    pub queue_us: u64,
    /// fetching from a tier,
    pub fetch_us: u64,
    /// checking what came,
    pub verify_us: u64,
    /// decrypting it,
    pub decrypt_us: u64,
    /// and copying it.
    pub copy_us: u64,
}

/// The loads of one tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierLoads {
    /// `memory`, `disk` or `origin`.
    pub tier: String,
    /// How many chunks.
    pub chunks: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

impl Stats {
    /// Chunks and bytes that came from one tier.
    pub fn from_tier(&self, tier: &str) -> (u64, u64) {
        self.loads
            .iter()
            .filter(|loads| loads.tier == tier)
            .fold((0, 0), |sum, loads| (sum.0 + loads.chunks, sum.1 + loads.bytes))
    }
}

/// When the steps of a run were reached, counted from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// The agent was started.
    pub agent_started: Duration,
    /// It had opened the manifest.
    pub manifest_opened: Duration,
    /// The root file system was mounted.
    pub mounted: Duration,
    /// The runtime had its configuration.
    pub runtime_started: Duration,
    /// The first byte on standard output; measured with [`crate::RunSpec::stats`] and without a terminal.
    pub first_output: Option<Duration>,
    /// The command had ended and its container was gone.
    pub exited: Duration,
    /// Everything was unmounted and removed.
    pub finished: Duration,
}
