//! A machine with a worker: chunks once for all, confined agents, and what happens when a process of these is gone.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::Worker;
use crate::stores::only_on_files;
use crate::world::{World, is_running, read_until, test_image, wait, wait_until};

impl World {
    /// Kills it, and waits until another serves in its place.
    pub fn replace_agent(&self) {
        let agent = self.agent();
        kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
        // It is confined when it has left with the worker what the next one needs.
        wait_until("another agent serves", || {
            let next = self.agent();
            next != agent && is_running(next) && status_of(next, "Seccomp") == "2"
        });
    }
}

/// A page, as direct I/O wants it.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; 4096]);

/// Reads a file past the page cache.
fn read_direct(path: &Path, into: &mut Vec<u8>) -> std::io::Result<()> {
    let file = File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(path)?;
    let length = file.metadata()?.len();
    let mut page = Box::new(Page([0; 4096]));
    into.clear();
    while (into.len() as u64) < length {
        let count = file.read_at(&mut page.0, into.len() as u64)?;
        into.extend_from_slice(&page.0[..count]);
    }
    Ok(())
}

fn write_direct(path: &Path, byte: u8) -> std::io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).custom_flags(nix::libc::O_DIRECT).open(path)?;
    let page = Box::new(Page([byte; 4096]));
    (0..16).try_for_each(|index| file.write_all_at(&page.0, index * 4096))?;
    file.sync_all()
}

/// Reads and writes on a mounted image from several threads, past the page cache, while something is done to it. Every byte must be
/// right, and nothing may fail.
fn under_load(mount: &Path, disturb: impl FnOnce(&AtomicU64)) {
    let mut expected = Vec::new();
    read_direct(&mount.join("data/pattern"), &mut expected).unwrap();
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..3_u8 {
            let (expected, is_over, rounds) = (&expected, &is_over, &rounds);
            scope.spawn(move || {
                let (mut bytes, own) = (Vec::new(), mount.join(format!("tmp/own-{number}")));
                for round in 0.. {
                    read_direct(&mount.join("data/pattern"), &mut bytes).unwrap();
                    assert!(bytes == *expected, "other bytes");
                    write_direct(&own, number ^ round).unwrap();
                    read_direct(&own, &mut bytes).unwrap();
                    assert!(bytes == vec![number ^ round; 65536], "what was written is not there");
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        // Whatever happens, the others must not go on for ever.
        let guard = Guard(&is_over);
        disturb(&rounds);
        drop(guard);
    });
}

struct Guard<'a>(&'a AtomicBool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn wait_for_rounds(rounds: &AtomicU64, more: u64) {
    let until = rounds.load(Ordering::Relaxed) + more;
    wait_until("it goes on", || rounds.load(Ordering::Relaxed) >= until);
}

fn status_of(pid: i32, field: &str) -> String {
    // One that is gone has none.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_run_by_a_worker_is_like_any_other_and_leaves_nothing() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    let finished = world.run(&["-e", "WHO=you"], &["sh", "-c", "echo hello $WHO; echo there >&2; exit 7"]);
    assert_eq!(finished.stdout(), "hello you\n");
    finished.failure(7, &["there"]);
    assert_eq!(world.run(&[], &["md5sum", "/etc/greeting"]).success().stdout().len(), 48);
    wait_until("no sandbox is left", || world.worker_status()["sandboxes"] == 0);
    // What the starts read was kept by the worker: agents may not.
    assert_eq!(world.json(&["inspect", "small", "--access"])["starts"], 2);
    let table = world.snowmelt(["worker", "status"]).success().stdout();
    assert!(table.contains("sandboxes  0, 0 agents replaced"), "{table}");
    worker.stop();
    world.assert_nothing_left();
}

#[test]
fn an_agent_is_confined_once_it_has_mounted() {
    let world = World::with_small();
    let _worker = Worker::start(&world, &["--agent-memory", "512MiB"]);
    let mount = world.mount("small", &["--rw"]);
    let agent = world.agent();
    let user = status_of(agent, "Uid");
    assert!(user.starts_with("1878"), "{user}");
    assert_eq!(status_of(agent, "Groups"), "");
    assert_eq!(status_of(agent, "CapEff"), "0000000000000000");
    assert_eq!(status_of(agent, "CapPrm"), "0000000000000000");
    assert_eq!(status_of(agent, "NoNewPrivs"), "1");
    assert_eq!(status_of(agent, "Seccomp"), "2");
    let limits = std::fs::read_to_string(format!("/proc/{agent}/limits")).unwrap();
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert!(data.contains(&(512_u64 << 20).to_string()), "{data}");
    for task in std::fs::read_dir(format!("/proc/{agent}/task")).unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("Seccomp:\t2"), "{status}");
    }
    assert!(!std::fs::read_to_string(mount.join("etc/greeting")).unwrap().is_empty());
    world.unmount(&mount);
}

