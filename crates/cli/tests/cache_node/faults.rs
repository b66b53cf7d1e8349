//! What happens to nodes and their disks, and costs no read more than a miss.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::node::{CHUNK, Process, Zone, chunk, client, is_hit, until};

/// Reads the chunks in turn with some threads, while `meanwhile` does something. Gives hits and misses.
fn under_load(zone_client: &snowmelt_zone::Client, chunks: u64, meanwhile: impl FnOnce()) -> (u64, u64) {
    let (end, hits, misses) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (end, hits, misses) = (&end, &hits, &misses);
            scope.spawn(move || {
                let mut at = reader;
                while !end.load(Ordering::Relaxed) {
                    let (id, content) = chunk(at % chunks, CHUNK);
                    let counter = if is_hit(zone_client, &id, &content) { hits } else { misses };
                    counter.fetch_add(1, Ordering::Relaxed);
                    at += 1;
                }
            });
        }
        until("reading has begun", || hits.load(Ordering::Relaxed) > 50);
        meanwhile();
        let before = hits.load(Ordering::Relaxed);
        until("reading goes on", || hits.load(Ordering::Relaxed) > before + 50);
        end.store(true, Ordering::Relaxed);
    });
    (hits.into_inner(), misses.into_inner())
}

fn write_all(client: &snowmelt_zone::Client, chunks: u64) {
    for seed in 0..chunks {
        let (id, content) = chunk(seed, CHUNK);
        assert_eq!(client.write(&id, &content, None), 5);
    }
}

#[test]
fn a_node_killed_under_load_costs_no_hit_and_comes_back_warm() {
    let mut zone = Zone::start(5);
    let (client, _follower) = zone.client();
    write_all(&client, 16);
    for node in &zone.nodes {
        until("all is on disk", || node.metric("snowmelt_node_disk_shards") == 16);
    }
    for at in 0..5 {
        let (_, misses) = under_load(&client, 16, || {
            zone.nodes[at].kill();
        });
        assert_eq!(misses, 0, "while node {at} is dead");
        zone.start_again(at);
        assert_eq!(zone.nodes[at].ready["disk_shards_found"], 16);
    }
    // Each of them serves what it had on its disk: with one dead, all others are needed.
    let hits = |node: &Process| node.metric("snowmelt_node_disk_hits_total");
    assert!(zone.nodes[..4].iter().all(|node| hits(node) > 0));
}

#[test]
fn a_torn_disk_is_right_bytes_or_misses() {
    for seed in 0..4_u64 {
        let mut zone = Zone::start(1);
        let (client, _follower) = zone.client();
        write_all(&client, 24);
        until("all is on disk", || zone.nodes[0].metric("snowmelt_node_disk_shards") == 24 * 5);
        zone.nodes[0].kill();
        let (mut hits, damaged) = (0, tear(&zone.disk(0), seed));
        zone.start_again(0);
        for seed in 0..24 {
            let (id, content) = chunk(seed, CHUNK);
            hits += u64::from(is_hit(&client, &id, &content));
            // The node may still be finding out what is damaged.
            until("what is lost is written again", || {
                client.write(&id, &content, None) == 5 && is_hit(&client, &id, &content)
            });
        }
        assert!(hits < 24 || damaged == 0, "{damaged} bytes were damaged");
        assert_eq!(client.stats().damaged_shards, 0, "the node finds them before it answers");
    }
}

