//! The figures of a service's status. What is missing counts as nothing: the service may be of another version.

use std::time::Duration;

use serde_json::Value;

use crate::commands::functions::list::state;
use crate::output::without_controls;
use crate::units::show_duration;

/// What a cold start consists of, as the service calls it and as it is shown.
pub(super) const PHASES: [(&str, &str); 6] = [
    ("publish", "publish"),
    ("place", "place"),
    ("mount", "mount"),
    ("start", "start"),
    ("init", "init"),
    ("first_byte", "first byte"),
];
pub(super) const TIERS: [&str; 4] = ["memory", "disk", "zone", "origin"];

#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) tenant: Option<String>,
    pub(super) up_seconds: u64,
    pub(super) is_ending: bool,
    pub(super) totals: Measures,
    /// Of containers, agents and hosts, in bytes.
    pub(super) memory: [u64; 3],
    pub(super) functions: Vec<Function>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Function {
    pub(super) tenant: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) idle: u64,
    pub(super) busy: u64,
    pub(super) starting: u64,
    pub(super) waiting: u64,
    pub(super) measures: Measures,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Measures {
    pub(super) invocations: u64,
    pub(super) errors: u64,
    pub(super) faults: u64,
    pub(super) throttles: u64,
    pub(super) cold: u64,
    pub(super) warm: u64,
    pub(super) running: u64,
    pub(super) duration: Times,
    pub(super) overhead: Times,
    pub(super) cold_start: Times,
    /// By [`PHASES`].
    pub(super) phases: Vec<Times>,
    /// Chunks and bytes by [`TIERS`].
    pub(super) reads: Vec<(u64, u64)>,
}

/// A histogram.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    pub(super) count: u64,
    pub(super) p50: Option<Duration>,
    pub(super) p90: Option<Duration>,
    pub(super) p99: Option<Duration>,
    /// Upper bounds in microseconds, and how many; the last may have none.
    pub(super) buckets: Vec<(Option<u64>, u64)>,
}

impl Times {
    fn read(value: &Value) -> Self {
        let time = |name: &str| value[name].as_u64().map(Duration::from_micros);
        let buckets = value["buckets"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            count: value["count"].as_u64().unwrap_or(0),
            p50: time("p50_us"),
            p90: time("p90_us"),
            p99: time("p99_us"),
            buckets: buckets.iter().map(|bucket| (bucket[0].as_u64(), bucket[1].as_u64().unwrap_or(0))).collect(),
        }
    }
}

/// A time, or that there is none.
pub(super) fn shown(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".into(), show_duration)
}

impl Measures {
    fn read(value: &Value) -> Self {
        let number = |name: &str| value[name].as_u64().unwrap_or(0);
        let read = |tier: &&'static str| {
            let read = &value["reads"][*tier];
            (read["chunks"].as_u64().unwrap_or(0), read["bytes"].as_u64().unwrap_or(0))
        };
        Self {
            invocations: number("invocations"),
            errors: number("errors"),
            faults: number("faults"),
            throttles: number("throttles"),
            cold: number("cold_starts"),
            warm: number("warm_starts"),
            running: number("running"),
            duration: Times::read(&value["duration"]),
            overhead: Times::read(&value["warm_overhead"]),
            cold_start: Times::read(&value["cold_start"]),
            phases: PHASES.iter().map(|(name, _)| Times::read(&value["phases"][*name])).collect(),
            reads: TIERS.iter().map(read).collect(),
        }
    }
}

impl Figures {
    pub(super) fn read(status: &Value) -> Self {
        let functions = status["functions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let time = |name: &str| status[name].as_f64().unwrap_or(0.0);
        Self {
            tenant: status["tenant"].as_str().map(without_controls),
            up_seconds: (time("time") - time("started")).max(0.0) as u64,
            is_ending: status["is_ending"].as_bool().unwrap_or(false),
            totals: Measures::read(&status["totals"]),
            memory: ["containers", "agents", "hosts"].map(|name| status["memory"][name].as_u64().unwrap_or(0)),
            functions: functions.iter().map(Function::read).collect(),
        }
    }

    /// Sandboxes of all functions: starting, busy, idle.
    pub(super) fn sandboxes(&self) -> [u64; 3] {
        self.functions
            .iter()
            .fold([0; 3], |sum, function| [sum[0] + function.starting, sum[1] + function.busy, sum[2] + function.idle])
    }

    /// How long the service has been there.
    pub(super) fn up(&self) -> String {
        crate::units::Age(Duration::from_secs(self.up_seconds)).to_string()
    }
}

impl Function {
    fn read(value: &Value) -> Self {
        let text = |name: &str| without_controls(value[name].as_str().unwrap_or_default());
        let number = |name: &str| value["sandboxes"][name].as_u64().unwrap_or(0);
        Self {
            tenant: text("tenant"),
            name: text("name"),
            state: without_controls(&state(value)),
            idle: number("idle"),
            busy: number("busy"),
            starting: number("starting"),
            waiting: value["waiting"].as_u64().unwrap_or(0),
            measures: Measures::read(&value["measures"]),
        }
    }
}
