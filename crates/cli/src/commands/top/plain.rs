//! All figures once, as plain text.

use std::fmt::Write as _;

use super::figures::{Figures, PHASES, TIERS, Times, shown};
use crate::output;
use crate::units::Size;

pub(super) fn text(endpoint: &str, figures: &Figures) -> String {
    let [starting, busy, idle] = figures.sandboxes();
    let totals = &figures.totals;
    let [containers, agents, hosts] = figures.memory.map(Size);
    let whose = figures.tenant.as_ref().map_or_else(|| "all tenants".to_owned(), |tenant| format!("tenant {tenant}"));
    let mut text = output::pairs(&[
        ("Service", format!("{endpoint}, {whose}, up {}", figures.up())),
        ("Functions", figures.functions.len().to_string()),
        ("Sandboxes", format!("{busy} busy, {idle} idle, {starting} starting")),
        (
            "Invocations",
            format!(
                "{}: {} cold, {} warm; {} failed, {} given up, {} turned away; {} running",
                totals.invocations,
                totals.cold,
                totals.warm,
                totals.errors,
                totals.faults,
                totals.throttles,
                totals.running
            ),
        ),
        ("Memory", format!("containers {containers}, agents {agents}, hosts {hosts}")),
        ("Cold starts read", reads(&totals.reads)),
    ]);
    let row = |name: &str, times: &Times| {
        vec![name.to_owned(), times.count.to_string(), shown(times.p50), shown(times.p90), shown(times.p99)]
    };
    let mut rows = vec![
        row("function's own", &totals.duration),
        row("warm overhead", &totals.overhead),
        row("cold start", &totals.cold_start),
    ];
    rows.extend(PHASES.iter().zip(&totals.phases).map(|((_, name), times)| row(&format!("  {name}"), times)));
    let _ = write!(text, "\n{}", output::table(&["TIME", "COUNT", "P50", "P90", "P99"], &[1, 2, 3, 4], rows));
    if !figures.functions.is_empty() {
        let header =
            ["FUNCTION", "STATE", "BUSY", "IDLE", "STARTING", "INVOCATIONS", "ERRORS", "COLD", "WARM", "P50", "P99"];
        let rows = figures.functions.iter().map(|function| {
            let measures = &function.measures;
            vec![
                named(figures, &function.tenant, &function.name),
                function.state.clone(),
                function.busy.to_string(),
                function.idle.to_string(),
                function.starting.to_string(),
                measures.invocations.to_string(),
                measures.errors.to_string(),
                measures.cold.to_string(),
                measures.warm.to_string(),
                shown(measures.duration.p50),
                shown(measures.duration.p99),
            ]
        });
        let _ = write!(text, "\n{}", output::table(&header, &[2, 3, 4, 5, 6, 7, 8, 9, 10], rows.collect()));
    }
    text
}

/// A function, with its tenant where there may be several.
pub(super) fn named(figures: &Figures, tenant: &str, name: &str) -> String {
    if figures.tenant.is_some() { name.to_owned() } else { format!("{tenant}/{name}") }
}

pub(super) fn reads(reads: &[(u64, u64)]) -> String {
    let tiers = TIERS.iter().zip(reads).filter(|(_, (chunks, _))| *chunks > 0);
    let shown: Vec<String> =
        tiers.map(|(tier, (chunks, bytes))| format!("{tier} {chunks} chunks, {}", Size(*bytes))).collect();
    if shown.is_empty() { "nothing".into() } else { shown.join("; ") }
}
