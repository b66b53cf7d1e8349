use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash};

use super::Eviction;
use super::queue::Queue;

/// W-TinyLFU: what is new waits in a window of the least recently used, and goes on only where it was asked for more often than
/// what would go for it. After Einziger, Friedman and Manes, *TinyLFU: A Highly Efficient Cache Admission Policy* (2017): a window
/// of 1 %, a segmented LRU of which four fifths are protected, and frequencies in a sketch that is halved as it fills.
#[derive(Debug)]
pub struct WTinyLfu<K> {
    budget_bytes: u64,
    window: Queue<K>,
    probation: Queue<K>,
    protected: Queue<K>,
    sketch: Sketch,
}

const WINDOW_PERCENT: u64 = 1;
const PROTECTED_PERCENT: u64 = 80;

impl<K: Copy + Eq + Hash> WTinyLfu<K> {
    /// Keeps nothing yet, and at most so many bytes. `keys` is about how many keys that will be.
    pub fn new(budget_bytes: u64, keys: usize) -> Self {
        Self {
            budget_bytes,
            window: Queue::default(),
            probation: Queue::default(),
            protected: Queue::default(),
            sketch: Sketch::new(keys),
        }
    }

    fn window_budget(&self) -> u64 {
        self.budget_bytes * WINDOW_PERCENT / 100
    }

    fn main_budget(&self) -> u64 {
        self.budget_bytes - self.window_budget()
    }

    /// Has a key from the window compete with what it would replace.
    fn admit(&mut self, key: K, bytes: u64, evicted: &mut Vec<K>) {
        if bytes > self.main_budget() {
            evicted.push(key);
            return;
        }
        let frequency = self.sketch.count(key);
        let mut room = self.main_budget() - self.probation.bytes() - self.protected.bytes();
        let mut victims = Vec::new();
        for (victim, victim_bytes) in self.probation.oldest_first().chain(self.protected.oldest_first()) {
            if room >= bytes {
                break;
            }
            if self.sketch.count(victim) >= frequency {
                evicted.push(key);
                return;
            }
            room += victim_bytes;
            victims.push(victim);
        }
        for victim in victims {
            self.probation.remove(victim);
            self.protected.remove(victim);
            evicted.push(victim);
        }
        self.probation.push(key, bytes);
    }
}

impl<K: Copy + Eq + Hash> Eviction<K> for WTinyLfu<K> {
    fn touch(&mut self, key: K) -> bool {
        self.sketch.add(key);
        if self.window.renew(key) || self.protected.renew(key) {
            return true;
        }
        let Some(bytes) = self.probation.remove(key) else { return false };
        self.protected.push(key, bytes);
        while self.protected.bytes() > self.main_budget() * PROTECTED_PERCENT / 100 {
            let Some((key, bytes)) = self.protected.pop() else { break };
            self.probation.push(key, bytes);
        }
        true
    }

    fn offer(&mut self, key: K, bytes: u64, evicted: &mut Vec<K>) {
        self.remove(key);
        self.window.push(key, bytes);
        while self.window.bytes() > self.window_budget() {
            let Some((key, bytes)) = self.window.pop() else { return };
            self.admit(key, bytes, evicted);
        }
    }

    fn remove(&mut self, key: K) {
        self.window.remove(key);
        self.probation.remove(key);
        self.protected.remove(key);
    }

    fn used_bytes(&self) -> u64 {
        self.window.bytes() + self.probation.bytes() + self.protected.bytes()
    }
}

/// A count-min sketch of four rows; counters reach 15, and all are halved after ten requests for each key that is kept.
#[derive(Debug)]
struct Sketch {
    counters: Vec<u8>,
    width: usize,
    added: usize,
    sample: usize,
}

const ROWS: usize = 4;
const HIGHEST: u8 = 15;
const REQUESTS_PER_KEY: usize = 10;

impl Sketch {
    fn new(keys: usize) -> Self {
        // Wider than keys are kept, for those that are asked for and not kept.
        let width = keys.max(16).next_power_of_two() * 2;
        Self { counters: vec![0; width * ROWS], width, added: 0, sample: keys.max(16) * REQUESTS_PER_KEY }
    }

    /// Where the counters of a key are, one in each row.
    fn places<K: Hash>(&self, key: K) -> [usize; ROWS] {
        // Keyed by nothing, so that a run can be repeated.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let (low, high) = (hash as u32, (hash >> 32) as u32 | 1);
        std::array::from_fn(|row| {
            let mixed = low.wrapping_add(high.wrapping_mul(row as u32 + 1));
            row * self.width + mixed as usize % self.width
        })
    }

    fn add<K: Hash>(&mut self, key: K) {
        let places = self.places(key);
        let lowest = places.map(|place| self.counters[place]).into_iter().min().unwrap_or(0);
        if lowest < HIGHEST {
            for place in places {
                // Conservatively: only what says the least is known to be too little.
                if self.counters[place] == lowest {
                    self.counters[place] += 1;
                }
            }
        }
        self.added += 1;
        if self.added >= self.sample {
            self.added /= 2;
            self.counters.iter_mut().for_each(|counter| *counter /= 2);
        }
    }

    fn count<K: Hash>(&self, key: K) -> u8 {
        self.places(key).map(|place| self.counters[place]).into_iter().min().unwrap_or(0)
    }
}
