//! A cold start in each way of loading: what a log of earlier starts is worth, beside none and beside reading ahead.

use std::path::Path;

use anyhow::{Context, Result};

use super::{HELLO, IMPORT_PANDAS};
use crate::Bench;
use crate::measure::{self, Ran, Samples};
use crate::network::{ORIGINS, Proxy};
use crate::origin::Origin;
use crate::report::{Section, bytes, ratio, seconds};

/// A way to start.
struct Way {
    name: &'static str,
    mode: &'static str,
    /// Whether earlier starts are known.
    has_log: bool,
}

const WAYS: [Way; 5] = [
    Way { name: "on demand", mode: "on-demand", has_log: false },
    Way { name: "read-ahead alone", mode: "prefetch", has_log: false },
    Way { name: "prefetch by log", mode: "prefetch", has_log: true },
    Way { name: "and the rest in the background", mode: "background", has_log: true },
    Way { name: "all first", mode: "all", has_log: true },
];

/// Starts of a command that are known where any are: so many that what only the first one needed is told apart.
const KNOWN_STARTS: usize = 3;

#[derive(Default)]
struct Measured {
    ready: Samples,
    bytes: Samples,
    requests: Samples,
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.published()?;
    let origin = Origin::start(&place.join("store"))?;
    let slow = ORIGINS.iter().find(|conditions| !conditions.latency.is_zero()).context("a slow origin")?;
    let proxy = Proxy::start(origin.address(), *slow)?;
    let url = format!("http://{}/", proxy.address());
    let mut section = Section::new(
        "Ways of loading",
        format!(
            "Cold starts of the commands above over an origin with {}, in each way of `load`: time to the first line, and \
             what had been asked of the origin when the command had ended. Nothing is cached but logs of starts, {KNOWN_STARTS} \
             of which are known where any are; samples are interleaved. `Read-ahead alone` is the default where no start is \
             known.",
            slow.name
        ),
        &["command", "way", "ready", "p90", "slowest", "faster than on demand", "requests", "bytes"],
    );
    let logs = bench.path("known-starts");
    for (name, command) in [("hello", HELLO), ("import pandas", IMPORT_PANDAS)] {
        let run = |way: &Way| start(bench, &place, &url, &logs, way, &command);
        if logs.exists() {
            std::fs::remove_dir_all(&logs)?;
        }
        for _ in 0..KNOWN_STARTS {
            run(&WAYS[2])?;
            bench.settle(&bench.path("modes"))?;
            // A store that is reached by HTTP takes no logs, so they lie in the cache.
            if logs.exists() {
                std::fs::remove_dir_all(&logs)?;
            }
            std::fs::rename(bench.path("modes").join("cache/starts"), &logs).context("keeping what a start read")?;
        }
        let mut measured = WAYS.map(|_| Measured::default());
        for _ in 0..bench.few() {
            for (way, measured) in WAYS.iter().zip(&mut measured) {
                proxy.take_counts();
                measured.ready.add(run(way)?.first_line);
                let (requests, answered) = proxy.take_counts();
                measured.requests.add_number(requests as f64);
                measured.bytes.add_number(answered as f64);
                bench.settle(&bench.path("modes"))?;
            }
        }
        let on_demand = measured[0].ready.median();
        for (way, measured) in WAYS.iter().zip(&measured) {
            section.row([
                name.to_owned(),
                way.name.to_owned(),
                seconds(measured.ready.median()),
                seconds(measured.ready.p90()),
                seconds(measured.ready.slowest()),
                ratio(on_demand, measured.ready.median()),
                format!("{:.0}", measured.requests.median()),
                bytes(measured.bytes.median()),
            ]);
        }
    }
    Ok(vec![section])
}

fn start(bench: &Bench, place: &Path, url: &str, logs: &Path, way: &Way, command: &[&str]) -> Result<Ran> {
    let cache = bench.path("modes");
    if cache.exists() {
        std::fs::remove_dir_all(&cache)?;
    }
    if way.has_log && logs.exists() {
        std::fs::create_dir_all(cache.join("cache"))?;
        measure::run(std::process::Command::new("cp").arg("-rv").arg(logs).arg(cache.join("cache/starts")))?;
    }
    let _hidden = super::cold::Logs::hide_unless(false, place)?;
    measure::run(
        bench
            .snowmelt(place, &cache)
            .args(["--store", url, "--allow-http", "--load", way.mode, "run", "numpy", "--"])
            .args(command),
    )
}
