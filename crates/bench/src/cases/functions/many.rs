//! Many functions of different images on one machine, invoked as by timers and in bursts.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde_json::Value;

use crate::Bench;
use crate::cases::starts::proportional_set;
use crate::functions::{self, Service};
use crate::report::{Section, bytes, seconds};
use crate::tiers::Machine;

/// Functions, each of an image of its own.
pub(super) const FUNCTIONS: usize = 200;
const MEMORY_MB: u32 = 256;
const WORKER: [&str; 4] = ["--memory", "1GiB", "--disk-size", "4GiB"];
/// A sandbox that nobody calls for so long ends. Traces are as much shorter than a day's as this is than usual.
const IDLE: &str = "10s";
const SECONDS: u64 = 60;
/// Timers: each function has a period of its own between these, in seconds.
const PERIODS: std::ops::Range<f64> = 20.0..120.0;
/// Bursts: so many, of so many calls at once, beside calls that come one by one.
const BURSTS: usize = 20;
const IN_A_BURST: std::ops::RangeInclusive<usize> = 5..=15;
const SINGLES_A_SECOND: f64 = 8.0;
/// Callers that wait for an answer at once.
const CALLERS: usize = 96;

/// When which function is called, in order.
type Trace = Vec<(Duration, usize)>;

fn by_timers(random: &mut ChaCha8Rng) -> Trace {
    let mut trace = Trace::new();
    for function in 0..FUNCTIONS {
        let period = random.random_range(PERIODS);
        let mut at = random.random_range(0.0..period);
        while at < SECONDS as f64 {
            trace.push((Duration::from_secs_f64(at), function));
            at += period;
        }
    }
    trace.sort();
    trace
}

fn in_bursts(random: &mut ChaCha8Rng) -> Trace {
    // Few functions get most of the calls: the k-th in proportion to 1/k.
    let mut order: Vec<usize> = (0..FUNCTIONS).collect();
    order.shuffle(random);
    let total: f64 = (1..=FUNCTIONS).map(|rank| 1.0 / rank as f64).sum();
    let choose = |random: &mut ChaCha8Rng| {
        let mut left = random.random_range(0.0..total);
        let found = order.iter().enumerate().find(|(rank, _)| {
            left -= 1.0 / (rank + 1) as f64;
            left < 0.0
        });
        found.map_or(order[0], |(_, function)| *function)
    };
    let mut trace = Trace::new();
    let mut at = 0.0;
    while at < SECONDS as f64 {
        trace.push((Duration::from_secs_f64(at), choose(random)));
        at += -random.random_range(f64::EPSILON..1.0).ln() / SINGLES_A_SECOND;
    }
    for _ in 0..BURSTS {
        let (at, function) = (random.random_range(0.0..SECONDS as f64), choose(random));
        let calls = random.random_range(IN_A_BURST);
        trace.extend((0..calls).map(|_| (Duration::from_secs_f64(at), function)));
    }
    trace.sort();
    trace
}

/// What callers saw.
struct Seen {
    cold: Histogram<u64>,
    warm: Histogram<u64>,
}

/// Calls when the trace says so, whether or not there are answers to what came before. Times count from when a call was due.
fn replay(service: &Service, trace: &Trace) -> Result<Seen> {
    let seen = Mutex::new(Seen { cold: super::latencies()?, warm: super::latencies()? });
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some((due, function)) = trace.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let due = begun + *due;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        // Callers of many functions have seldom a connection that was used just now.
                        let mut client = service.connect()?;
                        let body = functions::invoke(&mut client, &functions::path(&name(*function)), b"{}")?;
                        let took = due.elapsed();
                        let answer: Value = serde_json::from_slice(&body)?;
                        let mut seen = seen.lock().map_err(|_| anyhow!("a caller panicked"))?;
                        let Seen { cold, warm } = &mut *seen;
                        super::record(if answer["invocations"] == 1 { cold } else { warm }, took)?;
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| caller.join().map_err(|_| anyhow!("a caller panicked"))?)
    })?;
    seen.into_inner().map_err(|_| anyhow!("a caller panicked"))
}

