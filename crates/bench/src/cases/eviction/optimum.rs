//! The limit: what a cache could keep that knew the future.

use std::collections::BTreeSet;

use super::trace::Trace;

/// When each request's chunk is asked for again, as a request's number; `usize::MAX` is never.
fn next_requests(trace: &Trace) -> Vec<usize> {
    let mut next_of_chunk = vec![usize::MAX; trace.chunk_bytes.len()];
    let mut next = vec![usize::MAX; trace.requests.len()];
    for (at, request) in trace.requests.iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut next_of_chunk[request.chunk as usize], at);
    }
    next
}

/// Belady's MIN: what is asked for again the latest goes first, and what just came may. Whether each request is a hit. It is the
/// optimum where all chunks have one size; as sizes differ here, by a factor of little consequence, it is close to it.
pub(super) fn hits(trace: &Trace, budget_bytes: u64) -> Vec<bool> {
    let next = next_requests(trace);
    // By the next request for them, which is a number of its own.
    let mut kept: BTreeSet<(usize, u32)> = BTreeSet::new();
    let mut used_bytes = 0;
    let mut hits = vec![false; trace.requests.len()];
    for (at, request) in trace.requests.iter().enumerate() {
        let bytes = trace.chunk_bytes[request.chunk as usize];
        // Kept under this request's number, if at all.
        hits[at] = kept.remove(&(at, request.chunk));
        if !hits[at] {
            used_bytes += bytes;
        }
        kept.insert((next[at], request.chunk));
        while used_bytes > budget_bytes {
            let Some((_, victim)) = kept.pop_last() else { break };
            used_bytes -= trace.chunk_bytes[victim as usize];
        }
    }
    hits
}
