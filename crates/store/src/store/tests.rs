#![allow(clippy::unwrap_used)]
//! What only a folder does, and what bytes that were changed do.

use snowmelt_chunk::Suite;

use super::*;
use crate::ImageName;
use crate::conformance::record;
use crate::objects::{Swapped, Version};

#[test]
fn what_a_crash_left_of_a_chunk_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap();
    let ciphertext = vec![3; 4096];
    let id = Suite::Blake3Gcm.id_of(&ciphertext);
    let path = folder.path().join(Store::chunk_path("main", &id));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"").unwrap();
    assert_eq!(store.put_chunk(&id, &ciphertext).unwrap(), PutOutcome::New);
    assert_eq!(store.read_chunk(&id, 4096).unwrap(), ciphertext);
}

#[test]
fn manifests_and_records_that_were_changed_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap();
    let id = ManifestId([1; 32]);
    let path = folder.path().join(Store::manifest_path("main", "t", &id));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"anything").unwrap();
    assert!(matches!(store.read_manifest("main", "t", &id), Err(Error::Corrupt { .. })));

    let name: ImageName = "a".parse().unwrap();
    let path = folder.path().join(Store::name_path("t", &name));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let good = serde_json::to_string(&record(1)).unwrap();
    for bytes in [
        "",
        "{}",
        "null",
        &good.replace("\"version\":1", "\"version\":2"),
        &good.replace("0707", "07zz"),
        &good.replace("\"main\"", "\"../x\""),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(store.read_name("t", &name), Err(Error::Corrupt { .. })), "{bytes}");
    }
}

#[test]
fn one_damaged_record_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap();
    let (good, bad): (ImageName, ImageName) = ("good".parse().unwrap(), "bad".parse().unwrap());
    assert_eq!(store.swap_name("t", &good, &record(1), &Version::Absent).unwrap(), Swapped::Done);
    assert_eq!(store.swap_name("t", &bad, &record(1), &Version::Absent).unwrap(), Swapped::Done);
    std::fs::write(folder.path().join(Store::name_path("t", &bad)), b"").unwrap();
    let listed = store.list_names("t").unwrap();
    assert_eq!(listed.len(), 2);
    assert!(matches!(&listed[0], (name, Err(Error::Corrupt { .. })) if *name == bad));
    assert!(matches!(&listed[1], (name, Ok(_)) if *name == good));
    store.remove_name("t", &bad).unwrap();
    assert_eq!(store.list_names("t").unwrap().len(), 1);
}

#[test]
fn objects_that_are_absurdly_long_are_damage() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap();
    let name: ImageName = "a".parse().unwrap();
    let path = folder.path().join(Store::name_path("t", &name));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, vec![b' '; 100 << 10]).unwrap();
    assert!(matches!(store.read_name("t", &name), Err(Error::Corrupt { .. })));
    let objects = Store::over_objects(Arc::new(object_store::memory::InMemory::new()), &StoreOptions::default());
    let id = ChunkId([2; 32]);
    objects.put_chunk(&id, &[0; 8192]).unwrap();
    assert!(matches!(objects.read_chunk(&id, 4096), Err(Error::Corrupt { .. })));
}

#[test]
fn drafts_of_publishers_that_are_gone_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap();
    let ciphertext = vec![3; 4096];
    let id = Suite::Blake3Gcm.id_of(&ciphertext);
    store.put_chunk(&id, &ciphertext).unwrap();
    let shard = folder.path().join(Store::chunk_path("main", &id)).parent().unwrap().to_owned();
    let (old, new) = (shard.join(".draft-0123"), shard.join(".draft-4567"));
    for draft in [&old, &new] {
        std::fs::write(draft, b"half").unwrap();
    }
    let hour_ago = std::time::SystemTime::now() - Duration::from_hours(1);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(hour_ago).unwrap();
    store.remove_abandoned_drafts();
    assert!(!old.exists(), "its writer was killed");
    assert!(new.exists(), "its writer may be at it");
    assert_eq!(store.read_chunk(&id, 4096).unwrap(), ciphertext);
}

fn plain_http() -> StoreOptions {
    StoreOptions { allow_http: true, ..StoreOptions::default() }
}

#[test]
fn urls_that_cannot_be_used_say_why() {
    let open = |url: &str| Store::open(url, &StoreOptions::default()).map(|_| ()).unwrap_err().to_string();
    assert!(open("").contains("it is empty"));
    assert!(open("ftp://host/x").contains("no store is reached by ftp"));
    assert!(open("file://relative").contains("three slashes"));
    // What was meant for a server must not become a folder here.
    assert!(open("s3:/bucket/x").contains("s3://bucket/x"));
    assert!(open("https:host/x").contains("https://host/x"));
    assert!(open("http://example.com/").contains("--allow-http"));
    assert!(open("/proc/version").contains("not a folder"));
    assert!(Store::open("http://example.com/", &plain_http()).is_ok());
    let root = StoreOptions { root: Some("../x".into()), ..StoreOptions::default() };
    assert!(Store::open("/tmp", &root).unwrap_err().to_string().contains("root's name"));
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    // Port 1 of this machine: nobody listens, connections are refused at once.
    let store = Store::open("http://127.0.0.1:1/", &plain_http()).unwrap();
    let error = store.read_chunk(&ChunkId([0; 32]), 4096).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(error.to_string().contains("http://127.0.0.1:1/"), "{error}");
}
