//! `cp`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::json;
use snowmelt_chunk::check_tenant;
use snowmelt_store::{CopyOptions, copy as copy_image};

use crate::app::App;
use crate::args::CpArgs;
use crate::output;
use crate::units::{Size, show_duration};

pub(crate) fn copy(app: &App, args: &CpArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let (name, tenant) = (args.name.as_ref().unwrap_or(&args.image), args.to_tenant.as_ref());
    let tenant = tenant.unwrap_or(&app.config.tenant);
    check_tenant(tenant)?;
    let store = app.store()?;
    let to = app.store_at(&args.to)?;
    to.check_writable().with_context(|| format!("looking at {}", args.to))?;
    let service = args.to_keys.as_ref().unwrap_or(&app.config.keys);
    let keys = app.keys_of(service, &[], tenant)?;
    let image = app.open_image(&store, &args.image)?;
    let bar = output::bytes_bar("copying", image.record.stored_bytes, app.json);
    let options =
        CopyOptions { to: &to, tenant, name, keys: &keys, threads: App::threads(&store).max(App::threads(&to)) };
    let copied = copy_image(&image, &options, &|bytes| bar.set_position(bytes))
        .with_context(|| format!("copying {} to {}", args.image, args.to))?;
    bar.finish_and_clear();
    let record = &copied.record;
    let present = (copied.distinct_chunks - copied.new_chunks, copied.distinct_bytes - copied.new_bytes);
    if app.json {
        output::print_json(&json!({
            "name": name.to_string(),
            "tenant": tenant,
            "store": args.to,
            "manifest": record.manifest,
            "root": record.root,
            "chunks": record.chunk_count,
            "stored_bytes": record.stored_bytes,
            "distinct_chunks": copied.distinct_chunks,
            "new_chunks": copied.new_chunks,
            "new_bytes": copied.new_bytes,
            "present_chunks": present.0,
            "present_bytes": present.1,
            "total_ms": started.elapsed().as_millis() as u64,
        }))?;
    } else {
        output::print(&output::pairs(&[
            ("Copied", format!("{} to {name} of tenant {tenant} in {}", args.image, args.to)),
            ("New", format!("{} ({})", output::count(copied.new_chunks, "chunk"), Size(copied.new_bytes))),
            ("Already there", format!("{} ({})", output::count(present.0, "chunk"), Size(present.1))),
            ("Time", show_duration(started.elapsed())),
        ]))?;
    }
    Ok(ExitCode::SUCCESS)
}
