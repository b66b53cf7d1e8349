//! Which decrypted chunks are kept, and which will be wanted next. Pure bookkeeping, guarded by the loader's lock.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::buffers::ChunkBuffer;

/// The least recently used chunks make room for new ones.
///
/// Where it is known what will be read, most chunks are read once, as a whole, since the page cache on top keeps what was read.
/// Then the room may begin small, and the same memory is used again and again: fresh memory costs more to touch than decrypting
/// into it does. A chunk that comes back soon after it had to go shows that there is too little, and the room doubles.
#[derive(Debug)]
pub(crate) struct Resident {
    entries: HashMap<u64, Entry>,
    capacity: usize,
    most: usize,
    /// The chunks that had to go last, as many as there is room at most.
    gone: VecDeque<u64>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    chunk: Arc<ChunkBuffer>,
    used: u64,
    touched: bool,
}

/// A small room to begin with, in chunks.
const FIRST_CAPACITY: usize = 6;

impl Resident {
    /// Keeps at most `most` chunks, and few to begin with if it `begins_small`.
    pub(crate) fn new(most: usize, begins_small: bool) -> Self {
        let capacity = if begins_small { FIRST_CAPACITY.min(most) } else { most };
        Self { entries: HashMap::with_capacity(capacity + 1), capacity, most, gone: VecDeque::new(), clock: 0 }
    }

    /// Makes room for chunks that are loaded before they are needed: as much as there may ever be. Gives it in chunks.
    pub(crate) fn make_room(&mut self) -> usize {
        self.capacity = self.most;
        self.capacity
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        self.entries.contains_key(&index)
    }

    /// The chunk, if it is here, and whether no read has had it since it came.
    pub(crate) fn get(&mut self, index: u64) -> Option<(&Arc<ChunkBuffer>, bool)> {
        self.clock += 1;
        let entry = self.entries.get_mut(&index)?;
        entry.used = self.clock;
        let first = !std::mem::replace(&mut entry.touched, true);
        Some((&entry.chunk, first))
    }

    /// Keeps a chunk; returns the one that had to go, to be dropped outside of the lock.
    pub(crate) fn insert(&mut self, index: u64, chunk: Arc<ChunkBuffer>, touched: bool) -> Option<Arc<ChunkBuffer>> {
        self.clock += 1;
        if let Some(at) = self.gone.iter().position(|gone| *gone == index) {
            self.gone.remove(at);
            self.capacity = (self.capacity * 2).min(self.most);
        }
        self.entries.insert(index, Entry { chunk, used: self.clock, touched });
        if self.entries.len() <= self.capacity {
            return None;
        }
        // A few dozen entries: looking at all of them costs less than keeping them in order would.
        let oldest = *self.entries.iter().min_by_key(|(_, entry)| entry.used)?.0;
        self.gone.push_back(oldest);
        if self.gone.len() > self.most {
            self.gone.pop_front();
        }
        self.entries.remove(&oldest).map(|entry| entry.chunk)
    }
}

/// Finds sequential readers among the reads of a device. Several may run at once, as with two files read side by side.
#[derive(Debug)]
pub(crate) struct Streams {
    followed: [Stream; 8],
    recent: u64,
    clock: u64,
    most: u64,
    after: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The chunk that continues it; 0 for an unused entry, since nothing continues into chunk 0.
    next: u64,
    window: u64,
    /// Steps from chunk to chunk so far.
    steps: u64,
    /// The first chunk that was not asked for yet.
    ahead: u64,
    used: u64,
}

impl Streams {
    /// Looks ahead at most `most` chunks, from the step number `after` from chunk to chunk on; a `most` of 0 turns it off.
    pub(crate) fn new(most: u64, after: u64) -> Self {
        Self { followed: [Stream::default(); 8], recent: u64::MAX, clock: 0, most, after }
    }

    /// A read of the chunk; returns the chunks to have ready. The window doubles with each step from chunk to chunk: 2, 4, 8…
    pub(crate) fn observe(&mut self, index: u64) -> Range<u64> {
        if index == self.recent || self.most == 0 {
            return 0..0;
        }
        self.recent = index;
        self.clock += 1;
        if let Some(stream) = self.followed.iter_mut().find(|stream| stream.next == index && index != 0) {
            stream.next = index + 1;
            stream.used = self.clock;
            stream.steps += 1;
            if stream.steps < self.after {
                return 0..0;
            }
            stream.window = (stream.window * 2).min(self.most);
            let wanted = stream.ahead.max(index + 1)..index + 1 + stream.window;
            stream.ahead = stream.ahead.max(wanted.end);
            return wanted;
        }
        if let Some(stream) = self.followed.iter_mut().find(|stream| stream.next == index + 1) {
            stream.used = self.clock;
            return 0..0;
        }
        let oldest = self.followed.iter_mut().min_by_key(|stream| stream.used).expect("there are eight");
        *oldest = Stream { next: index + 1, window: 1, steps: 0, ahead: index + 1, used: self.clock };
        0..0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::BufferPool;

    #[test]
    fn the_least_recently_used_chunk_goes() {
        let pool = BufferPool::new(1, 1);
        let mut resident = Resident::new(2, false);
        let insert = |resident: &mut Resident, index| resident.insert(index, Arc::new(pool.take(1)), false);
        assert!(insert(&mut resident, 1).is_none());
        assert!(insert(&mut resident, 2).is_none());
        assert!(resident.get(1).is_some_and(|(_, first)| first));
        assert!(resident.get(1).is_some_and(|(_, first)| !first));
        assert!(insert(&mut resident, 3).is_some());
        assert!(resident.contains(1) && !resident.contains(2) && resident.contains(3));
    }

    #[test]
    fn room_grows_when_chunks_come_back() {
        let pool = BufferPool::new(1, 1);
        let mut resident = Resident::new(20, true);
        let mut insert = |index| resident.insert(index, Arc::new(pool.take(1)), true).is_some();
        let first = FIRST_CAPACITY as u64;
        assert_eq!((0..first + 2).filter(|index| insert(*index)).count(), 2);
        // Chunk 0 had to go and comes back: there is room for twice as many now.
        assert!(!insert(0));
        assert_eq!((100..100 + first).filter(|index| insert(*index)).count(), 1);
        assert_eq!(resident.make_room(), 20);
    }

    #[test]
    fn a_patient_device_waits_for_more_steps() {
        let mut streams = Streams::new(8, 3);
        let wanted: Vec<_> = [0, 1, 2, 3, 4].map(|index| streams.observe(index)).into();
        assert_eq!(wanted, [0..0, 0..0, 0..0, 4..6, 6..9]);
    }

    #[test]
    fn a_sequential_reader_gets_a_growing_window() {
        let mut streams = Streams::new(8, 1);
        let wanted: Vec<_> = [0, 0, 1, 1, 2, 3, 4].map(|index| streams.observe(index)).into();
        assert_eq!(wanted, [0..0, 0..0, 2..4, 0..0, 4..7, 7..12, 12..13]);
    }

    #[test]
    fn readers_side_by_side_are_told_apart() {
        let mut streams = Streams::new(4, 1);
        for step in 0..3 {
            let (near, far) = (streams.observe(10 + step), streams.observe(90 + step));
            assert_eq!(near.is_empty(), step == 0, "{near:?}");
            assert_eq!(far.is_empty(), step == 0, "{far:?}");
        }
    }

    #[test]
    fn random_reads_want_nothing() {
        let mut streams = Streams::new(8, 1);
        for index in [5, 900, 17, 3, 60, 1_000, 2, 44, 5, 900] {
            assert!(streams.observe(index).is_empty());
        }
    }
}
