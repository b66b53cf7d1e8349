//! Objects that are made to break who reads or collects them.

use std::time::{Duration, Instant};

use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use proptest::prelude::*;
use snowmelt_chunk::ManifestId;
use snowmelt_store::collect::{self, Policy, Retire};
use snowmelt_store::{Error, NameRecord};

use crate::world::*;

#[test]
fn huge_objects_are_not_read_whole() {
    for world in World::both() {
        world.publish(0, "app", &[CONTENT]);
        let huge = vec![b' '; 64 << 20];
        for path in [name_path(0, "app"), "gc/state".into()] {
            let good = world.get(&path);
            world.put(&path, &huge);
            let started = Instant::now();
            let refused = if path == "gc/state" { world.store.read_state().err() } else { world.open(0, "app").err() };
            assert!(matches!(refused, Some(Error::Corrupt { .. })), "{refused:?}");
            assert!(started.elapsed() < Duration::from_secs(10));
            world.put(&path, &good);
        }
        assert!(world.open(0, "app").is_ok());
    }
}

#[test]
fn numbers_that_would_overflow_stop_nobody() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    for number in [u64::MAX, i64::MAX as u64, (1 << 53) + 1] {
        for forged in [
            NameRecord { generation: number, ..published.record.clone() },
            NameRecord { fence: number, ..published.record.clone() },
            NameRecord { published_at: number, ..published.record.clone() },
            NameRecord { stored_bytes: number, ..published.record.clone() },
        ] {
            world.put_record(0, "app", &forged);
            assert!(world.open(0, "app").is_err());
            collect::status(&world.store, false).unwrap();
            world.publish(0, "app", &[CONTENT]);
            assert!(world.open(0, "app").is_ok(), "publishing again mends it");
        }
        let tombstone = format!("{{\"version\":2,\"removed\":true,\"generation\":{number},\"removed_at\":{number}}}");
        world.put(&name_path(0, "app"), tombstone.as_bytes());
        world.publish(0, "app", &[CONTENT]);
        assert!(world.open(0, "app").is_ok());
        let state = world.get("gc/state");
        for field in ["sequence", "since"] {
            let mut forged: serde_json::Value = serde_json::from_slice(&state).unwrap();
            match field {
                "since" => forged["roots"]["main"]["since"] = number.into(),
                field => forged[field] = number.into(),
            }
            world.put("gc/state", forged.to_string().as_bytes());
            let refused = collect::run(&world.store, &Policy::default(), &|_| {}).unwrap_err();
            assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
        }
        world.put("gc/state", &state);
    }
}

#[test]
fn deeply_nested_json_is_refused() {
    let world = World::in_memory();
    world.publish(0, "app", &[CONTENT]);
    for bomb in ["[".repeat(60_000), "{\"a\":".repeat(12_000), format!("{{\"version\":1,\"x\":{}", "[".repeat(60_000))]
    {
        world.put(&name_path(0, "app"), bomb.as_bytes());
        assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })));
        world.put("gc/state", bomb.as_bytes());
        assert!(matches!(world.store.read_state(), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn a_record_without_names_of_fields_is_none() {
    // It would have the length of a tombstone, which collection does not read.
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    let record =
        format!("[1,\"{}\",\"main\",1,{},\"\",4096,4096,1]", published.manifest, published.record.published_at);
    world.put(&name_path(0, "app"), record.as_bytes());
    assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })));
}

#[test]
fn what_is_listed_leads_nowhere_else() {
    let world = World::in_a_folder();
    world.publish(0, "app", &[CONTENT]);
    let good = world.get(&name_path(0, "app"));
    for root in ["../../keys", "..", "/etc", "a/b", "", "\u{0}", "A", &"r".repeat(65)] {
        let mut record: serde_json::Value = serde_json::from_slice(&good).unwrap();
        record["root"] = root.into();
        world.put(&name_path(0, "app"), record.to_string().as_bytes());
        assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })), "{root:?}");
    }
    world.put(&name_path(0, "app"), &good);
    collect::rotate(&world.store, None, Retire::All).unwrap();
    // Leases and intents with names that are none.
    let leases = world.folder.path().join("store/roots/main/leases");
    for path in ["A/0/1-5", "mallory/00/1-5", "mallory/..x/1-", "x", &format!("mallory/{}/1", "0".repeat(64))] {
        let path = leases.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }
    assert_eq!(world.store.list_leases("main").unwrap(), []);
    for (tenant, name) in [("MALLORY", "app"), ("mallory", "../../alice/app"), ("mallory", "a/../b"), ("mallory", "")] {
        let body = serde_json::json!({ "name": name, "by": "\u{1b}[2J" }).to_string();
        world.put(&format!("roots/main/intents/{tenant}/{}", name.len()), body.as_bytes());
    }
    let before: Vec<_> = world.objects().into_keys().filter(|path| path.starts_with("names/")).collect();
    let migrated = collect::migrate(&world.store, "main", 1, &|_| {}).unwrap();
    assert_eq!(migrated.failed.len(), 4, "{migrated:?}");
    let after: Vec<_> = world.objects().into_keys().filter(|path| path.starts_with("names/")).collect();
    assert_eq!(before, after, "nothing was fenced that nobody could publish");
}

