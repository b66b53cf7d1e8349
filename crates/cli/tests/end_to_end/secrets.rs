//! What the processes of a sandbox know: an agent has the keys of its own image, and nothing that opens another.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::Worker;
use crate::world::{World, is_running, read_until, test_image, wait, wait_until};

/// Whether a process has these bytes anywhere in its memory.
fn knows(pid: i32, secret: &[u8]) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().any(|line| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; (end - start).min(1 << 30) as usize];
        // Some of it is the kernel's.
        let Ok(length) = memory.read_at(&mut bytes, start) else { return false };
        bytes[..length].windows(secret.len()).any(|window| window == secret)
    })
}

fn start(world: &World) -> Child {
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; exec sleep 1000"]).spawn().unwrap();
    read_until(&mut child, "ready");
    child
}

fn stop(mut child: Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
    wait(&mut child);
}

#[test]
fn an_agent_has_no_credentials_and_neither_has_its_successor() {
    let world = World::on_s3();
    let servers = world.servers().unwrap();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let worker = Worker::start(&world, &[]);
    let child = start(&world);
    let secret = servers.secret_key.as_bytes();
    // What is looked for would be found: the worker asks S3.
    assert!(knows(worker.process.id().cast_signed(), secret));
    let agent = world.agent();
    assert!(!knows(agent, secret), "the agent knows how S3 is reached");
    for variable in [&b"AWS_"[..], b"SNOWMELT_KEYS", b"SNOWMELT_STORE"] {
        assert!(!knows_variable(agent, variable), "{}", String::from_utf8_lossy(variable));
    }
    world.replace_agent();
    let successor = world.agent();
    assert!(!knows(successor, secret), "its successor knows how S3 is reached");
    assert!(is_running(successor));
    stop(child);
    wait_until("the sandbox is gone", || world.agents().is_empty());
    worker.stop();
    world.assert_nothing_left();
}

fn knows_variable(pid: i32, prefix: &[u8]) -> bool {
    let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    variables.split(|byte| *byte == 0).any(|variable| variable.starts_with(prefix))
}

#[test]
fn an_agent_has_no_key_of_its_tenant() {
    let world = World::on_files();
    world.snowmelt(["publish", &test_image("small"), "small"]).success();
    let text = std::fs::read_to_string(world.path("keys/default.key")).unwrap();
    let digit = |at: usize| u8::from_str_radix(&text.trim()[at..at + 2], 16).unwrap();
    let key: Vec<u8> = (0..64).step_by(2).map(digit).collect();
    let worker = Worker::start(&world, &[]);
    let child = start(&world);
    for key in [text.trim().as_bytes(), &key] {
        assert!(!knows(world.agent(), key), "the agent knows the key of its tenant");
    }
    stop(child);
    wait_until("the sandbox is gone", || world.agents().is_empty());
    worker.stop();
}
