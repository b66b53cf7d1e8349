//! `images` and `rm`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::app::App;
use crate::args::RmArgs;
use crate::output;
use crate::units::{Size, show_time};

pub(crate) fn list(app: &App) -> Result<ExitCode> {
    let store = app.store()?;
    let names = store.list_names(&app.config.tenant)?;
    if app.json {
        let list: Vec<_> = names
            .iter()
            .map(|(name, record)| match record {
                Err(error) => json!({ "name": name.to_string(), "error": error.to_string() }),
                Ok(record) => json!({
                    "name": name.to_string(),
                    "manifest": record.manifest,
                    "published_at": record.published_at,
                    "source": record.source,
                    "image_bytes": record.image_size,
                    "stored_bytes": record.stored_bytes,
                    "chunks": record.chunk_count,
                    "generation": record.generation,
                }),
            })
            .collect();
        output::print_json(&list)?;
    } else if names.is_empty() {
        output::print(&format!(
            "No images yet in {} for tenant {}. Publish one: snowmelt publish docker://REGISTRY/NAME:TAG\n",
            store.url(),
            app.config.tenant
        ))?;
    } else {
        for (name, record) in &names {
            if let Err(error) = record {
                tracing::warn!("{name}: {error}: publish it again, or remove it with `snowmelt rm {name}`");
            }
        }
        let rows = names.into_iter().filter_map(|(name, record)| {
            let record = record.ok()?;
            Some(vec![
                name.name().into(),
                name.tag().into(),
                record.manifest[..12].into(),
                Size(record.stored_bytes).to_string(),
                record.chunk_count.to_string(),
                show_time(record.published_at),
                record.source,
            ])
        });
        let header = ["NAME", "TAG", "MANIFEST", "SIZE", "CHUNKS", "PUBLISHED (UTC)", "SOURCE"];
        output::print(&output::table(&header, &[3, 4], rows.collect()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn remove(app: &App, args: &RmArgs) -> Result<ExitCode> {
    let store = app.store()?;
    let mut removed = Vec::new();
    for image in &args.images {
        // The manifest stays: another publisher may be about to give it another name.
        store.remove_name(&app.config.tenant, image)?;
        if app.json {
            removed.push(image.to_string());
        } else {
            output::print(&format!("Removed {image}. Its space comes back when its root is collected: snowmelt gc\n"))?;
        }
    }
    if app.json {
        output::print_json(&json!({ "removed": removed }))?;
    }
    Ok(ExitCode::SUCCESS)
}
