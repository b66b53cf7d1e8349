use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::reader::Tier;

/// What a device does while the origin does not answer. In neither case does a reader get bytes that were not verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnUnavailable {
    /// Try again until the deadline, then fail: an outage is a pause.
    #[default]
    Block,
    /// Fail at once.
    Fail,
}

/// A load that takes long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stall {
    /// The image.
    pub image: String,
    /// The chunk that is waited for.
    pub chunk: String,
    /// The tier that was asked last.
    pub tier: Tier,
    /// How long it has been waited for.
    pub waited: Duration,
    /// How many reads wait.
    pub readers: usize,
}

/// Is told of every stall, beside the log.
#[derive(Clone)]
pub struct StallObserver(pub Arc<dyn Fn(&Stall) + Send + Sync>);

impl fmt::Debug for StallObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StallObserver")
    }
}

/// How a device behaves.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// How messages call the image; `None` for its manifest's id. Only [`Device::new`](crate::Device::new) uses it.
    pub image_name: Option<String>,
    /// Whether writes are taken, into the overlay.
    pub writable: bool,
    /// Bytes that the overlay may hold; a write past them fails.
    pub overlay_bytes: u64,
    /// Where the overlay's file is made; it never has a name there.
    pub overlay_directory: PathBuf,
    /// How long a read waits for a chunk.
    pub deadline: Duration,
    /// What happens when the origin does not answer.
    pub on_unavailable: OnUnavailable,
    /// Bytes of decrypted chunks that are kept in memory (at least four chunks are).
    pub memory_bytes: u64,
    /// Whether it is known that most chunks will be read once: then less memory is used, until a chunk is needed again.
    pub reads_once: bool,
    /// How many chunks a sequential reader is read ahead of; 0 turns reading ahead off.
    pub read_ahead_chunks: u64,
    /// How many steps from chunk to chunk a reader takes before it counts as sequential. More where an access log says what
    /// will be read, since read-ahead then mostly loads what is never used.
    pub read_ahead_after: u64,
    /// How many chunks are loaded at once, at most. Each takes a thread while it is loaded.
    pub most_loads: usize,
    /// How many of these may be prefetches.
    pub most_prefetches: usize,
    /// How many of these may be in the background, where nobody waits and nothing is prefetched.
    pub most_in_background: usize,
    /// For how long it is recorded what reads need: see [`StartLog`](crate::StartLog).
    pub record_for: Duration,
    /// Is told of every stall.
    pub stall_observer: Option<StallObserver>,
    /// The clock of deadlines and stalls.
    pub clock: Arc<dyn Clock>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            image_name: None,
            writable: false,
            overlay_bytes: 1 << 30,
            overlay_directory: std::env::temp_dir(),
            deadline: Duration::from_secs(30),
            on_unavailable: OnUnavailable::default(),
            memory_bytes: 32 << 20,
            reads_once: false,
            read_ahead_chunks: 8,
            read_ahead_after: 1,
            most_loads: 32,
            most_prefetches: 16,
            most_in_background: 4,
            record_for: Duration::from_secs(30),
            stall_observer: None,
            clock: Arc::new(SystemClock::default()),
        }
    }
}
