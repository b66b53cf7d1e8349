//! Entry points for fuzzers: bytes from outside in, no panic out.

use std::collections::HashSet;

use crate::StartLog;
use crate::start_log::HEADER;

/// What the kernel writes to whoever serves a file system.
pub fn fuzz_fuse_request(input: &[u8]) {
    crate::fuse::fuzz_request(input);
}

/// What is known of starts, from a store: up to a line of one `=` what was known, after it what a start read. They are merged, again and
/// again, as starts do.
pub fn fuzz_start_log(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = StartLog::decode(&text);
    // The first line is hard to come by.
    let log = |lines: &str| StartLog::decode(&format!("{HEADER}\n{lines}"));
    let (known, start) = text.split_once("=\n").unwrap_or((&text, ""));
    let (Some(known), Some(start)) = (log(known), log(start)) else { return };
    check(&known);
    check(&start);
    check(&known.common(&start));
    let mut merged = known;
    for _ in 0..4 {
        let examined = merged.examined();
        let replayed: HashSet<u64> = merged.indices().filter(|index| !examined.contains(index)).collect();
        check(&merged.without_pages_of(&examined));
        merged = merged.merged(&start, &replayed);
        check(&merged);
    }
}

/// What is written is read as it was, and a log can be replayed.
fn check(log: &StartLog) {
    assert_eq!(StartLog::decode(&log.encode()).as_ref(), Some(log));
    log.fuzz_replay();
}
