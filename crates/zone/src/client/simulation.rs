//! A network that is simulated: connections in virtual time, and at their other ends what stands for nodes: their own stores behind a model
//! of their server, by the same wire format. Nodes may crash, be cut off, slow, damaged, or lie.
#![allow(clippy::expect_used, reason = "for tests")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_threads::{Event, Simulation};

use super::Client;
use super::connection::Connection;
use super::transport::Transport;
use crate::node::Shards;
use crate::placement::{Node, Placement};
use crate::shard::{Shard, checksum};
use crate::wire;

/// Nodes, and all connections to them.
#[derive(Debug)]
pub struct World {
    simulation: Simulation,
    /// Where virtual time began.
    start: Instant,
    state: Mutex<State>,
    /// What is on its way has changed otherwise than by time.
    changed: Event,
}

#[derive(Debug)]
struct State {
    rng: ChaCha8Rng,
    nodes: Vec<SimulatedNode>,
    pipes: BTreeMap<u64, Ends>,
    next: u64,
}

/// A node, and what is wrong with it.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub struct SimulatedNode {
    shards: Shards,
    /// Takes connections.
    pub is_up: bool,
    /// What is sent to it and what it sends is lost.
    pub is_cut_off: bool,
    /// Takes up to 300 ms for each part of an answer.
    pub is_slow: bool,
    /// Cuts and changes some answers.
    pub corrupts: bool,
    /// Answers with other bytes, and the checksum that fits them.
    pub lies: bool,
}

impl SimulatedNode {
    fn new() -> Self {
        let shards = Shards::open(16 << 20, None).expect("memory alone does not fail");
        Self { shards, is_up: true, is_cut_off: false, is_slow: false, corrupts: false, lies: false }
    }

    /// Nothing is wrong with it any more.
    pub fn heal(&mut self) {
        (self.is_up, self.is_cut_off, self.is_slow, self.corrupts, self.lies) = (true, false, false, false, false);
    }
}

/// What is on its way on one connection.
#[derive(Debug)]
struct Ends {
    node: usize,
    /// What the node has of a request.
    request: Vec<u8>,
    /// What the client will have, and when; an empty one is the end.
    coming: VecDeque<(Duration, Vec<u8>)>,
}

/// A client's end.
#[derive(Debug)]
pub(super) struct Pipe {
    world: Arc<World>,
    id: u64,
}

impl World {
    /// So many nodes, all well.
    pub fn new(simulation: &Simulation, nodes: usize) -> Arc<Self> {
        let nodes = (0..nodes).map(|_| SimulatedNode::new()).collect();
        let rng = ChaCha8Rng::seed_from_u64(!simulation.seed());
        let state = State { rng, nodes, pipes: BTreeMap::new(), next: 0 };
        Arc::new(Self {
            simulation: simulation.clone(),
            start: simulation.now(),
            state: Mutex::new(state),
            changed: simulation.event(),
        })
    }

    /// What it is part of.
    pub fn simulation(&self) -> &Simulation {
        &self.simulation
    }

    fn address(node: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node as u8], 7070))
    }

    /// Has a client use these nodes from now on.
    pub fn tell(client: &Client, nodes: Range<usize>) {
        let node = |number: usize| Node {
            name: format!("node-{number}"),
            address: Self::address(number).to_string(),
            domain: None,
        };
        let placement = Placement::new(nodes.map(node).collect(), client.code().shards());
        let addresses: Vec<_> = placement.nodes().iter().map(|node| node.address.parse().ok()).collect();
        client.set_nodes(placement, &addresses);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Instant {
        self.simulation.now()
    }

    fn elapsed(&self) -> Duration {
        self.now() - self.start
    }

    /// Changes what is wrong with a node.
    pub fn change(&self, node: usize, change: impl FnOnce(&mut SimulatedNode)) {
        let now = self.elapsed();
        let mut state = self.state();
        change(&mut state.nodes[node]);
        if !state.nodes[node].is_up {
            state.close_all(node, now);
        }
        drop(state);
        self.changed.notify(usize::MAX);
    }

    /// It loses its memory and its connections, and is there again.
    pub fn crash(&self, node: usize) {
        let now = self.elapsed();
        let mut state = self.state();
        state.nodes[node].shards = SimulatedNode::new().shards;
        state.close_all(node, now);
        drop(state);
        self.changed.notify(usize::MAX);
    }

    pub(super) fn open(self: &Arc<Self>, address: &SocketAddr) -> Transport {
        let now = self.elapsed();
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let node = (0..state.nodes.len()).find(|node| Self::address(*node) == *address).expect("it is one of ours");
        let mut ends = Ends { node, request: Vec::new(), coming: VecDeque::new() };
        if !state.nodes[node].is_up && !state.nodes[node].is_cut_off {
            ends.coming.push_back((now + Duration::from_micros(50), Vec::new()));
        }
        state.pipes.insert(id, ends);
        drop(state);
        Transport::Simulated(Pipe { world: Arc::clone(self), id })
    }

    /// Waits until one of the connections has something.
    pub(super) fn wait<'a>(
        &self,
        connections: impl Iterator<Item = &'a Connection>,
        deadline: Instant,
    ) -> Option<Vec<usize>> {
        let pipes: Vec<Option<u64>> = connections.map(|connection| connection.pipe().map(|pipe| pipe.id)).collect();
        loop {
            let now = self.elapsed();
            let state = self.state();
            let coming = |pipe: &Option<u64>| {
                let ends = state.pipes.get(&(*pipe)?).filter(|ends| !state.nodes[ends.node].is_cut_off)?;
                ends.coming.front().map(|(at, _)| *at)
            };
            let coming: Vec<Option<Duration>> = pipes.iter().map(coming).collect();
            drop(state);
            let ready: Vec<usize> =
                (0..coming.len()).filter(|at| coming[*at].is_some_and(|time| time <= now)).collect();
            if !ready.is_empty() {
                return Some(ready);
            }
            if self.start + now >= deadline {
                return None;
            }
            let first = coming.into_iter().flatten().min().map(|first| self.start + first);
            self.changed.wait(Some(first.map_or(deadline, |first| first.min(deadline))));
        }
    }
}

