//! `inspect`, `verify` and `export`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;
use snowmelt_store::{SaltLabel, readback};

use crate::app::App;
use crate::args::{ExportArgs, InspectArgs, VerifyArgs};
use crate::commands::{access, last_run};
use crate::output;
use crate::units::{Size, show_duration, show_time};

pub(crate) fn inspect(app: &App, args: &InspectArgs) -> Result<ExitCode> {
    let store = app.store()?;
    let image = app.open_image(&store, &args.image)?;
    if args.access || args.picture.is_some() || args.command.is_some() {
        return access::show(app, args, &image);
    }
    let (record, config) = (&image.record, &image.metadata.config);
    let key = &image.key_id;
    let geometry = image.manifest.geometry();
    let last_run = last_run::load(app, &args.image);
    if app.json {
        output::print_json(&json!({
            "name": args.image.to_string(),
            "manifest": record.manifest,
            "root": record.root,
            "salt": record.salt,
            "sealed_under": key,
            "generation": record.generation,
            "published_at": record.published_at,
            "source": record.source,
            "source_digest": image.metadata.source_digest,
            "suite": image.manifest.suite().to_string(),
            "image_bytes": geometry.image_size,
            "content_bytes": image.metadata.content_bytes,
            "chunk_size": geometry.chunk_size,
            "slots": geometry.slot_count(),
            "chunks": record.chunk_count,
            "stored_bytes": record.stored_bytes,
            "config": config,
            "last_run": last_run,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let list = |items: &[String]| if items.is_empty() { "-".to_owned() } else { items.join(" ") };
    let text = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let mut rows = vec![
        ("Name", args.image.to_string()),
        ("Manifest", record.manifest.clone()),
        ("Published", format!("{} UTC, generation {}", show_time(record.published_at), record.generation)),
        ("Source", record.source.clone()),
        ("Digest", image.metadata.source_digest.clone().unwrap_or_else(|| "-".into())),
        ("Platform", format!("{}/{}", text(&config.os), text(&config.architecture))),
        ("Root", record.root.clone()),
        ("Salt", record.salt.as_ref().map_or_else(|| "-".into(), describe_salt)),
        ("Key", key.escape_debug().to_string()),
        ("Suite", image.manifest.suite().to_string()),
        ("Image", format!("{} ({} of files)", Size(geometry.image_size), Size(image.metadata.content_bytes))),
        (
            "Chunks",
            format!(
                "{} of {} ({}), {} holes",
                record.chunk_count,
                Size(u64::from(geometry.chunk_size)),
                Size(record.stored_bytes),
                geometry.slot_count() - record.chunk_count
            ),
        ),
        ("Entrypoint", list(&config.entrypoint)),
        ("Command", list(&config.cmd)),
        ("User", text(&config.user)),
        ("Directory", text(&config.working_dir)),
        ("Stop signal", config.stop_signal.clone().unwrap_or_else(|| "-".into())),
        ("Volumes", list(&config.volumes)),
        ("Ports", list(&config.exposed_ports)),
    ];
    rows.extend(config.env.iter().map(|variable| ("Environment", variable.clone())));
    rows.extend(config.labels.iter().map(|(name, value)| ("Label", format!("{name}={value}"))));
    rows.push(("Last run", last_run.as_ref().map_or_else(|| "none on this machine".into(), last_run::describe)));
    output::print(&output::pairs(&rows))?;
    Ok(ExitCode::SUCCESS)
}

fn describe_salt(salt: &SaltLabel) -> String {
    let class = if salt.class.is_empty() { String::new() } else { format!(", class {}", salt.class) };
    format!("epoch {}{class}, shared by {}", salt.epoch, salt.scope)
}

pub(crate) fn verify(app: &App, args: &VerifyArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let store = app.store()?;
    let image = app.open_image(&store, &args.image)?;
    let bar = output::bytes_bar("verifying", image.record.stored_bytes, app.json);
    let verified =
        readback::verify(&image.store, &image.manifest, App::threads(&store), &|bytes| bar.set_position(bytes))?;
    bar.finish_and_clear();
    let whole = verified.damage.is_empty();
    for damage in &verified.damage {
        let offset = u64::from(damage.record.slot) * u64::from(image.manifest.geometry().chunk_size);
        tracing::error!("{}: at offset {offset}: {}", args.image, damage.error);
    }
    if app.json {
        let damage: Vec<_> = verified
            .damage
            .iter()
            .map(|damage| {
                json!({
                    "chunk": damage.record.id.to_string(),
                    "slot": damage.record.slot,
                    "error": damage.error.to_string(),
                })
            })
            .collect();
        output::print_json(&json!({
            "name": args.image.to_string(),
            "chunks": verified.chunks,
            "bytes": verified.bytes,
            "damage": damage,
            "total_ms": started.elapsed().as_millis() as u64,
        }))?;
    } else if whole {
        output::print(&format!(
            "{} is whole: {} chunks ({}) read and checked in {}.\n",
            args.image,
            verified.chunks,
            Size(verified.bytes),
            show_duration(started.elapsed())
        ))?;
    } else {
        output::print(&format!(
            "{} is damaged: {} of {} chunks. To restore them: snowmelt publish --repair {} {}\n",
            args.image,
            verified.damage.len(),
            verified.chunks,
            image.record.source,
            args.image
        ))?;
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn export(app: &App, args: &ExportArgs) -> Result<ExitCode> {
    anyhow::ensure!(args.file.as_os_str() != "-", "export needs a file that can have holes, not standard output");
    let store = app.store()?;
    let image = app.open_image(&store, &args.image)?;
    let bar = output::bytes_bar("exporting", image.record.stored_bytes, app.json);
    readback::export(&image.store, &image.manifest, &args.file, App::threads(&store), &|bytes| bar.set_position(bytes))
        .with_context(|| format!("exporting {} to {}", args.image, args.file.display()))?;
    bar.finish_and_clear();
    if app.json {
        output::print_json(&json!({
            "name": args.image.to_string(),
            "file": args.file,
            "image_bytes": image.record.image_size,
            "stored_bytes": image.record.stored_bytes,
        }))?;
    } else {
        output::print(&format!(
            "Wrote {} to {} ({} on disk).\n",
            Size(image.record.image_size),
            args.file.display(),
            Size(image.record.stored_bytes)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
