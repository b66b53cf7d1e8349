//! Workers, a zone and the origin in a simulation: seeded, in virtual time, with delays, partitions, restarts and corruption.
//!
//! L1, fetcher, upstream and the zone's client are what they are; nodes and the origin stand for others' programs. A read gives the right
//! bytes or an error in bounded time, nothing is asked of the origin without bound, and after the faults everything is found in the zone.
#![allow(clippy::unwrap_used)]

mod origin;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_chunk::Suite;
use snowmelt_store::{Store, StoreOptions};
use snowmelt_threads::{Simulation, Thread, Threads};
use snowmelt_zone::simulation::{SimulatedNode, World};

use self::origin::{Origin, Way};
use self::worker::{Read, Worker};
use crate::{ChunkName, L1Options, Priority, Tier};

const SEEDS: u64 = 24;
const NODES: usize = 6;
const CHUNKS: u64 = 24;
const SANDBOXES: usize = 12;
const FAULTS: usize = 60;

fn content(number: u64) -> (ChunkName, Vec<u8>) {
    let mut bytes = vec![0; 1 + 1021 * number as usize];
    ChaCha8Rng::seed_from_u64(number).fill(&mut bytes[..]);
    let suite = Suite::Blake3Gcm;
    (ChunkName { id: suite.id_of(&bytes), suite, stored_length: bytes.len() as u32 }, bytes)
}

struct Cluster {
    simulation: Simulation,
    world: Arc<World>,
    origin: Arc<Origin>,
    workers: Vec<Arc<Worker>>,
    folder: tempfile::TempDir,
}

/// What has happened, to see that it is the same each time.
type Trace = Arc<Mutex<Vec<String>>>;

