//! The client's own state machine over the simulated network.
//!
//! A read gives the right bytes or a miss, within its patience; and when the faults stop, every chunk is found by everybody again.

use std::time::Duration;

use rand::seq::IndexedRandom as _;
use snowmelt_chunk::ChunkId;

use super::*;
use crate::client::{ClientOptions, Found};

const SEEDS: u64 = 100;
const STEPS: usize = 250;
const NODES: usize = 7;
const CHUNKS: u64 = 12;

fn content(number: u64) -> (ChunkId, Vec<u8>) {
    let mut content = vec![0; 1 + 1021 * number as usize];
    ChaCha8Rng::seed_from_u64(number).fill(&mut content[..]);
    (ChunkId(*blake3::hash(&content).as_bytes()), content)
}

/// One history.
struct History {
    seed: u64,
    rng: ChaCha8Rng,
    world: Arc<World>,
    /// Two machines.
    clients: Vec<Client>,
    /// What has happened, to see that it is the same each time.
    trace: Vec<String>,
}

impl History {
    fn new(simulation: &Simulation) -> Self {
        let world = World::new(simulation, NODES);
        let clients = (0..2).map(|_| Client::simulated(ClientOptions::default(), &world)).collect();
        let (seed, trace) = (simulation.seed(), Vec::new());
        let history = Self { seed, rng: ChaCha8Rng::seed_from_u64(seed), clients, world, trace };
        history.clients.iter().for_each(|client| World::tell(client, 0..NODES));
        history
    }

    fn read(&mut self, client: usize, number: u64) -> Found {
        let (id, expected) = content(number);
        let mut into = vec![0xee; expected.len()];
        let start = self.world.now();
        let client = &self.clients[client];
        let found = client.read(&id, &mut into, &|bytes| blake3::hash(bytes).as_bytes() == &id.0);
        let took = self.world.now() - start;
        assert!(took <= client.options.patience, "seed {}: a read took {took:?}", self.seed);
        if matches!(found, Found::Hit { .. }) {
            assert_eq!(into, expected, "seed {}: wrong bytes", self.seed);
        }
        self.trace.push(format!("{took:?} {found:?}"));
        found
    }

    fn write(&mut self, client: usize, number: u64, only: Option<&[u8]>) {
        let (id, content) = content(number);
        let start = self.world.now();
        let client = &self.clients[client];
        let written = client.write(&id, &content, only);
        let took = self.world.now() - start;
        assert!(took <= client.options.write_patience, "seed {}: a write took {took:?}", self.seed);
        self.trace.push(format!("{took:?} {written}"));
    }

    /// As a reader does: what it had to get elsewhere it writes, and what is said to be missing.
    fn use_chunk(&mut self, client: usize, number: u64) {
        match self.read(client, number) {
            Found::Hit { missing } if missing.is_empty() => {}
            Found::Hit { missing } => self.write(client, number, Some(&missing)),
            Found::Miss | Found::Corrupt => self.write(client, number, None),
        }
    }

    fn step(&mut self) {
        // Faults end more often than they begin, so that most of the time a few are there.
        let (node, is_bad) = (self.rng.random_range(0..NODES), self.rng.random_bool(0.3));
        match self.rng.random_range(0..40) {
            0 => self.world.change(node, |node| node.is_cut_off = is_bad),
            1 => self.world.change(node, |node| node.is_slow = is_bad),
            2 => self.world.change(node, |node| node.corrupts = is_bad),
            3 => self.world.crash(node),
            4 => self.world.change(node, |node| node.is_up = !is_bad),
            5 => {
                let first = self.rng.random_range(0..3);
                self.clients.iter().for_each(|client| World::tell(client, first..NODES));
            }
            6 => self.world.change(node, |node| node.lies = is_bad),
            7 => self.world.simulation().sleep(Duration::from_millis(self.rng.random_range(0..3000))),
            _ => {
                let (client, number) = (self.rng.random_range(0..2), self.rng.random_range(0..CHUNKS));
                self.use_chunk(client, number);
            }
        }
    }

    fn heal(&mut self) {
        (0..NODES).for_each(|node| self.world.change(node, SimulatedNode::heal));
        self.clients.iter().for_each(|client| World::tell(client, 0..NODES));
        for round in 0..4 {
            self.world.simulation().sleep(Duration::from_secs(3));
            for number in 0..CHUNKS {
                self.use_chunk(round % 2, number);
            }
        }
        for client in 0..2 {
            for number in 0..CHUNKS {
                let found = self.read(client, number);
                let healed = matches!(found, Found::Hit { .. });
                assert!(healed, "seed {}: chunk {number} does not heal: {found:?}", self.seed);
            }
        }
    }

    fn run(mut self) -> Vec<String> {
        (0..STEPS).for_each(|_| self.step());
        self.heal();
        self.trace
    }
}

fn run(seed: u64) -> Vec<String> {
    Simulation::run(seed, |simulation| History::new(simulation).run())
}

#[test]
fn reads_are_right_or_misses_in_time_and_faults_heal() {
    let mut seen = [0_u64; 4];
    for seed in 0..SEEDS {
        let trace = run(seed);
        for (seen, what) in seen.iter_mut().zip(["Hit { missing: [] }", "Hit { missing: [", "Miss", "Corrupt"]) {
            *seen += trace.iter().filter(|line| line.contains(what)).count() as u64;
        }
    }
    // The faults leave something to be right, and do harm.
    assert!(
        seen[0] > SEEDS * STEPS as u64 / 4 && seen[1] - seen[0] > SEEDS && seen[2] > SEEDS && seen[3] > 0,
        "{seen:?}"
    );
    println!("whole, with shards missing or not, missed, corrupt: {seen:?}");
}

#[test]
fn a_history_is_the_same_each_time() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let seeds: Vec<u64> = (0..SEEDS).collect();
    for seed in seeds.choose_multiple(&mut rng, 5) {
        assert_eq!(run(*seed), run(*seed), "seed {seed}");
    }
}
