#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::{ChunkSecret, LocalKeys};

fn keys() -> (tempfile::TempDir, LocalKeys) {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    (folder, keys)
}

fn secret(number: u32) -> ChunkSecret {
    ChunkSecret { key: [number as u8; 32], tag: [number as u8 ^ 0xff; 16] }
}

fn record(slot: u32, pages: u32) -> ChunkRecord {
    ChunkRecord { slot, stored_length: pages * PAGE_SIZE, id: ChunkId([slot as u8; 32]) }
}

fn build(suite: Suite, slots: &[(u32, u32)], keys: &LocalKeys) -> Result<Manifest, Error> {
    let geometry = Geometry { image_size: 10 * (512 << 10) + 8192, chunk_size: 512 << 10 };
    let mut builder = ManifestBuilder::new(suite, geometry).unwrap();
    for &(slot, pages) in slots {
        builder.push(record(slot, pages), secret(slot));
    }
    builder.seal("default", "x:latest", b"{\"a\":1}", keys)
}

#[test]
fn a_manifest_reads_back() {
    let (_folder, keys) = keys();
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let sealed = build(suite, &[(10, 2), (0, 128), (3, 1)], &keys).unwrap();
        let manifest = Manifest::decode(sealed.as_bytes()).unwrap();
        assert_eq!(manifest, sealed);
        assert_eq!(manifest.records().collect::<Vec<_>>(), [record(0, 128), record(3, 1), record(10, 2)]);
        let opened = manifest.open(&keys, "x:latest").unwrap();
        assert_eq!(opened.metadata(), b"{\"a\":1}");
        assert!(opened.chunk(1).is_none());
        let (found, found_secret) = opened.chunk(3).unwrap();
        assert_eq!(*found, record(3, 1));
        assert_eq!(found_secret.key, secret(3).key);
        assert_eq!(found_secret.tag, if suite == Suite::Blake3Gcm { secret(3).tag } else { [0; 16] });
    }
}

#[test]
fn an_image_without_chunks_has_a_manifest() {
    let (_folder, keys) = keys();
    let manifest = build(Suite::Blake3Gcm, &[], &keys).unwrap();
    assert_eq!(manifest.chunk_count(), 0);
    assert!(manifest.open(&keys, "x:latest").unwrap().chunk(0).is_none());
}

#[test]
fn chunks_that_do_not_fit_the_image_are_refused() {
    let (_folder, keys) = keys();
    for slots in [&[(11, 1)][..], &[(10, 3)], &[(1, 0)], &[(1, 129)], &[(2, 1), (2, 1)], &[(u32::MAX, 1)]] {
        assert!(matches!(build(Suite::Blake3Gcm, slots, &keys), Err(Error::BadManifest(_))), "{slots:?}");
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let (_folder, keys) = keys();
    let manifest = build(Suite::Blake3Gcm, &[(0, 128), (3, 1)], &keys).unwrap();
    for at in 0..manifest.as_bytes().len() {
        let mut bytes = manifest.as_bytes().to_vec();
        bytes[at] ^= 0x41;
        let opened = Manifest::decode(&bytes).and_then(|manifest| manifest.open(&keys, "x:latest"));
        assert!(opened.is_err(), "byte {at}");
    }
}

#[test]
fn every_truncation_is_noticed() {
    let (_folder, keys) = keys();
    let manifest = build(Suite::Sha256Ctr, &[(0, 128)], &keys).unwrap();
    for length in 0..manifest.as_bytes().len() {
        assert!(Manifest::decode(&manifest.as_bytes()[..length]).is_err(), "{length}");
    }
    assert!(Manifest::decode(&[manifest.as_bytes(), b"0"].concat()).is_err());
}

#[test]
fn another_tenants_key_does_not_open_it() {
    let (_folder, ours) = keys();
    let (_other_folder, theirs) = keys();
    let manifest = build(Suite::Blake3Gcm, &[(0, 1)], &ours).unwrap();
    assert!(matches!(manifest.open(&theirs, "x:latest"), Err(Error::NoKey { .. })));
    theirs.generate_data_key(&KeyUse { tenant: "default", image: "x:latest" }).unwrap();
    assert!(matches!(manifest.open(&theirs, "x:latest"), Err(Error::NoKey { .. })));
}

#[test]
fn a_ten_gigabyte_image_has_a_manifest_of_two_megabytes() {
    let (_folder, keys) = keys();
    let geometry = Geometry { image_size: 10 << 30, chunk_size: DEFAULT_CHUNK_SIZE };
    let mut builder = ManifestBuilder::new(Suite::Blake3Gcm, geometry).unwrap();
    for slot in 0..geometry.slot_count() as u32 {
        builder.push(record(slot, 128), secret(slot));
    }
    let manifest = builder.seal("default", "x:latest", b"", &keys).unwrap();
    assert!(manifest.as_bytes().len() < 2_000_000, "{}", manifest.as_bytes().len());
}

#[test]
fn geometries_outside_of_the_limits_are_refused() {
    for (image_size, chunk_size) in [
        (4095, 4096),
        (0, 0),
        (0, 2048),
        (0, 12288),
        (0, 128 << 20),
        ((16 << 40) + 4096, 4096),
        (u64::MAX, 4096),
        (16 << 40, 4096),
    ] {
        assert!(
            ManifestBuilder::new(Suite::Blake3Gcm, Geometry { image_size, chunk_size }).is_err(),
            "{image_size} {chunk_size}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn hostile_bytes_give_errors(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzz::fuzz_manifest(&bytes);
        let mut framed = b"SNOWMELT\x01\x00\x02\x00".to_vec();
        framed.extend(bytes);
        crate::fuzz::fuzz_manifest(&framed);
    }

    #[test]
    fn a_damaged_manifest_gives_an_error_or_is_still_consistent(at: prop::sample::Index, value: u8, cut in 0usize..3) {
        let (_folder, keys) = keys();
        let manifest = build(Suite::Blake3Gcm, &[(0, 128), (3, 1), (10, 1)], &keys).unwrap();
        let mut bytes = manifest.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut);
        crate::fuzz::fuzz_manifest(&bytes);
    }
}

#[test]
fn a_manifest_is_sealed_again_with_the_same_chunks() {
    let (_folder, ours) = keys();
    let (_other_folder, theirs) = keys();
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let manifest = build(suite, &[(10, 2), (0, 128)], &ours).unwrap();
        let opened = manifest.open(&ours, "x:latest").unwrap();
        let again = opened.reseal(&KeyUse { tenant: "b", image: "y:1" }, b"{}", &theirs).unwrap();
        assert_ne!(again.id(), manifest.id());
        assert_eq!((again.tenant(), again.suite(), again.geometry()), ("b", suite, manifest.geometry()));
        assert!(matches!(again.open(&ours, "y:1"), Err(Error::NoKey { .. })));
        let opened_again = again.open(&theirs, "y:1").unwrap();
        assert_eq!(opened_again.metadata(), b"{}");
        assert_eq!(opened_again.records(), opened.records());
        for record in opened.records() {
            assert_eq!(opened_again.chunk(record.slot), opened.chunk(record.slot));
        }
        let same = opened.reseal(&KeyUse { tenant: "default", image: "x:latest" }, opened.metadata(), &ours).unwrap();
        assert_ne!(same.as_bytes(), manifest.as_bytes(), "the data key is fresh");
    }
}
