//! Many starts at once on a machine with a worker: with everything in its memory, with everything in the zone, from nothing.

mod running;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use self::running::memory_of;
pub(super) use self::running::proportional_set;
use self::running::{Memory, Running};
use super::cold::Logs;
use crate::Bench;
use crate::measure::Samples;
use crate::network::{ORIGINS, Proxy};
use crate::origin::Origin;
use crate::report::{Section, bytes, seconds};
use crate::tiers::{Machine, Zone};

/// As `HELLO`, but that it then waits until its input ends.
const HELLO_AND_WAIT: [&str; 3] = ["python3", "-c", "print('hello', flush=True); import sys; sys.stdin.read()"];
/// Starts at once, and how often that is sampled where others are once.
const AT_ONCE: [(usize, usize); 3] = [(1, 5), (16, 1), (64, 1)];
const MOST_AT_ONCE: usize = 64;
/// Samples of each: a quick one has more starts in it where more are at once.
const SAMPLES: usize = 3;
const NODES: usize = 5;
const NODE_MEMORY_BYTES: u64 = 1 << 30;
/// More than what the starts read of the image, so that nothing is evicted.
const WORKER: [&str; 4] = ["--memory", "1GiB", "--disk-size", "2GiB"];
/// Starts that are known where any are.
const KNOWN_STARTS: usize = 3;
/// Starts on other machines until the zone has everything: what comes faster than it is written to the zone is left out.
const MOST_FILLINGS: usize = 20;

/// What is where before a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Warm,
    Zone,
    Empty,
    FirstAnywhere,
}

impl Way {
    const ALL: [Self; 4] = [Self::Warm, Self::Zone, Self::Empty, Self::FirstAnywhere];

    fn name(self) -> &'static str {
        match self {
            Self::Warm => "worker's memory",
            Self::Zone => "zone",
            Self::Empty => "origin",
            Self::FirstAnywhere => "origin, first anywhere",
        }
    }
}

/// Where starts happen.
struct World<'a> {
    bench: &'a Bench,
    place: PathBuf,
    origin: Origin,
    /// The origin on the slower network.
    url: String,
    /// Nodes that have what the starts read.
    filled: Zone,
    _proxy: Proxy,
}

/// Starts of one kind.
struct Measured {
    at_once: usize,
    way: Way,
    /// Whether the worker may let in fewer at once.
    is_limited: bool,
    /// Each to its first line, in microseconds.
    each: Histogram<u64>,
    /// From the first to the last that is ready.
    together: Samples,
    from_zone: Samples,
    from_origin: Samples,
    other_requests: Samples,
    limit: Samples,
    memory: Vec<Memory>,
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.published()?;
    let origin = Origin::start(&place.join("store"))?;
    let slow = ORIGINS.iter().find(|conditions| !conditions.latency.is_zero()).context("a slow origin")?;
    let proxy = Proxy::start(origin.address(), *slow)?;
    let url = format!("http://{}/", proxy.address());
    let filled = Zone::start(bench, NODES, NODE_MEMORY_BYTES)?;
    let world = World { bench, place, origin, url, filled, _proxy: proxy };
    world.make_known()?;
    world.fill_zone()?;
    let mut all = Vec::new();
    for (at_once, times) in AT_ONCE {
        for way in Way::ALL {
            all.push((times, Measured::new(at_once, way, true)?));
        }
    }
    // Where the limit shows, also without it.
    for way in [Way::Zone, Way::FirstAnywhere] {
        all.push((1, Measured::new(MOST_AT_ONCE, way, false)?));
    }
    for _ in 0..SAMPLES.min(bench.few()) {
        for (times, measured) in &mut all {
            (0..*times).try_for_each(|_| world.sample(measured))?;
        }
    }
    let all: Vec<_> = all.into_iter().map(|(_, measured)| measured).collect();
    Ok(vec![times(&all, slow.name), memory(&all)])
}

impl<'a> World<'a> {
    fn start(&self, machine: &Machine<'_>) -> Command {
        let mut command = machine.snowmelt();
        command.args(["--store", &self.url, "--allow-http", "--use-worker", "always", "run", "-i", "numpy", "--"]);
        command.args(HELLO_AND_WAIT);
        command
    }

