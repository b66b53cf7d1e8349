//! The commands around images, and what they print for scripts.

use std::path::Path;

use serde_json::Value;

use crate::stores::only_on_files;
use crate::world::{World, test_image, tool};

/// All numbers and texts of a document, whatever its shape, so that a test names only what it is about.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields.get(key).or_else(|| fields.values().find_map(|inner| find(inner, key))),
        Value::Array(items) => items.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}

#[test]
fn publish_reports_what_is_new() {
    let world = World::new();
    let first = world.json(&["publish", &test_image("small"), "small:v1"]);
    let second = world.json(&["publish", &test_image("small"), "small:v2"]);
    let number = |report: &Value, key: &str| {
        find(report, key).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number `{key}` in {report}"))
    };
    assert!(number(&first, "chunks") > 5, "{first}");
    assert!(number(&first, "new_chunks") > 5, "{first}");
    assert_eq!(number(&second, "new_chunks"), 0, "{second}");
    assert_eq!(number(&first, "chunks"), number(&second, "chunks"));
    assert_eq!(world.chunk_files().len() as u64, number(&first, "new_chunks"));
}

#[test]
fn images_are_listed_shown_and_removed() {
    let world = World::new();
    assert_eq!(world.json(&["images"]), serde_json::json!([]), "no image yet");
    world.snowmelt(["publish", &test_image("small"), "small:v1"]).success();
    world.snowmelt(["publish", &test_image("small"), "team/other"]).success();

    let table = world.snowmelt(["images"]).success().stdout();
    for word in ["small", "v1", "team/other", "latest"] {
        assert!(table.contains(word), "no `{word}` in {table}");
    }
    assert_eq!(world.json(&["images"]).as_array().unwrap().len(), 2);

    let inspected = world.json(&["inspect", "small:v1"]);
    let text = inspected.to_string();
    for word in ["GREETING=hello", "/srv", "/bin/sh", "blake3-gcm", "org.example.kind"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    assert!(find(&inspected, "chunk_size").is_some(), "{inspected}");
    assert!(!text.contains("\"key\""), "keys stay sealed: {text}");

    world.snowmelt(["rm", "small:v1"]).success();
    assert_eq!(world.json(&["images"]).as_array().unwrap().len(), 1);
    world.snowmelt(["run", "small:v1", "--", "true"]).failure(125, &["small:v1"]);
    world.snowmelt(["rm", "small:v1"]).failure(1, &["small:v1"]);
    world.snowmelt(["run", "team/other", "--", "true"]).success();
}

#[test]
fn du_agrees_with_the_files() {
    let world = World::with_small();
    world.run(&[], &["cat", "/data/pattern"]).success();
    let report = world.json(&["du"]).to_string();
    let stored = world.objects("store").list();
    let chunks: u64 = stored.iter().filter(|(path, _)| path.contains("/chunks/")).map(|(_, bytes)| bytes).sum();
    assert!(chunks > 0);
    assert!(report.contains(&chunks.to_string()), "stored chunks are {chunks} bytes: {report}");
    assert!(!world.snowmelt(["du"]).success().stdout().is_empty());
}

#[test]
fn both_suites_store_run_and_verify() {
    let world = World::new();
    for suite in ["blake3-gcm", "sha256-ctr"] {
        world.snowmelt(["publish", &test_image("small"), suite, "--suite", suite]).success();
        world.snowmelt(["verify", suite]).success();
        assert!(world.json(&["inspect", suite]).to_string().contains(suite));
        let hello = world.snowmelt(["run", suite, "--", "cat", "/etc/greeting"]).success();
        assert_eq!(hello.stdout(), "hello from snowmelt\n");
    }
}

#[test]
fn exports_are_sparse_and_never_overwrite() {
    let world = World::with_small();
    let file = world.path("image.ext4");
    world.snowmelt(["export", "small", file.to_str().unwrap()]).success();
    let metadata = file.metadata().unwrap();
    let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(metadata.len() > 1 << 30, "a gibibyte is free by default: {}", metadata.len());
    assert!(allocated < 64 << 20, "free space takes no room on disk: {allocated}");
    world.snowmelt(["export", "small", file.to_str().unwrap()]).failure(1, &["image.ext4", "exists"]);
}

#[test]
fn keys_are_made_once_and_only_their_owner_reads_them() {
    use std::os::unix::fs::PermissionsExt;
    only_on_files!();
    let world = World::with_small();
    let mut files = Vec::new();
    crate::world::walk(&world.path("keys"), &mut |path| {
        files.push((
            path.to_owned(),
            std::fs::read(path).unwrap(),
            path.metadata().unwrap().permissions().mode() & 0o777,
        ));
    });
    assert!(!files.is_empty());
    for (path, _, mode) in &files {
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    world.snowmelt(["publish", &test_image("small"), "again"]).success();
    for (path, content, _) in &files {
        assert_eq!(std::fs::read(path).unwrap(), *content, "{} changed", path.display());
    }
}

#[test]
fn tenants_read_only_their_own_images() {
    let world = World::with_small();
    let other = world.snowmelt(["--tenant", "other", "run", "small", "--", "true"]);
    other.failure(125, &["small"]);
    // What is stored is shared all the same: equal chunks of another tenant are not stored twice.
    let before = world.chunk_files();
    world.snowmelt(["--tenant", "other", "publish", &test_image("small"), "small"]).success();
    assert_eq!(world.chunk_files(), before);
    world.snowmelt(["--tenant", "other", "run", "small", "--", "true"]).success();
}

#[test]
fn nothing_readable_lies_in_the_store_or_in_the_cache() {
    let world = World::with_small();
    world.run(&[], &["cat", "/etc/greeting"]).success();
    let secret = b"hello from snowmelt";
    let check = |path: &str, bytes: &[u8]| {
        let readable = bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!readable, "{path} holds a file's content in the clear");
    };
    let store = world.objects("store");
    for (path, _) in store.list() {
        check(&path, &store.read(&path));
    }
    crate::world::walk(&world.path("cache"), &mut |path| {
        check(&path.display().to_string(), &std::fs::read(path).unwrap());
    });
}

#[test]
fn configuration_by_file_environment_and_flags_in_rising_order() {
    let mut world = World::with_small();
    let greets = |world: &World, flags: &[&str]| {
        let arguments = [flags, &["run", "small", "--", "cat", "/etc/greeting"]].concat();
        world.snowmelt(arguments).code == 0
    };
    assert!(greets(&world, &[]));
    // The environment names the store; a flag overrides it.
    assert!(!greets(&world, &["--store", &world.store_url("empty")]));
    // The file is the weakest: it counts where the environment is silent.
    std::fs::write(world.path("config.toml"), format!("store = {:?}\n", world.store_url("store"))).unwrap();
    world.set("SNOWMELT_STORE", world.store_url("elsewhere"));
    assert!(!greets(&world, &[]));
    let file_only =
        world.command(["run", "small", "--", "cat", "/etc/greeting"]).env_remove("SNOWMELT_STORE").spawn().unwrap();
    crate::world::finish(file_only).success();
}

#[test]
fn help_version_and_completions() {
    let world = World::new();
    let help = world.snowmelt(["--help"]).success().stdout();
    for command in ["publish", "run", "mount", "unmount", "images", "inspect", "verify", "export", "rm", "du"] {
        assert!(help.contains(command), "no `{command}` in {help}");
        let own = world.snowmelt([command, "--help"]).success().stdout();
        assert!(own.contains("Example"), "`{command} --help` has no example: {own}");
    }
    assert!(world.snowmelt(["--version"]).success().stdout().starts_with("snowmelt "));
    let script = world.path("completions.bash");
    std::fs::write(&script, world.snowmelt(["completions", "bash"]).success().stdout).unwrap();
    tool("bash", &["-n", script.to_str().unwrap()]);
    assert!(world.objects("store").list().is_empty() && !world.path("store").exists(), "help makes no store");
}

/// Whatever surrounds it, the same layers give the same bytes: under one salt, the same chunks.
#[test]
fn time_zone_umask_and_locale_change_no_byte() {
    let mut world = World::new();
    // In a store's own, two stores would have two.
    world.set("SNOWMELT_SALT_KEY", "local");
    let ids = |store: &str, prepare: &str| {
        let snowmelt = env!("CARGO_BIN_EXE_snowmelt");
        let (url, image) = (world.store_url(store), test_image("small"));
        let script = format!("{prepare}; exec {snowmelt} --store {url} publish {image} small");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]);
        for (name, value) in world.command(["images"]).get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        let finished = shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        crate::world::finish(finished).success();
        let stored = world.objects(store).list().into_iter().map(|(path, _)| path);
        stored.filter(|path| path.starts_with("roots/main/chunks/")).collect::<Vec<_>>()
    };
    let plain = ids("plain", "export TZ=UTC LC_ALL=C; umask 022");
    let strange = ids("strange", "export TZ=Pacific/Kiritimati LC_ALL=tr_TR.UTF-8 LANG=tr_TR; umask 077");
    assert!(plain.len() > 5);
    assert_eq!(plain, strange);
}

