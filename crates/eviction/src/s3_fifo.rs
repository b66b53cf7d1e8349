use std::collections::HashMap;
use std::hash::Hash;

use super::Eviction;
use super::queue::Queue;

/// S3-FIFO: what is new waits in a small queue, and goes to the main one only if it is asked for twice more before its turn comes,
/// or once after it has gone. After Yang, Zhang, Qiu, Yue and Rashmi, *FIFO queues are all you need for cache eviction* (SOSP 2023,
/// algorithm 1): the small queue has a tenth of the budget, and as many evicted keys are remembered as the main queue has room for.
#[derive(Debug)]
pub struct S3Fifo<K> {
    budget_bytes: u64,
    small: Queue<K>,
    main: Queue<K>,
    ghosts: Queue<K>,
    /// Requests since a key came into its queue, counted to 3.
    frequency: HashMap<K, u8>,
}

/// The small queue's share of the budget.
const SMALL_PERCENT: u64 = 10;
const MOST_FREQUENT: u8 = 3;
/// Requests after the first that bring a key from the small queue to the main one. The paper's is 2: one more comes by itself, where
/// something is asked for in pieces.
const PROMOTED_AT: u8 = 2;

impl<K: Copy + Eq + Hash> S3Fifo<K> {
    /// Keeps nothing yet, and at most so many bytes.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            small: Queue::default(),
            main: Queue::default(),
            ghosts: Queue::default(),
            frequency: HashMap::new(),
        }
    }

    /// About what the main queue has when it is full; it is small at first, when ghosts are needed most.
    fn most_ghosts(&self) -> usize {
        ((self.small.len() + self.main.len()) * (100 - SMALL_PERCENT as usize) / 100).max(1)
    }

    fn evict(&mut self, evicted: &mut Vec<K>) {
        let small_is_full = self.small.bytes() > self.budget_bytes * SMALL_PERCENT / 100;
        if (small_is_full || self.main.len() == 0)
            && let Some((key, bytes)) = self.small.pop()
        {
            if self.frequency.get(&key).copied().unwrap_or(0) >= PROMOTED_AT {
                self.frequency.insert(key, 0);
                self.main.push(key, bytes);
            } else {
                self.frequency.remove(&key);
                self.ghosts.push(key, 0);
                while self.ghosts.len() > self.most_ghosts() {
                    self.ghosts.pop();
                }
                evicted.push(key);
            }
            return;
        }
        while let Some((key, bytes)) = self.main.pop() {
            let frequency = self.frequency.get(&key).copied().unwrap_or(0);
            if frequency == 0 {
                self.frequency.remove(&key);
                evicted.push(key);
                return;
            }
            self.frequency.insert(key, frequency - 1);
            self.main.push(key, bytes);
        }
    }
}

impl<K: Copy + Eq + Hash> Eviction<K> for S3Fifo<K> {
    fn touch(&mut self, key: K) -> bool {
        let Some(frequency) = self.frequency.get_mut(&key) else { return false };
        *frequency = (*frequency + 1).min(MOST_FREQUENT);
        true
    }

    fn offer(&mut self, key: K, bytes: u64, evicted: &mut Vec<K>) {
        self.remove(key);
        self.frequency.insert(key, 0);
        if self.ghosts.remove(key).is_some() {
            self.main.push(key, bytes);
        } else {
            self.small.push(key, bytes);
        }
        while self.used_bytes() > self.budget_bytes {
            self.evict(evicted);
        }
    }

    fn remove(&mut self, key: K) {
        self.small.remove(key);
        self.main.remove(key);
        self.frequency.remove(&key);
    }

    fn used_bytes(&self) -> u64 {
        self.small.bytes() + self.main.bytes()
    }
}