    /// Starts one, and ends it.
    fn start_and_end(&self, machine: &Machine<'_>) -> Result<()> {
        Running::start_all(vec![self.start(machine)])?.into_iter().try_for_each(Running::end)?;
        self.bench.settle(&machine.cache).map(drop)
    }

    fn machine(&self, zone: &Zone, is_limited: bool) -> Result<Machine<'a>> {
        let most = MOST_AT_ONCE.to_string();
        let unlimited = ["--least-starts", &most];
        let options = [&WORKER[..], if is_limited { &[] } else { &unlimited }].concat();
        Machine::start(self.bench, &self.place, "starts", Some(zone), &options)
    }

    /// Has the command started by somebody who writes to the store what it read.
    fn make_known(&self) -> Result<()> {
        let elsewhere = self.bench.path("elsewhere");
        for _ in 0..KNOWN_STARTS {
            let mut command = self.bench.snowmelt(&self.place, &elsewhere);
            command.args(["run", "-i", "numpy", "--"]).args(HELLO_AND_WAIT);
            Running::start_all(vec![command])?.into_iter().try_for_each(Running::end)?;
            self.bench.settle(&elsewhere)?;
        }
        Ok(())
    }

    /// Starts on machines that have nothing, until one asks the origin for no chunk.
    fn fill_zone(&self) -> Result<()> {
        for _ in 0..MOST_FILLINGS {
            self.origin.take_asked();
            self.start_and_end(&self.machine(&self.filled, true)?)?;
            if self.take_requests()?.0 == 0 {
                return Ok(());
            }
        }
        anyhow::bail!("the zone does not have all chunks after {MOST_FILLINGS} starts");
    }

    /// Requests for chunks since the last call, each of which must have been for another chunk, and others.
    fn take_requests(&self) -> Result<(u64, u64)> {
        let (chunks, others): (Vec<_>, Vec<_>) =
            self.origin.take_asked().into_iter().partition(|(path, _)| path.contains("/chunks/"));
        for (path, times) in &chunks {
            ensure!(*times == 1, "{path} was asked for {times} times by one worker");
        }
        Ok((chunks.len() as u64, others.iter().map(|(_, times)| times).sum()))
    }

    fn sample(&self, measured: &mut Measured) -> Result<()> {
        let _hidden = Logs::hide_unless(measured.way != Way::FirstAnywhere, &self.place)?;
        let empty;
        let zone = match measured.way {
            Way::Warm | Way::Zone => &self.filled,
            Way::Empty | Way::FirstAnywhere => {
                empty = Zone::start(self.bench, NODES, NODE_MEMORY_BYTES)?;
                &empty
            }
        };
        let machine = self.machine(zone, measured.is_limited)?;
        if measured.way == Way::Warm {
            self.start_and_end(&machine)?;
        }
        self.origin.take_asked();
        let zone_before = from_zone(&machine)?;
        let commands = (0..measured.at_once).map(|_| self.start(&machine)).collect();
        let begun = Instant::now();
        let mut running = Running::start_all(commands)?;
        let together = begun.elapsed();
        let status = machine.status()?;
        let memory = memory_now(&machine, &mut running, &status["memory"][1])?;
        let (from_origin, others) = self.take_requests()?;
        let from_zone = from_zone(&machine)? - zone_before;
        ensure!(measured.way != Way::Warm || from_origin + from_zone == 0, "a chunk was not in the worker's memory");
        for start in &running {
            measured.each.record((start.took.as_micros() as u64).max(1))?;
        }
        measured.together.add(together);
        measured.from_zone.add_number(from_zone as f64);
        measured.from_origin.add_number(from_origin as f64);
        measured.other_requests.add_number(others as f64 / measured.at_once as f64);
        measured.limit.add_number(status["starts"][0].as_f64().context("the worker's limit")?);
        measured.memory.push(memory);
        running.into_iter().try_for_each(Running::end)?;
        self.bench.settle(&machine.cache)?;
        Ok(())
    }
}

fn from_zone(machine: &Machine<'_>) -> Result<u64> {
    machine.metric("snowmelt_worker_fetch_seconds_count{tier=\"zone\"")
}