/// Flags over the environment over the file, for settings of every kind.
#[test]
fn settings_in_rising_order() {
    let mut world = World::with_small();
    let budget =
        |world: &World, flags: &[&str]| world.json(&[flags, &["du"]].concat())["cache"]["budget_bytes"].clone();
    assert_eq!(budget(&world, &[]), 10_u64 << 30);
    std::fs::write(world.path("config.toml"), "cache_size = \"1.5GiB\"\nroot = \"from-file\"\n").unwrap();
    assert_eq!(budget(&world, &[]), 3_u64 << 29);
    world.set("SNOWMELT_CACHE_SIZE", "2GiB");
    assert_eq!(budget(&world, &[]), 2_u64 << 30);
    assert_eq!(budget(&world, &["--cache-size", "3GiB"]), 3_u64 << 30);
    let root = |world: &World, flags: &[&str]| {
        world.snowmelt([flags, &["publish", &test_image("small"), "rooted"]].concat()).success();
        world.json(&["inspect", "rooted"])["root"].clone()
    };
    assert_eq!(root(&world, &[]), "from-file");
    world.set("SNOWMELT_ROOT", "from-environment");
    assert_eq!(root(&world, &[]), "from-environment");
    assert_eq!(root(&world, &["--root", "from-flag"]), "from-flag");
    world.set("SNOWMELT_ON_UNAVAILABLE", "perhaps");
    world.snowmelt(["images"]).failure(2, &["perhaps", "block", "fail"]);
}

