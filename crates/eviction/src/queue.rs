use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Keys in the order in which they were last pushed, with their sizes. Every step takes logarithmic time.
#[derive(Debug)]
pub(super) struct Queue<K> {
    by_age: BTreeMap<u64, K>,
    places: HashMap<K, (u64, u64)>,
    next: u64,
    bytes: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { by_age: BTreeMap::new(), places: HashMap::new(), next: 0, bytes: 0 }
    }
}

impl<K: Copy + Eq + Hash> Queue<K> {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of all keys in it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts a key to the young end, wherever it was.
    pub(super) fn push(&mut self, key: K, bytes: u64) {
        self.remove(key);
        self.by_age.insert(self.next, key);
        self.places.insert(key, (self.next, bytes));
        self.next += 1;
        self.bytes += bytes;
    }

    /// Moves a key to the young end; false where it is not in it.
    pub(super) fn renew(&mut self, key: K) -> bool {
        let bytes = self.places.get(&key).map(|(_, bytes)| *bytes);
        bytes.map(|bytes| self.push(key, bytes)).is_some()
    }

    /// Takes a key out; its size.
    pub(super) fn remove(&mut self, key: K) -> Option<u64> {
        let (age, bytes) = self.places.remove(&key)?;
        self.by_age.remove(&age);
        self.bytes -= bytes;
        Some(bytes)
    }

    /// Keys with their sizes, from the old end.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (K, u64)> {
        self.by_age.values().filter_map(|key| Some((*key, self.places.get(key)?.1)))
    }

    /// Takes the key at the old end out, with its size.
    pub(super) fn pop(&mut self) -> Option<(K, u64)> {
        let (_, key) = self.by_age.pop_first()?;
        let (_, bytes) = self.places.remove(&key)?;
        self.bytes -= bytes;
        Some((key, bytes))
    }
}
