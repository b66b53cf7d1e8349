//! `gc status`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::json;
use snowmelt_store::collect::{self, RootStatus, Status};
use snowmelt_store::{RootState, Store};

use crate::app::App;
use crate::args::GcStatusArgs;
use crate::output;
use crate::units::{Age, Size, show_time};

/// Deleted roots are shown for so long: as long as they are swept again.
const SHOWN_DELETED: Duration = Duration::from_hours(30 * 24);

pub(super) fn status(app: &App, store: &Store, args: &GcStatusArgs) -> Result<ExitCode> {
    let status = collect::status(store, args.count)?;
    if args.metrics {
        output::print(&metrics(&status))?;
        return Ok(ExitCode::SUCCESS);
    }
    if app.json {
        print_json(&status)?;
    } else {
        output::print(&text(&status, args.count))?;
    }
    let good = status.alarms() == 0 && status.damaged.is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn now(status: &Status) -> u64 {
    status.now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long something is so; `None` for what was so before anybody collected.
fn age(since: u64, now: u64) -> Option<Duration> {
    (since > 0).then(|| Duration::from_secs(now.saturating_sub(since)))
}

/// Bytes of chunks that no live image needs, if they were counted.
fn garbage(root: &RootStatus) -> Option<u64> {
    Some(root.chunks?.1.saturating_sub(root.live_bytes?))
}

fn text(status: &Status, counted: bool) -> String {
    let now = now(status);
    let is_old = |root: &&RootStatus| {
        root.root.state == RootState::Deleted && age(root.root.since, now).is_some_and(|age| age > SHOWN_DELETED)
    };
    let shown = status.roots.iter().filter(|root| !is_old(root));
    let rows = shown.map(|root| {
        let since = age(root.root.since, now);
        let mut row = vec![
            format!("{}{}", root.name, if root.is_default { " *" } else { "" }),
            root.root.state.to_string(),
            since.map_or_else(|| "-".into(), |_| show_time(root.root.since)),
            since.map_or_else(|| "-".into(), |age| Age(age).to_string()),
            root.images.to_string(),
            Size(root.image_bytes).to_string(),
            root.leases.to_string(),
            root.intents.to_string(),
            root.root.alarm_count.to_string(),
        ];
        if let Some((chunks, bytes)) = root.chunks {
            let share = match garbage(root) {
                Some(garbage) if bytes > 0 => format!("{:.0} %", garbage as f64 * 100.0 / bytes as f64),
                _ => "-".into(),
            };
            row.extend([chunks.to_string(), Size(bytes).to_string(), share]);
        }
        row
    });
    let mut header = vec!["ROOT", "STATE", "SINCE (UTC)", "AGE", "IMAGES", "SIZE", "IN USE", "PUBLISHING", "ALARMS"];
    if counted {
        header.extend(["CHUNKS", "STORED", "GARBAGE"]);
    }
    let right: Vec<usize> = (3..header.len()).collect();
    let mut text = output::table(&header, &right, rows.collect());
    let hidden = status.roots.iter().filter(is_old).count();
    if hidden > 0 {
        let _ = writeln!(text, "({} deleted more than 30 days ago)", output::count(hidden as u64, "root"));
    }
    let salt = &status.state.salt;
    let salt_age = age(salt.since, now).map_or_else(String::new, |age| format!(", {} old", Age(age)));
    let collector = match status.state.lease.as_ref().filter(|lease| lease.until > now) {
        Some(lease) => format!("{}, at most until {} UTC", lease.holder, show_time(lease.until)),
        None => "nobody".into(),
    };
    text += "\n";
    text += &output::pairs(&[("Salts", format!("epoch {}{salt_age}", salt.epoch)), ("Collecting", collector)]);
    for root in &status.roots {
        let alarms = &root.root.alarms;
        for alarm in alarms {
            let _ = writeln!(
                text,
                "ALARM: expired root {} was read at {} UTC by {}: manifest {} of tenant {}",
                root.name,
                show_time(alarm.at),
                output::without_controls(&alarm.by),
                output::without_controls(&alarm.manifest),
                output::without_controls(&alarm.tenant)
            );
        }
        let more = root.root.alarm_count.saturating_sub(alarms.len() as u64);
        if more > 0 {
            let _ = writeln!(text, "ALARM: root {}: {} more", root.name, output::count(more, "alarm"));
        }
    }
    if status.alarms() > 0 {
        text += "These roots stay until an operator has found out why, and says so with `snowmelt gc clear ROOT`.\n";
    }
    for name in &status.damaged {
        let name = output::without_controls(name);
        let _ = writeln!(text, "DAMAGED: {name}: publish it again, or remove it; nothing expires before that");
    }
    text
}

fn print_json(status: &Status) -> Result<()> {
    let now = now(status);
    let roots: Vec<_> = status
        .roots
        .iter()
        .map(|root| {
            let mut value = json!({
                "name": root.name,
                "state": root.root.state,
                "is_default": root.is_default,
                "since": root.root.since,
                "age_seconds": age(root.root.since, now).map(|age| age.as_secs()),
                "successor": root.root.successor,
                "images": root.images,
                "image_bytes": root.image_bytes,
                "leases": root.leases,
                "intents": root.intents,
                "alarms": root.root.alarms,
                "alarm_count": root.root.alarm_count,
            });
            if let Some((chunks, bytes)) = root.chunks {
                value["chunks"] = chunks.into();
                value["stored_bytes"] = bytes.into();
                value["garbage_bytes"] = garbage(root).into();
            }
            value
        })
        .collect();
    let lease = status.state.lease.as_ref().filter(|lease| lease.until > now);
    output::print_json(&json!({
        "roots": roots,
        "active": status.state.active,
        "now": now,
        "salt": { "epoch": status.state.salt.epoch, "since": status.state.salt.since },
        "collector": lease.map(|lease| json!({ "holder": lease.holder, "until": lease.until })),
        "alarms": status.alarms(),
        "damaged": status.damaged,
    }))
}

/// The text format of Prometheus. Names of roots have no characters that need escaping.
fn metrics(status: &Status) -> String {
    let now = now(status);
    let mut text = String::new();
    let mut metric = |name: &str, help: &str, values: &mut dyn Iterator<Item = (String, u64)>| {
        let mut values = values.peekable();
        if values.peek().is_some() {
            let _ = writeln!(text, "# HELP snowmelt_{name} {help}\n# TYPE snowmelt_{name} gauge");
            for (labels, value) in values {
                let _ = writeln!(text, "snowmelt_{name}{labels} {value}");
            }
        }
    };
    let roots = || status.roots.iter().map(|root| (format!("{{root=\"{}\"}}", root.name), root));
    metric(
        "root_state",
        "The state that a root is in.",
        &mut status.roots.iter().map(|root| (format!("{{root=\"{}\",state=\"{}\"}}", root.name, root.root.state), 1)),
    );
    metric(
        "root_age_seconds",
        "How long a root is in its state.",
        &mut roots().filter_map(|(labels, root)| Some((labels, age(root.root.since, now)?.as_secs()))),
    );
    let mut of_roots = |name: &str, help: &str, value: &dyn Fn(&RootStatus) -> Option<u64>| {
        metric(name, help, &mut roots().filter_map(|(labels, root)| Some((labels, value(root)?))));
    };
    of_roots("root_alarms", "Alarms that nobody has cleared.", &|root| Some(root.root.alarm_count));
    of_roots("root_images", "Names that stand for something in a root.", &|root| Some(root.images));
    of_roots("root_image_bytes", "Bytes of those images, shared chunks counted for each.", &|root| {
        Some(root.image_bytes)
    });
    of_roots("root_leases", "Live leases of sandboxes.", &|root| Some(root.leases));
    of_roots("root_intents", "Publishes under way.", &|root| Some(root.intents));
    of_roots("root_chunks", "Chunks.", &|root| Some(root.chunks?.0));
    of_roots("root_stored_bytes", "Bytes of chunks.", &|root| Some(root.chunks?.1));
    let mut single = |name: &str, help: &str, value: Option<u64>| {
        metric(name, help, &mut value.into_iter().map(|value| (String::new(), value)));
    };
    single("salt_epoch", "Rotations of salts.", Some(status.state.salt.epoch.into()));
    single("salt_age_seconds", "Age of the salts.", age(status.state.salt.since, now).map(|age| age.as_secs()));
    single("damaged_names", "Names whose records cannot be read.", Some(status.damaged.len() as u64));
    text
}
