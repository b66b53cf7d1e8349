//! `scrub`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use snowmelt_store::{ScrubOptions, scrub as scrub_store};

use crate::app::App;
use crate::args::ScrubArgs;
use crate::output;
use crate::units::{Size, show_duration};

/// Errors of one image that people are shown.
const MOST_SHOWN: usize = 5;

pub(crate) fn scrub(app: &App, args: &ScrubArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let store = app.store()?;
    let options = ScrubOptions {
        tenant: (!args.all_tenants).then_some(app.config.tenant.as_str()),
        bytes_per_second: args.bandwidth.map(|size| size.0),
        threads: App::threads(&store),
    };
    let bar = output::bytes_bar("scrubbing", 0, app.json);
    let found = scrub_store(&store, &options, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    let whole = found.damage.is_empty();
    if app.json {
        let damage: Vec<_> = found
            .damage
            .iter()
            .map(|(image, errors)| {
                json!({ "image": image, "errors": errors.iter().map(ToString::to_string).collect::<Vec<_>>() })
            })
            .collect();
        output::print_json(&json!({
            "images": found.images,
            "chunks": found.chunks,
            "bytes": found.bytes,
            "damage": damage,
            "total_ms": started.elapsed().as_millis() as u64,
        }))?;
    } else {
        for (image, errors) in &found.damage {
            for error in errors.iter().take(MOST_SHOWN) {
                tracing::error!("{image}: {error}");
            }
            if errors.len() > MOST_SHOWN {
                tracing::error!("{image}: {} more", output::count((errors.len() - MOST_SHOWN) as u64, "error"));
            }
        }
        let read = format!(
            "{} of {} ({}) read and checked in {}",
            output::count(found.chunks, "chunk"),
            output::count(found.images, "image"),
            Size(found.bytes),
            show_duration(started.elapsed())
        );
        if whole {
            let what = if args.all_tenants { "All".to_owned() } else { format!("All of tenant {}", app.config.tenant) };
            output::print(&format!("{what} is whole: {read}.\n"))?;
        } else {
            let images: Vec<_> = found.damage.keys().map(String::as_str).collect();
            output::print(&format!(
                "Damaged: {} ({read}).\nTo restore: snowmelt publish --repair SOURCE NAME, with the source that `snowmelt images` \
                 shows. Chunks that it shares are whole again for all that were published under the same salt; publish the \
                 others again too.\n",
                images.join(", ")
            ))?;
        }
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
