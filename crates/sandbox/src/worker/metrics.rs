//! What a worker tells Prometheus.

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelValueEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use snowmelt_cache::{Priority, Tier, Upstream};
use snowmelt_zone::node::{Operated, serve_admin};

use super::WorkerStatus;
use crate::Error;

/// Of a chunk that is fetched, in seconds: from 100 us, which a zone takes, to what a reader waits for.
const BUCKETS: [f64; 16] =
    [0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FetchLabels {
    tier: Name,
    priority: Name,
}

/// A label's value.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Name(&'static str);

impl prometheus_client::encoding::EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// What is measured as it happens; the rest is read when it is asked for.
#[derive(Debug)]
pub(super) struct Metrics {
    fetches: Family<FetchLabels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { fetches: Family::new_with_constructor(|| Histogram::new(BUCKETS)) }
    }
}

impl Metrics {
    pub(super) fn fetched(&self, tier: Tier, priority: Priority, took: Duration) {
        let tier = Name(match tier {
            Tier::Memory => "memory",
            Tier::Disk => "disk",
            Tier::Zone => "zone",
            Tier::Origin => "origin",
        });
        let priority = Name(match priority {
            Priority::Demand => "demand",
            Priority::Prefetch => "prefetch",
            Priority::Background => "background",
        });
        self.fetches.get_or_create(&FetchLabels { tier, priority }).observe(took.as_secs_f64());
    }

    pub(super) fn text(&self, status: &WorkerStatus, upstream: &Upstream) -> String {
        let mut registry = Registry::with_prefix("snowmelt_worker");
        registry.register_with_unit(
            "fetch",
            "Time from when a chunk that was not here was first asked for until it was here",
            Unit::Seconds,
            self.fetches.clone(),
        );
        let mut gauge =
            |name: &str, help: &str, value: u64| registry.register(name, help, ConstGauge::new(value as i64));
        gauge("sandboxes", "Sandboxes that are served", status.sandboxes as u64);
        gauge("memory_chunks", "Chunks in memory", status.memory[0]);
        gauge("memory_used_bytes", "Memory that chunks take", status.memory[1]);
        gauge("memory_budget_bytes", "Memory that chunks may take", status.memory[2]);
        gauge("disk_chunks", "Chunks on disk", status.disk[0]);
        gauge("disk_used_bytes", "Disk that chunks take", status.disk[1]);
        gauge("disk_budget_bytes", "Disk that chunks may take", status.disk[2]);
        gauge("flights", "Chunks that are being fetched or wait for it", status.flights);
        gauge("starts_limit", "Sandboxes that may be starting at once, at this moment", status.starts[0] as u64);
        gauge("starts_running", "Sandboxes that are starting", status.starts[1] as u64);
        gauge("starts_waiting", "Sandboxes that wait for their turn to start", status.starts[2] as u64);
        let mut counter = |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
        counter("memory_hits", "Chunks that memory answered", status.hits_and_misses[0]);
        counter("disk_hits", "Chunks that the disk answered", status.hits_and_misses[1]);
        counter("misses", "Chunks that neither had", status.hits_and_misses[2]);
        counter(
            "unkept_chunks",
            "Chunks that the disk did not take, since it was too slow, full or broken",
            status.unkept,
        );
        counter("damaged_chunks", "Copies on disk that were damaged, and were dropped", status.damaged);
        counter("joined", "Requests that waited for a chunk that was being fetched already", status.joined);
        counter("failed", "Chunks that could not be had", status.failed);
        counter("agents_replaced", "Agents that another took over from", status.replaced_agents);
        counter("starts_refused", "Sandboxes that were not let in", status.refused_starts);
        if let Some(zone) = upstream.zone().map(snowmelt_zone::Client::stats) {
            counter("zone_hits", "Chunks that the zone had", zone.hits);
            counter("zone_misses", "Chunks that the zone did not have, or not in time", zone.misses);
            counter("zone_rebuilt", "Chunks that were rebuilt with parity", zone.rebuilt);
            counter("zone_damaged_shards", "Shards that were not what their checksum says", zone.damaged_shards);
            counter("zone_failed_requests", "Requests to nodes that failed", zone.failed_requests);
            counter(
                "zone_skipped_requests",
                "Requests that were not made, since their node is behind",
                zone.skipped_requests,
            );
        }
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// Answers at an address, in a thread of its own.
pub(super) fn serve(address: &str, operator: impl Operated) -> Result<SocketAddr, Error> {
    let expected = || Error::invalid(address, "expected HOST:PORT of this machine, such as 127.0.0.1:7072");
    let io = |source| Error::io("listen on", address, source);
    let found = address.to_socket_addrs().ok().and_then(|mut found| found.next()).ok_or_else(expected)?;
    let listener = TcpListener::bind(found).map_err(io)?;
    listener.set_nonblocking(true).map_err(io)?;
    let found = listener.local_addr().map_err(io)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
    let work = move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => serve_admin(operator, listener, std::future::pending()).await,
                Err(error) => tracing::error!(%error, "operators are not answered"),
            }
        });
    };
    std::thread::Builder::new().name("admin".into()).spawn(work).map_err(io)?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_units_and_help() {
        let metrics = Metrics::default();
        metrics.fetched(Tier::Zone, Priority::Demand, Duration::from_micros(300));
        let status = WorkerStatus {
            process: 1,
            version: "1".into(),
            sandboxes: 3,
            replaced_agents: 0,
            memory: [1, 2, 3],
            disk: [4, 5, 6],
            unkept: 10,
            damaged: 11,
            hits_and_misses: [7, 8, 9],
            flights: 0,
            joined: 0,
            failed: 0,
            starts: [16, 1, 0],
            refused_starts: 2,
        };
        let text = metrics.text(&status, &Upstream::new(None));
        for line in [
            "snowmelt_worker_fetch_seconds_bucket{le=\"0.0005\",tier=\"zone\",priority=\"demand\"} 1",
            "snowmelt_worker_sandboxes 3",
            "snowmelt_worker_memory_hits_total 7",
            "snowmelt_worker_unkept_chunks_total 10",
            "snowmelt_worker_damaged_chunks_total 11",
            "snowmelt_worker_starts_refused_total 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}
