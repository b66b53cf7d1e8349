//! Which chunks a bounded tier keeps: eviction policies, measured in bytes.
//!
//! A policy only decides. It holds keys and sizes, never chunks: whoever asks it removes what it says. Every policy is
//! deterministic, so that the simulation that chose among them (`snowmelt-bench`, case `eviction`) can be run again.
//!
//! [`S3Fifo`] is what the tiers use. A round of cron functions costs it nothing of what is hot, as with LRU-2 and W-TinyLFU and
//! unlike LRU. Where a cache has a fifth of the working set or less it has the most hits, and on none of the other days that were
//! simulated much fewer than another, which LRU-2 has where starts ask for a chunk again and W-TinyLFU in the smallest caches.
//! W-TinyLFU has more in large caches, but has to be told how many keys there will be.

mod lru;
mod lru_k;
mod queue;
mod s3_fifo;
mod w_tiny_lfu;

use std::hash::Hash;

pub use lru::Lru;
pub use lru_k::LruK;
pub use s3_fifo::S3Fifo;
pub use w_tiny_lfu::WTinyLfu;

/// What is kept, by key. Sizes are bytes; what is kept never exceeds the budget.
pub trait Eviction<K: Copy + Eq + Hash> {
    /// Notes that a key was asked for. Whether it is kept.
    fn touch(&mut self, key: K) -> bool;

    /// Offers a key that [`Eviction::touch`] did not find. What goes for it is added to `evicted`; that may be the key itself,
    /// where the policy does not think it worth its room.
    fn offer(&mut self, key: K, bytes: u64, evicted: &mut Vec<K>);

    /// Forgets a key that is gone for another reason, such as damage.
    fn remove(&mut self, key: K);

    /// Bytes of what is kept.
    fn used_bytes(&self) -> u64;
}

#[cfg(test)]
mod tests;