#[test]
fn every_command_prints_json_for_scripts() {
    let world = World::with_small();
    let verified = world.json(&["verify", "small"]);
    assert!(
        verified["chunks"].as_u64().unwrap() > 5 && verified["damage"].as_array().unwrap().is_empty(),
        "{verified}"
    );
    let exported = world.json(&["export", "small", &world.text("small.ext4")]);
    assert_eq!(exported["image_bytes"], world.path("small.ext4").metadata().unwrap().len());
    let directory = world.path("mounted");
    std::fs::create_dir(&directory).unwrap();
    let mounted = world.json(&["mount", "small", directory.to_str().unwrap()]);
    assert!(Path::new(mounted["messages"].as_str().unwrap()).exists(), "{mounted}");
    std::fs::read(directory.join("etc/greeting")).unwrap();
    let unmounted = world.json(&["unmount", directory.to_str().unwrap()]);
    assert!(unmounted["stats"]["touched_chunks"].as_u64().unwrap() > 0, "{unmounted}");
    let run = world.snowmelt(["--json", "run", "small", "--stats", "--", "cat", "/etc/greeting"]).success();
    assert_eq!(run.stdout(), "hello from snowmelt\n");
    let figures: Value = serde_json::from_str(&run.stderr).unwrap();
    for path in
        ["/touched_chunks", "/cache/bytes", "/reached_us/mounted", "/reached_us/runtime", "/reached_us/first_output"]
    {
        assert!(figures.pointer(path).and_then(Value::as_u64).is_some(), "no {path} in {figures}");
    }
    let shown = world.snowmelt(["inspect", "small"]).success().stdout();
    assert!(shown.contains("first output after") && shown.contains("from cache"), "{shown}");
    let used = world.json(&["du"]);
    assert_eq!(used["images"][0]["last_run"]["touched_chunks"], figures["touched_chunks"]);
    world.snowmelt(["publish", &test_image("small"), "other"]).success();
    assert_eq!(world.json(&["rm", "small", "other"])["removed"], serde_json::json!(["small:latest", "other:latest"]));
}

