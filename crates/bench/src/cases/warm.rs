//! Warm start: every chunk is in the cache on disk, against runc on a directory that is unpacked already.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;

use super::{HELLO, IMPORT_PANDAS, set_command};
use crate::Bench;
use crate::measure::{self, Samples};
use crate::report::{Section, ratio, seconds};

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.published()?;
    let bundle = bench.unpacked()?;
    let cache = bench.path("warm");
    let mut section = Section::new(
        "Warm start",
        "The same commands when they have run here before: snowmelt with its chunks in the cache on disk, against \
         `runc run` on the unpacked directory. Ready is the first line of output; ended is when the command that started \
         it is back; removed is when everything is taken down, which snowmelt does behind the command's back.",
        &["command", "until", "runc", "p90", "snowmelt", "p90", "times as long"],
    );
    for (name, command) in [("true", ["true", "", ""]), ("hello", HELLO), ("import pandas", IMPORT_PANDAS)] {
        let command: Vec<_> = command.into_iter().filter(|word| !word.is_empty()).collect();
        set_command(&bundle, &command)?;
        let ours = || measure::run(bench.snowmelt(&place, &cache).args(["run", "numpy", "--"]).args(&command));
        // Both once before, to fill what is kept between runs.
        measure::run(&mut runc(bench, &bundle))?;
        // Twice: the second fills from the log of the first.
        ours()?;
        ours()?;
        bench.settle(&cache)?;
        let mut samples: [Samples; 6] = Default::default();
        for _ in 0..bench.samples {
            let plain = measure::run(&mut runc(bench, &bundle))?;
            let started = Instant::now();
            let snowmelt = ours()?;
            let removed = bench.settle(&cache)? - started;
            for (samples, duration) in samples.iter_mut().zip([
                plain.first_line,
                snowmelt.first_line,
                plain.total,
                snowmelt.total,
                plain.total,
                removed,
            ]) {
                samples.add(duration);
            }
        }
        for (until, pair) in ["ready", "ended", "removed"].into_iter().zip(samples.chunks(2)) {
            let [plain, snowmelt] = pair else { unreachable!("samples come in pairs") };
            if name == "true" && until == "ready" {
                continue; // it prints nothing
            }
            section.row([
                name.to_owned(),
                until.to_owned(),
                seconds(plain.median()),
                seconds(plain.p90()),
                seconds(snowmelt.median()),
                seconds(snowmelt.p90()),
                ratio(snowmelt.median(), plain.median()),
            ]);
        }
    }
    Ok(vec![section])
}

/// `runc run` of a bundle, under a name that no other run has.
pub(super) fn runc(bench: &Bench, bundle: &Path) -> Command {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let number = RUNS.fetch_add(1, Ordering::Relaxed);
    let mut command = Command::new("runc");
    command
        .arg("--root")
        .arg(bench.state(Path::new("runc")))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(format!("snowmelt-bench-{}-{number}", std::process::id()));
    command
}
