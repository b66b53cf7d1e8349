//! The figures of a run: shown with `--stats`, and kept for `inspect` and `du`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use snowmelt_sandbox::RunOutcome;
use snowmelt_store::ImageName;

use crate::app::App;
use crate::output;
use crate::units::{Size, show_duration};

/// The figures of a run as JSON: bytes, and microseconds since the command began.
pub(crate) fn figures(outcome: &RunOutcome) -> Value {
    // Without an agent to ask, its figures are zeros: the run itself has failed and said why.
    let (stats, timings) = (outcome.stats.clone().unwrap_or_default(), &outcome.timings);
    let micros = |time: Duration| time.as_micros() as u64;
    let tier = |name: &str| {
        let (chunks, bytes) = stats.from_tier(name);
        json!({ "chunks": chunks, "bytes": bytes })
    };
    json!({
        "exit_code": outcome.exit_code,
        "touched_chunks": stats.touched_chunks,
        "image_chunks": stats.image_chunks,
        "chunk_size": stats.chunk_size,
        "memory": tier("memory"),
        "cache": tier("disk"),
        "zone": tier("zone"),
        "origin": tier("origin"),
        "load": stats.load,
        "prefetched_chunks": stats.prefetched,
        "prefetched_in_vain": stats.in_vain,
        "background_chunks": stats.in_background,
        "reads": stats.reads,
        "read_bytes": stats.read_bytes,
        "writes": stats.writes,
        "written_bytes": stats.written_bytes,
        "overlay_bytes": stats.overlay_bytes,
        "failures": stats.failures,
        "retries": stats.retries,
        "stalls": stats.stalls,
        "time_us": {
            "serve": stats.serve_us,
            "queue": stats.queue_us,
            "fetch": stats.fetch_us,
            "verify": stats.verify_us,
            "decrypt": stats.decrypt_us,
            "copy": stats.copy_us,
        },
        "reached_us": {
            "agent": micros(timings.agent_started),
            "manifest": micros(timings.manifest_opened),
            "mounted": micros(timings.mounted),
            "runtime": micros(timings.runtime_started),
            "first_output": timings.first_output.map(micros),
            "exited": micros(timings.exited),
            "finished": micros(timings.finished),
        },
    })
}

/// The figures as people read them.
pub(crate) fn table(figures: &Value) -> String {
    let number = |path: &str| figures.pointer(path).and_then(Value::as_u64);
    let time = |path: &str| number(path).map_or_else(|| "-".into(), |time| show_duration(Duration::from_micros(time)));
    let tier = |name: &str| {
        let (chunks, bytes) = (number(&format!("/{name}/chunks")), number(&format!("/{name}/bytes")));
        format!("{} chunks, {}", chunks.unwrap_or(0), Size(bytes.unwrap_or(0)))
    };
    let (touched, all) = (number("/touched_chunks").unwrap_or(0), number("/image_chunks").unwrap_or(0));
    let percent = if all == 0 { 0.0 } else { touched as f64 * 100.0 / all as f64 };
    output::pairs(&[
        ("Touched", format!("{touched} of {all} chunks ({percent:.1} %)")),
        ("From memory", tier("memory")),
        ("From cache", tier("cache")),
        ("From zone", tier("zone")),
        ("From origin", tier("origin")),
        ("Load", figures.pointer("/load").and_then(Value::as_str).unwrap_or("-").to_owned()),
        (
            "Prefetched",
            format!(
                "{} chunks, {} of them not needed so far",
                number("/prefetched_chunks").unwrap_or(0),
                number("/prefetched_in_vain").unwrap_or(0)
            ),
        ),
        ("In background", format!("{} chunks", number("/background_chunks").unwrap_or(0))),
        ("Read", format!("{} in {} reads", Size(number("/read_bytes").unwrap_or(0)), number("/reads").unwrap_or(0))),
        (
            "Written",
            format!("{} in {} writes", Size(number("/written_bytes").unwrap_or(0)), number("/writes").unwrap_or(0)),
        ),
        ("Manifest open after", time("/reached_us/manifest")),
        ("Mounted after", time("/reached_us/mounted")),
        ("Runtime started after", time("/reached_us/runtime")),
        ("First output after", time("/reached_us/first_output")),
        ("Exited after", time("/reached_us/exited")),
        ("Cleaned up after", time("/reached_us/finished")),
    ])
}

/// One line about a run.
pub(crate) fn describe(figures: &Value) -> String {
    let number = |path: &str| figures.pointer(path).and_then(Value::as_u64);
    let time = |path: &str| number(path).map(|time| show_duration(Duration::from_micros(time)));
    let count = |path: &str| number(path).unwrap_or(0);
    let first_output = time("/reached_us/first_output");
    format!(
        "touched {} of {} chunks, loaded {} from cache and {} from origin; mounted after {}, started after {}{}",
        count("/touched_chunks"),
        count("/image_chunks"),
        Size(count("/cache/bytes")),
        Size(count("/origin/bytes")),
        time("/reached_us/mounted").unwrap_or_default(),
        time("/reached_us/runtime").unwrap_or_default(),
        first_output.map(|time| format!(", first output after {time}")).unwrap_or_default(),
    )
}

/// Keeps the figures of an image's last run on this machine.
pub(crate) fn save(app: &App, image: &ImageName, figures: &Value) -> Result<()> {
    let path = app.last_run_path(image);
    let folder = path.parent().context("the path of a last run has a folder")?;
    std::fs::create_dir_all(folder)?;
    let mut draft = tempfile::NamedTempFile::new_in(folder)?;
    draft.write_all(figures.to_string().as_bytes())?;
    draft.persist(&path)?;
    Ok(())
}

/// The figures of an image's last run on this machine; `None` where there is none, or none that can be read.
pub(crate) fn load(app: &App, image: &ImageName) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(app.last_run_path(image)).ok()?).ok()
}
