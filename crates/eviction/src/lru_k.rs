use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::Eviction;
use super::queue::Queue;

/// LRU-2: what goes first was asked for only once, the longest ago; then what has the oldest last-but-one request. After O'Neil,
/// O'Neil and Weikum, *The LRU-K Page Replacement Algorithm* (1993), with their retained information: requests of what was
/// evicted are remembered, for as many keys as are kept.
///
/// Time is counted in requests. Requests for one key within the *correlated period* are one: a start that reads a chunk in many
/// pieces does not make it popular. Until that period is over a key does not go, unless all others are in theirs.
#[derive(Debug)]
pub struct LruK<K> {
    budget_bytes: u64,
    correlated: u64,
    now: u64,
    kept: HashMap<K, Kept>,
    /// By last but one and last request, oldest first.
    order: BTreeSet<(u64, u64, K)>,
    used_bytes: u64,
    ghosts: Queue<K>,
    requests_of_ghosts: HashMap<K, Requests>,
}

/// When a key was asked for; 0 is never.
#[derive(Clone, Copy, Debug)]
struct Requests {
    last_but_one: u64,
    last: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    requests: Requests,
    bytes: u64,
}

impl<K: Copy + Ord + Hash> LruK<K> {
    /// Keeps nothing yet, and at most so many bytes.
    pub fn new(budget_bytes: u64, correlated: u64) -> Self {
        Self {
            budget_bytes,
            correlated,
            now: 0,
            kept: HashMap::new(),
            order: BTreeSet::new(),
            used_bytes: 0,
            ghosts: Queue::default(),
            requests_of_ghosts: HashMap::new(),
        }
    }

    fn requested_again(&self, requests: Requests) -> Requests {
        if self.now - requests.last <= self.correlated {
            Requests { last: self.now, ..requests }
        } else {
            Requests { last_but_one: requests.last, last: self.now }
        }
    }

    /// What goes next. Only as many keys can be in their correlated period as it has requests, so the search is short.
    fn victim(&self) -> Option<K> {
        let is_over = |(_, last, _): &&(u64, u64, K)| self.now - last > self.correlated;
        let (_, _, key) = self.order.iter().find(is_over).or_else(|| self.order.first())?;
        Some(*key)
    }

    fn take(&mut self, key: K) -> Option<Kept> {
        let kept = self.kept.remove(&key)?;
        self.order.remove(&(kept.requests.last_but_one, kept.requests.last, key));
        self.used_bytes -= kept.bytes;
        Some(kept)
    }

    fn keep(&mut self, key: K, kept: Kept) {
        self.order.insert((kept.requests.last_but_one, kept.requests.last, key));
        self.used_bytes += kept.bytes;
        self.kept.insert(key, kept);
    }

    fn remember(&mut self, key: K, requests: Requests) {
        self.ghosts.push(key, 0);
        self.requests_of_ghosts.insert(key, requests);
        while self.ghosts.len() > self.kept.len().max(1) {
            let Some((oldest, _)) = self.ghosts.pop() else { return };
            self.requests_of_ghosts.remove(&oldest);
        }
    }
}

impl<K: Copy + Ord + Hash> Eviction<K> for LruK<K> {
    fn touch(&mut self, key: K) -> bool {
        self.now += 1;
        let Some(kept) = self.take(key) else { return false };
        let requests = self.requested_again(kept.requests);
        self.keep(key, Kept { requests, ..kept });
        true
    }

    fn offer(&mut self, key: K, bytes: u64, evicted: &mut Vec<K>) {
        self.take(key);
        self.ghosts.remove(key);
        let requests = match self.requests_of_ghosts.remove(&key) {
            Some(before) => self.requested_again(before),
            None => Requests { last_but_one: 0, last: self.now },
        };
        self.keep(key, Kept { requests, bytes });
        while self.used_bytes > self.budget_bytes {
            let Some(victim) = self.victim() else { return };
            let Some(kept) = self.take(victim) else { return };
            self.remember(victim, kept.requests);
            evicted.push(victim);
        }
    }

    fn remove(&mut self, key: K) {
        self.take(key);
    }

    fn used_bytes(&self) -> u64 {
        self.used_bytes
    }
}
