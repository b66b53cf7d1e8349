//! Where chunks are read from: this machine, then the cache of the zone, then the origin.
//!
//! [`Tiers`] gives a sandbox the plaintext of a chunk. On a machine without a worker it has a cache on the machine's disk that all
//! sandboxes share ([`DiskCache`]), and asks the zone and the origin itself ([`Upstream`]). On one with a worker it asks that
//! ([`WorkerClient`]), which has the chunks of all sandboxes in memory and on disk ([`L1`]) and gets each from upstream once
//! ([`Fetcher`]); chunks come from it as descriptors, so it copies none of them.
//!
//! What comes from upstream is verified by its id before anything else is done with it; what comes from this machine is
//! verified before it is used, dropped when it is damaged, and fetched again. Everything but [`Tiers`] has ciphertext only, and no keys.

mod buffers;
mod disk;
mod error;
mod fetcher;
#[doc(hidden)]
pub mod fuzz;
mod l1;
#[cfg(test)]
mod simulation;
mod stats;
mod tiers;
mod upstream;
mod worker;

pub use disk::DiskCache;
pub use error::Error;
pub use fetcher::{FetchLimits, Fetcher, FetcherStats};
pub use l1::{L1, L1Options, L1Stats};
pub use stats::TierStats;
pub use tiers::{ChunkRequest, Priority, Tier, Tiers};
pub use upstream::{ChunkName, Upstream};
pub use worker::{ChunkServer, WorkerClient};
