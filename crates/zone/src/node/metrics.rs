//! What a node tells Prometheus.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::body::Body as _;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Shards;

/// Of what is answered, in seconds: from 50 us, which memory takes, to what no reader waits for.
const BUCKETS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// Counters of one server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<MethodLabels, Histogram, fn() -> Histogram>,
    received: Counter,
    sent: Counter,
    open: Gauge,
    connections: Counter,
    lost: Family<LostLabels, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    status: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MethodLabels {
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LostLabels {
    reason: &'static str,
}

/// Why a connection was ended without an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lost {
    /// One side does not believe the other, or the client does not speak TLS.
    Tls,
    /// It sent nothing, or too slowly, or did not take its answer.
    Slow,
    /// It sent what is no HTTP.
    Malformed,
}

/// Counts a connection as open while it is there.
pub(super) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(super) fn new(shards: Arc<Shards>) -> Self {
        let new_histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let mut metrics = Self {
            registry: Registry::with_prefix("snowmelt_node"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(new_histogram),
            received: Counter::default(),
            sent: Counter::default(),
            open: Gauge::default(),
            connections: Counter::default(),
            lost: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("requests", "Requests by method and status", metrics.requests.clone());
        registry.register_with_unit(
            "request",
            "Time from a request's head until its answer is ready to be sent",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register_with_unit("received", "Shards' bytes that came", Unit::Bytes, metrics.received.clone());
        registry.register_with_unit("sent", "Shards' bytes that were answered", Unit::Bytes, metrics.sent.clone());
        registry.register("open_connections", "Connections at this moment", metrics.open.clone());
        registry.register("connections", "Connections that were accepted", metrics.connections.clone());
        registry.register("lost_connections", "Connections that ended without an answer", metrics.lost.clone());
        registry.register_collector(Box::new(Kept(shards)));
        metrics
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        // Only writing to the text could fail, and that does not.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    pub(super) fn opened(&self) -> Open {
        self.connections.inc();
        self.open.inc();
        Open(self.open.clone())
    }

    pub(super) fn open_connections(&self) -> usize {
        usize::try_from(self.open.get()).unwrap_or(0)
    }

    pub(super) fn lost(&self, why: Lost) {
        let reason = match why {
            Lost::Tls => "tls",
            Lost::Slow => "slow",
            Lost::Malformed => "malformed",
        };
        self.lost.get_or_create(&LostLabels { reason }).inc();
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    pub(super) fn answered(&self, method: &Method, status: StatusCode, time: Duration, body: &Full<Bytes>) {
        // Whoever asks must not be able to make labels.
        let method = match *method {
            Method::GET => "GET",
            Method::PUT => "PUT",
            _ => "other",
        };
        self.requests.get_or_create(&RequestLabels { method, status: u32::from(status.as_u16()) }).inc();
        self.seconds.get_or_create(&MethodLabels { method }).observe(time.as_secs_f64());
        if status == StatusCode::OK {
            self.sent.inc_by(body.size_hint().lower());
        }
    }
}

/// What memory and disk have and did, as it is when it is asked for.
#[derive(Debug)]
struct Kept(Arc<Shards>);

impl Collector for Kept {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let stats = self.0.stats();
        let bytes = Some(&Unit::Bytes);
        for (name, help, unit, value) in [
            ("memory_shards", "Shards in memory", None, stats.memory_shards),
            ("memory_used", "Bytes of memory that shards take", bytes, stats.memory_bytes),
            ("memory_budget", "Bytes of memory that shards may take", bytes, stats.memory_budget_bytes),
            ("disk_shards", "Shards on disk", None, stats.disk_shards),
            ("disk_used", "Bytes of disk that segments take", bytes, stats.disk_bytes),
            ("disk_budget", "Bytes of disk that segments may take", bytes, stats.disk_budget_bytes),
            (
                "disk_writable",
                "Whether the disk takes shards: 0 means memory only",
                None,
                stats.is_disk_writable.into(),
            ),
        ] {
            let value = ConstGauge::new(value);
            value.encode(encoder.encode_descriptor(name, &format!("{help}."), unit, value.metric_type())?)?;
        }
        for (name, help, value) in [
            ("memory_hits", "Requests that memory answered", stats.memory_hits),
            ("disk_hits", "Requests that the disk answered", stats.disk_hits),
            ("misses", "Requests for shards that are not here", stats.misses),
            ("stored_shards", "Shards that came and are kept", stats.stored),
            ("unwritten_shards", "Of those, shards that the disk did not take", stats.unkept),
            ("damaged_shards", "Shards whose bytes on disk have changed", stats.damaged),
            ("memory_evicted_shards", "Shards that left memory for others", stats.memory_evicted),
            ("disk_evicted_shards", "Shards that left the disk for others", stats.disk_evicted),
        ] {
            let value = ConstCounter::new(value);
            value.encode(encoder.encode_descriptor(name, &format!("{help}."), None, value.metric_type())?)?;
        }
        Ok(())
    }
}