fn name(function: usize) -> String {
    format!("one-{}", function + 1)
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let layout = super::layout(bench)?;
    let place = bench.place("functions-many")?;
    let machine = Machine::start(bench, &place, "functions-machine", None, &WORKER)?;
    let mut command = machine.snowmelt();
    command.args(["--use-worker", "always"]);
    let service = Service::start(bench, command, &["--idle", IDLE])?;
    let all: Vec<_> = (0..FUNCTIONS)
        .map(|function| (name(function), format!("oci:{}:{}", layout.display(), name(function))))
        .collect();
    let published = service.create(&all, MEMORY_MB)?;
    let mut times = Section::new(
        format!("{FUNCTIONS} functions on one machine"),
        format!(
            "Each of an image of its own (Python, AWS's runtime client, and a handler that differs), published in {} altogether when they were \
             made. Invoked for {SECONDS} seconds by timers, each function every {} to {} seconds; then in bursts of {} to {} calls at once, \
             beside {SINGLES_A_SECOND} calls a second, of which few functions get most. A sandbox that is idle for {IDLE} ends. Times are \
             from when a call was due to its answer, whatever else waits. On two cores a start in Python takes most of both.",
            seconds(published.as_secs_f64()),
            PERIODS.start,
            PERIODS.end,
            IN_A_BURST.start(),
            IN_A_BURST.end()
        ),
        &["trace", "calls", "cold", "share", "cold p50", "p90", "p99", "warm p50", "p90", "p99"],
    );
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut memory = Section::new(
        format!("Memory of {FUNCTIONS} functions"),
        "With the sandboxes that wait when a trace has ended; proportional sets, as above.",
        &["after", "sandboxes", "service", "worker", "agent, mean", "host, mean", "container, mean"],
    );
    for (kind, trace) in [("timers", by_timers(&mut random)), ("bursts", in_bursts(&mut random))] {
        let Seen { cold, warm } = replay(&service, &trace)?;
        let share = cold.len() as f64 / trace.len() as f64;
        let figures = |histogram: &Histogram<u64>| [0.5, 0.9, 0.99].map(|share| super::quantile(histogram, share));
        let mut row =
            vec![kind.into(), trace.len().to_string(), cold.len().to_string(), format!("{:.0} %", share * 100.0)];
        row.extend(figures(&cold));
        row.extend(figures(&warm));
        times.row(row);
        memory.row(memory_now(kind, &machine, &service)?);
        bench.settle(&machine.cache)?;
    }
    service.stop()?;
    Ok(vec![times, memory])
}

fn memory_now(kind: &str, machine: &Machine<'_>, service: &Service) -> Result<Vec<String>> {
    let agents = machine.agents()?;
    // A host is a child of the service, and what is below it and not an agent is the container.
    let hosts = children(service.id())?;
    let hosts: Vec<i32> =
        hosts.into_iter().filter(|host| argument(*host).is_some_and(|word| word == "function-host")).collect();
    // One that ends meanwhile has no size.
    let sizes =
        |processes: &[i32]| processes.iter().filter_map(|pid| proportional_set(*pid).ok()).collect::<Vec<u64>>();
    let mut containers = Vec::new();
    for host in &hosts {
        let mut below = Vec::new();
        descend(*host, &mut below);
        below.retain(|pid| !agents.contains(pid));
        containers.push(sizes(&below).iter().sum::<u64>());
    }
    let mean = |sizes: &[u64]| bytes(sizes.iter().sum::<u64>() as f64 / sizes.len().max(1) as f64);
    Ok(vec![
        kind.to_owned(),
        hosts.len().to_string(),
        bytes(proportional_set(service.id())? as f64),
        bytes(proportional_set(machine.worker()?.id())? as f64),
        mean(&sizes(&agents)),
        mean(&sizes(&hosts)),
        mean(&containers),
    ])
}

fn children(process: i32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(found)
}

fn descend(process: i32, found: &mut Vec<i32>) {
    for child in children(process).unwrap_or_default() {
        found.push(child);
        descend(child, found);
    }
}

/// A process's first argument.
fn argument(process: i32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
    line.split(|byte| *byte == 0).nth(1).map(|word| String::from_utf8_lossy(word).into_owned())
}
