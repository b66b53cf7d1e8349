#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
use proptest::prelude::*;

use super::*;

fn ranges() -> impl Strategy<Value = Range<u64>> {
    (0_u64..1 << 40, 1_u64..1 << 30).prop_map(|(start, length)| start..start + length)
}

fn logs() -> impl Strategy<Value = StartLog> {
    let files = (any::<u32>(), ranges()).prop_map(|(inode, range)| FileRead { inode, range });
    (
        proptest::collection::vec(any::<u64>(), 0..20),
        proptest::collection::vec(ranges(), 0..20),
        proptest::collection::vec(files, 0..20),
    )
        .prop_map(|(chunks, device, files)| StartLog { chunks, device, files })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(log in logs()) {
        prop_assert_eq!(StartLog::decode(&log.encode()), Some(log));
    }

    #[test]
    fn anything_else_is_none_or_a_log(text in "(snowmelt start log 1\n)?((chunk|device|file|x)( [0-9]{0,21}){0,4}\n){0,5}") {
        if let Some(log) = StartLog::decode(&text) {
            prop_assert_eq!(StartLog::decode(&log.encode()), Some(log));
        }
    }

    #[test]
    fn a_start_has_all_in_common_with_itself(log in logs()) {
        prop_assert!(log.files.iter().all(|read| log.common(&log).files.contains(read)));
        prop_assert_eq!(log.common(&log).chunks, log.chunks.clone());
        prop_assert!(log.common(&StartLog::default()).is_empty());
    }
}

#[test]
fn what_starts_have_in_common() {
    let file = |inode, range| FileRead { inode, range };
    let one =
        StartLog { chunks: vec![3, 1, 2], device: vec![0..10, 20..30], files: vec![file(5, 0..100), file(6, 0..5)] };
    let other = StartLog { chunks: vec![1, 3], device: vec![5..25], files: vec![file(5, 50..200), file(7, 0..5)] };
    let common = StartLog { chunks: vec![3, 1], device: vec![5..10, 20..25], files: vec![file(5, 50..100)] };
    assert_eq!(one.common(&other), common);
}

#[test]
fn reads_become_pages() {
    assert_eq!(in_pages(vec![100..200, 4096..8192, 0..1]), [0..8192, 0..4096]);
    assert_eq!(joined(vec![40..50, 0..10, 12..20, 5..8], 3), [0..20, 40..50]);
}

#[test]
fn numbers_that_no_file_has_are_no_log() {
    for line in ["device 9223372036854775807 1", "file 4294967296 0 1", "chunk -1", "file 1 0 0", "chunk 1 2", "chunk"]
    {
        assert_eq!(StartLog::decode(&format!("{HEADER}\n{line}\n")), None, "{line}");
    }
    assert_eq!(StartLog::decode(""), None);
    assert_eq!(StartLog::decode("chunk 1\n"), None);
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