impl Cluster {
    fn new(simulation: &Simulation) -> Self {
        let world = World::new(simulation, NODES);
        let origin = Origin::new(simulation);
        let store = Store::over_objects(Way::new(simulation, &origin), &StoreOptions::default());
        for number in 0..CHUNKS {
            let (name, bytes) = content(number);
            store.put_new_chunk(&name.id, &bytes).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Self { simulation: simulation.clone(), world, origin, workers: Vec::new(), folder };
        // One forgets everything with its end, one keeps everything on disk, and one has too little of both.
        for (memory_bytes, disk_bytes) in [(60 << 10, None), (20 << 10, Some(1 << 20)), (20 << 10, Some(80 << 10))] {
            cluster.add(memory_bytes, disk_bytes);
        }
        cluster
    }

    fn add(&mut self, memory_bytes: u64, disk_bytes: Option<u64>) -> Arc<Worker> {
        let folder = self.folder.path().join(self.workers.len().to_string());
        let disk = disk_bytes.map(|bytes| (folder, bytes));
        let worker = Worker::new(&self.simulation, &self.world, &self.origin, L1Options { memory_bytes, disk });
        worker.tell(0..NODES);
        let worker = Arc::new(worker);
        self.workers.push(Arc::clone(&worker));
        worker
    }

    /// A sandbox that reads until it is told to end.
    fn sandbox(&self, number: usize, is_ending: &Arc<AtomicBool>, trace: &Trace) -> Thread {
        let (simulation, worker) = (self.simulation.clone(), Arc::clone(&self.workers[number % self.workers.len()]));
        let (is_ending, trace) = (Arc::clone(is_ending), Arc::clone(trace));
        let mut rng = ChaCha8Rng::seed_from_u64(simulation.seed() ^ (number as u64) << 32);
        let start = simulation.now();
        let work = move || {
            while !is_ending.load(Ordering::Relaxed) {
                let chunk = rng.random_range(0..CHUNKS).min(rng.random_range(0..CHUNKS));
                let priority = Priority::ALL[rng.random_range(0..3)];
                let (name, bytes) = content(chunk);
                let read = worker.read(&name, &bytes, priority);
                let now = simulation.now() - start;
                trace.lock().unwrap().push(format!("{now:?}: {number} read {chunk}: {read:?}"));
                simulation.sleep(Duration::from_millis(rng.random_range(0..300)));
            }
        };
        Threads::Simulated(self.simulation.clone()).spawn("sandbox", work).unwrap()
    }

    /// Faults end more often than they begin, so that most of the time a few are there.
    fn fault(&self, rng: &mut ChaCha8Rng) {
        let (node, is_bad) = (rng.random_range(0..NODES), rng.random_bool(0.35));
        let worker = &self.workers[rng.random_range(0..self.workers.len())];
        match rng.random_range(0..14) {
            0 => self.world.change(node, |node| node.is_cut_off = is_bad),
            1 => self.world.change(node, |node| node.is_slow = is_bad),
            2 => self.world.change(node, |node| node.corrupts = is_bad),
            3 => self.world.change(node, |node| node.is_up = !is_bad),
            4 => self.world.change(node, |node| node.lies = is_bad),
            5 => self.world.crash(node),
            6 => worker.tell(rng.random_range(0..3)..NODES),
            7 => self.origin.change(|faults| faults.is_away = is_bad),
            8 => self.origin.change(|faults| faults.is_slow = is_bad),
            9 => self.origin.change(|faults| faults.corrupts = is_bad),
            10 => worker.way.cut_off(is_bad),
            // The last one's disk is too small for everything; which of it stays would depend on the clock of its files.
            11 | 12 => {
                let worker = &self.workers[rng.random_range(0..2)];
                worker.kill();
                self.simulation.sleep(Duration::from_millis(rng.random_range(0..500)));
                worker.start();
            }
            _ => worker.damage_disk(rng.random_range(0..1000)),
        }
        self.simulation.sleep(Duration::from_millis(rng.random_range(0..1500)));
    }

    fn heal(&self) {
        (0..NODES).for_each(|node| self.world.change(node, SimulatedNode::heal));
        self.origin.change(|faults| *faults = origin::Faults::default());
        for worker in &self.workers {
            worker.way.cut_off(false);
            worker.tell(0..NODES);
        }
    }

    fn read_all(&self, worker: &Worker, trace: &Trace) -> Vec<Read> {
        let reads: Vec<Read> = (0..CHUNKS)
            .map(|number| {
                let (name, bytes) = content(number);
                let read = worker.read(&name, &bytes, Priority::Demand);
                // So that what is written back is not too much at once.
                self.simulation.sleep(Duration::from_millis(50));
                read
            })
            .collect();
        trace.lock().unwrap().push(format!("{reads:?}"));
        reads
    }

    fn run(mut self) -> Vec<String> {
        let seed = self.simulation.seed();
        let trace = Trace::default();
        let is_ending = Arc::new(AtomicBool::new(false));
        let sandboxes: Vec<Thread> = (0..SANDBOXES).map(|number| self.sandbox(number, &is_ending, &trace)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..FAULTS).for_each(|_| self.fault(&mut rng));
        self.heal();
        is_ending.store(true, Ordering::Relaxed);
        sandboxes.into_iter().for_each(Thread::join);

        // The zone gets what it lost from whoever misses it; so many workers are enough for every chunk of it.
        for _ in 0..3 {
            self.simulation.sleep(Duration::from_secs(3));
            let fresh = self.add(1 << 20, None);
            let reads = self.read_all(&fresh, &trace);
            assert!(!reads.contains(&Read::Failed), "seed {seed}: {reads:?}");
        }
        self.simulation.sleep(Duration::from_secs(3));
        let fresh = self.add(1 << 20, None);
        let reads = self.read_all(&fresh, &trace);
        assert!(reads.iter().all(|read| *read == Read::From(Tier::Zone)), "seed {seed}: {reads:?}");
        assert_eq!(fresh.way.requests(), 0, "seed {seed}");
        for worker in &self.workers {
            let reads = self.read_all(worker, &trace);
            assert!(!reads.contains(&Read::Failed), "seed {seed}: {reads:?}");
            worker.assert_bounded();
        }
        drop(fresh);
        drop(self);
        let trace = trace.lock().unwrap();
        trace.clone()
    }
}

fn run(seed: u64) -> Vec<String> {
    Simulation::run(seed, |simulation| Cluster::new(simulation).run())
}

#[test]
fn reads_are_right_or_fail_in_time_and_the_cluster_heals() {
    let mut seen = [0_usize; 5];
    let what = ["From(Memory)", "From(Disk)", "From(Zone)", "From(Origin)", "Failed"];
    for seed in 0..SEEDS {
        let trace = run(seed);
        for (seen, what) in seen.iter_mut().zip(what) {
            *seen += trace.iter().filter(|line| line.contains("read") && line.ends_with(what)).count();
        }
    }
    println!("{what:?}: {seen:?}");
    // The faults leave every tier something to do, and do harm.
    assert!(seen.iter().all(|seen| *seen > SEEDS as usize), "{what:?}: {seen:?}");
}

#[test]
fn a_history_is_the_same_each_time() {
    for seed in [1, 23, 42] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
