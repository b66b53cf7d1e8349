//! What every key service does alike, each against a real server, and what each says to those who may not use it.
//!
//! The servers are those of `scripts/test-servers run -- COMMAND`.

#![allow(clippy::unwrap_used, missing_docs)]

mod canned;
#[path = "../../../chunk/tests/support/captured_log.rs"]
mod captured_log;
mod kms;
mod logs;
mod servers;
mod vault;

use std::time::{Duration, Instant};

use snowmelt_chunk::{ChunkId, ChunkRecord, ChunkSecret, Error, Geometry, KeyRing, KeyService, KeyUse, LocalKeys};
use snowmelt_chunk::{ManifestBuilder, Suite, WrappedKey};
use snowmelt_keys::{Options, Service, open};

const USE: KeyUse<'_> = KeyUse { tenant: "a", image: "app/web:v1" };

/// Enough for any server here, and little to wait for.
fn options() -> Options {
    Options { allow_http: true, ..Options::default() }
}

/// Whether a service does what each of them does. `binds_image` is false for the one that binds to the tenant alone.
fn check_service(service: &dyn KeyService, binds_image: bool) {
    let (key, wrapped) = service.generate_data_key(&USE).unwrap();
    let (other_key, other) = service.generate_data_key(&USE).unwrap();
    assert_ne!(key.expose(), other_key.expose(), "each manifest has a key of its own");
    assert_eq!(service.unwrap_data_key(&USE, &wrapped).unwrap().expose(), key.expose());
    assert_eq!(service.unwrap_data_key(&USE, &other).unwrap().expose(), other_key.expose());
    assert!(service.owns(&wrapped.key_id), "{}", wrapped.key_id);
    assert!(!wrapped.bytes.windows(32).any(|bytes| bytes == key.expose()), "it is wrapped");

    let other_tenant = KeyUse { tenant: "b", ..USE };
    let refused = service.unwrap_data_key(&other_tenant, &wrapped).unwrap_err();
    assert!(matches!(refused, Error::Unauthentic { .. } | Error::NoKey { .. }), "{refused}");
    if binds_image {
        for image in ["app/web:v2", "app/other:v1", ""] {
            let refused = service.unwrap_data_key(&KeyUse { image, ..USE }, &wrapped).unwrap_err();
            assert!(matches!(refused, Error::Unauthentic { .. }), "{refused}");
        }
    }
    for bytes in hostile(&wrapped.bytes) {
        let damaged = WrappedKey { bytes, ..wrapped.clone() };
        let refused = service.unwrap_data_key(&USE, &damaged).unwrap_err();
        assert!(matches!(refused, Error::Unauthentic { .. }), "{refused}: {damaged:?}");
    }
}

/// Bytes that are no wrapped key, made of one.
fn hostile(wrapped: &[u8]) -> Vec<Vec<u8>> {
    let mut all =
        vec![vec![], vec![0], vec![0; 60], b"vault:v1:".to_vec(), b"vault:v1:AAAA\"".to_vec(), vec![0xff; 65_535]];
    all.push(wrapped[..wrapped.len() / 2].to_vec());
    let mut changed = wrapped.to_vec();
    let middle = changed.len() / 2;
    // Another digit of base64, too, where it is text.
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    all.push(changed);
    all
}

/// Fails with something that later may work, and soon.
fn check_unreachable(service: &dyn KeyService) {
    let started = Instant::now();
    let refused = service.generate_data_key(&USE).unwrap_err();
    assert!(refused.is_unavailable(), "{refused}");
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "bounded: {took:?}");
}

#[test]
fn files_are_a_key_service() {
    let folder = tempfile::tempdir().unwrap();
    check_service(&LocalKeys::new(folder.path()), false);
}

fn ring(current: &str, previous: &[&str], tenant: &str, folder: &tempfile::TempDir) -> KeyRing {
    let previous: Vec<Service> = previous.iter().map(|text| text.parse().unwrap()).collect();
    open(&current.parse().unwrap(), &previous, tenant, folder.path(), &options()).unwrap()
}

/// Rotation over services: from files to a service, with old and new manifests open in between, and no chunk touched.
fn check_moving(target: Box<dyn KeyService>, again: Box<dyn KeyService>) {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalKeys::new(folder.path());
    let geometry = Geometry { image_size: 8192, chunk_size: 4096 };
    let mut builder = ManifestBuilder::new(Suite::default(), geometry).unwrap();
    let record = ChunkRecord { slot: 1, stored_length: 4096, id: ChunkId([1; 32]) };
    builder.push(record, ChunkSecret { key: [2; 32], tag: [3; 16] });
    let old = builder.seal(USE.tenant, USE.image, b"{}", &local).unwrap();

    let both = KeyRing::new(target, vec![Box::new(local)]);
    let new = old.open(&both, USE.image).unwrap().reseal(&USE, b"{}", &both).unwrap();
    assert_eq!(new.records().collect::<Vec<_>>(), old.records().collect::<Vec<_>>());
    let opened = new.open(&both, USE.image).unwrap();
    assert_eq!(opened.chunk(1), old.open(&both, USE.image).unwrap().chunk(1));
    // The new one needs the old service no more; the old one is refused without it, by name.
    let without = KeyRing::new(again, Vec::new());
    assert_eq!(new.open(&without, USE.image).unwrap().chunk(1), opened.chunk(1));
    let refused = old.open(&without, USE.image).unwrap_err().to_string();
    assert!(refused.contains("`previous_keys`") && refused.contains("local:"), "{refused}");
}

#[test]
fn local_keys_ask_nobody() {
    let folder = tempfile::tempdir().unwrap();
    // Services that nobody needs are set up, and not asked: nothing listens there.
    let ring = ring("local", &["awskms:arn:aws:kms:eu-west-1:111122223333:key/1"], "a", &folder);
    let started = Instant::now();
    let (_, wrapped) = ring.generate_data_key(&USE).unwrap();
    ring.unwrap_data_key(&USE, &wrapped).unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
}
