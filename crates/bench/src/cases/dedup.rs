//! Deduplication over six images with overlapping packages.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Bench;
use crate::measure;
use crate::report::{Section, bytes};

const IMAGES: usize = 6;

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let layout = bench.images.dedup_layout()?;
    let sources: Vec<_> = (1..=IMAGES).map(|team| format!("oci:{}:team-{team}", layout.display())).collect();
    Ok(vec![stored(bench, &sources)?, by_placement(bench, &sources)?])
}

/// What placement alone does, as the image crate's example counts it.
fn by_placement(bench: &Bench, sources: &[String]) -> Result<Section> {
    let output = Command::new(bench.examples.join("dedup")).args(sources).output().context("the example `dedup`")?;
    ensure!(output.status.success(), "dedup: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).context("the example's report")?;
    let mut section = Section::new(
        "Deduplication by placement",
        "The same images, by `cargo run --release -p snowmelt-image --example dedup`. Whole files are the ceiling; serial \
         placement puts files one after the other, as a plain unpacking does. File content in chunks of 512 KiB, without \
         trailing zeros; the file systems' own metadata is in no file and listed apart.",
        &["units", "number", "bytes", "unique bytes", "unique share", "times less"],
    );
    for (name, pointer) in [
        ("whole files", "/files"),
        ("chunks, placed for deduplication", "/aligned/data"),
        ("chunks, placed serially", "/serial/data"),
        ("chunks of metadata", "/aligned/metadata"),
    ] {
        let number = |key: &str| {
            let value = report.pointer(pointer).and_then(|unit| unit[key].as_f64());
            value.with_context(|| format!("no `{pointer}/{key}` in {report}"))
        };
        let (total, unique) = (number("total_bytes")?, number("unique_bytes")?);
        section.row([
            name.to_owned(),
            format!("{:.0}", number("count")?),
            bytes(total),
            bytes(unique),
            format!("{:.1} %", 100.0 * unique / total),
            format!("{:.2}x", total / unique),
        ]);
    }
    Ok(section)
}

/// What six publishes into one store add to it.
fn stored(bench: &Bench, sources: &[String]) -> Result<Section> {
    let mut section = Section::new(
        "Deduplication in the store",
        "Six images over one Debian and Python base, each with a different combination of pip packages (numpy, pandas, \
         scipy, scikit-learn, matplotlib, pillow, boto3, requests, PyYAML) in layers of a different order, published one \
         after the other into one store.",
        &["image", "chunks", "new chunks", "content", "added to the store"],
    );
    let place = bench.place("dedup")?;
    let cache = bench.path("dedup-cache");
    let (mut content_total, mut before) = (0, 0);
    for (team, source) in (1..).zip(sources) {
        let name = format!("team-{team}");
        let ran = measure::run(bench.snowmelt(&place, &cache).args(["--json", "publish", source, &name]))?;
        let report: Value = serde_json::from_str(&ran.stdout).context("publish --json")?;
        let number = |key: &str| report[key].as_u64().with_context(|| format!("no `{key}` in {report}"));
        let stored = super::tree_size(&place.join("store"))?;
        let content = number("stored_bytes")?;
        section.row([
            name,
            number("chunks")?.to_string(),
            number("new_chunks")?.to_string(),
            bytes(content as f64),
            bytes((stored - before) as f64),
        ]);
        content_total += content;
        before = stored;
    }
    section.row([
        "all".to_owned(),
        String::new(),
        String::new(),
        bytes(content_total as f64),
        format!("{}, {:.2} times less", bytes(before as f64), content_total as f64 / before as f64),
    ]);
    std::fs::remove_dir_all(&place)?;
    Ok(section)
}
