//! An invocation for which no sandbox waits: from nothing, from the zone, from the worker's memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Bench;
use crate::cases::cold::{Logs, Registry, pull_unpack_run};
use crate::cases::{HELLO, set_command, unpack, warm};
use crate::functions::{self, Service};
use crate::measure::{self, Samples};
use crate::network::{ORIGINS, Proxy};
use crate::origin::Origin;
use crate::report::{Section, bytes, ratio, seconds};
use crate::tiers::{Machine, Zone};

const NODES: usize = 5;
const NODE_MEMORY_BYTES: u64 = 1 << 30;
const WORKER: [&str; 4] = ["--memory", "1GiB", "--disk-size", "2GiB"];
const FUNCTION: &str = "big";
const MEMORY_MB: u32 = 1769;
/// Cold starts on other machines until the zone has what they read.
const FILLINGS: usize = 3;
/// What the function's runtime does before it asks for its first invocation.
const RUNTIME: [&str; 3] = ["python3", "-c", "import awslambdaric.bootstrap, app; print('hello', flush=True)"];

/// Where chunks are before an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Warm,
    Zone,
    Origin,
    FirstAnywhere,
}

impl Way {
    const ALL: [Self; 4] = [Self::Warm, Self::Zone, Self::Origin, Self::FirstAnywhere];

    fn name(self) -> &'static str {
        match self {
            Self::Warm => "invoke, worker's memory",
            Self::Zone => "invoke, zone",
            Self::Origin => "invoke, origin",
            Self::FirstAnywhere => "invoke, origin, first anywhere",
        }
    }
}

struct World<'a> {
    bench: &'a Bench,
    place: PathBuf,
    /// What services know of functions.
    folder: PathBuf,
    url: String,
    filled: Zone,
    _origin: Origin,
    _proxy: Proxy,
}

impl<'a> World<'a> {
    /// The function is made by a service that reaches the store as a folder; the others have it over the slower network.
    fn make(bench: &'a Bench, layout: &Path) -> Result<Self> {
        let place = bench.place("functions-cold")?;
        let folder = bench.path("functions-cold-folder");
        let at = folder.to_str().context("a path is text")?.to_owned();
        let maker = Service::start(bench, bench.snowmelt(&place, &bench.path("maker")), &["--folder", &at])?;
        maker.create(&[(FUNCTION.into(), format!("oci:{}:big", layout.display()))], MEMORY_MB)?;
        // Somebody starts it elsewhere, a few times, so that it is known what it reads.
        for number in 0..FILLINGS {
            maker.forget_sandboxes(FUNCTION, number)?;
            functions::invoke(&mut maker.connect()?, &functions::path(FUNCTION), b"{}")?;
        }
        maker.stop()?;
        bench.settle(&bench.path("maker"))?;
        let origin = Origin::start(&place.join("store"))?;
        let slow = ORIGINS.iter().find(|conditions| !conditions.latency.is_zero()).context("a slow origin")?;
        let proxy = Proxy::start(origin.address(), *slow)?;
        let url = format!("http://{}/", proxy.address());
        let filled = Zone::start(bench, NODES, NODE_MEMORY_BYTES)?;
        Ok(Self { bench, place, folder, url, filled, _origin: origin, _proxy: proxy })
    }

    fn service(&self, machine: &Machine<'_>) -> Result<Service> {
        let mut command = machine.snowmelt();
        command.args(["--store", &self.url, "--allow-http", "--use-worker", "always"]);
        Service::start(self.bench, command, &["--folder", self.folder.to_str().context("a path is text")?])
    }

    fn machine(&self, zone: &Zone) -> Result<Machine<'a>> {
        Machine::start(self.bench, &self.place, "functions", Some(zone), &WORKER)
    }

    /// One invocation, in milliseconds from the call to the whole answer, on a machine that has what `way` says.
    fn sample(&self, way: Way, number: usize) -> Result<Duration> {
        let _hidden = Logs::hide_unless(way != Way::FirstAnywhere, &self.place)?;
        let empty;
        let zone = match way {
            Way::Warm | Way::Zone => &self.filled,
            Way::Origin | Way::FirstAnywhere => {
                empty = Zone::start(self.bench, NODES, NODE_MEMORY_BYTES)?;
                &empty
            }
        };
        let machine = self.machine(zone)?;
        let service = self.service(&machine)?;
        let mut client = service.connect()?;
        let path = functions::path(FUNCTION);
        if way == Way::Warm {
            functions::invoke(&mut client, &path, b"{}")?;
            service.forget_sandboxes(FUNCTION, number)?;
            self.bench.settle(&machine.cache)?;
        }
        let begun = Instant::now();
        functions::invoke(&mut client, &path, b"{}")?;
        let took = begun.elapsed();
        service.stop()?;
        self.bench.settle(&machine.cache)?;
        Ok(took)
    }
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let layout = super::layout(bench)?;
    let image = format!("{}:big", layout.display());
    let bundle = bench.path("big");
    unpack(&image, &bundle)?;
    let size = crate::cases::tree_size(&bundle.join("rootfs"))? as f64;
    let registry = Registry::start_with(bench, &image)?;
    let slow = ORIGINS.iter().find(|conditions| !conditions.latency.is_zero()).context("a slow origin")?;
    let pulled_from = Proxy::start(registry.address(), *slow)?;
    let world = World::make(bench, &layout)?;
    for number in 0..FILLINGS {
        world.sample(Way::Zone, number)?;
    }
    let runc = |command: &[&str]| -> Result<Duration> {
        set_command(&bundle, command)?;
        Ok(measure::run(&mut warm::runc(bench, &bundle))?.first_line)
    };
    runc(&RUNTIME)?;
    let (mut hello, mut runtime, mut usual) = (Samples::default(), Samples::default(), Samples::default());
    let mut invoked: [Samples; 4] = Default::default();
    for sample in 0..bench.few() {
        hello.add(runc(&HELLO)?);
        runtime.add(runc(&RUNTIME)?);
        if sample < 3 {
            usual.add(pull_unpack_run(bench, pulled_from.address(), &RUNTIME)?.first_line);
        }
        for (way, samples) in Way::ALL.into_iter().zip(&mut invoked) {
            samples.add(world.sample(way, FILLINGS + sample)?);
        }
    }
    let mut section = Section::new(
        "Cold invoke",
        format!(
            "A function in an image of {} (Python, numpy and friends, AWS's runtime client), invoked over HTTP while no sandbox waits: from \
             the call to the whole answer, through `snowmelt serve` with a worker, a zone of {NODES} nodes and an origin with {}, all on this \
             machine. Beside it, for the same image: `runc run` on the unpacked directory, of a hello and of what the function's runtime does \
             before it asks for its first invocation (import the runtime client and the handler); and pulling from a registry over the same \
             network, unpacking, and that start.",
            bytes(size),
            slow.name
        ),
        &["", "median", "p90", "of runc hello", "of runc with the runtime", "of pull and start"],
    );
    let named =
        [("runc run, hello", &hello), ("runc run, runtime and handler", &runtime), ("pull, unpack, runc run", &usual)];
    let invoked = Way::ALL.into_iter().map(Way::name).zip(&invoked);
    for (name, samples) in named.into_iter().chain(invoked) {
        let median = samples.median();
        section.row([
            name.to_owned(),
            seconds(median),
            seconds(samples.p90()),
            ratio(median, hello.median()),
            ratio(median, runtime.median()),
            format!("1/{:.1}", usual.median() / median),
        ]);
    }
    Ok(vec![section])
}
