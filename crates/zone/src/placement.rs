//! Which nodes have the shards of a chunk: consistent hashing with bounded load.
//!
//! A chunk belongs to one of [`SLOTS`] slots, by the first bits of its id. For each slot and shard the nodes are ranked by a hash
//! of slot, shard and name (rendezvous hashing), and the first is taken that has no other shard of the slot, is in no failure
//! domain of another, and has not its full share of all shards yet: a [`SLACK_PERCENT`] more than the mean. So the table follows
//! from the list of nodes alone, every reader has the same, no node has much more than others, and a node that comes or goes moves
//! little but its own shards. Where the nodes are too few, domains are shared first, then nodes.

use snowmelt_chunk::ChunkId;

/// A node of the zone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it is called: its place depends on it, and stays when its address changes.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
    /// Rack, power supply, or whatever fails as one. Shards of a chunk go to different ones.
    pub domain: Option<String>,
}

/// The table of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    nodes: Vec<Node>,
    shards: usize,
    /// Of each slot, the node of each shard.
    table: Vec<u16>,
}

/// Slots of the table. Many for each node of a large zone, and few enough to rank them all in a moment.
pub const SLOTS: usize = 4096;
/// What a node may have beyond its share.
pub const SLACK_PERCENT: usize = 5;
/// More would not fit the table.
const MOST_NODES: usize = u16::MAX as usize;

impl Placement {
    /// The table for these nodes, whose order does not matter; those that are there twice by name count once. At most 65,535.
    pub fn new(mut nodes: Vec<Node>, shards: usize) -> Self {
        nodes.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        nodes.dedup_by(|a, b| a.name == b.name);
        nodes.truncate(MOST_NODES);
        let mut placement = Self { nodes, shards, table: Vec::new() };
        if !placement.nodes.is_empty() {
            placement.fill();
        }
        placement
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of each shard of a chunk, as indices into [`Placement::nodes`]; empty where there are no nodes.
    pub fn of(&self, chunk: &ChunkId) -> impl ExactSizeIterator<Item = usize> + '_ {
        let bytes = chunk.0;
        let slot = (usize::from(u16::from_be_bytes([bytes[0], bytes[1]])) * SLOTS) >> 16;
        let row = if self.table.is_empty() { &[] } else { &self.table[slot * self.shards..(slot + 1) * self.shards] };
        row.iter().map(|node| usize::from(*node))
    }

    fn fill(&mut self) {
        let count = self.nodes.len();
        let share = (SLOTS * self.shards * (100 + SLACK_PERCENT)).div_ceil(100 * count);
        let names: Vec<u64> = self.nodes.iter().map(|node| name_hash(&node.name)).collect();
        let mut loads = vec![0_usize; count];
        let mut ranked: Vec<(u64, u16)> = Vec::with_capacity(count);
        for slot in 0..SLOTS {
            let first = self.table.len();
            for shard in 0..self.shards {
                ranked.clear();
                ranked.extend((0..).zip(&names).map(|(node, name)| (score(slot, shard, *name), node)));
                ranked.sort_unstable();
                let row = &self.table[first..];
                let is_elsewhere = |node: u16| !row.contains(&node);
                let domain = |node: u16| self.nodes[usize::from(node)].domain.as_ref();
                let is_apart = |node: u16| {
                    is_elsewhere(node)
                        && (domain(node).is_none() || row.iter().all(|other| domain(*other) != domain(node)))
                };
                let has_room = |node: u16| loads[usize::from(node)] < share;
                let mut order = ranked.iter().map(|(_, node)| *node);
                let chosen = order
                    .clone()
                    .find(|node| is_apart(*node) && has_room(*node))
                    .or_else(|| order.clone().find(|node| is_elsewhere(*node) && has_room(*node)))
                    .or_else(|| order.clone().find(|node| is_elsewhere(*node)))
                    // Fewer nodes than shards: those with the fewest of this slot.
                    .or_else(|| order.clone().min_by_key(|node| row.iter().filter(|other| *other == node).count()))
                    .or_else(|| order.next());
                let Some(node) = chosen else { return };
                loads[usize::from(node)] += 1;
                self.table.push(node);
            }
        }
    }
}

