use std::hash::Hash;

use super::Eviction;
use super::queue::Queue;

/// Least recently used goes first. One scan that is larger than the budget takes everything.
#[derive(Debug)]
pub struct Lru<K> {
    budget_bytes: u64,
    kept: Queue<K>,
}

impl<K: Copy + Eq + Hash> Lru<K> {
    /// Keeps nothing yet, and at most so many bytes.
    pub fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, kept: Queue::default() }
    }
}

impl<K: Copy + Eq + Hash> Eviction<K> for Lru<K> {
    fn touch(&mut self, key: K) -> bool {
        self.kept.renew(key)
    }

    fn offer(&mut self, key: K, bytes: u64, evicted: &mut Vec<K>) {
        self.kept.push(key, bytes);
        while self.kept.bytes() > self.budget_bytes {
            let Some((victim, _)) = self.kept.pop() else { return };
            evicted.push(victim);
        }
    }

    fn remove(&mut self, key: K) {
        self.kept.remove(key);
    }

    fn used_bytes(&self) -> u64 {
        self.kept.bytes()
    }
}
