#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
use proptest::prelude::*;

use super::merge::{FIRST_WEIGHT, GONE_AFTER, MOST_WEIGHT};
use super::*;

fn ranges() -> impl Strategy<Value = Range<u64>> {
    (0_u64..1 << 40, 1_u64..1 << 30).prop_map(|(start, length)| start..start + length)
}

fn chunks() -> impl Strategy<Value = LoggedChunk> {
    let files = (any::<u32>(), ranges()).prop_map(|(inode, range)| FileRead { inode, range });
    let ranges = proptest::collection::vec(ranges(), 0..5);
    (any::<u64>(), 1..=MOST_WEIGHT, ranges, proptest::collection::vec(files, 0..5))
        .prop_map(|(index, weight, metadata, files)| LoggedChunk { index, weight, metadata, files })
}

fn logs() -> impl Strategy<Value = StartLog> {
    let vain = (any::<u64>(), any::<u64>()).prop_map(|(index, start)| Vain { index, start });
    (any::<u64>(), proptest::collection::vec(chunks(), 0..20), proptest::collection::vec(vain, 0..20))
        .prop_map(|(starts, chunks, vain)| StartLog { starts, chunks, vain })
}

/// A start that needed these chunks.
fn start(chunks: &[u64]) -> StartLog {
    let chunks = chunks.iter().map(|index| LoggedChunk::new(*index)).collect();
    StartLog { starts: 1, chunks, vain: Vec::new() }
}

/// What is known after one more start that needed `needed`: pages that are replayed are read, whoever wants them.
fn after(log: &StartLog, needed: &[u64]) -> StartLog {
    let examined = log.examined();
    let replayed: HashSet<u64> = log.indices().filter(|index| !examined.contains(index)).collect();
    let mut read = needed.to_vec();
    read.extend(log.indices().filter(|index| replayed.contains(index) && !needed.contains(index)));
    log.merged(&start(&read), &replayed)
}

fn indices(log: &StartLog) -> Vec<u64> {
    log.indices().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(log in logs()) {
        prop_assert_eq!(StartLog::decode(&log.encode()), Some(log));
    }

    #[test]
    fn anything_else_is_none_or_a_log(
        text in "(snowmelt start log 2\n)?((starts|chunk|device|file|vain|x)( ([0-9]|[0-9]{0,21})){0,4}\n){0,6}",
    ) {
        if let Some(log) = StartLog::decode(&text) {
            prop_assert_eq!(StartLog::decode(&log.encode()), Some(log));
        }
    }

    #[test]
    fn a_start_has_all_in_common_with_itself(log in logs()) {
        let common = log.common(&log);
        prop_assert_eq!(indices(&common), indices(&log));
        prop_assert!(log.common(&StartLog::default()).is_empty());
    }

    #[test]
    fn whatever_is_merged_is_a_log(log in logs(), other in logs()) {
        let merged = log.merged(&other, &log.examined());
        prop_assert_eq!(StartLog::decode(&merged.encode()), Some(merged));
    }

    /// Starts that need some chunks always and others by chance, with any chance.
    #[test]
    fn what_all_starts_need_stays_and_what_none_needs_goes(
        always in proptest::collection::btree_set(0_u64..60, 1..20),
        sometimes in proptest::collection::vec(proptest::collection::vec(60_u64..120, 0..12), 1..40),
    ) {
        let always: Vec<u64> = always.into_iter().collect();
        let mut log = StartLog::default();
        for more in &sometimes {
            log = after(&log, &[&always[..], more].concat());
            prop_assert!(always.iter().all(|chunk| log.indices().any(|index| index == *chunk)));
        }
        for _ in 0..GONE_AFTER {
            log = after(&log, &always);
        }
        // In their order as well.
        prop_assert_eq!(indices(&log), always);
    }

    /// What all starts need in one order stays in it, wherever else they differ.
    #[test]
    fn the_order_is_stable(
        order in Just((0_u64..20).collect::<Vec<_>>()).prop_shuffle(),
        others in proptest::collection::vec(proptest::collection::vec((0_usize..20, 20_u64..60), 0..10), 1..20),
    ) {
        let mut log = StartLog::default();
        for others in others {
            let mut needed = order.clone();
            for (at, chunk) in others {
                if !needed.contains(&chunk) {
                    needed.insert(at, chunk);
                }
            }
            log = after(&log, &needed);
            let kept: Vec<u64> = log.indices().filter(|index| *index < 20).collect();
            prop_assert_eq!(&kept, &order);
        }
    }
}

