//! Functions: what an invocation costs when a sandbox waits, when none does, and with many functions on one machine.

pub(crate) mod cold;
pub(crate) mod many;
pub(crate) mod warm;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::Bench;
use crate::report::seconds;

/// The layout of the images that functions are measured with.
fn layout(bench: &Bench) -> Result<PathBuf> {
    bench.images.function_layout(many::FUNCTIONS)
}

/// Microseconds up to ten minutes, to three digits.
fn latencies() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 600_000_000, 3)?)
}

fn record(histogram: &mut Histogram<u64>, took: Duration) -> Result<()> {
    Ok(histogram.record((took.as_micros() as u64).max(1))?)
}

fn quantile(histogram: &Histogram<u64>, share: f64) -> String {
    if histogram.is_empty() {
        return "-".into();
    }
    let value = histogram.value_at_quantile(share);
    // Of what takes a millisecond, its parts matter.
    match value {
        ..1000 => format!("{value} us"),
        1000..100_000 => format!("{:.2} ms", value as f64 / 1000.0),
        _ => seconds(value as f64 / 1e6),
    }
}
