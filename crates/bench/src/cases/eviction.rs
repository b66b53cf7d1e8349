//! Which chunks a worker should keep: eviction policies on a made-up day, at several sizes. Draws `docs/pictures/eviction.svg`.

mod optimum;
mod plot;
mod tally;
mod trace;

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use snowmelt_chunk::{ChunkId, Suite};
use snowmelt_eviction::{Eviction, Lru, LruK, S3Fifo, WTinyLfu};

use self::tally::{Hits, hot_set, working_set_bytes};
use self::trace::{CHUNK_BYTES, Trace, Workload};
use crate::Bench;
use crate::report::Section;

/// Sizes of the cache, in percent of the working set: all chunks that interactive starts ever ask for.
const SIZES: [u64; 7] = [1, 2, 5, 10, 20, 35, 50];
/// The size that is looked at more closely.
const ONE_SIZE: u64 = 10;
/// The hot set, in percent of the working set.
const HOT: u64 = 5;
/// A start asks for a chunk again soon after it did; so many requests later it is another start. About as many as a start has.
const CORRELATED: u64 = 100;

type Make = fn(u64) -> Box<dyn Eviction<ChunkId>>;
/// What is looked at of hits.
type Percent = fn(&Hits) -> f64;

const POLICIES: [(&str, Make); 4] = [
    ("LRU", |budget| Box::new(Lru::new(budget))),
    ("LRU-2", |budget| Box::new(LruK::new(budget, CORRELATED))),
    ("S3-FIFO", |budget| Box::new(S3Fifo::new(budget))),
    // Chunks have three quarters of their full size in the mean.
    ("W-TinyLFU", |budget| Box::new(WTinyLfu::new(budget, (budget / (CHUNK_BYTES * 3 / 4)) as usize))),
];
/// The policies' names, and that of what no policy can be better than.
const NAMES: [&str; 5] = [POLICIES[0].0, POLICIES[1].0, POLICIES[2].0, POLICIES[3].0, "the future known"];

/// A policy, or the optimum, on one day with one size of the cache.
struct Outcome {
    hits: Hits,
    /// Of each request, in the mean; for the optimum it says nothing.
    time: Duration,
}

/// Keys as a worker has them.
fn ids(trace: &Trace) -> Vec<ChunkId> {
    let chunks = 0..trace.chunk_bytes.len() as u64;
    chunks.map(|number| Suite::Blake3Gcm.id_of(&number.to_le_bytes())).collect()
}

/// Whether each request is a hit.
fn simulate(policy: &mut dyn Eviction<ChunkId>, trace: &Trace, ids: &[ChunkId]) -> Vec<bool> {
    let mut evicted = Vec::new();
    let mut ask = |chunk: u32| {
        let chunk = chunk as usize;
        let is_hit = policy.touch(ids[chunk]);
        if !is_hit {
            evicted.clear();
            policy.offer(ids[chunk], trace.chunk_bytes[chunk], &mut evicted);
        }
        is_hit
    };
    trace.requests.iter().map(|request| ask(request.chunk)).collect()
}

/// A day with what is to be known about it.
struct Day {
    trace: Trace,
    ids: Vec<ChunkId>,
    /// Of each chunk.
    is_hot: Vec<bool>,
    working_set_bytes: u64,
}

impl Day {
    fn new(workload: &Workload) -> Self {
        let trace = workload.trace();
        let working_set_bytes = working_set_bytes(&trace);
        let is_hot = hot_set(&trace, working_set_bytes / 100 * HOT);
        Self { ids: ids(&trace), is_hot, working_set_bytes, trace }
    }

    /// All of [`NAMES`], with a cache of so many percent of the working set.
    fn outcomes(&self, size: u64) -> [Outcome; NAMES.len()] {
        let budget = self.working_set_bytes / 100 * size;
        std::array::from_fn(|way| {
            let started = Instant::now();
            let hits = match POLICIES.get(way) {
                Some((_, make)) => simulate(&mut *make(budget), &self.trace, &self.ids),
                None => optimum::hits(&self.trace, budget),
            };
            let time = started.elapsed() / self.trace.requests.len() as u32;
            Outcome { hits: Hits::new(&self.trace, &hits, &self.is_hot), time }
        })
    }
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let workload = Workload::default();
    let day = Day::new(&workload);
    let outcomes = SIZES.map(|size| day.outcomes(size));
    let mut sections = vec![
        by_size("hits of all requests", describe(&workload, &day), &outcomes, |hits| hits.all.percent()),
        by_size("bytes of all requests", "The same, by stored bytes.".to_owned(), &outcomes, |hits| {
            hits.all.bytes_percent()
        }),
    ];
    if let Some(at) = SIZES.iter().position(|size| *size == ONE_SIZE) {
        sections.push(around_rounds(&outcomes[at]));
    }
    sections.push(other_days(&workload)?);
    if let Some(pictures) = &bench.pictures {
        let views: [(&str, Percent); 2] = [
            ("all requests", |hits| hits.all.percent()),
            ("interactive starts, cron functions starting or just gone", |hits| hits.disturbed().percent()),
        ];
        let lines = |percent: Percent| {
            let line = |way: usize| outcomes.each_ref().map(|outcomes| percent(&outcomes[way].hits));
            NAMES.iter().enumerate().map(|(way, name)| (*name, line(way))).collect::<Vec<_>>()
        };
        plot::draw(&pictures.join("eviction.svg"), &SIZES, &views.map(|(what, percent)| (what, lines(percent))))?;
    }
    Ok(sections)
}

