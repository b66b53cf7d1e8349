//! How starts are merged, so that what most of them need is known and what few need fades out.
//!
//! A chunk has a weight. What the first start of a command needed begins with [`FIRST_WEIGHT`], what a later one adds with 1. A
//! start that needs the chunk adds 1, up to [`MOST_WEIGHT`]; one that does not halves it, and at 0 the chunk is forgotten.
//!
//! The device sees reads, not readers: a page that is replayed is read, whether the program wants it or not. So a start says
//! something only about chunks of which it replayed nothing. Those are, in turn, one in [`TURNS`] of the log, and all of
//! weight 1, which have yet to show that they are needed more than once. The chunks themselves are loaded ahead all the same,
//! so that this costs a start no request.
//!
//! Logs may be anybody's who can write to the store, and a worker merges those of its agents: whatever is in them, merging takes time and
//! memory as reading them does.
//!
//! What follows: a chunk that all starts need stays for ever. A chunk that only a later start needed is gone with the next one.
//! A chunk that no start needs any more is gone after [`GONE_AFTER`] starts at most.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::{FileRead, LoggedChunk, StartLog, Vain, joined};

/// What a chunk of the first start weighs.
pub(super) const FIRST_WEIGHT: u8 = 2;
/// What a chunk weighs that a later start was the first to need.
const LATER_WEIGHT: u8 = 1;
/// No chunk weighs more, so that none is kept for long by having been needed often.
pub(super) const MOST_WEIGHT: u8 = 4;
/// A chunk of which pages are replayed is looked at every so many starts.
const TURNS: u64 = 16;
/// After so many starts a chunk that none of them needed is gone: two turns, from 4 to 2 and to 1, and then the next start.
#[cfg(test)]
pub(super) const GONE_AFTER: u64 = 2 * TURNS + 1;
/// For so many starts it is known that a chunk was loaded in vain.
const VAIN_FOR: u64 = 16;

impl StartLog {
    /// The chunks whose pages the next start does not replay, to find out whether it needs them.
    pub fn examined(&self) -> HashSet<u64> {
        let in_turn = |index: u64| (index % TURNS + self.starts % TURNS).is_multiple_of(TURNS);
        let examined = self.chunks.iter().filter(|chunk| chunk.weight <= LATER_WEIGHT || in_turn(chunk.index));
        examined.map(|chunk| chunk.index).collect()
    }

    /// The log with one more start, which was [recorded](StartLog::record) and replayed pages of the chunks in `replayed`.
    #[must_use]
    pub fn merged(&self, start: &Self, replayed: &HashSet<u64>) -> Self {
        if self.starts == 0 {
            return start.clone();
        }
        let needed: HashMap<u64, &LoggedChunk> = start.chunks.iter().map(|chunk| (chunk.index, chunk)).collect();
        let known: HashSet<u64> = self.indices().collect();
        let mut chunks = Vec::with_capacity(self.chunks.len() + 16);
        // Those that are new come after the known one that they followed.
        let mut followers: HashMap<Option<u64>, Vec<LoggedChunk>> = HashMap::new();
        let mut last = None;
        for chunk in &start.chunks {
            if known.contains(&chunk.index) {
                last = Some(chunk.index);
            } else {
                followers.entry(last).or_default().push(LoggedChunk { weight: LATER_WEIGHT, ..chunk.clone() });
            }
        }
        chunks.extend(followers.remove(&None).unwrap_or_default());
        for chunk in &self.chunks {
            let (now, is_replayed) = (needed.get(&chunk.index), replayed.contains(&chunk.index));
            let kept = match now {
                Some(now) if is_replayed => Some(chunk.united(now)),
                Some(now) => Some(LoggedChunk { weight: (chunk.weight + 1).min(MOST_WEIGHT), ..(*now).clone() }),
                None if is_replayed => Some(chunk.clone()),
                None => {
                    Some(LoggedChunk { weight: chunk.weight / 2, ..chunk.clone() }).filter(|chunk| chunk.weight > 0)
                }
            };
            chunks.extend(kept);
            chunks.extend(followers.remove(&Some(chunk.index)).unwrap_or_default());
        }
        let starts = self.starts.saturating_add(1);
        let again: HashSet<u64> = start.vain.iter().map(|vain| vain.index).collect();
        let is_current = |vain: &&Vain| {
            starts - vain.start.min(starts) < VAIN_FOR
                && !again.contains(&vain.index)
                && !needed.contains_key(&vain.index)
        };
        let mut vain: Vec<Vain> = self.vain.iter().filter(is_current).copied().collect();
        vain.extend(start.vain.iter().map(|vain| Vain { index: vain.index, start: starts }));
        Self { starts, chunks, vain }
    }

