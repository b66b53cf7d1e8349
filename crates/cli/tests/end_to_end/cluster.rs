//! A whole cluster on one machine: an origin, five cache nodes, several workers, each with a cache of its own.

use std::io::{BufRead as _, BufReader};
use std::process::Child;

use serde_json::Value;

use crate::machine::Worker;
use crate::world::{World, wait_until};

/// A cache node, which ends with the test.
struct Node {
    process: Child,
    ready: Value,
}

impl Node {
    fn start(world: &World, number: usize) -> Self {
        let disk = world.text(&format!("node-{number}"));
        let arguments = ["--json", "cache-node", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let more = ["--memory", "64MiB", "--disk", &disk, "--disk-size", "64MiB"];
        let mut process = world.command([&arguments[..], &more].concat()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { ready: serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")), process }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A world with the same store and keys, and a machine's own cache and state in folders of that name.
fn machine(world: &mut World, name: &str) -> Worker {
    let (state, cache) = (world.text(&format!("{name}-state")), world.text(&format!("{name}-cache")));
    world.set("SNOWMELT_STATE_DIR", state);
    world.set("SNOWMELT_CACHE_DIR", cache);
    Worker::start(world, &[])
}

/// Starts something on the newest machine; chunks from the zone, and from the origin.
fn start(world: &World, worker: &Worker) -> (u64, u64) {
    world.run(&[], &["md5sum", "/data/pattern"]).success();
    let from = |tier: &str| {
        let name = format!("snowmelt_worker_fetch_seconds_count{{tier=\"{tier}\"");
        worker.metric(&name)
    };
    (from("zone"), from("origin"))
}

#[test]
fn what_one_worker_fetched_the_others_have_from_the_zone_also_without_a_node() {
    let mut world = World::with_small();
    let mut nodes: Vec<Node> = (0..5).map(|number| Node::start(&world, number)).collect();
    let list: Vec<String> = nodes
        .iter()
        .enumerate()
        .map(|(number, node)| format!("node-{number}={}", node.ready["listen"].as_str().unwrap()))
        .collect();
    world.set("SNOWMELT_CACHE_NODES", list.join(","));

    let first = machine(&mut world, "first");
    let (zone, origin) = start(&world, &first);
    assert!(zone == 0 && origin > 0, "{zone} {origin}");
    // The zone is given them in the background.
    let mut probes = 0;
    wait_until("the zone has them", || {
        probes += 1;
        let other = machine(&mut world, &format!("probe-{probes}"));
        let (zone, from_origin) = start(&world, &other);
        other.stop();
        zone > 0 && from_origin == 0
    });
    nodes[2].kill();
    let second = machine(&mut world, "second");
    let (zone, from_origin) = start(&world, &second);
    assert!(zone > 0 && from_origin == 0, "one node is missed by nobody: {zone} {from_origin}");
    assert!(second.metric("snowmelt_worker_zone_rebuilt_total") > 0);
    // With too few of them the origin is asked, and nothing fails.
    nodes[3].kill();
    let third = machine(&mut world, "third");
    let (_, from_origin) = start(&world, &third);
    assert!(from_origin > 0);
    // So it is without a worker.
    for node in &mut nodes {
        let _ = node.process.kill();
    }
    world.set("SNOWMELT_USE_WORKER", "never");
    world.run(&[], &["md5sum", "/data/pattern"]).success();
    for worker in [first, second, third] {
        worker.stop();
    }
}

/// So that the pass on a cluster is one.
#[test]
fn where_tests_run_on_a_cluster_their_worlds_are_in_it() {
    if crate::stores::cache_nodes().is_none() {
        return;
    }
    let world = World::with_small();
    let figures = || {
        let run = world.snowmelt(["--json", "run", "small", "--stats", "md5sum", "/data/pattern"]).success();
        let figures: Value = serde_json::from_str(&run.stderr).unwrap();
        ["zone", "origin"].map(|tier| figures[tier]["chunks"].as_u64().unwrap())
    };
    let [zone, origin] = figures();
    assert!(zone == 0 && origin > 0, "{zone} {origin}");
    assert!(world.worker_process().is_some() && world.worker_status()["memory"][0].as_u64() > Some(0));
    wait_until("the zone has them", || {
        world.forget_chunks();
        let [zone, origin] = figures();
        zone > 0 && origin == 0
    });
    world.assert_nothing_left();
}
