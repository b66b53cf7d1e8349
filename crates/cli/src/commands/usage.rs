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
    let usage = store_usage(&store, &app.config.tenant)?;
    let cached = cache_bytes(app)?;
    let touched = |image: &ImageName| last_run::load(app, image).and_then(|run| last_run::loaded_bytes(&run));
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
                    "last_run_bytes": touched(&image.name),
                })
            })
            .collect();
        output::print_json(&json!({
            "images": images,
            "logical_bytes": usage.logical_bytes,
            "stored_bytes": usage.stored_bytes,
            "chunks": usage.chunks,
            "cache": { "folder": app.config.cache_dir, "bytes": cached, "budget_bytes": app.config.cache_bytes },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = usage.images.iter().map(|image| {
        let loaded = touched(&image.name);
        vec![
            image.name.to_string(),
            Size(image.stored_bytes).to_string(),
            Size(image.stored_bytes - image.unique_bytes).to_string(),
            Size(image.unique_bytes).to_string(),
            loaded.map_or_else(|| "-".into(), |bytes| Size(bytes).to_string()),
        ]
    });
    let header = ["IMAGE", "SIZE", "SHARED", "UNIQUE", "LAST RUN LOADED"];
    let mut text = output::table(&header, &[1, 2, 3, 4], rows.collect());
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