/// By SplitMix64's finalizer: cheap, since a large zone needs a hash for each node, slot and shard, and part of the format.
fn score(slot: usize, shard: usize, name: u64) -> u64 {
    let place = (slot as u64) << 8 | shard as u64;
    mix(mix(place.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ name)
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The first 8 bytes of the name's BLAKE3, little-endian.
fn name_hash(name: &str) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn nodes(count: usize, domains: usize) -> Vec<Node> {
        (0..count)
            .map(|number| Node {
                name: format!("node-{number}"),
                address: format!("10.0.0.{number}:7070"),
                domain: (domains > 0).then(|| format!("rack-{}", number % domains)),
            })
            .collect()
    }

    fn rows(placement: &Placement) -> Vec<Vec<usize>> {
        placement
            .table
            .chunks(placement.shards)
            .map(|row| row.iter().map(|node| usize::from(*node)).collect())
            .collect()
    }

    /// Shards whose node has another name.
    fn moved(before: &Placement, after: &Placement) -> usize {
        let name = |placement: &Placement, node: u16| placement.nodes[usize::from(node)].name.clone();
        let pairs = before.table.iter().zip(&after.table);
        pairs.filter(|(a, b)| name(before, **a) != name(after, **b)).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn no_node_has_two_shards_of_a_chunk_or_much_more_than_its_share(count in 5..40_usize) {
            let placement = Placement::new(nodes(count, 0), 5);
            let mut loads = vec![0; count];
            for row in rows(&placement) {
                prop_assert_eq!(row.iter().collect::<HashSet<_>>().len(), 5);
                for node in row {
                    loads[node] += 1;
                }
            }
            let mean = SLOTS * 5 / count;
            let most = *loads.iter().max().unwrap();
            // What no node with room could take goes beyond the bound; that is seldom.
            prop_assert!(most * 100 <= mean * (100 + SLACK_PERCENT + 2), "{} of a mean of {}", most, mean);
        }

        #[test]
        fn a_node_that_goes_moves_little_but_its_own(count in 8..40_usize, gone in any::<prop::sample::Index>()) {
            let all = nodes(count, 0);
            let gone = gone.index(count);
            let mut left = all.clone();
            left.remove(gone);
            let moved = moved(&Placement::new(all, 5), &Placement::new(left, 5));
            let own = SLOTS * 5 / count;
            prop_assert!(moved >= own * 90 / 100);
            prop_assert!(moved <= own * 2, "{} moved, {} were its own", moved, own);
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter_nor_does_a_name_that_is_there_twice() {
        let mut other = nodes(9, 0);
        other.reverse();
        other.push(other[3].clone());
        assert_eq!(Placement::new(nodes(9, 0), 5), Placement::new(other, 5));
    }

    #[test]
    fn shards_of_a_chunk_are_in_different_domains_where_there_are_enough() {
        let placement = Placement::new(nodes(15, 5), 5);
        for row in rows(&placement) {
            let domains: HashSet<_> = row.iter().map(|node| &placement.nodes[*node].domain).collect();
            assert_eq!(domains.len(), 5);
        }
        // With three domains for five shards they must be shared, and nodes must not.
        for row in rows(&Placement::new(nodes(15, 3), 5)) {
            assert_eq!(row.iter().collect::<HashSet<_>>().len(), 5);
        }
    }

    #[test]
    fn few_nodes_share_all_shards_evenly_and_none_has_none() {
        for count in 1..5_usize {
            for row in rows(&Placement::new(nodes(count, 0), 5)) {
                let most = (0..count).map(|node| row.iter().filter(|other| **other == node).count()).max().unwrap();
                assert_eq!(most, 5_usize.div_ceil(count));
            }
        }
        let chunk = ChunkId([7; 32]);
        assert_eq!(Placement::new(Vec::new(), 5).of(&chunk).len(), 0);
        assert_eq!(Placement::new(nodes(1, 0), 5).of(&chunk).collect::<Vec<_>>(), [0; 5]);
    }
}
