//! `du`.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use snowmelt_store::{ImageUsage, Usage, usage as store_usage};

use crate::app::App;
use crate::args::DuArgs;
use crate::commands::last_run;
use crate::output;
use crate::units::Size;

pub(crate) fn usage(app: &App, args: &DuArgs) -> Result<ExitCode> {
    let store = app.store()?;
    let together: Vec<_> = args.images.iter().map(|name| (app.config.tenant.clone(), name.clone())).collect();
    let usage = store_usage(&store, &app.tenants(&store, args.all_tenants)?, &together)?;
    for (tenant, name) in &together {
        if !usage.images.iter().any(|image| image.tenant == *tenant && image.name == *name) {
            let Some((_, _, error)) = usage.damaged.iter().find(|(of, other, _)| of == tenant && other == name) else {
                bail!("tenant {tenant} has no image {name}: `snowmelt images` lists what is");
            };
            bail!("{name} cannot be counted: {error}");
        }
    }
    let cached = cache_bytes(app)?;
    for (tenant, name, error) in &usage.damaged {
        tracing::warn!("{tenant}/{name} is not counted: {error}");
    }
    // Runs are those of the tenant that is set.
    let last_run = |image: &ImageUsage| last_run::load(app, &image.name).filter(|_| image.tenant == app.config.tenant);
    if app.json {
        let images: Vec<_> = usage
            .images
            .iter()
            .map(|image| {
                json!({
                    "tenant": image.tenant,
                    "name": image.name.to_string(),
                    "root": image.record.root,
                    "stored_bytes": image.stored_bytes,
                    "unique_bytes": image.unique_bytes,
                    "shared_bytes": image.stored_bytes - image.unique_bytes,
                    "last_run": last_run(image),
                })
            })
            .collect();
        output::print_json(&json!({
            "tenants": tenants_json(&usage),
            "freed_bytes": (!together.is_empty()).then_some(usage.freed_bytes),
            "images": images,
            "logical_bytes": usage.logical_bytes,
            "stored_bytes": usage.stored_bytes,
            "chunks": usage.chunks,
            "damaged": usage.damaged.iter().map(|(tenant, name, error)| json!({ "tenant": tenant, "name": name.to_string(), "error": error.to_string() })).collect::<Vec<_>>(),
            "cache": { "folder": app.config.cache_dir, "bytes": cached, "budget_bytes": app.config.cache_bytes },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = usage.images.iter().map(|image| {
        let run = last_run(image);
        let of_run = |path: &str| run.as_ref().and_then(|run| run.pointer(path)?.as_u64());
        let bytes = |path: &str| of_run(path).map_or_else(|| "-".into(), |bytes| Size(bytes).to_string());
        vec![
            if args.all_tenants { format!("{}/{}", image.tenant, image.name) } else { image.name.to_string() },
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
    text += &totals(&usage, args);
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

fn tenants_json(usage: &Usage) -> Vec<Value> {
    usage
        .tenants
        .iter()
        .map(|tenant| {
            json!({
                "tenant": tenant.tenant,
                "images": tenant.images,
                "logical_bytes": tenant.logical_bytes,
                "stored_bytes": tenant.stored_bytes,
                "unique_bytes": tenant.unique_bytes,
            })
        })
        .collect()
}

/// The tenants, and what removing some images would free, where that was asked for.
fn totals(usage: &Usage, args: &DuArgs) -> String {
    let mut text = String::new();
    if args.all_tenants {
        let rows = usage.tenants.iter().map(|tenant| {
            vec![
                tenant.tenant.clone(),
                tenant.images.to_string(),
                Size(tenant.logical_bytes).to_string(),
                Size(tenant.stored_bytes).to_string(),
                Size(tenant.stored_bytes - tenant.unique_bytes).to_string(),
                Size(tenant.unique_bytes).to_string(),
            ]
        });
        let header = ["TENANT", "IMAGES", "LOGICAL", "STORED", "SHARED", "UNIQUE"];
        text += "\n";
        text += &output::table(&header, &[1, 2, 3, 4, 5], rows.collect());
    }
    if !args.images.is_empty() {
        let images: Vec<_> = args.images.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "\nRemoving {} would free {}{}, once their root is collected{}.",
            images.join(", "),
            if args.all_tenants { "" } else { "at most " },
            Size(usage.freed_bytes),
            if args.all_tenants { "" } else { "; what other tenants share with them is counted with --all-tenants" },
        );
    }
    text
}

/// Bytes of the chunks that are cached on this machine.
fn cache_bytes(app: &App) -> Result<u64> {
    if !app.config.cache_dir.join("chunks").exists() {
        return Ok(0);
    }
    Ok(snowmelt_cache::DiskCache::open(&app.config.cache_dir, app.config.cache_bytes)?.count()?)
}