impl State {
    fn close_all(&mut self, node: usize, now: Duration) {
        for ends in self.pipes.values_mut().filter(|ends| ends.node == node) {
            ends.coming.push_back((now, Vec::new()));
        }
    }

    /// Answers what has come as a whole.
    fn serve(&mut self, id: u64, now: Duration) {
        let Some(ends) = self.pipes.get_mut(&id) else { return };
        let node = &self.nodes[ends.node];
        let Some((mut answer, taken)) = respond(node, &ends.request) else { return };
        ends.request.drain(..taken);
        if node.corrupts {
            match self.rng.random_range(0..3) {
                0 => answer.truncate(self.rng.random_range(0..answer.len())),
                1 => {
                    let at = self.rng.random_range(0..answer.len());
                    answer[at] ^= 1 << self.rng.random_range(0..8);
                }
                _ => {}
            }
        }
        let (least, most) = if node.is_slow { (5_000, 300_000) } else { (50, 2_000) };
        let mut at = now;
        while !answer.is_empty() {
            at += Duration::from_micros(self.rng.random_range(least..most));
            let rest = answer.split_off(self.rng.random_range(1..=answer.len()));
            ends.coming.push_back((at, std::mem::replace(&mut answer, rest)));
        }
    }
}

/// The answer to the first request, as a server gives it, and how long that request was; `None` if it is not whole.
fn respond(node: &SimulatedNode, request: &[u8]) -> Option<(Vec<u8>, usize)> {
    let end = request.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&request[..end]).expect("the client writes text");
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
    };
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let key = wire::parse_path(path).expect("the client asks for shards");
    if method == "GET" {
        let Some(mut shard) = node.shards.in_memory(&key) else {
            return Some((b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), end));
        };
        if node.lies {
            shard.bytes = shard.bytes.iter().map(|byte| !byte).collect();
            shard.checksum = checksum(&key, shard.chunk_bytes, &shard.bytes);
        }
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{}: {}\r\n{}: {}\r\n\r\n",
            shard.bytes.len(),
            wire::CHUNK_BYTES,
            shard.chunk_bytes,
            wire::CHECKSUM,
            wire::checksum_text(shard.checksum)
        )
        .into_bytes();
        answer.extend_from_slice(&shard.bytes);
        return Some((answer, end));
    }
    let length: usize = header("content-length")?.parse().ok()?;
    let bytes = request.get(end..end + length)?;
    let chunk_bytes = header(wire::CHUNK_BYTES).and_then(wire::parse_chunk_bytes)?;
    let checksum = header(wire::CHECKSUM).and_then(wire::parse_checksum)?;
    let shard = Shard { chunk_bytes, checksum, bytes: Bytes::copy_from_slice(bytes) };
    assert!(shard.is_whole(&key), "the client writes what is whole");
    let status = if node.shards.put(key, shard) { "201 Created" } else { "200 OK" };
    Some((format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes(), end + length))
}

impl Pipe {
    pub(super) fn send(&self, bytes: &[u8]) -> usize {
        let now = self.world.elapsed();
        let mut state = self.world.state();
        let state = &mut *state;
        if let Some(ends) = state.pipes.get_mut(&self.id) {
            let node = &state.nodes[ends.node];
            // What is sent to a node that is cut off is lost, with all that follows on this connection.
            if node.is_up && !node.is_cut_off {
                ends.request.extend_from_slice(bytes);
                state.serve(self.id, now);
            }
        }
        bytes.len()
    }

    pub(super) fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let now = self.world.elapsed();
        let mut state = self.world.state();
        let state = &mut *state;
        let Some(ends) = state.pipes.get_mut(&self.id) else { return Err(ErrorKind::NotConnected.into()) };
        let is_cut_off = state.nodes[ends.node].is_cut_off;
        let Some((_, bytes)) = ends.coming.front_mut().filter(|(at, _)| *at <= now && !is_cut_off) else {
            return Ok(None);
        };
        if bytes.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        bytes.drain(..count);
        if bytes.is_empty() {
            ends.coming.pop_front();
        }
        Ok(Some(count))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.world.state().pipes.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
