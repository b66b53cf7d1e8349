//! A worker: its own L1, fetcher and client of the zone, as they are. It may be killed and started again.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use snowmelt_store::{Store, StoreOptions};
use snowmelt_threads::{Condvar, Simulation, Threads};
use snowmelt_zone::simulation::World;
use snowmelt_zone::{Client, ClientOptions};

use super::origin::{Origin, TIMEOUT, Way};
use crate::fetcher::{Fetched, Waiter};
use crate::{ChunkName, FetchLimits, Fetcher, L1, L1Options, Priority, Tier, Upstream};

/// Little, so that it is reached.
pub(super) const LIMITS: FetchLimits = FetchLimits { zone_reads: 2, origin_reads: 2, flights: 3 };
/// How long a sandbox tries to read.
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A read's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    From(Tier),
    Failed,
}

pub(super) struct Worker {
    simulation: Simulation,
    options: L1Options,
    pub(super) way: Arc<Way>,
    store: Arc<Store>,
    pub(super) client: Arc<Client>,
    running: Mutex<Option<Arc<Running>>>,
    /// Times that a chunk was asked for that was not here.
    misses: AtomicU64,
}

struct Running {
    l1: Arc<L1>,
    fetcher: Fetcher,
}

/// A sandbox that waits.
struct Waiting {
    told: Mutex<Option<Fetched>>,
    changed: Condvar,
}

struct Tell(Arc<Waiting>);

impl Waiter for Tell {
    fn asks(&self, _tier: Tier) {}

    fn done(self: Box<Self>, fetched: Fetched) {
        let before = self.0.told.lock().unwrap().replace(fetched);
        assert!(before.is_none(), "told twice");
        self.0.changed.notify_all();
    }
}

impl Worker {
    pub(super) fn new(simulation: &Simulation, world: &Arc<World>, origin: &Arc<Origin>, options: L1Options) -> Self {
        let way = Way::new(simulation, origin);
        let objects: Arc<dyn ObjectStore> = Arc::<Way>::clone(&way);
        let worker = Self {
            simulation: simulation.clone(),
            options,
            store: Arc::new(Store::over_objects(objects, &StoreOptions::default())),
            way,
            client: Arc::new(Client::simulated(ClientOptions::default(), world)),
            running: Mutex::default(),
            misses: AtomicU64::new(0),
        };
        worker.start();
        worker
    }

    pub(super) fn start(&self) {
        let threads = Threads::Simulated(self.simulation.clone());
        let l1 = Arc::new(L1::open_on(&threads, self.options.clone()).unwrap());
        let upstream = Upstream::of(Some((Arc::clone(&self.client), None)), Arc::default());
        let fetcher = Fetcher::new(upstream, Arc::clone(&l1), LIMITS, |_, _, _| {});
        let before = self.running.lock().unwrap().replace(Arc::new(Running { l1, fetcher }));
        assert!(before.is_none(), "it runs already");
    }

    /// Ends it, and with it all that it had in memory. Who waits for it is told.
    pub(super) fn kill(&self) {
        let running = self.running.lock().unwrap().take();
        let Some(running) = running else { return };
        let l1 = Arc::downgrade(&running.l1);
        drop(running);
        // What was on its way is in the kernel's hands and comes to an end there; only then is its folder another's.
        while l1.strong_count() > 0 {
            self.simulation.sleep(Duration::from_millis(1));
        }
    }

    /// The disk changes a bit of a chunk that is there, if one is.
    pub(super) fn damage_disk(&self, choose: usize) {
        let Some((folder, _)) = &self.options.disk else { return };
        let mut files: Vec<PathBuf> = Vec::new();
        for folder in std::fs::read_dir(folder.join("chunks")).unwrap().flatten() {
            files.extend(std::fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.path()));
        }
        files.sort();
        if !files.is_empty() {
            let file = &files[choose % files.len()];
            let mut bytes = std::fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(file, bytes).unwrap();
        }
    }

    /// Reads a chunk as a sandbox does: again while that may help, until its deadline.
    pub(super) fn read(&self, chunk: &ChunkName, expected: &[u8], priority: Priority) -> Read {
        let deadline = self.simulation.now() + DEADLINE;
        loop {
            let may_pass = match self.attempt(chunk, priority) {
                Some(Ok((tier, file))) => {
                    if is_right(&file, expected) {
                        return Read::From(tier);
                    }
                    // Only the disk of the machine changes what was verified before.
                    assert_eq!(tier, Tier::Disk, "seed {}", self.simulation.seed());
                    self.check(chunk);
                    true
                }
                Some(Err(error)) => error.is_unavailable(),
                None => true,
            };
            if !may_pass || self.simulation.now() >= deadline {
                return Read::Failed;
            }
            self.simulation.sleep(PAUSE);
        }
    }

    fn running(&self) -> Option<Arc<Running>> {
        self.running.lock().unwrap().clone()
    }

    fn check(&self, chunk: &ChunkName) {
        if let Some(running) = self.running() {
            running.l1.check(chunk);
        }
    }

    /// `None` while it does not run.
    fn attempt(&self, chunk: &ChunkName, priority: Priority) -> Option<Fetched> {
        let running = self.running()?;
        if let Some(found) = running.l1.get(chunk) {
            return Some(Ok(found));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let changed = Threads::Simulated(self.simulation.clone()).condvar();
        let waiting = Arc::new(Waiting { told: Mutex::default(), changed });
        let began = self.simulation.now();
        running.fetcher.fetch(*chunk, &self.store, priority, Box::new(Tell(Arc::clone(&waiting))));
        drop(running);
        let mut told = waiting.told.lock().unwrap();
        while told.is_none() {
            told = waiting.changed.wait(&waiting.told, told);
        }
        self.assert_in_time(began);
        told.take()
    }

    /// Everybody is told in bounded time: what may wait, in as many rounds as it takes.
    fn assert_in_time(&self, began: Instant) {
        let took = self.simulation.now() - began;
        let rounds = |at_once: usize| LIMITS.flights.div_ceil(at_once) as u32;
        // Once more for what came later and was more urgent.
        let zone = self.client.patience() * (2 * rounds(LIMITS.zone_reads));
        let origin = TIMEOUT * (2 * rounds(LIMITS.origin_reads));
        assert!(took <= zone + origin, "seed {}: {took:?}", self.simulation.seed());
    }

    /// The origin was never asked for more than it may be.
    pub(super) fn assert_bounded(&self) {
        let (seed, way) = (self.simulation.seed(), &self.way);
        assert!(way.most_at_once() <= LIMITS.origin_reads, "seed {seed}: {} at once", way.most_at_once());
        assert_eq!(way.doubled(), 0, "seed {seed}: a chunk was asked for twice at once");
        let misses = self.misses.load(Ordering::Relaxed);
        assert!(way.requests() <= misses, "seed {seed}: {} requests for {misses} misses", way.requests());
    }

    pub(super) fn tell(&self, nodes: std::ops::Range<usize>) {
        World::tell(&self.client, nodes);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_right(file: &OwnedFd, expected: &[u8]) -> bool {
    let mut bytes = vec![0; expected.len()];
    let file = File::from(file.try_clone().unwrap());
    file.read_exact_at(&mut bytes, 0).is_ok() && bytes == expected
}
