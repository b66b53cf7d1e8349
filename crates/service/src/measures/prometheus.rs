//! Measures, as Prometheus reads them.
//!
//! What a cold start consists of is told by tenant and not by function: it would be some hundred series for each.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Board, Histogram, Measures, PHASES, TIERS};
use crate::assignment::Counts;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FunctionLabels {
    tenant: String,
    function: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TenantLabels {
    tenant: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    tenant: String,
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TierLabels {
    tenant: String,
    tier: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DoingLabels {
    tenant: String,
    function: String,
    state: &'static str,
}

/// Everything of one moment.
#[derive(Debug)]
struct Moment {
    functions: Vec<(FunctionLabels, Measures)>,
    tenants: Vec<(String, Measures)>,
    counts: Vec<(FunctionLabels, Counts)>,
}

impl Board {
    /// The text that Prometheus reads, of the functions of those tenants. `counts` are their sandboxes.
    pub(crate) fn text(&self, includes: &dyn Fn(&str) -> bool, counts: Vec<(String, String, Counts)>) -> String {
        let moment = {
            let state = self.lock();
            let functions = state.functions.iter().filter(|((tenant, _), _)| includes(tenant));
            let functions = functions.map(|((tenant, function), measures)| {
                (FunctionLabels { tenant: tenant.clone(), function: function.clone() }, measures.clone())
            });
            let tenants = state.tenants.iter().filter(|(tenant, _)| includes(tenant));
            Moment {
                functions: functions.collect(),
                tenants: tenants.map(|(tenant, measures)| (tenant.clone(), measures.clone())).collect(),
                counts: counts
                    .into_iter()
                    .map(|(tenant, function, counts)| (FunctionLabels { tenant, function }, counts))
                    .collect(),
            }
        };
        let mut registry = Registry::with_prefix("snowmelt_functions");
        registry.register_collector(Box::new(moment));
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// Series of times, one for each set of labels.
fn times<'a, L: EncodeLabelSet + 'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (L, &'a Histogram)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, times) in series {
        let mut one = family.encode_family(&labels)?;
        one.encode_histogram::<NoLabelSet>(times.sum_seconds(), times.count(), &times.coarse(), None)?;
    }
    Ok(())
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Count = fn(&Measures) -> u64;
        let counters: [(&str, &str, Count); 6] = [
            ("invocations", "Invocations that were accepted and are over.", |m| m.invocations),
            ("errors", "Of those, invocations whose function failed.", |m| m.errors),
            ("faults", "Of those, invocations that were given up through no fault of the function.", |m| m.faults),
            ("throttles", "Invocations that were turned away.", |m| m.throttles),
            ("cold_starts", "Invocations that a sandbox was started for.", |m| m.cold),
            ("warm_starts", "Invocations that found a sandbox.", |m| m.warm),
        ];
        for (name, help, count) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, measures) in &self.functions {
                ConstCounter::new(count(measures)).encode(family.encode_family(labels)?)?;
            }
        }
        let help = "Invocations at this moment, those that wait for a sandbox with them.";
        let mut family = encoder.encode_descriptor("running", help, None, MetricType::Gauge)?;
        for (labels, measures) in &self.functions {
            ConstGauge::new(measures.running as i64).encode(family.encode_family(labels)?)?;
        }
        let mut family =
            encoder.encode_descriptor("sandboxes", "Sandboxes, by what they do.", None, MetricType::Gauge)?;
        for (FunctionLabels { tenant, function }, counts) in &self.counts {
            for (state, count) in
                [("idle", counts.idle), ("busy", counts.busy + counts.answered), ("starting", counts.starting)]
            {
                let labels = DoingLabels { tenant: tenant.clone(), function: function.clone(), state };
                ConstGauge::new(count as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let of = |pick: fn(&Measures) -> &Histogram| {
            self.functions.iter().map(move |(labels, measures)| (labels.clone(), pick(measures)))
        };
        times(&mut encoder, "duration", "What functions took.", of(|m| &m.duration))?;
        let help = "What a warm invocation took beyond its function's own time.";
        times(&mut encoder, "warm_overhead", help, of(|m| &m.overhead))?;
        let help = "From a cold invocation's request until its sandbox was given it.";
        times(&mut encoder, "cold_start", help, of(|m| &m.cold_start))?;
        let phases = self.tenants.iter().flat_map(|(tenant, measures)| {
            let phases = PHASES.iter().zip(&measures.phases);
            phases.map(|(phase, times)| (PhaseLabels { tenant: tenant.clone(), phase }, times))
        });
        times(&mut encoder, "cold_start_phase", "What cold starts consist of.", phases)?;
        for (name, help, unit, pick) in [
            ("cold_start_read_chunks", "Chunks that cold starts read.", None, 0),
            ("cold_start_read", "Stored bytes of the chunks that cold starts read.", Some(&Unit::Bytes), 1),
        ] {
            let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
            for (tenant, measures) in &self.tenants {
                for (tier, (chunks, bytes)) in TIERS.iter().zip(&measures.reads) {
                    let labels = TierLabels { tenant: tenant.clone(), tier };
                    ConstCounter::new(if pick == 0 { *chunks } else { *bytes })
                        .encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let mut family =
            encoder.encode_descriptor("tenants_invocations", "Invocations, by tenant.", None, MetricType::Counter)?;
        for (tenant, measures) in &self.tenants {
            let labels = TenantLabels { tenant: tenant.clone() };
            ConstCounter::new(measures.invocations).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