/// What runs of a command read is read ahead at its next start, and only there.
#[test]
fn starts_are_remembered_by_command() {
    let world = World::with_small();
    let figures = |flags: &[&str], command: &[&str]| -> Value {
        let arguments = [flags, &["--json", "run", "small", "--stats", "--"], command].concat();
        let finished = world.snowmelt(arguments).success();
        serde_json::from_str(&finished.stderr).unwrap_or_else(|error| panic!("{error}: {}", finished.stderr))
    };
    let store = world.objects("store");
    let logs = || {
        let stored = store.list().into_iter().map(|(path, _)| path);
        stored.filter(|path| path.starts_with("roots/main/starts/default/")).collect::<Vec<_>>()
    };
    let number = |figures: &Value, name: &str| figures[name].as_u64().unwrap();
    let first = figures(&[], &["md5sum", "/data/pattern"]);
    let again = figures(&[], &["md5sum", "/data/pattern"]);
    assert_eq!(again["touched_chunks"], first["touched_chunks"]);
    // The same bytes in larger pieces.
    assert!(number(&again, "reads") < number(&first, "reads"), "{again} {first}");
    let other = figures(&[], &["cat", "/etc/greeting"]);
    assert!(
        number(&other, "touched_chunks") < number(&first, "touched_chunks"),
        "what another command reads stays where it is"
    );
    assert!(logs().iter().any(|path| path.ends_with("/common")), "two commands have something in common");
    // Another machine, which reaches the store by its network and has nothing yet, knows it too.
    let served = world.servers().is_none().then(|| crate::damage::serve(&world.path("store")));
    let cache = world.text("other-cache");
    let url = served.as_ref().map_or(world.store_url("store"), |(_, address)| format!("http://{address}/"));
    let state = world.text("other-state");
    let elsewhere = ["--store", &url, "--allow-http", "--cache-dir", &cache, "--state-dir", &state];
    let known = figures(&elsewhere, &["md5sum", "/data/pattern"]);
    assert!(number(&known, "prefetched_chunks") > 0, "{known}");
    assert_eq!(known["touched_chunks"], first["touched_chunks"]);
    if let Some((mut server, _)) = served {
        let _ = server.kill();
        let _ = server.wait();
    }
    // A log that was damaged is none.
    for log in logs() {
        store.write(&log, "nonsense");
    }
    let healed = figures(&[], &["md5sum", "/data/pattern"]);
    assert_eq!(healed["touched_chunks"], first["touched_chunks"]);
    let without = figures(&["--load", "on-demand"], &["cat", "/etc/greeting"]);
    assert_eq!(number(&without, "prefetched_chunks"), 0);
}

/// What a container writes takes room on the disk of the cache and not where sandboxes are recorded, which is in memory.
#[test]
fn a_small_state_directory_is_no_bound_for_what_is_written() {
    let world = World::with_small();
    let state = world.path("state");
    std::fs::create_dir_all(&state).unwrap();
    tool("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs", state.to_str().unwrap()]);
    let write = "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null && sync && md5sum < /big";
    let written = world.run(&[], &["sh", "-c", write]).success();
    assert_eq!(written.stdout(), "7f614da9329cd3aebf59b91aadc30bf0  -\n");
    world.wait_for_the_last_process();
    tool("umount", &[state.to_str().unwrap()]);
}

/// As with other runtimes, the command may follow the image without more.
#[test]
fn a_command_without_dashes_before_it() {
    let world = World::with_small();
    assert_eq!(world.snowmelt(["run", "small", "echo", "-n", "a", "--b"]).success().stdout(), "a --b");
    assert_eq!(world.snowmelt(["run", "-e", "A=b", "small", "sh", "-c", "echo $A"]).success().stdout(), "b\n");
    assert_eq!(world.snowmelt(["run", "small", "-e", "A=b", "--", "sh", "-c", "echo $A"]).success().stdout(), "b\n");
}
