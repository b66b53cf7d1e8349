#![allow(clippy::unwrap_used)]
//! One conformance suite for every backend.

use object_store::memory::InMemory;
use snowmelt_chunk::{LocalKeys, ManifestBuilder, Suite};

use std::path::Path as FilePath;

use url::Url;

use super::*;
use crate::objects::{Swapped, Version};
use crate::{ImageName, NameRecord};

fn record(generation: u64) -> NameRecord {
    NameRecord {
        version: 1,
        manifest: ManifestId([7; 32]).to_string(),
        root: "main".into(),
        generation,
        published_at: 5,
        source: "oci:somewhere".into(),
        image_size: 4096,
        stored_bytes: 0,
        chunk_count: 0,
        fence: 0,
        salt: None,
    }
}

fn conforms(store: &Store) {
    let ciphertext = vec![9; 8192];
    let id = Suite::Blake3Gcm.id_of(&ciphertext);
    assert!(matches!(store.read_chunk(&id, 8192), Err(Error::NotFound { .. })));
    assert_eq!(store.put_chunk(&id, &ciphertext).unwrap(), PutOutcome::New);
    assert_eq!(store.put_chunk(&id, &ciphertext).unwrap(), PutOutcome::AlreadyThere);
    assert_eq!(store.read_chunk(&id, 8192).unwrap(), ciphertext);
    assert!(matches!(store.read_chunk(&id, 4096), Err(Error::Corrupt { .. })));
    assert!(matches!(store.read_chunk(&id, 12288), Err(Error::Corrupt { .. })));
    store.sync().unwrap();

    let keys = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(keys.path());
    let geometry = snowmelt_chunk::Geometry { image_size: 0, chunk_size: 4096 };
    let manifest =
        ManifestBuilder::new(Suite::Blake3Gcm, geometry).unwrap().seal("tenant", "image:latest", b"x", &keys).unwrap();
    assert!(matches!(store.read_manifest("main", "tenant", &manifest.id()), Err(Error::NotFound { .. })));
    let manifest_id = store.put_manifest(&manifest).unwrap();
    assert_eq!(store.read_manifest("main", "tenant", &manifest_id).unwrap(), manifest);
    assert!(matches!(store.read_manifest("main", "other", &manifest_id), Err(Error::NotFound { .. })));

    assert!(store.list_names("tenant").unwrap().is_empty());
    let names: Vec<ImageName> = ["a", "a:2", "a/b:c", "b"].iter().map(|name| name.parse().unwrap()).collect();
    for name in &names {
        assert_eq!(store.swap_name("tenant", name, &record(1), &Version::Absent).unwrap(), Swapped::Done);
    }
    let (_, version) = store.read_entry("tenant", &names[1]).unwrap();
    assert_eq!(store.swap_name("tenant", &names[1], &record(2), &version).unwrap(), Swapped::Done);
    assert_eq!(store.swap_name("tenant", &names[1], &record(3), &version).unwrap(), Swapped::Conflict);
    assert_eq!(store.swap_name("tenant", &names[1], &record(3), &Version::Absent).unwrap(), Swapped::Conflict);
    assert_eq!(store.swap_name("other", &names[0], &record(9), &Version::Absent).unwrap(), Swapped::Done);
    let listed = store.list_names("tenant").unwrap();
    assert_eq!(
        listed.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>(),
        ["a:2", "a:latest", "a/b:c", "b:latest"]
    );
    assert_eq!(store.read_name("tenant", &names[1]).unwrap(), record(2));
    store.remove_name("tenant", &names[1]).unwrap();
    assert!(matches!(store.read_name("tenant", &names[1]), Err(Error::NotFound { .. })));
    assert_eq!(store.list_names("tenant").unwrap().len(), 3);
}

#[test]
fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("not yet/there");
    conforms(&Store::open(deep.to_str().unwrap(), &StoreOptions::default()).unwrap());
    let drafts = walk(folder.path()).into_iter().filter(|path| path.to_string_lossy().contains(".draft")).count();
    assert_eq!(drafts, 0);
    let url = Url::from_file_path(folder.path().join("other")).unwrap();
    conforms(&Store::open(url.as_str(), &StoreOptions::default()).unwrap());
}

fn walk(folder: &FilePath) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn any_object_storage_conforms() {
    conforms(&Store::over_objects(Arc::new(InMemory::new()), &StoreOptions::default()));
}

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
    let objects = Store::over_objects(Arc::new(InMemory::new()), &StoreOptions::default());
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
