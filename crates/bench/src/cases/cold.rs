//! Cold start: nothing of the image on this machine, three kinds of network in between.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{HELLO, IMPORT_PANDAS, set_command};
use crate::Bench;
use crate::measure::{self, Samples};
use crate::network::{ORIGINS, Proxy};
use crate::objects::{self, Server};
use crate::origin::Origin;
use crate::report::{Section, bytes, ratio, seconds};

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.published()?;
    let image_size = super::tree_size(&bench.unpacked()?.join("rootfs"))? as f64;
    let origin = Origin::start(&place.join("store"))?;
    let registry = Registry::start(bench)?;

    let mut times = Section::new(
        "Cold start",
        format!(
            "Time to ready: from spawning the first process to the first line of output of a command in an image of {} \
             (Debian, Python, numpy, pandas, scipy, scikit-learn, matplotlib). Every sample has fresh caches and \
             processes; a proxy adds the latency to each request and limits the speed. The usual way is `skopeo copy` \
             from a registry, `umoci unpack`, `runc run`, over the same network. `first anywhere`: nobody has started the \
             command before. `first here`: another machine has, and what it read is known beside the manifest.",
            bytes(image_size)
        ),
        &["origin", "command", "usual way", "p90", "first anywhere", "p90", "faster", "first here", "p90", "faster"],
    );
    let mut traffic = Section::new(
        "Bytes of a cold start",
        "As the network saw them, in the runs above; the share is of the unpacked image.",
        &["origin", "command", "usual way", "start", "bytes", "requests", "share of the image"],
    );
    // Somebody starts them elsewhere.
    for command in [HELLO, IMPORT_PANDAS] {
        let elsewhere = bench.path("elsewhere");
        measure::run(bench.snowmelt(&place, &elsewhere).args(["run", "numpy", "--"]).args(command))?;
        bench.settle(&elsewhere)?;
    }
    for conditions in ORIGINS {
        let store = Proxy::start(origin.address(), conditions)?;
        let source = Proxy::start(registry.address, conditions)?;
        for (name, command) in [("hello", HELLO), ("import pandas", IMPORT_PANDAS)] {
            let (mut usual, mut usual_bytes) = (Samples::default(), Samples::default());
            let mut starts = [Start::default(), Start::default()];
            for sample in 0..bench.few() {
                // The usual way takes tens of seconds and varies little: three samples tell it.
                if sample < 3 {
                    source.take_counts();
                    usual.add(pull_unpack_run(bench, source.address(), &command)?.first_line);
                    usual_bytes.add_number(source.take_counts().1 as f64);
                }
                for (start, is_known) in starts.iter_mut().zip([false, true]) {
                    let logs = Logs::hide_unless(is_known, &place)?;
                    store.take_counts();
                    start.times.add(run_cold(bench, &place, store.address(), &command)?.first_line);
                    let (requests, answered) = store.take_counts();
                    start.bytes.add_number(answered as f64);
                    start.requests.add_number(requests as f64);
                    drop(logs);
                }
            }
            let mut row =
                vec![conditions.name.to_owned(), name.to_owned(), seconds(usual.median()), seconds(usual.p90())];
            for (start, label) in starts.iter().zip(["first anywhere", "first here"]) {
                row.extend([
                    seconds(start.times.median()),
                    seconds(start.times.p90()),
                    ratio(usual.median(), start.times.median()),
                ]);
                traffic.row([
                    conditions.name.to_owned(),
                    name.to_owned(),
                    bytes(usual_bytes.median()),
                    label.to_owned(),
                    bytes(start.bytes.median()),
                    format!("{:.0}", start.requests.median()),
                    format!("{:.1} %", 100.0 * start.bytes.median() / image_size),
                ]);
            }
            times.row(row);
        }
    }
    Ok(vec![times, traffic])
}

