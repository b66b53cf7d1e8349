//! Roots from rotation to deletion: what is live goes on, what is not leaves the disk.

use serde_json::Value;

use crate::world::{World, test_image, wait_until};

fn root<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["roots"].as_array().unwrap().iter().find(|root| root["name"] == name).unwrap()
}

/// What `gc status --json` prints, whatever it exits with.
fn status(world: &World) -> Value {
    serde_json::from_slice(&world.snowmelt(["gc", "status", "--json"]).stdout).unwrap()
}

#[test]
fn an_image_outlives_its_root() {
    let world = World::with_small();
    let before = world.chunk_files().len();
    let rotated = world.json(&["gc", "rotate", "--to", "second"]);
    assert_eq!(rotated["retired"], serde_json::json!(["main"]));
    // Blocked while the image is there.
    let blocked = world.snowmelt(["gc", "expire", "main", "--now"]).failure(1, &[]);
    assert!(blocked.stdout().contains("default/small:latest"), "{}", blocked.stdout());
    let migrated = world.json(&["gc", "migrate"]);
    assert_eq!((&migrated[0]["names"], &migrated[0]["chunks"]), (&1.into(), &before.into()));
    assert_eq!(world.chunk_files().len(), 2 * before);
    let young = world.snowmelt(["gc", "expire", "main"]).failure(1, &[]);
    assert!(young.stdout().contains("to go"), "{}", young.stdout());
    world.snowmelt(["gc", "expire", "main", "--now"]).success();
    let deleted = world.json(&["gc", "delete", "main", "--now"]);
    assert!(deleted[0]["objects"].as_u64().unwrap() > before as u64, "{deleted}");
    assert_eq!(world.chunk_files().len(), before);
    // Again: nothing is left.
    assert_eq!(world.json(&["gc", "delete", "main"])[0]["objects"], 0);
    assert_eq!(world.run(&[], &["echo", "alive"]).success().stdout(), "alive\n");
    world.snowmelt(["verify", "small"]).success();
    let status = status(&world);
    assert_eq!((&status["active"], &root(&status, "second")["images"]), (&"second".into(), &1.into()));
    assert_eq!(root(&status, "main")["state"], "deleted");
}

#[test]
fn what_is_removed_frees_the_disk() {
    let world = World::with_small();
    let removed = world.snowmelt(["rm", "small"]).success();
    assert!(removed.stdout().contains("gc"), "{}", removed.stdout());
    assert!(!world.chunk_files().is_empty());
    let counted = world.json(&["gc", "status", "--count"]);
    let main = root(&counted, "main");
    assert!(main["stored_bytes"].as_u64().unwrap() > 0);
    assert_eq!(main["stored_bytes"], main["garbage_bytes"]);
    for command in [
        &["gc", "rotate"][..],
        &["gc", "migrate"],
        &["gc", "expire", "main", "--now"],
        &["gc", "delete", "main", "--now"],
    ] {
        world.snowmelt(command).success();
    }
    assert_eq!(world.chunk_files(), Vec::<std::path::PathBuf>::new());
    // The name may be used again.
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    world.run(&[], &["true"]).success();
}

#[test]
fn a_sandbox_in_use_keeps_its_root_and_survives_its_migration() {
    let mut world = World::with_small();
    world.set("SNOWMELT_LEASE", "3s");
    let directory = world.mount("small", &[]);
    wait_until("the mount has its lease", || root(&status(&world), "main")["leases"] == 1);
    world.snowmelt(["rm", "small"]).success();
    world.snowmelt(["gc", "rotate", "--to", "second"]).success();
    let blocked = world.snowmelt(["gc", "expire", "main", "--now"]).failure(1, &[]);
    assert!(blocked.stdout().contains("in use"), "{}", blocked.stdout());
    assert_eq!(world.json(&["gc", "migrate"])[0]["manifests"], 1);
    wait_until("the mount reads from the other root", || {
        let status = status(&world);
        root(&status, "main")["leases"] == 0 && root(&status, "second")["leases"] == 1
    });
    world.snowmelt(["gc", "expire", "main", "--now"]).success();
    world.snowmelt(["gc", "delete", "main", "--now"]).success();
    world.forget_chunks();
    let read = std::process::Command::new("tar").arg("-cf").arg("/dev/null").arg(&directory).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    world.unmount(&directory);
}