/// Damages every second segment: in the middle, at its end, all of it. How many bytes.
fn tear(disk: &Path, seed: u64) -> u64 {
    let mut segments: Vec<PathBuf> =
        std::fs::read_dir(disk.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let mut damaged = 0;
    for path in segments.iter().step_by(2) {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let length = file.metadata().unwrap().len();
        damaged += length / 2;
        match seed {
            0 => file.set_len(length / 2).unwrap(),
            1 => (0..length / 2).step_by(4096).for_each(|at| file.write_all_at(b"torn", at).unwrap()),
            2 => file.write_all_at(&vec![0; length as usize / 2], length / 2).unwrap(),
            _ => file.write_all_at(&chunk(seed, length as usize).1, 0).unwrap(),
        }
    }
    std::fs::write(disk.join("segments/0000000000ffffff"), chunk(9, 3 << 20).1).unwrap();
    std::fs::write(disk.join("segments/what is this"), "nothing").unwrap();
    damaged
}

/// A small file system, until it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(options))
            .expect("mounting a small file system: run as root");
        Self(folder)
    }

    fn text(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_means_memory_only_until_there_is_room() {
    let disk = Small::new("size=36m");
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![0xee; 32 << 20]).unwrap();
    let node = Process::start("127.0.0.1:0", &["--disk", disk.text(), "--disk-size", "64MiB"]);
    let (client, _follower) = client(&[&node]);
    for seed in 0..60 {
        let (id, content) = chunk(seed, CHUNK);
        assert_eq!(client.write(&id, &content, None), 5);
        assert!(is_hit(&client, &id, &content), "memory has it");
    }
    until("it is noticed", || node.metric("snowmelt_node_disk_writable") == 0);
    assert!(node.metric("snowmelt_node_unwritten_shards_total") > 0);
    assert_eq!(node.ask("/readyz").0, 200);
    let log = node.log();
    assert_eq!(log.matches("kept in memory only").count(), 1, "{log}");
    assert!(log.contains("has room for"), "what does not fit is said when it starts: {log}");
    let before = node.metric("snowmelt_node_disk_shards");
    std::fs::remove_file(filler).unwrap();
    let next = AtomicU64::new(60);
    until("shards are kept on disk again", || {
        let (id, content) = chunk(next.fetch_add(1, Ordering::Relaxed), CHUNK);
        assert_eq!(client.write(&id, &content, None), 5);
        node.metric("snowmelt_node_disk_writable") == 1 && node.metric("snowmelt_node_disk_shards") > before
    });
}

#[test]
fn a_disk_without_room_for_anything_does_not_stop_the_start() {
    let disk = Small::new("nr_inodes=1");
    let node = Process::start("127.0.0.1:0", &["--disk", disk.text(), "--disk-size", "64MiB"]);
    let (client, _follower) = client(&[&node]);
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    assert!(is_hit(&client, &id, &content));
    assert_eq!(node.metric("snowmelt_node_disk_writable"), 0);
    assert!(node.log().contains("memory only"), "{}", node.log());
}

/// The variables that `faketime` would set: it is a process of its own, which signals would not pass.
fn faked(clock: &str) -> Vec<(String, String)> {
    let output = Command::new("faketime").args(["-f", &format!("@{clock}"), "env"]).output();
    let text = String::from_utf8(output.expect("faketime is installed by scripts/setup").stdout).unwrap();
    let mut variables: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| *name == "LD_PRELOAD" || *name == "FAKETIME")
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(variables.len(), 2, "{text}");
    // Time that passes is not what a wrong clock changes.
    variables.push(("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()));
    variables.push(("DONT_FAKE_MONOTONIC".into(), "1".into()));
    variables
}

#[test]
fn a_wrong_clock_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = ["--disk", folder.path().to_str().unwrap(), "--disk-size", "64MiB"];
    let mut listen = "127.0.0.1:0".to_owned();
    // Twenty years behind, right, and thirty ahead: each finds what the others kept.
    for (round, clock) in ["2006-01-01 00:00:00", "", "2056-01-01 00:00:00"].into_iter().enumerate() {
        let mut command = crate::node::command();
        if !clock.is_empty() {
            command.envs(faked(clock));
        }
        let mut node = Process::spawn(command, &listen, &disk);
        listen = node.listen.to_string();
        assert_eq!(node.ready["disk_shards_found"], round * 5);
        let (client, _follower) = client(&[&node]);
        let (id, content) = chunk(round as u64, CHUNK);
        assert_eq!(client.write(&id, &content, None), 5);
        for seed in 0..=round as u64 {
            let (id, content) = chunk(seed, CHUNK);
            assert!(is_hit(&client, &id, &content), "chunk {seed} in round {round}");
        }
        node.signal(Signal::SIGTERM);
        assert!(node.wait().success());
    }
}
