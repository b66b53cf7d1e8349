//! Counts hits: of whom, when, and of what.

use super::trace::{Asker, Trace, When};

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    requests: u64,
    hits: u64,
    bytes: u64,
    hit_bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64, is_hit: bool) {
        self.requests += 1;
        self.bytes += bytes;
        if is_hit {
            self.hits += 1;
            self.hit_bytes += bytes;
        }
    }

    /// Hits in percent; 0 of nothing.
    pub(super) fn percent(self) -> f64 {
        100.0 * self.hits as f64 / self.requests.max(1) as f64
    }

    /// The same by stored bytes.
    pub(super) fn bytes_percent(self) -> f64 {
        100.0 * self.hit_bytes as f64 / self.bytes.max(1) as f64
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hits {
    pub(super) all: Count,
    pub(super) interactive: Count,
    pub(super) cron: Count,
    /// While cron functions start, and soon after.
    during: Count,
    after: Count,
    /// Interactive requests for the hot set, by when.
    pub(super) hot_during: Count,
    pub(super) hot_after: Count,
    pub(super) hot_quiet: Count,
}

impl Hits {
    /// Of all requests but the first tenth, before which the cache is empty.
    pub(super) fn new(trace: &Trace, hits: &[bool], is_hot: &[bool]) -> Self {
        let mut all = Self::default();
        let counted_from = hits.len() / 10;
        for (request, is_hit) in trace.requests.iter().zip(hits).skip(counted_from) {
            let chunk = request.chunk as usize;
            let bytes = trace.chunk_bytes[chunk];
            all.all.add(bytes, *is_hit);
            let Asker::Interactive(when) = request.by else {
                all.cron.add(bytes, *is_hit);
                continue;
            };
            all.interactive.add(bytes, *is_hit);
            match when {
                When::During => all.during.add(bytes, *is_hit),
                When::After => all.after.add(bytes, *is_hit),
                When::Quiet => {}
            }
            if is_hot[chunk] {
                let hot = match when {
                    When::During => &mut all.hot_during,
                    When::After => &mut all.hot_after,
                    When::Quiet => &mut all.hot_quiet,
                };
                hot.add(bytes, *is_hit);
            }
        }
        all
    }

    /// Interactive requests that feel the cron functions.
    pub(super) fn disturbed(&self) -> Count {
        let (one, other) = (self.during, self.after);
        Count {
            requests: one.requests + other.requests,
            hits: one.hits + other.hits,
            bytes: one.bytes + other.bytes,
            hit_bytes: one.hit_bytes + other.hit_bytes,
        }
    }
}

/// How often interactive starts ask for each chunk.
fn popularity(trace: &Trace) -> Vec<u32> {
    let mut requests = vec![0; trace.chunk_bytes.len()];
    for request in trace.requests.iter().filter(|request| request.by != Asker::Cron) {
        requests[request.chunk as usize] += 1;
    }
    requests
}

/// Stored bytes of all chunks that interactive starts ask for.
pub(super) fn working_set_bytes(trace: &Trace) -> u64 {
    let popularity = popularity(trace);
    trace.chunk_bytes.iter().zip(popularity).filter(|(_, requests)| *requests > 0).map(|(bytes, _)| bytes).sum()
}

/// Whether each chunk is one of those that interactive starts ask for most often, together at most so many bytes.
pub(super) fn hot_set(trace: &Trace, bytes: u64) -> Vec<bool> {
    let popularity = popularity(trace);
    let mut order: Vec<usize> = (0..popularity.len()).collect();
    order.sort_by_key(|chunk| std::cmp::Reverse(popularity[*chunk]));
    let mut is_hot = vec![false; popularity.len()];
    let mut used_bytes = 0;
    for chunk in order {
        used_bytes += trace.chunk_bytes[chunk];
        if used_bytes > bytes {
            break;
        }
        is_hot[chunk] = true;
    }
    is_hot
}
