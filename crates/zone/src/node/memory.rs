//! Shards in a node's memory: what was asked for lately, bounded in bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snowmelt_eviction::{Eviction as _, S3Fifo};

use crate::shard::{Shard, ShardKey};

/// Each with its own lock and its part of the budget, so that requests seldom wait for each other.
const PARTS: usize = 16;

/// What a shard takes beside its bytes: key, index, policy.
const OVERHEAD_BYTES: u64 = 256;

#[derive(Debug)]
pub(crate) struct Memory {
    parts: Vec<Mutex<Part>>,
    budget_bytes: u64,
    evicted: AtomicU64,
}

#[derive(Debug)]
struct Part {
    shards: HashMap<ShardKey, Shard>,
    policy: S3Fifo<ShardKey>,
}

impl Memory {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let part = || Part { shards: HashMap::new(), policy: S3Fifo::new(budget_bytes / PARTS as u64) };
        Self { parts: (0..PARTS).map(|_| Mutex::new(part())).collect(), budget_bytes, evicted: AtomicU64::new(0) }
    }

    fn part(&self, key: &ShardKey) -> MutexGuard<'_, Part> {
        // Not by the first byte, which says the slot: a node has few of the slots.
        let part = &self.parts[usize::from(key.chunk.0[31]) % PARTS];
        part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &ShardKey) -> Option<Shard> {
        let mut part = self.part(key);
        if part.policy.touch(*key) { part.shards.get(key).cloned() } else { None }
    }

    pub(crate) fn contains(&self, key: &ShardKey) -> bool {
        self.part(key).shards.contains_key(key)
    }

    pub(crate) fn put(&self, key: ShardKey, shard: Shard) {
        let mut part = self.part(&key);
        let mut evicted = Vec::new();
        part.policy.offer(key, shard.bytes.len() as u64 + OVERHEAD_BYTES, &mut evicted);
        part.shards.insert(key, shard);
        self.evicted.fetch_add(evicted.len() as u64, Ordering::Relaxed);
        for key in evicted {
            part.shards.remove(&key);
        }
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Shards that left for others.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Shards, and the bytes that they take.
    pub(crate) fn usage(&self) -> (usize, u64) {
        let parts = self.parts.iter().map(|part| part.lock().unwrap_or_else(PoisonError::into_inner));
        parts.fold((0, 0), |(count, bytes), part| (count + part.shards.len(), bytes + part.policy.used_bytes()))
    }
}