#[test]
fn reading_an_expired_root_is_an_alarm_that_stops_its_deletion() {
    let mut world = World::with_small();
    world.set("SNOWMELT_LEASE", "3s");
    world.snowmelt(["gc", "rotate", "--to", "second"]).success();
    // By hand, since the command would not let an image in use expire.
    let objects = world.objects("store");
    let text = String::from_utf8(objects.read("gc/state")).unwrap();
    assert!(text.contains("\"retired\""));
    objects.write("gc/state", text.replace("\"retired\"", "\"expired\""));
    let directory = world.mount("small", &[]);
    wait_until("there is an alarm", || status(&world)["alarms"] == 1);
    let seen = world.snowmelt(["gc", "status"]).failure(1, &[]).stdout();
    assert!(seen.contains("ALARM: expired root main") && seen.contains("sandbox"), "{seen}");
    let metrics = world.snowmelt(["gc", "status", "--metrics"]).success().stdout();
    assert!(metrics.contains("snowmelt_root_alarms{root=\"main\"} 1\n"), "{metrics}");
    world.snowmelt(["gc", "run"]).failure(1, &["expired roots were read"]);
    let blocked = world.snowmelt(["gc", "delete", "main", "--now"]).failure(1, &[]);
    assert!(blocked.stdout().contains("1 alarm"), "{}", blocked.stdout());
    world.unmount(&directory);
    assert_eq!(world.json(&["gc", "clear", "main"])["cleared"], 1);
    world.snowmelt(["gc", "status"]).success();
}

#[test]
fn a_timer_does_what_is_due() {
    let world = World::with_small();
    // Roots get their age from the first run.
    world.snowmelt(["gc", "run"]).success();
    let policy = world.path("gc.toml");
    std::fs::write(&policy, "rotate_every = '0s'\nretire_for = '0s'\nsalt_every = 'never'\n").unwrap();
    let ran = world.snowmelt(["gc", "run", "--json", "--policy", policy.to_str().unwrap()]).success();
    let events: Vec<String> = ran
        .stdout()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(events, ["rotated", "migrated", "expired", "blocked"]);
    world.run(&[], &["true"]).success();
}

#[test]
fn another_collector_is_left_alone() {
    let world = World::with_small();
    world.snowmelt(["gc", "run"]).success();
    let objects = world.objects("store");
    let mut state: Value = serde_json::from_slice(&objects.read("gc/state")).unwrap();
    state["lease"] =
        serde_json::json!({ "holder": "process 7 on elsewhere", "token": "0", "until": 9_999_999_999_u64 });
    objects.write("gc/state", state.to_string());
    let ran = world.snowmelt(["gc", "run"]).success();
    assert!(ran.stdout().contains("process 7 on elsewhere"), "{}", ran.stdout());
}

#[test]
fn mistakes_with_roots_are_explained() {
    let mut world = World::with_small();
    world.snowmelt(["gc", "expire", "nowhere"]).failure(1, &["no root nowhere", "gc status"]);
    world.snowmelt(["gc", "expire", "main"]).failure(1, &["main is active, not retired"]);
    world.snowmelt(["gc", "delete", "main"]).failure(1, &["main is active, not expired"]);
    world.snowmelt(["gc", "clear", "nowhere"]).failure(1, &["no root nowhere"]);
    world.snowmelt(["gc", "rotate", "--to", "main"]).failure(1, &["never used again"]);
    world.snowmelt(["gc", "rotate", "--retire", "nowhere"]).failure(1, &["nowhere is not active"]);
    let policy = world.text("gc.toml");
    std::fs::write(&policy, "rotate_evry = '1d'\n").unwrap();
    world.snowmelt(["gc", "run", "--policy", &policy]).failure(1, &["gc.toml", "rotate_evry"]);
    std::fs::write(&policy, "expire_for = '1m'\n").unwrap();
    world.snowmelt(["gc", "run", "--policy", &policy]).failure(1, &["gc.toml", "expire_for", "300 s"]);
    world.set("SNOWMELT_STORE", "https://127.0.0.1:9/store");
    world.snowmelt(["gc", "run"]).failure(1, &["can only be read"]);
}
