//! `images` and `rm`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::app::App;
use crate::args::RmArgs;
use crate::output;
use crate::units::{Size, show_time};

pub(crate) fn list(app: &App) -> Result<ExitCode> {
    let names = app.store()?.list_names(&app.config.tenant)?;
    if app.json {
        let list: Vec<_> = names
            .iter()
            .map(|(name, record)| {
                json!({
                    "name": name.to_string(),
                    "manifest": record.manifest,
                    "published_at": record.published_at,
                    "source": record.source,
                    "image_bytes": record.image_size,
                    "stored_bytes": record.stored_bytes,
                    "chunks": record.chunk_count,
                    "generation": record.generation,
                })
            })
            .collect();
        output::print_json(&list)?;
    } else if names.is_empty() {
        output::print("No images yet. Publish one: snowmelt publish docker://REGISTRY/NAME:TAG\n")?;
    } else {
        let rows = names.into_iter().map(|(name, record)| {
            vec![
                name.name().into(),
                name.tag().into(),
                record.manifest[..12].into(),
                Size(record.stored_bytes).to_string(),
                record.chunk_count.to_string(),
                show_time(record.published_at),
                record.source,
            ]
        });
        let header = ["NAME", "TAG", "MANIFEST", "SIZE", "CHUNKS", "PUBLISHED (UTC)", "SOURCE"];
        output::print(&output::table(&header, &[3, 4], rows.collect()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn remove(app: &App, args: &RmArgs) -> Result<ExitCode> {
    let store = app.store()?;
    let tenant = &app.config.tenant;
    let record = store.read_name(tenant, &args.image)?;
    store.remove_name(tenant, &args.image)?;
    let manifest = record.manifest_id()?;
    // The manifest is what keeps chunks alive; it goes with its last name.
    let shared = store.list_names(tenant)?.iter().any(|(_, other)| other.manifest == record.manifest);
    if !shared {
        store.remove_manifest(&record.root, tenant, &manifest)?;
    }
    if app.json {
        output::print_json(&json!({ "removed": args.image.to_string(), "manifest_removed": !shared }))?;
    } else {
        output::print(&format!("Removed {}.\n", args.image))?;
    }
    Ok(ExitCode::SUCCESS)
}
