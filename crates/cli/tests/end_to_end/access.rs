//! What starts read, kept, merged, shown; and the ways of loading.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::stores::this_test;
use crate::world::{World, read_until, test_image, wait, wait_until, walk};

/// A command whose words are always the same, and what it reads is not.
const READ_WHAT: [&str; 3] = ["sh", "-c", "cat $WHAT > /dev/null"];

impl World {
    /// Runs a command to its end, with everything put away after it, and gives its figures.
    fn figures(&self, settings: &[&str], options: &[&str], command: &[&str]) -> Value {
        let arguments = [settings, &["--json", "run", "small", "--stats"], options, &["--"], command].concat();
        let finished = self.snowmelt(arguments).success();
        serde_json::from_str(&finished.stderr).unwrap_or_else(|error| panic!("{error}: {}", finished.stderr))
    }

    /// What is known of the starts of a command.
    fn access(&self, command: &[&str]) -> Value {
        self.json(&[&["inspect", "small", "--access", "--command"], command].concat())
    }

    /// Chunks in the cache on this machine.
    fn cached_chunks(&self) -> u64 {
        let mut count = 0;
        walk(&self.path("cache"), &mut |path| {
            count += u64::from(path.file_name().is_some_and(|name| name.len() == 64));
        });
        count
    }
}

/// Chunks that were not on this machine.
fn fetched(figures: &Value) -> u64 {
    number(figures, "/zone/chunks") + number(figures, "/origin/chunks")
}

fn number(figures: &Value, pointer: &str) -> u64 {
    figures.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {figures}"))
}

#[test]
fn starts_are_merged_and_what_only_one_read_fades_out() {
    let world = World::with_small();
    let start = |what: &str| {
        world.figures(&[], &["-e", &format!("WHAT={what}")], &READ_WHAT);
        let access = world.access(&READ_WHAT);
        (number(&access, "/starts"), number(&access, "/touched/chunks"))
    };
    let (starts, usual) = start("/etc/greeting");
    assert_eq!(starts, 1);
    // Once it reads much more.
    let (starts, once) = start("/data/pattern");
    assert!(starts == 2 && once > usual, "{once} {usual}");
    let (starts, after) = start("/etc/greeting");
    assert_eq!((starts, after), (3, usual));
    // Read always, it stays.
    start("/data/pattern");
    let (_, twice) = start("/data/pattern");
    assert_eq!(twice, once);
}

#[test]
fn what_is_known_of_starts_is_shown() {
    let world = World::with_small();
    let nothing = world.snowmelt(["inspect", "small", "--access"]).success().stdout();
    assert!(nothing.contains("No start is known yet"), "{nothing}");
    world.figures(&[], &[], &["md5sum", "/data/pattern"]);
    world.figures(&[], &[], &["true"]);
    let all = world.json(&["inspect", "small", "--access"]);
    let commands = all["commands"].as_array().unwrap();
    assert_eq!((number(&all, "/starts"), commands.len()), (2, 2));
    let parts = ["/touched/chunks", "/in_vain/chunks", "/never/chunks"].map(|part| number(&all, part));
    assert_eq!(parts.iter().sum::<u64>(), number(&all, "/all/chunks"));
    let one = world.access(&["md5sum", "/data/pattern"]);
    assert_eq!(one["commands"].as_array().unwrap().len(), 1);
    assert_eq!(number(&one, "/touched/chunks"), one["commands"][0]["order"].as_array().unwrap().len() as u64);
    assert!(commands.contains(&one["commands"][0]));

    let shown = world.snowmelt(["inspect", "small", "--access"]).success().stdout();
    for word in ["Touched", "In vain", "Never", "COMMAND", "FIRST CHUNKS", "# touched", ". never touched"] {
        assert!(shown.contains(word), "no `{word}` in {shown}");
    }
    assert!(!shown.contains('\x1b') && !shown.contains("md5sum"), "{shown}");
    let picture = world.text("small.svg");
    world.snowmelt(["inspect", "small", "--picture", &picture]).success();
    let drawn = std::fs::read_to_string(&picture).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
    assert_eq!(drawn.matches("zm").count() as u64, number(&all, "/all/chunks"), "a square for each chunk");
}

