//! Cold start: nothing of the image on this machine, three kinds of network in between.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{HELLO, IMPORT_PANDAS, set_command};
use crate::Bench;
use crate::measure::{self, Samples};
use crate::network::{ORIGINS, Proxy};
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
             from a registry, `umoci unpack`, `runc run`, over the same network.",
            bytes(image_size)
        ),
        &["origin", "command", "usual way", "p90", "snowmelt", "p90", "faster"],
    );
    let mut traffic = Section::new(
        "Bytes of a cold start",
        "As the network saw them, in the runs above; the share is of the unpacked image.",
        &["origin", "command", "usual way", "snowmelt", "requests", "share of the image"],
    );
    for conditions in ORIGINS {
        let store = Proxy::start(origin.address(), conditions)?;
        let source = Proxy::start(registry.address, conditions)?;
        for (name, command) in [("hello", HELLO), ("import pandas", IMPORT_PANDAS)] {
            let (mut usual, mut ours) = (Samples::default(), Samples::default());
            let (mut usual_bytes, mut our_bytes, mut our_requests) =
                (Samples::default(), Samples::default(), Samples::default());
            for sample in 0..bench.few() {
                // The usual way takes tens of seconds and varies little: three samples tell it.
                if sample < 3 {
                    source.take_counts();
                    usual.add(pull_unpack_run(bench, source.address(), &command)?.first_line);
                    usual_bytes.add_number(source.take_counts().1 as f64);
                }
                store.take_counts();
                ours.add(run_cold(bench, &place, store.address(), &command)?.first_line);
                let (requests, answered) = store.take_counts();
                our_bytes.add_number(answered as f64);
                our_requests.add_number(requests as f64);
            }
            times.row([
                conditions.name.to_owned(),
                name.to_owned(),
                seconds(usual.median()),
                seconds(usual.p90()),
                seconds(ours.median()),
                seconds(ours.p90()),
                ratio(usual.median(), ours.median()),
            ]);
            traffic.row([
                conditions.name.to_owned(),
                name.to_owned(),
                bytes(usual_bytes.median()),
                bytes(our_bytes.median()),
                format!("{:.0}", our_requests.median()),
                format!("{:.1} %", 100.0 * our_bytes.median() / image_size),
            ]);
        }
    }
    Ok(vec![times, traffic])
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

fn pull_unpack_run(bench: &Bench, registry: SocketAddr, command: &[&str]) -> Result<measure::Ran> {
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
        .arg(format!("docker://{registry}/numpy:latest"))
        .arg(format!("oci:{}:numpy", layout.display()));
    measure::run(&mut copy)?;
    super::unpack(&layout, &bundle)?;
    set_command(&bundle, command)?;
    let prepared = started.elapsed();
    let ran = measure::run(&mut super::warm::runc(bench, &bundle))?;
    Ok(measure::Ran { first_line: prepared + ran.first_line, total: prepared + ran.total, ..ran })
}

/// A registry that has `numpy`.
struct Registry<'a> {
    bench: &'a Bench,
    address: SocketAddr,
}

impl<'a> Registry<'a> {
    fn start(bench: &'a Bench) -> Result<Self> {
        let started = measure::run(bench.images.script("registry").arg("start").arg(bench.path("registry")))?;
        let address = started.stdout.trim().parse().context("the registry's address")?;
        let registry = Self { bench, address };
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:numpy", bench.images.layout()?.display()))
            .arg(format!("docker://{address}/numpy:latest"));
        measure::run(&mut copy)?;
        Ok(registry)
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        let _ = self.bench.images.script("registry").arg("stop").arg(self.bench.path("registry")).status();
    }
}
