//! What is said of beginnings and invocations: lines of the log, and events of the Telemetry API (schema 2022-12-13).

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::HostConfig;
use crate::link::Invocation;

/// An invocation that the runtime is done with.
pub(super) struct Report {
    pub(super) invocation: Arc<Invocation>,
    pub(super) since: Instant,
    pub(super) duration: Duration,
    /// How long the sandbox took to begin, where this is its first.
    pub(super) init: Option<Duration>,
    /// How it failed.
    pub(super) error: Option<String>,
    pub(super) memory_mb: u32,
    pub(super) memory_used_mb: u64,
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

impl Report {
    fn billed(&self, duration: Duration) -> u64 {
        let milliseconds = (duration + self.init.unwrap_or_default()).as_secs_f64() * 1000.0;
        milliseconds.ceil().max(1.0) as u64
    }

    fn status(&self) -> &'static str {
        match self.error.as_deref() {
            None => "success",
            Some("Sandbox.Timedout") => "timeout",
            // What ends the sandbox is a failure, what the function says an error.
            Some(kind) if ["Runtime.ExitError", "Runtime.OutOfMemory"].contains(&kind) => "failure",
            Some(kind) if kind.starts_with("Extension.") || kind.starts_with("Sandbox.") => "failure",
            Some(_) => "error",
        }
    }

    /// The last lines of an invocation's log, as Lambda writes them.
    pub(super) fn lines(&self) -> String {
        let (id, memory, used) = (&self.invocation.id, self.memory_mb, self.memory_used_mb);
        let (duration, billed) = (self.duration.as_secs_f64() * 1000.0, self.billed(self.duration));
        let mut line = format!(
            "END RequestId: {id}\nREPORT RequestId: {id}\tDuration: {duration:.2} ms\tBilled Duration: {billed} ms\tMemory Size: {memory} MB\tMax Memory Used: {used} MB\t"
        );
        if let Some(init) = self.init {
            let _ = write!(line, "Init Duration: {:.2} ms\t", init.as_secs_f64() * 1000.0);
        }
        line.push('\n');
        line
    }

    fn add_to(&self, record: &mut Value) {
        record["requestId"] = json!(self.invocation.id);
        record["status"] = json!(self.status());
        if let Some(error) = &self.error {
            record["errorType"] = json!(error);
        }
        if let Some(trace) = &self.invocation.trace {
            record["tracing"] = tracing(trace);
        }
    }

    /// `bytes` is how much the function gave.
    pub(super) fn runtime_done(&self, bytes: usize) -> Value {
        let mut record = json!({ "metrics": { "durationMs": milliseconds(self.duration), "producedBytes": bytes } });
        self.add_to(&mut record);
        record
    }

    /// When the extensions are done too.
    pub(super) fn platform(&self) -> Value {
        let duration = self.since.elapsed();
        let mut metrics = json!({
            "durationMs": milliseconds(duration),
            "billedDurationMs": self.billed(duration),
            "memorySizeMB": self.memory_mb,
            "maxMemoryUsedMB": self.memory_used_mb,
        });
        if let Some(init) = self.init {
            metrics["initDurationMs"] = json!(milliseconds(init));
        }
        let mut record = json!({ "metrics": metrics });
        self.add_to(&mut record);
        record
    }
}

fn tracing(trace: &str) -> Value {
    json!({ "type": "X-Amzn-Trace-Id", "value": trace })
}

fn of_init(config: &HostConfig) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("initializationType".into(), json!(config.initialization_type));
    record.insert("phase".into(), json!(phase(config.is_last_try)));
    record
}

/// A second try is a part of the invocation.
fn phase(is_last_try: bool) -> &'static str {
    if is_last_try { "invoke" } else { "init" }
}

pub(super) fn init_start(config: &HostConfig) -> Value {
    let mut record = of_init(config);
    record.insert("functionName".into(), json!(config.function));
    record.insert("functionVersion".into(), json!(config.version));
    record.insert("instanceId".into(), json!(config.sandbox));
    record.insert("instanceMaxMemory".into(), json!(u64::from(config.memory_mb) << 20));
    record.into()
}

/// `error` is status and kind.
pub(super) fn init_runtime_done(config: &HostConfig, error: Option<(&str, &str)>) -> Value {
    let mut record = of_init(config);
    record.insert("status".into(), json!(error.map_or("success", |(status, _)| status)));
    if let Some((_, kind)) = error {
        record.insert("errorType".into(), json!(kind));
    }
    record.into()
}

pub(super) fn init_report(config: &HostConfig, init: Duration, status: &str, error: Option<&str>) -> Value {
    let mut record = of_init(config);
    record.insert("status".into(), json!(status));
    record.insert("metrics".into(), json!({ "durationMs": milliseconds(init) }));
    if let Some(error) = error {
        record.insert("errorType".into(), json!(error));
    }
    record.into()
}

/// The line of a beginning that failed, as Lambda writes it.
pub(super) fn init_line(is_last_try: bool, init: Duration, status: &str, kind: &str) -> String {
    let (init, phase) = (init.as_secs_f64() * 1000.0, phase(is_last_try));
    let kind = if status == "timeout" { String::new() } else { format!("\tError Type: {kind}") };
    format!("INIT_REPORT Init Duration: {init:.2} ms\tPhase: {phase}\tStatus: {status}{kind}\n")
}

pub(super) fn start(invocation: &Invocation, version: &str) -> Value {
    let mut record = json!({ "requestId": invocation.id, "version": version });
    if let Some(trace) = &invocation.trace {
        record["tracing"] = tracing(trace);
    }
    record
}

pub(super) fn extension(name: &str, state: &str, events: &[&str], error: Option<&str>) -> Value {
    let mut record = json!({ "name": name, "state": state, "events": events });
    if let Some(error) = error {
        record["errorType"] = json!(error);
    }
    record
}