#[test]
fn a_chunk_that_one_of_many_starts_needed_fades_out() {
    // A later start's is gone with the next one.
    let mut log = after(&start(&[1, 2, 3]), &[1, 7, 2, 3]);
    assert_eq!(indices(&log), [1, 7, 2, 3]);
    assert!(log.examined().contains(&7), "it is not replayed before it was needed twice");
    log = after(&log, &[1, 2, 3]);
    assert_eq!(indices(&log), [1, 2, 3]);
    // One that was needed for long takes as long as is promised, and no longer.
    for _ in 0..100 {
        log = after(&log, &[1, 2, 3]);
    }
    assert!(log.chunks.iter().all(|chunk| chunk.weight == MOST_WEIGHT));
    let mut starts = 0;
    while log.indices().any(|index| index == 2) {
        log = after(&log, &[1, 3]);
        starts += 1;
    }
    assert!((GONE_AFTER / 2..=GONE_AFTER).contains(&starts), "{starts}");
    assert_eq!(indices(&log), [1, 3]);
}

#[test]
fn new_chunks_come_after_those_that_they_followed() {
    let log = start(&[5, 1, 9]);
    let merged = log.merged(&start(&[7, 9, 8, 5, 6]), &HashSet::from([1]));
    assert_eq!(indices(&merged), [7, 5, 6, 1, 9, 8]);
    let weights: Vec<u8> = merged.chunks.iter().map(|chunk| chunk.weight).collect();
    assert_eq!(weights, [1, 3, 1, FIRST_WEIGHT, 3, 1]);
    assert!(log.merged(&start(&[9, 5, 1]), &HashSet::new()).has_chunks_of(&log));
    assert!(!merged.has_chunks_of(&log));
}

#[test]
fn what_is_read_of_a_chunk_is_known_anew_when_it_is_not_replayed() {
    let read = |start| LoggedChunk {
        metadata: vec![start..start + 8],
        files: vec![FileRead { inode: 5, range: start..start + 8 }],
        ..LoggedChunk::new(1)
    };
    let log = |start| StartLog { starts: 3, chunks: vec![read(start)], vain: Vec::new() };
    let replayed = log(0).merged(&log(4), &HashSet::from([1]));
    assert_eq!(replayed.chunks[0].metadata, [0..12]);
    let files: Vec<_> = replayed.chunks[0].files.iter().map(|read| read.range.clone()).collect();
    assert_eq!(files, [0..8, 8..12]);
    assert_eq!(replayed.file_reads(), [FileRead { inode: 5, range: 0..12 }]);
    let examined = log(0).merged(&log(4), &HashSet::new());
    assert_eq!(examined.chunks[0].files, log(4).chunks[0].files);
}

#[test]
fn what_was_in_vain_is_known_for_a_while() {
    let vain = |chunk| StartLog { vain: vec![Vain { index: chunk, start: 1 }], ..start(&[1]) };
    let mut log = after(&start(&[1]), &[1]);
    log = log.merged(&vain(8), &HashSet::new()).merged(&vain(9), &HashSet::new());
    assert_eq!(log.vain, [Vain { index: 8, start: 3 }, Vain { index: 9, start: 4 }]);
    // Needed after all.
    log = log.merged(&start(&[1, 8]), &HashSet::new());
    assert_eq!(log.vain, [Vain { index: 9, start: 4 }]);
    for _ in 0..16 {
        log = after(&log, &[1]);
    }
    assert_eq!(log.vain, []);
}

