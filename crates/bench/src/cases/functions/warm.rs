//! An invocation whose sandbox waits: what is between a caller and a handler.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;

use super::watch::Watch;
use crate::Bench;
use crate::functions::{self, Service};
use crate::http::Client;
use crate::report::{Section, ratio};
use crate::tiers::Process;

const MEMORY_MB: u32 = 1769;
const PAYLOAD: &[u8] = br#"{"name": "snowmelt", "n": 1}"#;
/// Calls one after the other, in turns, so that a busy moment of the machine hits all ways.
const CALLS_A_TURN: usize = 300;
/// Callers at once, and for how long they call in a turn.
const CALLERS: usize = 8;
const TURN: Duration = Duration::from_secs(2);

/// One way to call.
struct Way {
    name: &'static str,
    address: SocketAddr,
    path: String,
    one: Histogram<u64>,
    /// Answers, and the time in which they came, with one caller and with many.
    rates: [(usize, Duration); 2],
}

impl Way {
    fn new(name: &'static str, address: SocketAddr, path: String) -> Result<Self> {
        Ok(Self { name, address, path, one: super::latencies()?, rates: [(0, Duration::ZERO); 2] })
    }

    fn one_by_one(&mut self) -> Result<()> {
        let mut client = Client::connect(self.address)?;
        // The connection's first call is another measurement.
        functions::invoke(&mut client, &self.path, PAYLOAD)?;
        let begun = Instant::now();
        for _ in 0..CALLS_A_TURN {
            let begun = Instant::now();
            functions::invoke(&mut client, &self.path, PAYLOAD)?;
            super::record(&mut self.one, begun.elapsed())?;
        }
        self.rates[0].0 += CALLS_A_TURN;
        self.rates[0].1 += begun.elapsed();
        Ok(())
    }

    fn all_at_once(&mut self, counts: bool) -> Result<()> {
        let is_over = AtomicBool::new(false);
        let begun = Instant::now();
        let calls = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| {
                    scope.spawn(|| -> Result<usize> {
                        let mut client = Client::connect(self.address)?;
                        let mut calls = 0;
                        while !is_over.load(Ordering::Relaxed) {
                            functions::invoke(&mut client, &self.path, PAYLOAD)?;
                            calls += 1;
                        }
                        Ok(calls)
                    })
                })
                .collect();
            std::thread::sleep(TURN);
            is_over.store(true, Ordering::Relaxed);
            let join = |caller: std::thread::ScopedJoinHandle<'_, Result<usize>>| {
                caller.join().map_err(|_| anyhow!("a caller panicked"))?
            };
            callers.into_iter().map(join).sum::<Result<usize>>()
        })?;
        if counts {
            self.rates[1].0 += calls;
            self.rates[1].1 += begun.elapsed();
        }
        Ok(())
    }

    fn rate(&self, which: usize) -> f64 {
        let (calls, time) = self.rates[which];
        calls as f64 / time.as_secs_f64()
    }
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.place("functions-warm")?;
    let cache = bench.path("functions-warm-cache");
    let service = Service::start(bench, bench.snowmelt(&place, &cache), &[])?;
    let images = bench.images.runtimes_layout()?;
    let image = |tag: &str| format!("oci:{}:{tag}", images.display());
    let all = [("rust", "lambda-rust"), ("python", "lambda")];
    service.create(&all.map(|(name, tag)| (name.to_owned(), image(tag))), MEMORY_MB)?;
    let echo = Echo::start(bench, &place, &cache, &image("lambda"))?;
    let watch = Watch::start(bench)?;
    let mut ways = [
        Way::new("HTTP echo in a container", echo.address, "/".into())?,
        Way::new("snowmelt serve, Rust", service.address, functions::path("rust"))?,
        Way::new("cargo lambda watch, Rust", watch.address, functions::path(Watch::FUNCTION))?,
        Way::new("snowmelt serve, Python", service.address, functions::path("python"))?,
    ];
    // Sandboxes for all callers, before anything counts.
    for way in &mut ways {
        way.all_at_once(false)?;
    }
    for _ in 0..bench.few() {
        for way in &mut ways {
            way.one_by_one()?;
        }
        for way in &mut ways {
            way.all_at_once(true)?;
        }
    }
    let mut section = Section::new(
        "Warm invoke",
        "An invocation over HTTP by one connection that is kept, until its whole answer; handlers answer with what they are given. `Rust` is \
             the same function with `lambda_runtime`, in a sandbox of `snowmelt serve`, and built for release behind `cargo lambda watch`; `Python` \
             has `awslambdaric`. The echo is a bare HTTP server in a container that `snowmelt run` started, called without anything in between. `Beyond the \
             echo` is the difference of the medians. Rates are of callers that call again at once; callers, service and functions share two cores.",
        &[
            "",
            "p50",
            "p99",
            "p99.9",
            "beyond the echo",
            "a second, 1 caller",
            &format!("a second, {CALLERS} callers"),
            "of cargo lambda",
        ],
    );
    let median = |way: &Way| way.one.value_at_quantile(0.5);
    for way in &ways {
        section.row([
            way.name.to_owned(),
            super::quantile(&way.one, 0.5),
            super::quantile(&way.one, 0.99),
            super::quantile(&way.one, 0.999),
            format!("{} us", median(way).saturating_sub(median(&ways[0]))),
            format!("{:.0}", way.rate(0)),
            format!("{:.0}", way.rate(1)),
            ratio(way.rate(1), ways[2].rate(1)),
        ]);
    }
    service.stop()?;
    drop((echo, watch));
    bench.settle(&cache)?;
    Ok(vec![section])
}

/// A bare HTTP server in a container.
struct Echo {
    _container: Process,
    address: SocketAddr,
}

impl Echo {
    fn start(bench: &Bench, place: &Path, cache: &Path, image: &str) -> Result<Self> {
        use std::io::BufRead as _;
        crate::measure::run(bench.snowmelt(place, cache).args(["publish", image, "echo"]))?;
        let program = format!("{}:/echo:ro", bench.examples.join("echo").display());
        let mut command = bench.snowmelt(place, cache);
        command.args(["run", "--net", "host", "-v", &program, "--entrypoint", "/echo", "echo", "--", "127.0.0.1:0"]);
        let mut child = command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("standard output is piped")?;
        let container = Process::from(child);
        let mut line = String::new();
        std::io::BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the echo said {line:?}"))?;
        Ok(Self { _container: container, address })
    }
}
