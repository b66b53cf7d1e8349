//! Where chunks are read from: the cache on this machine's disk, then the origin.
//!
//! [`Tiers`] gives the plaintext of a chunk. What comes from the origin is verified by its id before anything else is
//! done with it; what comes from the disk is verified before it is used, dropped when it is damaged, and fetched again.
//! [`DiskCache`] keeps ciphertext only, needs no keys, is bounded in bytes and shared by all sandboxes of a machine.

mod disk;
mod error;
mod stats;
mod tiers;

pub use disk::DiskCache;
pub use error::Error;
pub use stats::TierStats;
pub use tiers::{ChunkRequest, Tier, Tiers};
