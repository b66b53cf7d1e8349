//! `gc run`: one line for each thing that happens.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use snowmelt_store::Store;
use snowmelt_store::collect::{self, Event};

use super::{blockers_json, describe_blockers, describe_migrated, migrated_json, report_failed};
use crate::app::App;
use crate::args::GcRunArgs;
use crate::output;
use crate::units::show_time;

pub(super) fn run(app: &App, store: &Store, args: &GcRunArgs) -> Result<ExitCode> {
    let policy = app.config.policy(args.policy.as_deref())?;
    let bar = output::count_bar("migrating", app.json);
    let ran = collect::run(store, &policy, &|event| {
        if let Event::Migrating(progress) = &event {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
            return;
        }
        if let Event::Migrated { root, done } = &event {
            report_failed(root, done);
        }
        let line = if app.json { json_of(&event).map(|event| event.to_string()) } else { describe(&event) };
        if let Some(line) = line {
            // What is done is done, whoever reads about it.
            let _ = bar.suspend(|| output::print(&(line + "\n")));
        }
    })?;
    bar.finish_and_clear();
    if let Some(other) = &ran.busy {
        let line = if app.json {
            json!({ "event": "busy", "holder": other.holder, "until": other.until }).to_string()
        } else {
            format!(
                "Nothing was done: another collector is at it ({}, at most until {} UTC).",
                output::without_controls(&other.holder),
                show_time(other.until)
            )
        };
        output::print(&(line + "\n"))?;
    }
    if ran.alarms > 0 {
        tracing::error!("expired roots were read: `snowmelt gc status` says by whom");
    }
    Ok(if ran.alarms > 0 || ran.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line for people; `None` for what is not worth one.
fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::SaltRotated { epoch } => format!("Salts are of epoch {epoch} now."),
        Event::Rotated { to, retired } => format!("Root {to} is active now. Retired: {}.", retired.join(", ")),
        Event::Migrating(_) => return None,
        Event::Migrated { root, done } => {
            let nothing = done.names + done.manifests + done.fenced == 0 && done.failed.is_empty();
            return (!nothing).then(|| describe_migrated(root, done));
        }
        Event::Expired { root } => format!("Root {root} is expired."),
        Event::Blocked { root, state, by } => format!("Root {root} stays {state}: {}.", describe_blockers(by)),
        Event::Deleted { root } => format!("Root {root} is deleted."),
        Event::Swept { root, objects } => {
            format!("Removed {} of root {root}.", output::count(*objects, "object"))
        }
    })
}

fn json_of(event: &Event) -> Option<Value> {
    Some(match event {
        Event::SaltRotated { epoch } => json!({ "event": "salt_rotated", "epoch": epoch }),
        Event::Rotated { to, retired } => json!({ "event": "rotated", "root": to, "retired": retired }),
        Event::Migrating(_) => return None,
        Event::Migrated { root, done } => {
            let mut value = migrated_json(root, done);
            value["event"] = "migrated".into();
            value
        }
        Event::Expired { root } => json!({ "event": "expired", "root": root }),
        Event::Blocked { root, state, by } => {
            json!({ "event": "blocked", "root": root, "state": state, "by": blockers_json(by) })
        }
        Event::Deleted { root } => json!({ "event": "deleted", "root": root }),
        Event::Swept { root, objects } => json!({ "event": "swept", "root": root, "objects": objects }),
    })
}
