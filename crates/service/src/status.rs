//! What the service is doing, for who looks at it: as JSON, for `snowmelt top`, `snowmelt fn ls` and the page.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::assignment::{Counts, Phase};
use crate::measures::{Measures, Taken};
use crate::model::Function;
use crate::service::Service;

/// Whose functions are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// One tenant's.
    Of(String),
    /// Those of all: who operates the service.
    All,
}

impl Whose {
    pub(crate) fn includes(&self, tenant: &str) -> bool {
        match self {
            Self::Of(own) => own == tenant,
            Self::All => true,
        }
    }
}

/// Everything, as it is at this moment. Times are in microseconds or seconds, as their names say; memory is in bytes.
pub(crate) fn status(service: &Service, whose: &Whose) -> Value {
    let counts = service.assignment.counts_by_function();
    let functions = service.registry.all();
    let functions: Vec<Value> = functions
        .iter()
        .filter(|function| whose.includes(&function.tenant))
        .map(|function| {
            let counts = counts.get(&(function.tenant.clone(), function.name.clone())).copied().unwrap_or_default();
            show(service, function, counts)
        })
        .collect();
    let mut totals = Measures::default();
    for (_, measures) in service.board.by_tenant().iter().filter(|(tenant, _)| whose.includes(tenant)) {
        totals.merge(measures);
    }
    let (sandboxes, memory) = sandboxes(service, whose);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "region": service.options.place.region,
        "account": service.options.place.account,
        "tenant": match whose { Whose::Of(tenant) => json!(tenant), Whose::All => Value::Null },
        "time": seconds(SystemTime::now()),
        "started": seconds(service.started),
        "is_ending": service.is_closing(),
        "limits": {
            "concurrency": service.limits.account_concurrency,
            "burst": service.limits.burst,
            "idle_seconds": service.limits.idle.as_secs(),
        },
        "totals": totals.show(),
        "memory": memory,
        "functions": functions,
        "sandboxes": sandboxes,
    })
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn show(service: &Service, function: &Function, counts: Counts) -> Value {
    let measures = service.board.of_function(&function.tenant, &function.name);
    let configuration =
        function.configuration(&service.options.place, &function.latest, &crate::Qualifier::Latest, None);
    json!({
        "tenant": function.tenant,
        "name": function.name,
        "description": configuration["Description"],
        "state": configuration["State"],
        "state_reason": configuration["StateReason"],
        "last_update": configuration["LastUpdateStatus"],
        "last_update_reason": configuration["LastUpdateStatusReason"],
        "image": function.latest.code.image_uri,
        "image_bytes": function.latest.code.bytes,
        "memory_mb": function.latest.settings.memory,
        "timeout_seconds": function.latest.settings.timeout,
        "reserved_concurrency": function.reserved_concurrency,
        "modified": configuration["LastModified"],
        "versions": function.versions.len(),
        "sandboxes": { "idle": counts.idle, "busy": counts.busy + counts.answered, "starting": counts.starting },
        "waiting": counts.waiting,
        "measures": measures.unwrap_or_default().show(),
    })
}

/// Each sandbox, and the memory of all. Other tenants' are in neither.
fn sandboxes(service: &Service, whose: &Whose) -> (Vec<Value>, Value) {
    let mut all = service.assignment.sandboxes();
    all.retain(|(_, key, _)| whose.includes(&key.tenant));
    all.sort_by(|(id, a, _), (other, b, _)| (a, id).cmp(&(b, other)));
    let (mut containers, mut agents, mut hosts) = (0, 0, 0);
    let shown = all
        .into_iter()
        .map(|(id, key, phase)| {
            let Taken { container, agent, host, invocations, age } = service.board.sandboxes.taken(&id);
            containers += container.unwrap_or(0);
            agents += agent.unwrap_or(0);
            hosts += host.unwrap_or(0);
            json!({
                "id": id,
                "tenant": key.tenant,
                "function": key.function,
                "version": key.number,
                "phase": match phase {
                    Phase::Starting => "starting",
                    Phase::Idle => "idle",
                    Phase::Busy | Phase::Answered => "busy",
                },
                "age_seconds": age.as_secs_f64(),
                "invocations": invocations,
                "memory": { "container": container, "agent": agent, "host": host },
            })
        })
        .collect();
    (shown, json!({ "containers": containers, "agents": agents, "hosts": hosts }))
}