    /// What the starts of two commands have in common, in this one's order.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let others: HashMap<u64, &LoggedChunk> = other.chunks.iter().map(|chunk| (chunk.index, chunk)).collect();
        let both = self.chunks.iter().filter_map(|chunk| others.get(&chunk.index).map(|other| chunk.common(other)));
        Self { starts: self.starts.max(other.starts), chunks: both.collect(), vain: Vec::new() }
    }

    /// Whether they need the same chunks, in whatever order and with whatever weight.
    pub fn has_chunks_of(&self, other: &Self) -> bool {
        self.indices().collect::<HashSet<_>>() == other.indices().collect()
    }
}

impl LoggedChunk {
    /// With what another start read of it as well; what is known already comes first.
    fn united(&self, other: &Self) -> Self {
        let mut known = by_inode(&self.files);
        let mut files = self.files.clone();
        for FileRead { inode, range } in &other.files {
            let new = known.entry(*inode).or_default().insert(range.clone());
            files.extend(new.into_iter().map(|range| FileRead { inode: *inode, range }));
        }
        let metadata = joined(self.metadata.iter().chain(&other.metadata).cloned().collect(), 0);
        Self { index: self.index, weight: self.weight, metadata, files }
    }

    fn common(&self, other: &Self) -> Self {
        let mut others = by_inode(&other.files);
        let mut files = Vec::new();
        for FileRead { inode, range } in &self.files {
            let both = others.get_mut(inode).map(|others| others.take(range)).unwrap_or_default();
            files.extend(both.into_iter().map(|range| FileRead { inode: *inode, range }));
        }
        let mut others = Ranges::default();
        other.metadata.iter().for_each(|range| drop(others.insert(range.clone())));
        let metadata = self.metadata.iter().flat_map(|range| others.take(range)).collect();
        Self { index: self.index, weight: self.weight.min(other.weight), metadata, files }
    }
}

/// What was read of each file.
fn by_inode(files: &[FileRead]) -> HashMap<u32, Ranges> {
    let mut ranges: HashMap<u32, Ranges> = HashMap::new();
    for FileRead { inode, range } in files {
        ranges.entry(*inode).or_default().insert(range.clone());
    }
    ranges
}

/// Ranges that do not overlap: ends by starts. What is done with many takes time for each as it comes, and gives no more parts than
/// there were ranges, twice over.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Takes out the ranges that overlap one, whole.
    fn take_overlapping(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let before = self.0.range(..range.start).next_back().filter(|(_, end)| **end > range.start);
        let first = before.map_or(range.start, |(start, _)| *start);
        let starts: Vec<u64> = self.0.range(first..range.end).map(|(start, _)| *start).collect();
        starts.into_iter().filter_map(|start| self.0.remove(&start).map(|end| start..end)).collect()
    }

    /// Adds a range; gives what of it was not there.
    fn insert(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let (mut new, mut at, mut all) = (Vec::new(), range.start, range.clone());
        for known in self.take_overlapping(&range) {
            if at < known.start {
                new.push(at..known.start);
            }
            at = known.end;
            all = all.start.min(known.start)..all.end.max(known.end);
        }
        if at < range.end {
            new.push(at..range.end);
        }
        if !all.is_empty() {
            self.0.insert(all.start, all.end);
        }
        new
    }

    /// Takes a range out; gives what of it was there.
    fn take(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        if range.is_empty() {
            return taken;
        }
        for known in self.take_overlapping(range) {
            taken.push(known.start.max(range.start)..known.end.min(range.end));
            for left in [known.start..range.start, range.end..known.end] {
                if !left.is_empty() {
                    self.0.insert(left.start, left.end);
                }
            }
        }
        taken
    }
}
