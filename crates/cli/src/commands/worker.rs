//! `snowmelt worker`: what serves a machine's sandboxes, and a look at it.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use snowmelt_sandbox::{Worker, WorkerControl, WorkerStatus};

use crate::app::App;
use crate::args::{ServeArgs, WorkerAction, WorkerArgs};
use crate::output;
use crate::units::Size;

/// Descriptors that a worker may need: one for each chunk in memory, eight for each sandbox.
const FILES: u64 = 1 << 20;

pub(crate) fn worker(app: &App, args: &WorkerArgs) -> Result<ExitCode> {
    match &args.action {
        None => serve(app, &args.serve),
        Some(WorkerAction::Status) => {
            let status = find(app)?.status()?;
            output::print(&if app.json { serde_json::to_string(&status)? + "\n" } else { table(&status) })?;
            Ok(ExitCode::SUCCESS)
        }
        Some(WorkerAction::ReplaceAgents) => {
            let count = find(app)?.replace_agents()?;
            output::print(&if app.json {
                format!("{}\n", serde_json::json!({ "replaced": count }))
            } else {
                format!("replacing {}\n", output::count(count as u64, "agent"))
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn find(app: &App) -> Result<WorkerControl> {
    let state = app.state()?;
    let place = state.path().display();
    WorkerControl::find(&state).with_context(|| format!("no worker runs at {place}: start one with `snowmelt worker`"))
}

fn serve(app: &App, args: &ServeArgs) -> Result<ExitCode> {
    let config = app.config.worker(args)?;
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    // Before there is any thread. Agents have rules of their own.
    ending.thread_block().context("blocking signals")?;
    let end = SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC).context("making a signal descriptor")?;
    raise_file_limit();
    let zone = app.config.cache_nodes.as_ref().map(snowmelt_zone::ZoneOptions::connect).transpose()?;
    let has_zone = zone.is_some();
    let worker = Worker::start(config.options, &app.state()?, zone)?;
    let admin = match &config.admin {
        Some(address) => Some(worker.serve_admin(address)?),
        None => None,
    };
    let status = worker.status();
    if app.json {
        let mut found = serde_json::to_value(&status)?;
        found["admin"] = serde_json::json!(admin);
        output::print(&format!("{found}\n"))?;
    } else {
        output::print(&ready(&app.state()?.path().display().to_string(), &status, has_zone, admin))?;
    }
    worker.serve(end.as_fd())?;
    Ok(ExitCode::SUCCESS)
}

/// What the worker says when it is ready.
fn ready(place: &str, status: &WorkerStatus, has_zone: bool, admin: Option<SocketAddr>) -> String {
    let ([_, _, memory], [chunks, _, disk]) = (status.memory, status.disk);
    let found = output::count(chunks, "chunk");
    let disk =
        if disk == 0 { ", no disk".into() } else { format!(", {} of disk with {found} from before", Size(disk)) };
    let zone = if has_zone { "; a zone's cache" } else { "; no zone" };
    let admin = admin.map_or_else(String::new, |admin| format!("; operators on {admin}"));
    format!("worker at {place}: {} of memory{disk}{zone}{admin}\n", Size(memory))
}

/// As many as the system gives.
pub(super) fn raise_file_limit() {
    let allowed = getrlimit(Resource::Nofile);
    let most = allowed.maximum.map_or(FILES, |most| most.min(FILES));
    if allowed.current.is_some_and(|current| current < most) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: allowed.maximum });
        if let Err(error) = raised {
            tracing::warn!(%error, "the worker may open few files");
        }
    }
}

fn table(status: &WorkerStatus) -> String {
    let kept = |[chunks, bytes, most]: [u64; 3]| {
        format!("{}, {} of {}", output::count(chunks, "chunk"), Size(bytes), Size(most))
    };
    let [memory_hits, disk_hits, misses] = status.hits_and_misses;
    let asked = memory_hits + disk_hits + misses;
    let share = |part: u64| if asked == 0 { 0.0 } else { part as f64 * 100.0 / asked as f64 };
    let [limit, running, waiting] = status.starts;
    let trouble = [(status.unkept, "not taken"), (status.damaged, "found damaged")];
    let trouble = trouble.iter().filter(|(count, _)| *count > 0);
    let disk = trouble
        .fold(if status.disk[2] == 0 { "none".into() } else { kept(status.disk) }, |text, (count, what)| {
            format!("{text}; {} {what}", output::count(*count, "chunk"))
        });
    let rows = [
        ("process", format!("{}, version {}", status.process, status.version)),
        ("sandboxes", format!("{}, {} agents replaced", status.sandboxes, status.replaced_agents)),
        ("memory", kept(status.memory)),
        ("disk", disk),
        (
            "chunks",
            format!(
                "{asked} asked for: {:.1} % in memory, {:.1} % on disk, {:.1} % not here",
                share(memory_hits),
                share(disk_hits),
                share(misses)
            ),
        ),
        (
            "fetching",
            format!("{} now, {} waited for another's, {} failed", status.flights, status.joined, status.failed),
        ),
        ("starts", format!("{running} of {limit} at once, {waiting} waiting, {} refused", status.refused_starts)),
    ];
    rows.iter().fold(String::new(), |text, (name, value)| format!("{text}{name:<10} {value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_as_it_should() {
        let status = WorkerStatus {
            process: 7,
            version: "1".into(),
            sandboxes: 2,
            replaced_agents: 1,
            memory: [3, 3 << 19, 1 << 30],
            disk: [2, 4 << 20, 1 << 30],
            unkept: 7,
            damaged: 0,
            hits_and_misses: [6, 0, 2],
            flights: 0,
            joined: 5,
            failed: 0,
            starts: [16, 1, 0],
            refused_starts: 0,
        };
        let text = table(&status);
        assert!(text.contains("memory     3 chunks, 1.5 MiB of 1.0 GiB"), "{text}");
        assert!(text.contains("2 chunks, 4.0 MiB of 1.0 GiB; 7 chunks not taken\n"), "{text}");
        assert!(text.contains("75.0 % in memory, 0.0 % on disk, 25.0 % not here"), "{text}");
        assert!(text.contains("starts     1 of 16 at once, 0 waiting, 0 refused"), "{text}");
    }
}