#[test]
fn agents_that_are_killed_are_replaced_under_load() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    let mount = world.mount("small", &["--rw"]);
    under_load(&mount, |rounds| {
        for _ in 0..4 {
            wait_for_rounds(rounds, 6);
            world.replace_agent();
        }
        wait_for_rounds(rounds, 6);
    });
    assert_eq!(world.worker_status()["replaced_agents"], 4);
    world.unmount(&mount);
    worker.stop();
    world.assert_nothing_left();
}

#[test]
fn agents_let_go_for_successors_and_a_worker_that_comes_back_has_them_again() {
    let world = World::with_small();
    let mut worker = Worker::start(&world, &[]);
    let mount = world.mount("small", &["--rw"]);
    under_load(&mount, |rounds| {
        let agent = world.agent();
        assert_eq!(world.json(&["worker", "replace-agents"])["replaced"], 1);
        wait_until("another agent serves", || world.agent() != agent && status_of(world.agent(), "Seccomp") == "2");
        wait_for_rounds(rounds, 6);
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            let agent = world.agent();
            worker.signal(signal);
            wait(&mut worker.process);
            // What needs no other chunk goes on meanwhile.
            worker = Worker::start(&world, &[]);
            wait_until("its sandbox is back", || world.worker_status()["sandboxes"] == 1);
            assert_eq!(world.agent(), agent);
            wait_for_rounds(rounds, 6);
            // What the worker holds now is enough for the next one.
            world.replace_agent();
            wait_for_rounds(rounds, 6);
        }
    });
    world.unmount(&mount);
    worker.stop();
    world.assert_nothing_left();
}

/// Agents that are not back yet keep their users: two sandboxes under one could reach each other.
#[test]
fn a_worker_that_comes_back_gives_no_user_twice() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    let mount = world.mount("small", &[]);
    let first = Pid::from_raw(world.agent());
    kill(first, Signal::SIGSTOP).unwrap();
    worker.kill();
    let worker = Worker::start(&world, &[]);
    let mut child = world.command(["run", "small", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    let users: Vec<String> = world.agents().into_iter().map(|agent| status_of(agent, "Uid")).collect();
    assert!(users.len() == 2 && users[0] != users[1], "{users:?}");
    kill(first, Signal::SIGCONT).unwrap();
    wait_until("its sandbox is back", || world.worker_status()["sandboxes"] == 2);
    child.kill().unwrap();
    wait(&mut child);
    drop(output);
    world.unmount(&mount);
    worker.stop();
}

#[test]
fn a_run_outlives_its_agent_and_its_worker() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    let script = "echo ready; read line; md5sum /data/pattern > /dev/null && echo went on; exit 3";
    let mut child = world.command(["run", "-i", "small", "sh", "-c", script]).stdin(Stdio::piped()).spawn().unwrap();
    let mut output = read_until(&mut child, "ready");
    world.replace_agent();
    worker.kill();
    let worker = Worker::start(&world, &[]);
    wait_until("its sandbox is back", || world.worker_status()["sandboxes"] == 1);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), wait(&mut child)), ("went on\n", 3));
    wait_until("no sandbox is left", || world.worker_status()["sandboxes"] == 0);
    worker.stop();
    world.assert_nothing_left();
}

#[test]
fn with_worker_and_agent_gone_a_run_fails_and_the_next_is_served_without() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    let script = "echo ready; read line; md5sum /data/pattern";
    let mut child = world.command(["run", "-i", "small", "sh", "-c", script]).stdin(Stdio::piped()).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    let agent = world.agent();
    worker.kill();
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    drop(output);
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert_eq!(wait(&mut child), 125);
    assert!(message.contains("ended unexpectedly"), "{message}");
    assert!(world.run(&[], &["cat", "/etc/greeting"]).success().stdout().len() > 1);
    world.assert_nothing_left();
}

#[test]
fn a_run_whose_maker_is_killed_is_taken_down() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    let mut child = world.command(["run", "small", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    child.kill().unwrap();
    wait(&mut child);
    drop(output);
    wait_until("no sandbox is left", || world.worker_status()["sandboxes"] == 0);
    worker.stop();
    world.assert_nothing_left();
}

#[test]
fn chunks_are_fetched_once_however_many_start() {
    let world = World::with_small();
    let worker = Worker::start(&world, &[]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.run(&[], &["md5sum", "/data/pattern"]).success());
        }
    });
    let fetched = worker.metric("snowmelt_worker_fetch_seconds_count");
    let status = world.worker_status();
    assert!(fetched > 0);
    assert_eq!(fetched, status["memory"][0].as_u64().unwrap(), "each was fetched once: {status}");
    assert_eq!(worker.metric("snowmelt_worker_failed_total"), 0);
    worker.stop();
    // From its disk, with nothing fetched.
    let worker = Worker::start(&world, &[]);
    assert!(worker.ready["disk"][0].as_u64().unwrap() >= fetched);
    world.run(&[], &["md5sum", "/data/pattern"]).success();
    assert_eq!(worker.metric("snowmelt_worker_fetch_seconds_count"), 0);
    assert!(worker.metric("snowmelt_worker_disk_hits_total") > 0);
}

