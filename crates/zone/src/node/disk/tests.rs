#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::shard::checksum;

const MIB: u64 = 1 << 20;

fn shard(number: u64, bytes: usize) -> (ShardKey, Shard) {
    let key =
        ShardKey { chunk: ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes()), code: Code::default(), index: 1 };
    let chunk_bytes = (bytes * 4) as u32;
    let bytes: Vec<u8> = (0..bytes).map(|at| (at as u64 * 31 + number * 7) as u8).collect();
    let checksum = checksum(&key, chunk_bytes, &bytes);
    (key, Shard { chunk_bytes, checksum, bytes: Bytes::from(bytes) })
}

fn put(log: &DiskLog, number: u64) {
    let (key, shard) = shard(number, 100 << 10);
    log.put(&key, &shard).unwrap();
}

fn has(log: &DiskLog, number: u64) -> bool {
    let (key, expected) = shard(number, 100 << 10);
    let found = log.get(&key);
    assert!(found.as_ref().is_none_or(|found| *found == expected), "what is there is right");
    found.is_some()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    numbered(&folder.join("segments")).unwrap().into_iter().map(|(_, path)| path).collect()
}

#[test]
fn what_was_put_is_there_after_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let log = DiskLog::open(folder.path(), 64 * MIB).unwrap();
    (0..50).for_each(|number| put(&log, number));
    assert!((0..50).all(|number| has(&log, number)));
    drop(log);
    let log = DiskLog::open(folder.path(), 64 * MIB).unwrap();
    assert!((0..50).all(|number| has(&log, number)));
    assert!(!has(&log, 50));
    put(&log, 50);
    assert!(has(&log, 50) && has(&log, 49));
}

#[test]
fn the_budget_holds_and_the_oldest_goes_unless_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let log = DiskLog::open(folder.path(), 8 * MIB).unwrap();
    for number in 0..500 {
        put(&log, number);
        // One is asked for all the time.
        assert!(has(&log, 0), "after {number}");
        let files: u64 = segments(folder.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(files <= 8 * MIB && log.usage().1 <= 8 * MIB, "{files} bytes after {number}");
    }
    assert!(!has(&log, 1), "what nobody asked for is gone");
    assert!((450..500).all(|number| has(&log, number)), "what is new is there");
}

#[test]
fn a_smaller_budget_is_kept_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let log = DiskLog::open(folder.path(), 16 * MIB).unwrap();
    (0..140).for_each(|number| put(&log, number));
    drop(log);
    let log = DiskLog::open(folder.path(), 4 * MIB).unwrap();
    assert!(log.usage().1 <= 4 * MIB);
    assert!(has(&log, 139));
}

#[test]
fn one_folder_has_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let _log = DiskLog::open(folder.path(), MIB).unwrap();
    let error = DiskLog::open(folder.path(), MIB).unwrap_err().to_string();
    assert!(error.contains("another cache node uses this folder"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a crash or a disk does to the files: what is served is right, and the log goes on.
    #[test]
    fn damage_is_a_miss(
        cut in prop::option::of(any::<prop::sample::Index>()),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        zeros in prop::option::of((any::<prop::sample::Index>(), 0..5000_usize)),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let log = DiskLog::open(folder.path(), 64 * MIB).unwrap();
        (0..25).for_each(|number| put(&log, number));
        drop(log);
        for path in segments(folder.path()) {
            let mut bytes = fs::read(&path).unwrap();
            for flip in &flips {
                let at = flip.index(bytes.len());
                bytes[at] ^= 1 << (at % 8);
            }
            if let Some((at, count)) = &zeros {
                let at = at.index(bytes.len());
                let end = (at + count).min(bytes.len());
                bytes[at..end].fill(0);
            }
            if let Some(cut) = &cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            fs::write(&path, bytes).unwrap();
        }
        let log = DiskLog::open(folder.path(), 64 * MIB).unwrap();
        for number in 0..25 {
            // Asked twice: what was damaged is gone the second time, and can be put again.
            let first = has(&log, number);
            prop_assert_eq!(first, has(&log, number));
            put(&log, number);
            prop_assert!(has(&log, number));
        }
    }

    #[test]
    fn any_bytes_are_a_header_or_none(bytes in any::<[u8; 28]>(), more in any::<[u8; 28]>()) {
        let mut header = [0; HEADER_BYTES];
        header[..28].copy_from_slice(&bytes);
        header[28..].copy_from_slice(&more);
        prop_assert!(decode_header(&header).is_none());
        // With a right checksum its fields still may be anything.
        header[..8].copy_from_slice(MAGIC);
        let own = crc32c::crc32c(&header[..52]);
        header[52..].copy_from_slice(&own.to_le_bytes());
        if let Some((key, _, _)) = decode_header(&header) {
            prop_assert!(usize::from(key.index) < key.code.shards());
        }
    }
}
