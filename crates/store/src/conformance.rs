//! One conformance suite for every backend and every wrapper: a folder, memory, a prefix, S3 (SeaweedFS, that `scripts/test-servers`
//! starts), and memory behind faults.
#![allow(clippy::unwrap_used)]

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use snowmelt_chunk::{ChunkId, LocalKeys, ManifestBuilder, ManifestId, Suite};
use url::Url;

use crate::faulty_objects::{Faults, FaultyObjects};
use crate::objects::{Objects, Swapped, Version};
use crate::{
    Alarm, Change, Error, ImageLease, ImageName, NameRecord, PutOutcome, RootState, S3Options, Store, StoreOptions,
    collect,
};

pub(crate) fn record(generation: u64) -> NameRecord {
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

fn store_conforms(store: &Store) {
    objects_conform(store.objects());
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

    let chunks: Vec<_> = (0..40_u8).map(|byte| vec![byte; 4096]).collect();
    let ids: Vec<_> = chunks.iter().map(|chunk| Suite::Blake3Gcm.id_of(chunk)).collect();
    for (id, chunk) in ids.iter().zip(&chunks) {
        store.put_new_chunk(id, chunk).unwrap();
        assert_eq!(store.put_new_chunk(id, chunk).unwrap(), PutOutcome::AlreadyThere);
        assert!(store.has_chunk(id, 4096).unwrap() && !store.has_chunk(id, 8192).unwrap());
    }
    if let Some(known) = store.known_chunks(100).unwrap() {
        assert!(ids.iter().all(|id| known.contains(id)));
    }
    let mut listed = Vec::new();
    store.each_chunk(&mut |id, length| listed.push((id, length))).unwrap();
    assert!(ids.iter().all(|id| listed.contains(&(*id, 4096))));
    store.put_start_log("tenant", &manifest_id, "common", "text").unwrap();
    assert_eq!(store.read_start_log("tenant", &manifest_id, "common").unwrap(), "text");
    assert_eq!(store.list_start_logs("tenant", &manifest_id).unwrap(), ["common"]);
    assert_eq!(store.list_tenants().unwrap(), ["other", "tenant"]);
    roots_conform(store, &manifest_id, &ids);
}

/// A root's whole life.
fn roots_conform(store: &Store, manifest: &ManifestId, chunks: &[ChunkId]) {
    let (root, epoch) = store.open_root(None).unwrap();
    assert_eq!((root.as_str(), epoch.epoch), ("main", 0));
    assert_eq!(store.rotate_salt().unwrap().epoch, 1);
    let mut lease = ImageLease::new(store, "tenant", *manifest, Duration::from_hours(1), "test");
    assert!(lease.keep().unwrap().is_none());
    // The names of this suite stand for a manifest that is nowhere, but in its root.
    for tenant in store.list_tenants().unwrap() {
        for (name, _) in store.list_names(&tenant).unwrap() {
            store.remove_name(&tenant, &name).unwrap();
        }
    }
    let heir = collect::rotate(store, None, collect::Retire::All).unwrap();
    assert_eq!(store.open_root(None).unwrap().0, heir);
    assert!(matches!(store.open_root(Some("main")), Err(Error::Invalid(_))));
    assert_eq!(collect::expire(store, "main", Duration::ZERO).unwrap().leases, 1);
    let migrated = collect::migrate(store, "main", 2, &|_| {}).unwrap();
    assert!(migrated.failed.is_empty() && migrated.manifests == 1, "{migrated:?}");
    // The image has moved, and its user follows.
    assert_eq!(lease.keep().unwrap().unwrap().root(), heir);
    assert!(store.read_manifest(&heir, "tenant", manifest).is_ok());
    assert_eq!(collect::expire(store, "main", Duration::from_hours(1)).unwrap().seconds_left.div_ceil(60), 60);
    assert!(collect::expire(store, "main", Duration::ZERO).unwrap().is_empty());
    let alarm = Alarm { at: 1, tenant: "tenant".into(), manifest: manifest.to_string(), by: "test".into() };
    assert!(store.raise_alarm("main", &alarm).unwrap() && store.raise_alarm("main", &alarm).unwrap());
    assert_eq!(collect::delete(store, "main", Duration::ZERO).unwrap().alarms, 1);
    assert_eq!(collect::status(store, true).unwrap().alarms(), 1);
    assert_eq!(collect::clear_alarms(store, "main").unwrap(), 1);
    assert!(store.read_chunk(&chunks[0], 4096).is_ok());
    assert!(collect::delete(store, "main", Duration::ZERO).unwrap().is_empty());
    assert!(!store.raise_alarm("main", &alarm).unwrap());
    assert!(collect::sweep(store, "main", &|_| {}).unwrap() >= 40);
    assert_eq!(collect::sweep(store, "main", &|_| {}).unwrap(), 0);
    assert!(matches!(store.read_chunk(&chunks[0], 4096), Err(Error::NotFound { .. })));
    let status = collect::status(store, true).unwrap();
    assert_eq!(status.state.state_of("main"), Some(RootState::Deleted));
    let of_heir = status.roots.iter().find(|root| root.name == heir).unwrap();
    assert_eq!((of_heir.leases, of_heir.intents, of_heir.is_default), (1, 0, true));
    lease.end();
    assert_eq!(store.list_leases(&heir).unwrap(), []);
}

fn objects_conform(objects: &Objects) {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    let get = |path: &str| objects.get(path, "it", 100);
    assert!(matches!(get("a/b/c"), Err(Error::NotFound { .. })));
    assert!(objects.head("a/b/c", "it").unwrap().is_none());
    assert_eq!(objects.list("a").unwrap(), []);
    assert_eq!(objects.list_folders("a").unwrap(), Vec::<String>::new());
    assert!(objects.put_if_absent("a/b/c", "it", &bytes("1")).unwrap());
    assert!(!objects.put_if_absent("a/b/c", "it", &bytes("2")).unwrap());
    assert_eq!(get("a/b/c").unwrap(), "1");
    objects.put("a/b/c", "it", &bytes("33")).unwrap();
    assert!(matches!(objects.get("a/b/c", "it", 1), Err(Error::Corrupt { .. })));
    let head = objects.head("a/b/c", "it").unwrap().unwrap();
    assert_eq!(head.bytes, 2);
    // A server's clock may differ from ours, but not from its own.
    let now = objects.now().unwrap();
    assert!(now.duration_since(head.modified).unwrap_or_default() < Duration::from_mins(1));
    assert!(head.modified.duration_since(now).unwrap_or_default() < Duration::from_secs(2));

    let (found, version) = objects.get_version("a/b/c", "it", 100).unwrap();
    assert_eq!(found.unwrap(), "33");
    assert_eq!(objects.swap("a/b/c", "it", &bytes("4"), &Version::Absent).unwrap(), Swapped::Conflict);
    assert_eq!(objects.swap("a/b/c", "it", &bytes("4"), &version).unwrap(), Swapped::Done);
    assert_ne!(objects.swap("a/b/c", "it", &bytes("5"), &version).unwrap(), Swapped::Done);
    let (none, absent) = objects.get_version("a/new", "it", 100).unwrap();
    assert!(none.is_none());
    assert_eq!(objects.swap("a/new", "it", &bytes("6"), &absent).unwrap(), Swapped::Done);
    assert_ne!(objects.swap("a/new", "it", &bytes("7"), &absent).unwrap(), Swapped::Done);
    // One that was removed is not what it was.
    let (_, version) = objects.get_version("a/new", "it", 100).unwrap();
    objects.delete("a/new", "it").unwrap();
    assert_ne!(objects.swap("a/new", "it", &bytes("8"), &version).unwrap(), Swapped::Done);
    assert!(matches!(get("a/new"), Err(Error::NotFound { .. })));

    let pairs: Vec<_> = (0..30).map(|number| (format!("from/{number}"), format!("to/x/{number}"))).collect();
    for (from, _) in &pairs {
        objects.put(from, "it", &Bytes::from(from.clone())).unwrap();
    }
    let copied = AtomicUsize::new(0);
    objects
        .copy_all(&pairs, &|_| {
            copied.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
    assert!(copied.into_inner() >= 30);
    objects.copy_all(&pairs[..3], &|_| {}).unwrap();
    let missing = [("from/none".to_owned(), "to/none".to_owned())];
    assert!(matches!(objects.copy_all(&missing, &|_| {}), Err(Error::NotFound { .. })));
    let mut paths: Vec<_> = objects.list("to").unwrap().into_iter().map(|listed| listed.path).collect();
    paths.sort();
    let mut expected: Vec<_> = pairs.iter().map(|(_, to)| to.clone()).collect();
    expected.sort();
    assert_eq!(paths, expected);
    assert_eq!(objects.list_folders("to").unwrap(), ["x"]);
    let read = objects.get_all(&[expected[0].clone(), "to/none".into(), expected[1].clone()], "it", 100).unwrap();
    assert_eq!(read[0].as_ref().unwrap().as_ref().unwrap(), pairs[0].0.as_str());
    assert!(read[1].is_none() && read[2].is_some());
    let mut first = 0;
    objects
        .list_each("to", &mut |_| {
            first += 1;
            first < 5
        })
        .unwrap();
    assert_eq!(first, 5);
    expected.push("to/none".into());
    objects.delete_all(expected).unwrap();
    objects.delete_all(pairs.into_iter().map(|(from, _)| from).collect()).unwrap();
    assert_eq!(objects.list("to").unwrap(), []);
    // In parts, where that is what a server wants.
    let long = Bytes::from(vec![7; 70 << 20]);
    objects.put("a/long", "it", &long).unwrap();
    assert_eq!(objects.get("a/long", "it", 80 << 20).unwrap(), long);
    objects.delete("a/long", "it").unwrap();
}

#[test]
fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("not yet/there");
    store_conforms(&Store::open(deep.to_str().unwrap(), &StoreOptions::default()).unwrap());
    let drafts = walk(folder.path()).into_iter().filter(|path| path.to_string_lossy().contains(".draft")).count();
    assert_eq!(drafts, 0);
    let url = Url::from_file_path(folder.path().join("other")).unwrap();
    store_conforms(&Store::open(url.as_str(), &StoreOptions::default()).unwrap());
}

pub(crate) fn walk(folder: &FilePath) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn memory_conforms() {
    store_conforms(&Store::over_objects(Arc::new(InMemory::new()), &StoreOptions::default()));
}

#[test]
fn a_prefix_conforms() {
    let objects = PrefixStore::new(InMemory::new(), "some/where");
    store_conforms(&Store::over_objects(Arc::new(objects), &StoreOptions::default()));
}

/// The server that `scripts/test-servers` started, below a prefix that nobody else uses.
fn s3(prefix: &str, change: impl FnOnce(&mut StoreOptions)) -> Store {
    let variable = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: run this through `scripts/test-servers run -- cargo …`"))
    };
    let mut options = StoreOptions {
        allow_http: true,
        s3: S3Options { endpoint: Some(variable("SNOWMELT_TEST_S3")), region: None, path_style: None },
        ..StoreOptions::default()
    };
    change(&mut options);
    // Each test is a process of its own under nextest, and shares it with others else; all set the same.
    #[allow(unsafe_code, reason = "nothing reads the environment before")]
    // SAFETY: tests of this crate read the environment only here and, behind this, in the SDK.
    unsafe {
        std::env::set_var("AWS_ACCESS_KEY_ID", variable("SNOWMELT_TEST_S3_ACCESS_KEY"));
        std::env::set_var("AWS_SECRET_ACCESS_KEY", variable("SNOWMELT_TEST_S3_SECRET_KEY"));
    }
    let unique = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let bucket = variable("SNOWMELT_TEST_BUCKET");
    Store::open(&format!("s3://{bucket}/{prefix}-{unique}/deep"), &options).unwrap()
}

#[test]
fn s3_conforms() {
    store_conforms(&s3("conforms", |_| {}));
}

/// Against Azurite, with `AZURE_STORAGE_USE_EMULATOR=true` and its container `snowmelt-test`.
#[test]
#[ignore = "needs Azurite, which no package of Debian or PyPI has: npx azurite-blob --skipApiVersionCheck"]
fn azure_conforms() {
    let unique = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let options = StoreOptions { allow_http: true, ..StoreOptions::default() };
    store_conforms(&Store::open(&format!("az://snowmelt-test/conforms-{unique}"), &options).unwrap());
}

#[test]
fn only_one_of_many_swaps_wins() {
    let folder = tempfile::tempdir().unwrap();
    let stores = [
        Store::open(folder.path().to_str().unwrap(), &StoreOptions::default()).unwrap(),
        Store::over_objects(Arc::new(InMemory::new()), &StoreOptions::default()),
        s3("swaps", |_| {}),
    ];
    for store in &stores {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        store.rotate_salt().unwrap();
                    }
                });
            }
        });
        let state = store.read_state().unwrap();
        assert_eq!((state.salt.epoch, state.sequence), (30, 30), "{store:?}");
    }
}

