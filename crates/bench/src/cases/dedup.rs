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
    let mut sections = vec![stored(bench, &sources)?];
    let example = bench.examples.join("dedup");
    if example.exists() {
        let output = Command::new(example).args(&sources).output()?;
        ensure!(output.status.success(), "dedup: {}", String::from_utf8_lossy(&output.stderr));
        let mut section = Section::new(
            "Deduplication by placement",
            "The same images, by `cargo run --release -p snowmelt-image --example dedup`: unique bytes at 512 KiB with \
             aligned and with serial placement, against file-level deduplication, which is the ceiling.",
            &[],
        );
        section.say(&format!("```text\n{}\n```", String::from_utf8_lossy(&output.stdout).trim_end()));
        sections.push(section);
    }
    Ok(sections)
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