/// What an S3 server costs, beside a folder.
pub(crate) fn from_s3(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.published()?;
    let server = Server::find()?;
    let proxy = Proxy::start(server.address()?, ORIGINS[0])?;
    // The folder's store for `None`.
    let snowmelt = |cache: &Path, s3: Option<Option<SocketAddr>>| {
        let mut command = bench.snowmelt(&place, cache);
        if let Some(proxy) = s3 {
            server.serve(&mut command, "started", proxy);
        }
        command
    };
    let source = format!("oci:{}:numpy", bench.images.layout()?.display());
    measure::run(snowmelt(&bench.path("elsewhere"), Some(None)).args(["publish", &source, "numpy"]))?;

    let mut section = Section::new(
        "Start from S3",
        "Time to ready of the commands above, from SeaweedFS on this machine and from a folder, nothing in between. Cold: \
         nothing cached, and another machine has started it before, so that what it reads is known beside the manifest. \
         Warm: it has run here before. `true` prints \
         nothing: its time is until it has ended. Requests are counted in runs of their own.",
        &["command", "start", "folder", "p90", "S3", "p90", "S3 takes longer by", "requests"],
    );
    for (name, command) in [("true", &["true"][..]), ("hello", &HELLO), ("import pandas", &IMPORT_PANDAS)] {
        let run = |cache: &Path, s3| {
            let ran = measure::run(snowmelt(cache, s3).args(["run", "numpy", "--"]).args(command))?;
            bench.settle(cache)?;
            anyhow::Ok(if name == "true" { ran.total } else { ran.first_line })
        };
        run(&bench.path("elsewhere"), Some(None))?;
        for is_cold in [true, false] {
            let caches = [bench.path("from-folder"), bench.path("from-s3")];
            let prepare = |cache: &Path| {
                if is_cold && cache.exists() { std::fs::remove_dir_all(cache) } else { Ok(()) }
            };
            let mut samples = <[Samples; 2]>::default();
            for _ in 0..if is_cold { bench.few() } else { bench.samples } {
                for ((cache, s3), samples) in caches.iter().zip([None, Some(None)]).zip(&mut samples) {
                    prepare(cache)?;
                    samples.add(run(cache, s3)?);
                }
            }
            prepare(&caches[1])?;
            proxy.take_counts();
            run(&caches[1], Some(Some(proxy.address())))?;
            let requests = proxy.take_counts().0;
            let [folder, s3] = &samples;
            section.row([
                name.to_owned(),
                if is_cold { "cold" } else { "warm" }.to_owned(),
                seconds(folder.median()),
                seconds(folder.p90()),
                seconds(s3.median()),
                seconds(s3.p90()),
                seconds((s3.median() - folder.median()).max(0.0)),
                requests.to_string(),
            ]);
        }
    }
    let s3 = server.open()?;
    objects::runtime()?.block_on(objects::remove_all(&s3, &"started".into()))?;
    Ok(vec![section])
}

/// One way to start, measured.
#[derive(Default)]
struct Start {
    times: Samples,
    bytes: Samples,
    requests: Samples,
}

/// The logs of starts in a store, out of sight until this is dropped.
pub(super) struct Logs {
    shown: PathBuf,
    hidden: PathBuf,
}

impl Logs {
    pub(super) fn hide_unless(is_known: bool, place: &Path) -> Result<Option<Self>> {
        let root = place.join("store/roots/main");
        let logs = Self { shown: root.join("starts"), hidden: root.join("hidden") };
        if is_known || !logs.shown.exists() {
            return Ok(None);
        }
        std::fs::rename(&logs.shown, &logs.hidden).context("hiding what is known of starts")?;
        Ok(Some(logs))
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let _ = std::fs::rename(&self.hidden, &self.shown);
    }
}

fn run_cold(bench: &Bench, place: &Path, store: SocketAddr, command: &[&str]) -> Result<measure::Ran> {
    let cache = bench.path("cold");
    if cache.exists() {
        std::fs::remove_dir_all(&cache)?;
    }
    let url = format!("http://{store}/");
    measure::run(
        bench.snowmelt(place, &cache).args(["--store", &url, "--allow-http", "run", "numpy", "--"]).args(command),
    )
}

/// Copies the registry's one image here, unpacks it, and starts a command in it.
pub(super) fn pull_unpack_run(bench: &Bench, registry: SocketAddr, command: &[&str]) -> Result<measure::Ran> {
    let (layout, bundle) = (bench.path("pulled"), bench.path("bundle"));
    for directory in [&layout, &bundle] {
        if directory.exists() {
            std::fs::remove_dir_all(directory)?;
        }
    }
    // The bundle's command is set in between, as a container engine would from its own arguments.
    let started = std::time::Instant::now();
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", "--src-tls-verify=false"])
        .arg(format!("docker://{registry}/image:latest"))
        .arg(format!("oci:{}:image", layout.display()));
    measure::run(&mut copy)?;
    super::unpack(&format!("{}:image", layout.display()), &bundle)?;
    set_command(&bundle, command)?;
    let prepared = started.elapsed();
    let ran = measure::run(&mut super::warm::runc(bench, &bundle))?;
    Ok(measure::Ran { first_line: prepared + ran.first_line, total: prepared + ran.total, ..ran })
}

/// A registry that has one image, `image:latest`.
pub(super) struct Registry<'a> {
    bench: &'a Bench,
    address: SocketAddr,
    /// How long it took to get it.
    pub(super) copied_in: Duration,
}

impl<'a> Registry<'a> {
    /// One that has `numpy`.
    pub(super) fn start(bench: &'a Bench) -> Result<Self> {
        Self::start_with(bench, &format!("{}:numpy", bench.images.layout()?.display()))
    }

    /// One that has this image, `LAYOUT:TAG`.
    pub(super) fn start_with(bench: &'a Bench, image: &str) -> Result<Self> {
        let folder = bench.path("registry");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let started = measure::run(bench.images.script("registry").arg("start").arg(folder))?;
        let address = started.stdout.trim().parse().context("the registry's address")?;
        let mut registry = Self { bench, address, copied_in: Duration::ZERO };
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{image}"))
            .arg(format!("docker://{address}/image:latest"));
        registry.copied_in = measure::run(&mut copy)?.total;
        Ok(registry)
    }
}

impl Registry<'_> {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        let _ = self.bench.images.script("registry").arg("stop").arg(self.bench.path("registry")).status();
    }
}