#[test]
fn what_starts_have_in_common() {
    let file = |inode, range| FileRead { inode, range };
    let chunk = |index, metadata: &[Range<u64>], files: &[FileRead]| LoggedChunk {
        metadata: metadata.to_vec(),
        files: files.to_vec(),
        ..LoggedChunk::new(index)
    };
    let log = |chunks: &[LoggedChunk]| StartLog { starts: 1, chunks: chunks.to_vec(), vain: Vec::new() };
    let one = log(&[
        chunk(3, &[0..10, 20..30], &[]),
        chunk(1, &[], &[file(5, 0..100), file(6, 0..5)]),
        chunk(2, &[40..50], &[]),
    ]);
    let other = log(&[chunk(1, &[], &[file(5, 50..200), file(7, 0..5)]), chunk(3, &[5..25], &[])]);
    let common = log(&[chunk(3, &[5..10, 20..25], &[]), chunk(1, &[], &[file(5, 50..100)])]);
    assert_eq!(one.common(&other), common);
}

#[test]
fn reads_become_pages_of_chunks() {
    assert_eq!(in_pages(vec![100..200, 4096..8192, 0..1]), [0..8192, 0..4096]);
    assert_eq!(joined(vec![40..50, 0..10, 12..20, 5..8], 3), [0..20, 40..50]);
    assert_eq!(within_chunks(vec![5..25, 0..10, 12..13], 10), [5..10, 10..20, 20..25, 0..10, 12..13]);
}

#[test]
fn numbers_that_no_file_has_are_no_log() {
    for line in [
        "device 9223372036854775807 1",
        "file 4294967296 0 1",
        "chunk -1 1",
        "chunk 1 0",
        "chunk 1 5",
        "chunk 1",
        "file 1 0 0",
        "chunk 1 2 3",
        "vain 1",
        "chunk",
        "starts 1",
    ] {
        assert_eq!(StartLog::decode(&format!("{HEADER}\nstarts 1\nchunk 0 1\n{line}\n")), None, "{line}");
    }
    assert_eq!(StartLog::decode(""), None);
    assert_eq!(StartLog::decode("chunk 1 1\n"), None);
    assert_eq!(StartLog::decode(&format!("{HEADER}\ndevice 0 1\n")), None, "of no chunk");
    assert_eq!(StartLog::decode(&format!("{HEADER}\n")), Some(StartLog::default()));
}

/// A log that asks for terabytes of a sparse file once would have filled memory.
#[test]
fn no_log_has_more_read_ahead_than_is_allowed() {
    let mut left = 10;
    assert_eq!(take(&(5..9), &mut left).map(NonZeroU64::get), Some(4));
    assert_eq!(take(&(0..1 << 44), &mut left).map(NonZeroU64::get), Some(6));
    // Not a length of 0, which means to the end of the file.
    assert_eq!((take(&(0..1 << 44), &mut left), left), (None, 0));
}

/// An agent that is not what it should be, or whoever writes to the store, may send logs that are as bad as they can be.
#[test]
fn hostile_logs_are_merged_in_no_more_room_than_they_take() {
    let lines = |chunks: u64, each: u64, line: &dyn Fn(u64) -> String| {
        let mut text = format!("{HEADER}\nstarts 3\n");
        for chunk in 0..chunks {
            text.extend([format!("chunk {chunk} 2\n")].into_iter().chain((0..each).map(line)));
        }
        StartLog::decode(&text).unwrap()
    };
    let reads = |log: &StartLog| log.chunks.iter().map(|chunk| chunk.files.len() + chunk.metadata.len()).sum::<usize>();
    // All of a file again and again, and every second page of it.
    let whole = |kind: &'static str| move |_: u64| format!("{kind} 0 1000000000\n");
    let pieces = |kind: &'static str| move |at: u64| format!("{kind} {} 4096\n", at * 8192);
    for kind in ["device", "file 7"] {
        for (chunks, each) in [(1, 90_000), (300, 300)] {
            let (whole, pieces) = (lines(chunks, each, &whole(kind)), lines(chunks, each, &pieces(kind)));
            for (known, start) in [(&whole, &pieces), (&pieces, &whole)] {
                let most = 2 * (reads(known) + reads(start));
                assert!(reads(&known.common(start)) <= most);
                assert!(reads(&known.merged(start, &HashSet::new())) <= most);
                assert!(reads(&known.merged(start, &known.indices().collect())) <= most);
            }
        }
    }
    let twice = format!("{HEADER}\nstarts 3\nchunk 1 2\nchunk 1 2\n");
    assert_eq!(StartLog::decode(&twice), None);
}