/// What is in memory while all containers run.
fn memory_now(machine: &Machine<'_>, running: &mut [Running], chunks: &serde_json::Value) -> Result<Memory> {
    let agents = machine.agents()?;
    ensure!(agents.len() == running.len(), "{} agents serve {} containers", agents.len(), running.len());
    let runs: Vec<i32> = running.iter().map(Running::id).collect();
    let (agent_mean, agent_most) = memory_of(&agents)?;
    let memory = Memory {
        worker: proportional_set(machine.worker()?.id())?,
        chunks: chunks.as_u64().context("the worker's memory")?,
        agent_mean,
        agent_most,
        run_mean: memory_of(&runs)?.0,
    };
    running.iter_mut().try_for_each(Running::ensure_runs)?;
    Ok(memory)
}

impl Measured {
    fn new(at_once: usize, way: Way, is_limited: bool) -> Result<Self> {
        Ok(Self {
            at_once,
            way,
            is_limited,
            // Up to ten minutes, to three digits.
            each: Histogram::new_with_bounds(1, 600_000_000, 3)?,
            together: Samples::default(),
            from_zone: Samples::default(),
            from_origin: Samples::default(),
            other_requests: Samples::default(),
            limit: Samples::default(),
            memory: Vec::new(),
        })
    }

    fn name(&self) -> String {
        format!("{}{}", self.way.name(), if self.is_limited { "" } else { ", no limit" })
    }

    fn quantile(&self, share: f64) -> String {
        seconds(Duration::from_micros(self.each.value_at_quantile(share)).as_secs_f64())
    }

    /// The middle one of all samples.
    fn median_of(&self, figure: impl Fn(&Memory) -> u64) -> String {
        let mut samples = Samples::default();
        self.memory.iter().for_each(|memory| samples.add_number(figure(memory) as f64));
        bytes(samples.median())
    }
}

fn times(all: &[Measured], origin: &str) -> Section {
    let mut section = Section::new(
        "Many starts at once",
        format!(
            "Starts of `hello` on a machine with a worker, all at once, each of a container that then stays; with a zone of {NODES} \
             cache nodes and an origin with {origin}, all on this machine. Where chunks are before: in the worker's memory, since it \
             ran here; in the zone, since it ran elsewhere; at the origin alone, with nothing in the zone. What {KNOWN_STARTS} earlier \
             starts read is known, but in `first anywhere`. Each sample has a worker of its own. A start counts from its spawning to its \
             first line; p50 and p99 are of all starts of all samples, of which there are {SAMPLES}, and {} where one starts at a time. \
             Every chunk was asked of the origin once at most, or this page would not have been written. `Other requests` are those of one \
             start for what is no chunk: name, manifest, logs. `Limit` is how many the worker let in at once in the end, by itself or, with \
             `no limit`, since it was told so.",
            SAMPLES * AT_ONCE[0].1
        ),
        &[
            "at once",
            "chunks are in",
            "all ready",
            "p90",
            "each p50",
            "p99",
            "starts per second",
            "from the zone",
            "from the origin",
            "other requests",
            "limit",
        ],
    );
    for measured in all {
        let together = measured.together.median();
        section.row([
            measured.at_once.to_string(),
            measured.name(),
            seconds(together),
            seconds(measured.together.p90()),
            measured.quantile(0.5),
            measured.quantile(0.99),
            format!("{:.1}", measured.at_once as f64 / together),
            format!("{:.0}", measured.from_zone.median()),
            format!("{:.0}", measured.from_origin.median()),
            format!("{:.1}", measured.other_requests.median()),
            format!("{:.0}", measured.limit.median()),
        ]);
    }
    section
}

fn memory(all: &[Measured]) -> Section {
    let mut section = Section::new(
        "Memory of many starts",
        "While all containers of the table above run and wait. Of processes it is the proportional set (`Pss`): a page that several \
         have counts for each by its share. The worker's chunks are files in memory, which are no process's and are shown beside \
         it. `Run` is the command that a container was started by, which stays until it ends.",
        &["at once", "chunks are in", "worker", "its chunks", "agent, mean", "agent, largest", "run, mean"],
    );
    for measured in all {
        let most = measured.memory.iter().map(|memory| memory.agent_most).max().unwrap_or_default();
        section.row([
            measured.at_once.to_string(),
            measured.name(),
            measured.median_of(|memory| memory.worker),
            measured.median_of(|memory| memory.chunks),
            measured.median_of(|memory| memory.agent_mean),
            bytes(most as f64),
            measured.median_of(|memory| memory.run_mean),
        ]);
    }
    section
}