fn first_chunk(folder: &Path) -> Vec<PathBuf> {
    let mut chunks = Vec::new();
    crate::world::walk(&folder.join("chunks"), &mut |path| chunks.push(path.to_owned()));
    chunks.retain(|path| path.is_file());
    chunks
}

#[test]
fn damaged_chunks_on_the_workers_disk_heal() {
    let world = World::with_small();
    Worker::start(&world, &[]).stop();
    let worker = Worker::start(&world, &[]);
    let expected = world.run(&[], &["md5sum", "/data/pattern"]).success().stdout();
    wait_until("its chunks are on disk", || {
        let status = world.worker_status();
        status["disk"][0] == status["memory"][0]
    });
    worker.stop();
    for path in first_chunk(&world.path("cache/worker")) {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let _worker = Worker::start(&world, &[]);
    assert_eq!(world.run(&[], &["md5sum", "/data/pattern"]).success().stdout(), expected);
}

#[test]
fn starts_wait_for_their_turn_or_are_refused() {
    let world = World::with_small();
    let options = ["--least-starts", "1", "--most-starts", "1", "--start-wait", "0s"];
    let worker = Worker::start(&world, &options);
    // It fetches chunks, so it counts for two seconds after its mount.
    let mut first = world.command(["run", "-i", "small", "sh", "-c", "echo ready; read line"]);
    let mut first = first.stdin(Stdio::piped()).spawn().unwrap();
    let output = read_until(&mut first, "ready");
    world.run(&[], &["true"]).failure(125, &["starts 1 sandboxes already", "try again later"]);
    assert_eq!(world.worker_status()["refused_starts"], 1);
    drop(first.stdin.take());
    drop(output);
    wait(&mut first);
    worker.stop();
    let options = ["--least-starts", "1", "--most-starts", "1", "--start-wait", "60s"];
    let _worker = Worker::start(&world, &options);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| world.run(&[], &["true"]).success());
        }
    });
    assert_eq!(world.worker_status()["refused_starts"], 0);
}

#[test]
fn a_start_whose_chunks_are_here_counts_only_until_its_mount() {
    let world = World::with_small();
    let _worker = Worker::start(&world, &["--least-starts", "1", "--most-starts", "1"]);
    world.snowmelt(["--load", "all", "run", "small", "true"]).success();
    // It waits until the first counts no longer.
    world.run(&[], &["true"]).success();
    wait_until("no sandbox is left", || world.worker_status()["sandboxes"] == 0);
    assert_eq!(world.worker_status()["starts"][1], 0);
}

#[test]
fn mistakes_with_workers_are_told() {
    let world = World::with_small().without_worker();
    world.snowmelt(["worker", "status"]).failure(1, &["no worker runs at", "snowmelt worker"]);
    let always = world.snowmelt(["--use-worker", "always", "run", "small", "true"]);
    always.failure(125, &["worker of this machine", "none listens", "snowmelt worker"]);
    for (options, words) in [
        (&["--least-starts", "0"][..], "at least 1"),
        (&["--least-starts", "9", "--most-starts", "3"], "not less than the least"),
        (&["--origin-reads", "0"], "1 to 1024"),
        (&["--agent-memory", "1MiB"], "at least"),
        (&["--start-wait", "2h"], "an hour at most"),
        (&["--admin", "nowhere"], "HOST:PORT"),
    ] {
        world.snowmelt([&["worker"], options].concat()).failure(1, &[words]);
    }
    let _worker = Worker::start(&world, &[]);
    world.snowmelt(["worker"]).failure(1, &["another worker runs there already"]);
    let other = world.text("other");
    world.snowmelt(["--state-dir", &other, "worker"]).failure(1, &["another worker uses"]);
    // Without it, as asked.
    world.snowmelt(["--use-worker", "never", "run", "small", "true"]).success();
    assert_eq!(world.worker_status()["memory"][0], 0);
    world.snowmelt(["run", "nothing", "true"]).failure(125, &["nothing"]);
}

/// Images of other tenants are as separate as ever: a worker has no keys.
#[test]
fn tenants_share_a_worker_and_no_keys() {
    only_on_files!();
    let world = World::with_small();
    world.snowmelt(["--tenant", "other", "publish", &test_image("small"), "small"]).success();
    let _worker = Worker::start(&world, &[]);
    world.snowmelt(["--tenant", "other", "run", "small", "true"]).success();
    world.run(&[], &["true"]).success();
    std::fs::remove_file(world.path("keys/other.key")).unwrap();
    world.run(&[], &["true"]).success();
    let locked_out = world.snowmelt(["--tenant", "other", "run", "small", "true"]);
    locked_out.failure(125, &["no key of tenant \"other\""]);
}
