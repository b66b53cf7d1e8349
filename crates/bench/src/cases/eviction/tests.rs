#![allow(clippy::unwrap_used)]
use super::trace::Asker;
use super::*;

fn workload() -> Workload {
    Workload { images: 100, crons: 50, period: 100, starts: 400, ..Workload::default() }
}

#[test]
fn a_day_is_the_same_each_time_and_another_with_another_seed() {
    let trace = workload().trace();
    assert_eq!(trace, workload().trace());
    assert_ne!(trace, Workload { seed: 2, ..workload() }.trace());
}

#[test]
fn cron_functions_ask_for_more_than_a_small_cache_has_and_hot_chunks_are_asked_for_most() {
    let day = Day::new(&workload());
    let crons = day.trace.requests.iter().filter(|request| request.by == Asker::Cron).count();
    assert!(crons > 4 * 50 * 60, "{crons}");
    let is_hot = |request: &&trace::Request| day.is_hot[request.chunk as usize] && request.by != Asker::Cron;
    let hot = day.trace.requests.iter().filter(is_hot).count();
    assert!(hot > (day.trace.requests.len() - crons) / 4, "{hot}");
    let hot_bytes: u64 =
        day.trace.chunk_bytes.iter().zip(&day.is_hot).filter(|(_, hot)| **hot).map(|(bytes, _)| bytes).sum();
    assert!(hot_bytes <= day.working_set_bytes * HOT / 100);
}

#[test]
fn no_policy_does_better_than_knowing_the_future_or_worse_than_nothing() {
    let day = Day::new(&workload());
    for size in [0, 2, 10, 1000] {
        let outcomes = day.outcomes(size);
        let best = outcomes.last().unwrap().hits.all;
        for (name, outcome) in NAMES.iter().zip(&outcomes) {
            let hits = outcome.hits.all;
            // Sizes differ, so that MIN is not quite the optimum.
            assert!(hits.percent() <= best.percent() + 0.1, "{name} at {size} %: {hits:?} of {best:?}");
            match size {
                0 => assert!(hits.percent() <= 0.0, "{name}"),
                1000 => assert_eq!(hits, best, "{name}"),
                _ => assert!(hits.percent() > best.percent() / 4.0, "{name} at {size} %: {hits:?} of {best:?}"),
            }
        }
    }
}