fn by_size<const N: usize>(
    what: &str,
    text: String,
    outcomes: &[[Outcome; NAMES.len()]; N],
    percent: Percent,
) -> Section {
    let columns: Vec<String> = SIZES.iter().map(|size| format!("{size} %")).collect();
    let first = ["policy, by size of the cache"];
    let columns: Vec<&str> = first.into_iter().chain(columns.iter().map(String::as_str)).collect();
    let mut section = Section::new(format!("Eviction on a worker: {what}"), text, &columns);
    for (way, name) in NAMES.iter().enumerate() {
        let cells = outcomes.iter().map(|outcomes| format!("{:.1} %", percent(&outcomes[way].hits)));
        section.row(std::iter::once((*name).to_owned()).chain(cells));
    }
    section
}

fn around_rounds(outcomes: &[Outcome; NAMES.len()]) -> Section {
    let mut section = Section::new(
        "Eviction on a worker: the hot set around a round of cron functions",
        format!(
            "Hits of the hot set, with a cache of {ONE_SIZE} % of the working set: the chunks that interactive starts ask for most \
             often, together {HOT} % of it. Before: more than a quarter of a period after the last round. After: within a quarter \
             of a period. `interactive` and `cron` are all requests of such starts. Time is that of the policy itself, for a \
             request, with 32-byte ids as keys, one thread."
        ),
        &["policy", "before", "during", "after", "interactive", "cron", "time per request"],
    );
    for (way, (name, outcome)) in NAMES.iter().zip(outcomes).enumerate() {
        let hits = &outcome.hits;
        let counts = [hits.hot_quiet, hits.hot_during, hits.hot_after, hits.interactive, hits.cron];
        let cells = counts.map(|count| format!("{:.1} %", count.percent()));
        let time = if way < POLICIES.len() { format!("{} ns", outcome.time.as_nanos()) } else { String::new() };
        section.row(std::iter::once((*name).to_owned()).chain(cells).chain([time]));
    }
    section
}

/// Whether the choice hangs on what the day was made of.
fn other_days(usual: &Workload) -> Result<Section> {
    let columns: Vec<&str> = std::iter::once("day").chain(NAMES).collect();
    let mut section = Section::new(
        "Eviction on a worker: other days",
        format!(
            "Hits of all requests with a cache of {ONE_SIZE} % of the working set, where the day differs in one thing."
        ),
        &columns,
    );
    let days = [
        ("no cron functions", Workload { crons: 0, ..usual.clone() }),
        ("four rounds for one", Workload { period: usual.period / 4, ..usual.clone() }),
        ("each cron function in three sandboxes at once", Workload { sandboxes_per_cron: 3, ..usual.clone() }),
        ("half of all chunks asked for again", Workload { again_percent: 50, ..usual.clone() }),
        ("five new versions for one", Workload { deploy_every: usual.deploy_every / 5, ..usual.clone() }),
        ("less skew (0.6)", Workload { skew: 0.6, ..usual.clone() }),
        ("more skew (1.2)", Workload { skew: 1.2, ..usual.clone() }),
    ];
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let simulate = |workload| move || Day::new(workload).outcomes(ONE_SIZE);
        let running: Vec<_> = days.iter().map(|(_, workload)| scope.spawn(simulate(workload))).collect();
        running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for ((name, _), outcomes) in days.iter().zip(outcomes) {
        let outcomes = outcomes.map_err(|_| anyhow!("a simulation of `{name}` panicked"))?;
        let cells = outcomes.iter().map(|outcome| format!("{:.1} %", outcome.hits.all.percent()));
        section.row(std::iter::once((*name).to_owned()).chain(cells));
    }
    Ok(section)
}

fn describe(workload: &Workload, day: &Day) -> String {
    let requests = day.trace.requests.len();
    let crons = day.trace.requests.iter().filter(|request| request.by == trace::Asker::Cron).count();
    format!(
        "Share of chunk requests that the cache answers, simulated; its size in percent of the working set, which is all chunks \
         that interactive starts ever ask for ({:.0} GB). {} starts choose from {} images by Zipf's law with exponent {}; once in \
         {} of them, {} cron functions start once each, {} beside each interactive start ({:.0} % of all {requests} requests). \
         {} % of its chunks a start asks for again soon. Every {} starts an image is replaced by a version that keeps {} % of its \
         chunks. The first tenth is not counted. `the future known` is Belady's MIN. Drawn in \
         [eviction.svg](pictures/eviction.svg).",
        day.working_set_bytes as f64 / 1e9,
        workload.starts,
        workload.images,
        workload.skew,
        workload.period,
        workload.crons,
        workload.crons_at_once,
        100.0 * crons as f64 / requests as f64,
        workload.again_percent,
        workload.deploy_every,
        workload.kept_percent,
    )
}

#[cfg(test)]
mod tests;