#[test]
fn what_is_tried_again_conforms_behind_faults() {
    for seed in 0..20 {
        let inner = Arc::new(InMemory::new());
        // Four tries each: about one operation in a hundred thousand fails for good.
        let mut faults = Faults::none(seed);
        (faults.refused, faults.unanswered, faults.late) = (25, 25, 300);
        let store = Store::over_objects(FaultyObjects::new(&inner, faults), &StoreOptions::default());
        for epoch in 1..20 {
            assert_eq!(store.rotate_salt().unwrap().epoch, epoch, "seed {seed}");
        }
        let name: ImageName = "a".parse().unwrap();
        let mut version = Version::Absent;
        for generation in 1..20 {
            assert_eq!(
                store.swap_name("t", &name, &record(generation), &version).unwrap(),
                Swapped::Done,
                "seed {seed}"
            );
            version = store.read_entry("t", &name).unwrap().1;
        }
        store.change_state(|_| Ok(Change::Leave(()))).unwrap();
    }
}

#[test]
fn what_is_read_through_faults_is_right_or_an_error() {
    let (mut right, mut wrong) = (0, 0);
    for seed in 0..200 {
        let inner = Arc::new(InMemory::new());
        let good = Store::over_objects(Arc::clone(&inner) as _, &StoreOptions::default());
        let chunk: Vec<u8> = (0..8192_u32).map(|byte| (byte * 7 + seed as u32) as u8).collect();
        let id = Suite::Blake3Gcm.id_of(&chunk);
        good.put_chunk(&id, &chunk).unwrap();
        let name: ImageName = "a".parse().unwrap();
        good.swap_name("t", &name, &record(1), &Version::Absent).unwrap();
        let mut faults = Faults::none(seed);
        (faults.refused, faults.unanswered, faults.late) = (100, 100, 200);
        (faults.truncated, faults.flipped) = (150, 150);
        let options = StoreOptions { patience: Duration::ZERO, ..StoreOptions::default() };
        let store = Store::over_objects(FaultyObjects::new(&inner, faults), &options);
        for _ in 0..10 {
            let record = snowmelt_chunk::ChunkRecord { slot: 0, stored_length: 8192, id };
            match crate::readback::read_ciphertext(&store, Suite::Blake3Gcm, &record) {
                Ok(bytes) => {
                    assert_eq!(bytes, chunk);
                    right += 1;
                }
                Err(Error::Unavailable { .. } | Error::Corrupt { .. }) => wrong += 1,
                Err(error) => panic!("{error}"),
            }
            // A name's record is not authenticated by itself: what parses is checked against its manifest.
            match store.read_name("t", &name) {
                Ok(_) => {}
                Err(error) => assert!(matches!(error, Error::Unavailable { .. } | Error::Corrupt { .. }), "{error}"),
            }
        }
    }
    assert!(right > 500 && wrong > 500, "{right} right, {wrong} errors");
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |store: &Store| {
        let begun = std::time::Instant::now();
        let error = store.check_writable().unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        // Nobody tries again what will be refused again.
        assert!(begun.elapsed() < Duration::from_secs(20));
        error.to_string()
    };
    let text = refused(&{
        let options = StoreOptions {
            allow_http: true,
            s3: S3Options { endpoint: std::env::var("SNOWMELT_TEST_S3").ok(), region: None, path_style: None },
            ..StoreOptions::default()
        };
        let _ = s3("environment", |_| {});
        Store::open("s3://no-such-bucket-here/x", &options).unwrap()
    });
    assert!(text.contains("there is no such bucket: make it, or correct the store's URL"), "{text}");
    let plain = Store::open(
        "s3://bucket/x",
        &StoreOptions {
            s3: S3Options { endpoint: Some("http://127.0.0.1:1".into()), ..S3Options::default() },
            ..StoreOptions::default()
        },
    );
    let text = plain.unwrap_err().to_string();
    assert!(text.contains("plain HTTP: use https, or allow it with --allow-http"), "{text}");
    for (url, words) in [
        ("s3:///x", "names no bucket"),
        ("s3://bucket/x?y", "has no ? or #"),
        ("ftp://bucket/x", "no store is reached by ftp"),
    ] {
        let text = Store::open(url, &StoreOptions::default()).unwrap_err().to_string();
        assert!(text.contains(words), "{text}");
    }
}
