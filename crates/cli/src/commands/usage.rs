//! `du`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use snowmelt_store::{ImageName, usage as store_usage};

use crate::app::App;
use crate::commands::last_run;
use crate::output;
use crate::units::Size;

pub(crate) fn usage(app: &App) -> Result<ExitCode> {
    let store = app.store()?;
    let usage = store_usage(&store, std::slice::from_ref(&app.config.tenant), &[])?;
    let cached = cache_bytes(app)?;
    for (_, name, error) in &usage.damaged {
        tracing::warn!("{name} is not counted: {error}");
    }
    let last_run = |image: &ImageName| last_run::load(app, image);
    if app.json {
        let images: Vec<_> = usage
            .images
            .iter()
            .map(|image| {
                json!({
                    "name": image.name.to_string(),
                    "stored_bytes": image.stored_bytes,
                    "unique_bytes": image.unique_bytes,
                    "shared_bytes": image.stored_bytes - image.unique_bytes,
                    "last_run": last_run(&image.name),
                })
            })
            .collect();
        output::print_json(&json!({
            "images": images,
            "logical_bytes": usage.logical_bytes,
            "stored_bytes": usage.stored_bytes,
            "chunks": usage.chunks,
            "damaged": usage.damaged.iter().map(|(_, name, error)| json!({ "name": name.to_string(), "error": error.to_string() })).collect::<Vec<_>>(),
            "cache": { "folder": app.config.cache_dir, "bytes": cached, "budget_bytes": app.config.cache_bytes },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = usage.images.iter().map(|image| {
        let run = last_run(&image.name);
        let of_run = |path: &str| run.as_ref().and_then(|run| run.pointer(path)?.as_u64());
        let bytes = |path: &str| of_run(path).map_or_else(|| "-".into(), |bytes| Size(bytes).to_string());
        vec![
            image.name.to_string(),
            Size(image.stored_bytes).to_string(),
            Size(image.stored_bytes - image.unique_bytes).to_string(),
            Size(image.unique_bytes).to_string(),
            of_run("/touched_chunks").map_or_else(|| "-".into(), |chunks| format!("{chunks} chunks")),
            bytes("/cache/bytes"),
            bytes("/origin/bytes"),
        ]
    });
    let header = ["IMAGE", "SIZE", "SHARED", "UNIQUE", "LAST RUN", "FROM CACHE", "FROM ORIGIN"];
    let mut text = output::table(&header, &[1, 2, 3, 4, 5, 6], rows.collect());
    let ratio = if usage.stored_bytes == 0 { 1.0 } else { usage.logical_bytes as f64 / usage.stored_bytes as f64 };
    text += "\n";
    text += &output::pairs(&[
        (
            "Store",
            format!(
                "{} in {} chunks for {} of images ({ratio:.2}x)",
                Size(usage.stored_bytes),
                usage.chunks,
                Size(usage.logical_bytes)
            ),
        ),
        (
            "Cache",
            format!("{} of {} in {}", Size(cached), Size(app.config.cache_bytes), app.config.cache_dir.display()),
        ),
    ]);
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Bytes of the chunks that are cached on this machine.
fn cache_bytes(app: &App) -> Result<u64> {
    if !app.config.cache_dir.join("chunks").exists() {
        return Ok(0);
    }
    Ok(snowmelt_cache::DiskCache::open(&app.config.cache_dir, app.config.cache_bytes)?.count()?)
}