/// A start is known when its time is over: what started it may run for weeks, or be killed.
#[test]
fn a_start_is_kept_while_its_command_runs() {
    let world = World::with_small();
    let settings =
        ["--record-for", "1s", "run", "-i", "small", "sh", "-c", "echo ready; read line; md5sum /data/pattern"];
    let mut child = world.command(settings).stdin(Stdio::piped()).spawn().unwrap();
    let mut output = read_until(&mut child, "ready");
    let known = || world.json(&["inspect", "small", "--access"]);
    wait_until("its start is known", || number(&known(), "/starts") == 1);
    let before = known();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    assert_eq!(wait(&mut child), 0);
    world.assert_nothing_left();
    assert_eq!(known(), before, "what it read later is no start, and it was kept once");

    world.figures(&["--record-for", "0s"], &[], &["true"]);
    assert_eq!(known(), before, "nothing was to be recorded");
}

#[test]
fn ways_of_loading() {
    let world = World::with_small();
    let chunks = number(&world.json(&["inspect", "small"]), "/chunks");
    // Some of its chunks are the same.
    let different = world.chunk_files().len() as u64;
    let forget = || world.forget_chunks();
    let command = ["md5sum", "/etc/greeting"];
    let prefetched = |figures: &Value| {
        (number(figures, "/prefetched_chunks") > 0, number(figures, "/background_chunks"), figures["load"].clone())
    };
    let first = world.figures(&[], &[], &command);
    let touched = number(&first, "/touched_chunks");
    assert!(touched < chunks, "the image is small, but not as small as that");
    forget();
    assert_eq!(prefetched(&world.figures(&[], &[], &command)), (true, 0, "prefetch".into()));
    forget();
    let on_demand = world.figures(&["--load", "on-demand"], &[], &command);
    assert_eq!(prefetched(&on_demand), (false, 0, "on-demand".into()));
    assert_eq!(fetched(&on_demand), number(&on_demand, "/touched_chunks"));

    forget();
    let all = world.figures(&["--load", "all"], &[], &command);
    // A worker puts them on the disk in the background.
    wait_until("all of it is here", || world.cached_chunks() == different);
    assert_eq!(number(&all, "/background_chunks"), fetched(&all));
    assert!((different..=chunks).contains(&fetched(&all)), "{all}");
    assert_eq!(number(&all, "/touched_chunks"), touched);
    let again = world.figures(&["--load", "all"], &[], &command);
    assert_eq!(fetched(&again), 0, "it is all here");

    forget();
    let arguments = ["--load", "background", "run", "-i", "small", "sh", "-c", "echo ready; read line"];
    let mut child = world.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let _output = read_until(&mut child, "ready");
    wait_until("the rest is here", || world.cached_chunks() == different);
    drop(child.stdin.take());
    // The end of its input is a failure for `read`.
    assert_eq!(wait(&mut child), 1);
    world.assert_nothing_left();
}

#[test]
fn what_cannot_be_loaded_or_shown_is_said() {
    let world = World::with_small();
    let modes = ["on-demand", "prefetch", "background", "all"];
    world.snowmelt(["--load", "everything", "images"]).failure(2, &[&modes[..], &["everything"]].concat());
    world.snowmelt(["--record-for", "2h", "images"]).failure(1, &["record_for", "60 min", "0s"]);
    for (field, words) in [("load = \"most\"", &modes[..]), ("prefetch = false", &["prefetch", "load"])] {
        std::fs::write(world.path("config.toml"), field).unwrap();
        world.snowmelt(["images"]).failure(1, words);
    }
    std::fs::write(world.path("config.toml"), "").unwrap();
    crate::stores::assert_is_partly_on_cluster(this_test!());
    let small_cache = ["--use-worker", "never", "--cache-size", "1MiB", "--load"];
    let with = |mode: &str| world.snowmelt([&small_cache[..], &[mode, "run", "small", "true"]].concat());
    with("all").failure(125, &["small:latest", "cache_size", "1 MiB"]);
    let warned = with("background").success();
    assert!(warned.stderr.contains("cache_size"), "{}", warned.stderr);
    world.snowmelt(["inspect", "small", "--picture", "x.bmp"]).failure(1, &["x.bmp", ".svg"]);
    world.snowmelt(["inspect", "small", "--command", "no", "--such"]).failure(1, &["small", "run it once"]);
    world.assert_nothing_left();
}

/// A start that needs all of its image ends where a chunk is nowhere, and says which.
#[test]
fn a_missing_chunk_ends_a_start_that_needs_all() {
    let world = World::with_small();
    for chunk in world.chunk_files() {
        world.remove_stored(&chunk);
    }
    world.snowmelt(["--load", "all", "run", "small", "true"]).failure(125, &["small:latest", "chunk"]);
    world.snowmelt(["publish", &test_image("small"), "small", "--repair"]).success();
    world.snowmelt(["--load", "all", "run", "small", "true"]).success();
    world.assert_nothing_left();
}
