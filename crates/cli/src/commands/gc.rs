//! `gc`: collection of roots.

mod events;
mod status;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use snowmelt_store::collect::{self, Blockers, Migrated, Retire};
use snowmelt_store::{RootState, Store};

use crate::app::App;
use crate::args::{GcArgs, GcClearArgs, GcCommand, GcDeleteArgs, GcExpireArgs, GcMigrateArgs, GcRotateArgs};
use crate::output;
use crate::units::Age;

pub(crate) fn gc(app: &App, args: &GcArgs) -> Result<ExitCode> {
    let store = app.store()?;
    ensure!(
        store.is_object_storage(),
        "the store {} can only be read: collect it by its own URL (s3://…, gs://…, az://… or a folder)",
        store.url()
    );
    match &args.command {
        GcCommand::Run(args) => events::run(app, &store, args),
        GcCommand::Status(args) => status::status(app, &store, args),
        GcCommand::Rotate(args) => rotate(app, &store, args),
        GcCommand::Migrate(args) => migrate(app, &store, args),
        GcCommand::Expire(args) => expire(app, &store, args),
        GcCommand::Delete(args) => delete(app, &store, args),
        GcCommand::Clear(args) => clear(app, &store, args),
    }
}

fn rotate(app: &App, store: &Store, args: &GcRotateArgs) -> Result<ExitCode> {
    let retire = match (args.add, args.retire.as_slice()) {
        (true, _) => Retire::None,
        (false, []) => Retire::All,
        (false, named) => Retire::Named(named),
    };
    let root = collect::rotate(store, args.to.as_deref(), retire)?;
    let state = store.read_state()?;
    let is_successor = |found: &&snowmelt_store::Root| found.successor.as_ref() == Some(&root);
    let retired: Vec<_> =
        state.roots.iter().filter(|(_, found)| is_successor(found)).map(|(name, _)| name.clone()).collect();
    if app.json {
        output::print_json(&json!({ "root": root, "retired": retired, "active": state.active }))?;
    } else if args.add {
        output::print(&format!("Root {root} is active too. To publish to it: snowmelt publish --root {root} …\n"))?;
    } else {
        let others = if state.active == root {
            String::new()
        } else {
            format!(", and so is {}, which is published to", state.active)
        };
        output::print(&format!(
            "Root {root} is active{others}. Retired: {}. To copy what is live in it: snowmelt gc migrate\n",
            retired.join(", ")
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn migrate(app: &App, store: &Store, args: &GcMigrateArgs) -> Result<ExitCode> {
    let roots = match args.roots.as_slice() {
        [] => store.read_state()?.roots_in(RootState::Retired),
        roots => roots.to_vec(),
    };
    if roots.is_empty() && !app.json {
        output::print(
            "No root is retired, so nothing is to be migrated: `snowmelt gc rotate` retires the active ones.\n",
        )?;
    }
    let (mut list, mut failed) = (Vec::new(), false);
    for root in &roots {
        let bar = output::count_bar("migrating", app.json);
        let done = collect::migrate(store, root, App::threads(store), &|progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
        })?;
        bar.finish_and_clear();
        failed |= !done.failed.is_empty();
        report_failed(root, &done);
        if app.json {
            list.push(migrated_json(root, &done));
        } else {
            output::print(&(describe_migrated(root, &done) + "\n"))?;
        }
    }
    if app.json {
        output::print_json(&list)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Logs what could not be copied.
fn report_failed(root: &str, done: &Migrated) {
    for (what, error) in &done.failed {
        tracing::error!("{what} cannot be copied out of root {root}: {error}: publish it again, or remove it");
    }
}

fn describe_migrated(root: &str, done: &Migrated) -> String {
    let count = |count: u64, one: &str| output::count(count, one);
    let mut text = format!(
        "Migrated {root} to {}: {} and {} ({} copied, {} there already)",
        done.successor,
        count(done.names, "name"),
        count(done.manifests, "manifest"),
        count(done.chunks, "chunk"),
        done.present_chunks,
    );
    if done.fenced > 0 {
        let _ = write!(text, "; {} that began before fenced", count(done.fenced, "publish"));
    }
    if !done.failed.is_empty() {
        let _ = write!(text, "; {} failed, which keeps the root", done.failed.len());
    }
    text + "."
}

fn migrated_json(root: &str, done: &Migrated) -> Value {
    let failed = done.failed.iter().map(|(what, error)| json!({ "image": what, "error": error.to_string() }));
    json!({
        "root": root,
        "successor": done.successor,
        "names": done.names,
        "manifests": done.manifests,
        "chunks": done.chunks,
        "present_chunks": done.present_chunks,
        "fenced": done.fenced,
        "failed": failed.collect::<Vec<_>>(),
    })
}

fn blockers_json(by: &Blockers) -> Value {
    json!({
        "seconds_left": by.seconds_left,
        "names": by.names,
        "leases": by.leases,
        "intents": by.intents,
        "alarms": by.alarms,
    })
}

/// What keeps a root from going on, with a time that people can read.
fn describe_blockers(by: &Blockers) -> String {
    if by.seconds_left == 0 {
        return by.to_string();
    }
    let others = Blockers { seconds_left: 0, ..by.clone() }.to_string();
    let age = format!("{} to go", Age(Duration::from_secs(by.seconds_left)));
    if others.is_empty() { age } else { format!("{others}, {age}") }
}

fn expire(app: &App, store: &Store, args: &GcExpireArgs) -> Result<ExitCode> {
    let age = if args.step.now { Duration::ZERO } else { app.config.policy(None)?.retire_for };
    let (mut list, mut blocked) = (Vec::new(), false);
    for root in &args.step.roots {
        let by = collect::expire(store, root, age)?;
        blocked |= !by.is_empty();
        if app.json {
            list.push(json!({ "root": root, "expired": by.is_empty(), "blocked_by": blockers_json(&by) }));
        } else if by.is_empty() {
            output::print(&format!("Root {root} is expired. Whoever still reads from it raises an alarm.\n"))?;
        } else {
            output::print(&format!("Root {root} stays retired: {}.\n", describe_blockers(&by)))?;
        }
    }
    if app.json {
        output::print_json(&list)?;
    }
    Ok(if blocked { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn delete(app: &App, store: &Store, args: &GcDeleteArgs) -> Result<ExitCode> {
    let age = if args.step.now { Duration::ZERO } else { app.config.policy(None)?.expire_for };
    let (mut list, mut blocked) = (Vec::new(), false);
    for root in &args.step.roots {
        // Deleted already: it is only swept again, such as after a sweep that was cut off.
        let by = match store.read_state()?.state_of(root) {
            Some(RootState::Deleted) => Blockers::default(),
            _ => collect::delete(store, root, age)?,
        };
        blocked |= !by.is_empty();
        let objects = if by.is_empty() {
            let bar = output::count_bar("sweeping", app.json);
            let objects = collect::sweep(store, root, &|removed| bar.set_position(removed))?;
            bar.finish_and_clear();
            objects
        } else {
            0
        };
        if app.json {
            list.push(json!({
                "root": root,
                "deleted": by.is_empty(),
                "objects": objects,
                "blocked_by": blockers_json(&by),
            }));
        } else if by.is_empty() {
            output::print(&format!("Root {root} is deleted: {} removed.\n", output::count(objects, "object")))?;
        } else {
            output::print(&format!("Root {root} stays expired: {}.\n", describe_blockers(&by)))?;
        }
    }
    if app.json {
        output::print_json(&list)?;
    }
    Ok(if blocked { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn clear(app: &App, store: &Store, args: &GcClearArgs) -> Result<ExitCode> {
    let root = &args.root;
    let cleared = collect::clear_alarms(store, root)?;
    if app.json {
        output::print_json(&json!({ "root": root, "cleared": cleared }))?;
    } else if cleared == 0 {
        output::print(&format!("Root {root} has no alarms.\n"))?;
    } else {
        output::print(&format!(
            "Cleared {} of root {root}. Another one is raised where somebody still reads from it.\n",
            output::count(cleared, "alarm")
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_root_is_said_in_units_that_people_read() {
        let mut by = Blockers { seconds_left: 86_400, ..Blockers::default() };
        assert_eq!(describe_blockers(&by), "24 h to go");
        by.leases = 1;
        assert_eq!(describe_blockers(&by), "1 sandbox in use, 24 h to go");
    }
}