#[test]
fn one_lease_does_not_keep_a_root_for_ever() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    for lifetime in [u64::from(u32::MAX), u64::MAX] {
        world.put(&format!("roots/main/leases/mallory/{}/0-{lifetime}", published.manifest), b"");
    }
    let leases = world.store.list_leases("main").unwrap();
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|lease| lease.lifetime <= Duration::from_hours(7 * 24)), "{leases:?}");
}

#[cfg(unix)]
#[test]
fn sweeping_a_folder_follows_no_link_out_of_it() {
    let world = World::in_a_folder();
    world.publish(0, "app", &[CONTENT]);
    let outside = world.folder.path().join("home");
    std::fs::create_dir_all(outside.join("documents")).unwrap();
    std::fs::write(outside.join("documents/thesis"), b"years of work").unwrap();
    let root = world.folder.path().join("store/roots/main");
    std::os::unix::fs::symlink(&outside, root.join("chunks/link")).unwrap();
    std::os::unix::fs::symlink(outside.join("documents/thesis"), root.join("chunks/file")).unwrap();
    std::os::unix::fs::symlink(&root, root.join("circle")).unwrap();
    delete_root(&world);
    assert!(collect::sweep(&world.store, "main", &|_| {}).unwrap() > 0);
    assert!(!root.exists());
    assert_eq!(std::fs::read(outside.join("documents/thesis")).unwrap(), b"years of work");
}

#[test]
fn sweeping_removes_what_has_odd_characters_in_its_key() {
    let world = World::in_memory();
    world.publish(0, "app", &[CONTENT]);
    for name in ["x#1", "x%231", "a b", "~[*]?{|}", "x%", "\u{e9}"] {
        let key = Path::parse(format!("roots/main/leases/mallory/{name}")).unwrap();
        wait(world.bucket.put(&key, b"".to_vec().into())).unwrap();
    }
    delete_root(&world);
    assert!(collect::sweep(&world.store, "main", &|_| {}).unwrap() >= 6);
    let left: Vec<_> = world.objects_below("roots/main");
    assert!(left.is_empty(), "{left:?}");
}

/// Takes root `main` to its end as a collector does, with what is live in it.
fn delete_root(world: &World) {
    collect::rotate(&world.store, None, Retire::All).unwrap();
    collect::migrate(&world.store, "main", 1, &|_| {}).unwrap();
    assert!(collect::expire(&world.store, "main", Duration::ZERO).unwrap().is_empty());
    assert!(collect::delete(&world.store, "main", Duration::ZERO).unwrap().is_empty());
}

#[cfg(unix)]
#[test]
fn a_pipe_in_a_folder_stops_nobody() {
    let world = World::in_a_folder();
    let published = world.publish(0, "app", &[CONTENT]);
    let path = world.folder.path().join("store").join(name_path(0, "app"));
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(world.open(0, "app").is_err());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(world.open(0, "app").is_err());
    std::fs::remove_file(&path).unwrap();
    world.put_record(0, "app", &published.record);
    assert!(world.open(0, "app").is_ok());
}

// Who may write gc/state.

#[test]
fn an_edited_state_removes_nothing_that_a_name_stands_for() {
    for world in World::both() {
        world.publish(0, "app", &[CONTENT]);
        let mut state: serde_json::Value = serde_json::from_slice(&world.get("gc/state")).unwrap();
        state["roots"]["main"]["state"] = "deleted".into();
        state["roots"]["main"]["since"] = (1_u64 << 40).into();
        state["roots"]["r9"] = serde_json::json!({ "state": "active", "since": 1 });
        state["active"] = "r9".into();
        world.put("gc/state", state.to_string().as_bytes());
        let refused = collect::sweep(&world.store, "main", &|_| {}).unwrap_err();
        assert!(refused.to_string().contains("alice/app"), "{refused}");
        let refused = collect::run(&world.store, &Policy::default(), &|_| {}).unwrap_err();
        assert!(refused.to_string().contains("nothing is"), "{refused}");
        assert!(world.damage(0, "app").is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_bytes_under_a_name_are_an_error_or_a_record(text in "\\PC{0,200}", cut in 0_usize..400, value: u8) {
        let world = World::in_memory();
        let published = NameRecord {
            version: 1, manifest: ManifestId([7; 32]).to_string(), root: "main".into(), generation: 1, published_at: 5,
            source: text.clone(), image_size: 4096, stored_bytes: 0, chunk_count: 0, fence: 0, salt: None,
        };
        let mut bytes = serde_json::to_vec(&published).unwrap();
        world.put(&name_path(0, "app"), &bytes);
        let name = "app".parse().unwrap();
        prop_assert_eq!(world.store.read_name(TENANTS[0], &name).unwrap(), published);
        let at = cut % bytes.len();
        bytes[at] = value;
        world.put(&name_path(0, "app"), &bytes);
        let _ = world.store.read_name(TENANTS[0], &name);
        world.put(&name_path(0, "app"), &bytes[..at]);
        prop_assert!(world.store.read_name(TENANTS[0], &name).is_err());
        world.put(&name_path(0, "app"), text.as_bytes());
        prop_assert!(world.store.read_name(TENANTS[0], &name).is_err());
    }
}
