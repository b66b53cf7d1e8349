//! Times, counted by how long they are: buckets that are the same for everybody, so that histograms can be added up.

use std::time::Duration;

use serde_json::{Value, json};

/// Ten buckets in each decade, from 10 us to 1,000 s.
const STEPS: [u64; 10] = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80];
const DECADES: usize = 8;
/// One for each bound, and one for what is longer.
const BUCKETS: usize = STEPS.len() * DECADES + 1;

/// The upper bound of a bucket, in microseconds; `None` for the last.
fn bound_us(bucket: usize) -> Option<u64> {
    (bucket + 1 < BUCKETS).then(|| STEPS[bucket % STEPS.len()] * 10_u64.pow((bucket / STEPS.len()) as u32))
}

/// How many times were how long.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    /// Empty until there is a time.
    counts: Vec<u64>,
    sum_us: u64,
}

impl Histogram {
    /// Counts a time. What takes exactly a bound's time belongs to that bound.
    pub(crate) fn add(&mut self, time: Duration) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        let us = u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS).find(|bucket| bound_us(*bucket).is_none_or(|bound| us <= bound));
        if let Some(count) = bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            *count += 1;
        }
        self.sum_us = self.sum_us.saturating_add(us);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
        } else {
            self.counts.iter_mut().zip(&other.counts).for_each(|(count, more)| *count += more);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All times together, in seconds.
    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// What this share of the times was not longer than, in microseconds: between the bounds of its bucket as far as the share is. `None`
    /// where there is no time.
    pub(crate) fn quantile_us(&self, share: f64) -> Option<u64> {
        let count = self.count();
        if count == 1 {
            return Some(self.sum_us);
        }
        let wanted = (count as f64 * share).ceil().max(1.0);
        let mut before = 0;
        for (bucket, here) in self.counts.iter().enumerate().filter(|(_, here)| **here > 0) {
            if (before + here) as f64 >= wanted {
                let low = bucket.checked_sub(1).and_then(bound_us).unwrap_or(0);
                let high = bound_us(bucket).unwrap_or(low);
                let within = (wanted - before as f64) / *here as f64;
                return Some(low + ((high - low) as f64 * within) as u64);
            }
            before += here;
        }
        None
    }

    /// As clients see it: times in microseconds, and of the buckets those that have any, by their upper bounds. The last has none.
    pub(crate) fn show(&self) -> Value {
        let buckets = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        let buckets: Vec<Value> = buckets.map(|(bucket, count)| json!([bound_us(bucket), count])).collect();
        json!({
            "count": self.count(),
            "sum_us": self.sum_us,
            "p50_us": self.quantile_us(0.5),
            "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99),
            "buckets": buckets,
        })
    }

    /// For Prometheus: bounds in seconds, 1, 2 and 5 of each decade, each with the times since the one before.
    pub(crate) fn coarse(&self) -> Vec<(f64, u64)> {
        let mut coarse = Vec::new();
        let mut since = 0;
        for bucket in 0..BUCKETS {
            since += self.counts.get(bucket).copied().unwrap_or(0);
            match bound_us(bucket) {
                Some(bound) if matches!(STEPS[bucket % STEPS.len()], 10 | 20 | 50) => {
                    coarse.push((bound as f64 / 1e6, std::mem::take(&mut since)));
                }
                Some(_) => {}
                None => coarse.push((f64::INFINITY, since)),
            }
        }
        coarse
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bounds_rise_and_every_time_has_one_bucket() {
        let bounds: Vec<u64> = (0..BUCKETS - 1).map(|bucket| bound_us(bucket).unwrap()).collect();
        assert!(bounds.is_sorted() && bounds.first() == Some(&10) && bounds.last() == Some(&800_000_000));
        for us in [0, 1, 10, 11, 999, 1000, 1001, 123_456, 900_000_000, u64::MAX / 1000] {
            let mut histogram = Histogram::default();
            histogram.add(Duration::from_micros(us));
            assert_eq!(histogram.count(), 1, "{us}");
            let at = histogram.counts.iter().position(|count| *count == 1).unwrap();
            assert!(
                bound_us(at).is_none_or(|bound| us <= bound) && (at == 0 || bound_us(at - 1).unwrap() < us),
                "{us}"
            );
        }
    }

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(0.5), None);
        (1..=1000).for_each(|ms| histogram.add(Duration::from_millis(ms)));
        for (share, truth) in [(0.0, 1000.0), (0.5, 500_000.0), (0.9, 900_000.0), (0.99, 990_000.0), (1.0, 1e6)] {
            let found = histogram.quantile_us(share).unwrap() as f64;
            assert!((found / truth - 1.0).abs() < 0.25, "{share}: {found}");
        }
        let one = {
            let mut one = Histogram::default();
            one.add(Duration::from_millis(7));
            one
        };
        assert_eq!(one.quantile_us(0.5), Some(7000));
    }

    #[test]
    fn what_is_added_up_is_as_if_it_had_been_counted_together() {
        let (mut one, mut two, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for ms in 0..50 {
            one.add(Duration::from_millis(ms));
            two.add(Duration::from_millis(ms * 7));
            both.add(Duration::from_millis(ms));
            both.add(Duration::from_millis(ms * 7));
        }
        let mut sum = Histogram::default();
        sum.merge(&one);
        sum.merge(&two);
        assert_eq!(sum.show(), both.show());
        assert_eq!(sum.coarse().iter().map(|(_, count)| count).sum::<u64>(), 100);
        assert_eq!(sum.coarse().len(), 3 * DECADES + 1);
    }
}
