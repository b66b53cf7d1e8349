#![allow(clippy::unwrap_used)]
use bytes::Bytes;

use super::*;
use crate::Qualifier;
use crate::assignment::Counts;

fn key(function: &str) -> Key {
    Key { tenant: "t".into(), function: function.into(), number: "$LATEST".into(), revision: "r".into() }
}

fn answer(error: Option<&'static str>) -> Invoked {
    Invoked { id: "i".into(), number: Qualifier::Latest, body: Bytes::new(), error, tail: None }
}

/// One invocation on a sandbox.
fn run(board: &Board, sandbox: &str, was_waited_for: bool, error: Option<&'static str>) {
    let timing = board.begin("t", "f");
    timing.given(sandbox, was_waited_for);
    board.sandboxes.has_run(sandbox, Duration::from_millis(3));
    timing.answered();
    timing.end(&Ok(answer(error)));
}

#[test]
fn the_first_invocation_of_a_sandbox_that_was_waited_for_is_cold_and_no_other() {
    let board = Board::default();
    board.sandboxes.wished("one", &key("f"));
    board.sandboxes.came("one", None);
    run(&board, "one", true, None);
    run(&board, "one", false, None);
    // It waited for a sandbox that another was at.
    run(&board, "one", true, Some("Unhandled"));
    // One that was there already when it was first needed.
    board.sandboxes.wished("two", &key("f"));
    run(&board, "two", false, None);
    // One of a service before this.
    board.sandboxes.expected("three", &key("f"));
    run(&board, "three", true, None);
    let found = board.of_function("t", "f").unwrap();
    assert_eq!((found.invocations, found.cold, found.warm, found.errors, found.running), (5, 1, 4, 1, 0));
    assert_eq!((found.duration.count(), found.overhead.count(), found.cold_start.count()), (5, 4, 1));
    assert_eq!(found.show()["phases"]["first_byte"]["count"], 1);
}

#[test]
fn what_is_turned_away_is_no_invocation() {
    let board = Board::default();
    board.begin("t", "f").end(&Err(ApiError::throttled("ConcurrentInvocationLimitExceeded", 1)));
    board.begin("t", "f").end(&Err(ApiError::service("lost")));
    let found = board.of_function("t", "f").unwrap();
    assert_eq!((found.invocations, found.throttles, found.faults), (1, 1, 1));
    assert!(
        board.text(&|_| true, Vec::new()).contains("snowmelt_functions_throttles_total{tenant=\"t\",function=\"f\"} 1")
    );
}

#[test]
fn a_start_is_counted_once_however_often_it_is_told() {
    let board = Board::default();
    board.begin("t", "f").end(&Ok(answer(None)));
    board.sandboxes.wished("one", &key("f"));
    board.sandboxes.came("one", None);
    let loads = vec![TierLoads { tier: "disk".into(), chunks: 2, bytes: 3 }];
    let beginning = Beginning { mount_us: Some(10), start_us: None, init_us: Some(20), loads, ..Beginning::default() };
    board.began("one", &beginning);
    board.began("one", &beginning);
    board.sandboxes.expected("two", &key("f"));
    board.began("two", &beginning);
    board.began("nobody", &beginning);
    let shown = board.of_function("t", "f").unwrap().show();
    let counts = ["publish", "place", "mount", "start", "init"].map(|phase| shown["phases"][phase]["count"].clone());
    assert_eq!(json!(counts), json!([0, 1, 1, 0, 1]));
    assert_eq!(shown["reads"]["disk"], json!({ "chunks": 2, "bytes": 3 }));
}

#[test]
fn a_deleted_function_leaves_nothing_but_its_tenants_sum() {
    let board = Board::default();
    board.sandboxes.wished("one", &key("f"));
    run(&board, "one", true, None);
    let late = board.begin("t", "f");
    board.forget("t", "f");
    late.end(&Ok(answer(None)));
    board.sandboxes.ended("one");
    assert!(board.of_function("t", "f").is_none());
    let of_tenant = &board.by_tenant()[0].1;
    assert_eq!((of_tenant.invocations, of_tenant.running), (2, 0));
    // Begun in the moment that it was deleted.
    drop(board.begin("t", "f"));
    board.retain(|_, _| false);
    assert!(board.of_function("t", "f").is_none());
}

#[test]
fn tenants_are_told_apart_and_text_has_units_and_an_end() {
    let board = Board::default();
    board.sandboxes.wished("one", &key("f"));
    run(&board, "one", true, None);
    board.begin("other", "secret").end(&Ok(answer(None)));
    let counts = vec![("t".into(), "f".into(), Counts { idle: 1, ..Counts::default() })];
    let text = board.text(&|tenant| tenant == "t", counts);
    for line in [
        "# TYPE snowmelt_functions_duration_seconds histogram",
        "# UNIT snowmelt_functions_duration_seconds seconds",
        "snowmelt_functions_cold_starts_total{tenant=\"t\",function=\"f\"} 1",
        "snowmelt_functions_duration_seconds_bucket{le=\"0.005\",tenant=\"t\",function=\"f\"} 1",
        "snowmelt_functions_duration_seconds_bucket{le=\"0.002\",tenant=\"t\",function=\"f\"} 0",
        "snowmelt_functions_cold_start_phase_seconds_count{tenant=\"t\",phase=\"first_byte\"} 1",
        "snowmelt_functions_cold_start_read_bytes_total{tenant=\"t\",tier=\"origin\"} 0",
        "snowmelt_functions_sandboxes{tenant=\"t\",function=\"f\",state=\"idle\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("secret"));
}
