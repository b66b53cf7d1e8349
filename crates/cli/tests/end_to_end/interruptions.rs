//! Killed at any point: nothing is left that the next command does not clear away, and no published image is harmed.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, finish, is_mount_point, is_running, read_until, test_image, wait, wait_until};

/// Processes of this world whose command line has `word`.
fn processes_with(world: &World, word: &str) -> Vec<i32> {
    world
        .processes()
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
        })
        .collect()
}

/// Kills processes and waits until they are gone: the signal is sent at once, but dying takes the kernel a moment.
fn kill_now(pids: &[i32]) {
    for pid in pids {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    wait_until("killed processes are gone", || pids.iter().all(|pid| !is_running(*pid)));
}

#[test]
fn a_killed_run_is_cleared_away_by_the_next_command() {
    let world = World::with_small();
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    drop(read_until(&mut child, "ready"));
    child.kill().unwrap();
    child.wait().unwrap();
    world.run(&[], &["true"]).success();
    world.assert_nothing_left();
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn a_killed_agent_ends_its_container_with_an_error_and_leaves_nothing() {
    let world = World::with_small();
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    let agents = processes_with(&world, "agent");
    assert!(!agents.is_empty(), "an agent serves the image");
    // It would replace the agent.
    world.kill_worker();
    kill_now(&agents);
    drop(output);
    finish(child).failure(125, &["small", "the process that serves the image ended unexpectedly"]);
    world.assert_nothing_left();
    world.run(&[], &["true"]).success();
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn a_killed_runtime_ends_its_container_with_an_error_and_leaves_nothing() {
    let world = World::with_small();
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    let runtimes = processes_with(&world, "--bundle");
    assert!(!runtimes.is_empty(), "a runtime has started the command");
    kill_now(&runtimes);
    drop(output);
    finish(child).failure(125, &["killed by signal 9"]);
    world.assert_nothing_left();
}

#[test]
fn all_processes_killed_at_once_are_cleared_away_by_the_next_command() {
    let world = World::with_small();
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; sleep 1000"]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    let mut victims = processes_with(&world, "agent");
    victims.extend(processes_with(&world, "--bundle"));
    victims.push(child.id().cast_signed());
    victims.extend(world.worker_process());
    assert!(victims.len() >= 3, "a run, an agent and a runtime: {victims:?}");
    // None has the time to clear away what another leaves.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &victims {
            kill(Pid::from_raw(*pid), signal).unwrap();
        }
    }
    wait(&mut child);
    world.kill_worker();
    drop(output);
    world.run(&[], &["true"]).success();
    world.assert_nothing_left();
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn the_last_process_of_a_sandbox_does_not_wait_for_itself() {
    let world = World::with_small();
    // Written, and not yet on the device.
    let script = "dd if=/dev/urandom of=/srv/big bs=1M count=8 2>&1; echo ready; sleep 1000";
    let mut child = world.command(["run", "small", "--", "sh", "-c", script]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    let runtimes = processes_with(&world, "--bundle");
    let agents = processes_with(&world, "agent");
    // The agent itself was started by the run, or by the worker; the process that mounts was by it.
    let starter = world.worker_process().unwrap_or(child.id().cast_signed());
    let (agent, mounters): (Vec<i32>, Vec<i32>) = agents.into_iter().partition(|pid| parent(*pid) == starter);
    assert_eq!((agent.len(), mounters.len()), (1, 1));
    let mut others = vec![child.id().cast_signed()];
    for runtime in runtimes {
        others.extend(children(runtime));
        others.push(runtime);
    }
    others.extend(mounters);
    // So that it does not take down what the others leave, and is the last that dies.
    kill(Pid::from_raw(agent[0]), Signal::SIGSTOP).unwrap();
    world.kill_worker();
    for pid in &others {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    // The last of them in its namespace may wait for the device, which nobody serves at the moment.
    wait_until("all others are gone or on their way out", || others.iter().all(|pid| has_died_or_waits_in_death(*pid)));
    kill_now(&agent);
    wait(&mut child);
    drop(output);
    wait_until("all others are gone", || others.iter().all(|pid| !is_running(*pid)));
    // What of it waits in the kernel is seen by whoever waits for every file system.
    let mut sync = std::process::Command::new("sync").spawn().unwrap();
    wait_until("every file system is synced", || sync.try_wait().unwrap().is_some());
    let threads = || std::fs::read_dir(format!("/proc/{}/task", agent[0])).map_or(0, Iterator::count);
    wait_until("no thread of it but a zombie is left", || threads() <= 1);
    world.run(&[], &["true"]).success();
    world.assert_nothing_left();
}

fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.clone().nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0)
}

/// No thread of it can run program code any more, and those that still end wait in the kernel for something.
fn has_died_or_waits_in_death(pid: i32) -> bool {
    const PF_EXITING: u64 = 0x4;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok()).all(|stat| {
        // State, parent, group, session, terminal, its group, flags.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let flags: u64 = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or(0);
        fields.first() == Some(&"Z")
            || fields.first() == Some(&"X")
            || (fields.first() == Some(&"D") && flags & PF_EXITING != 0)
    })
}

fn children(pid: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|child| parent(*child) == pid).collect()
}

#[test]
fn a_mount_whose_agent_was_killed_is_cleared_away() {
    let world = World::with_small();
    let mounted = world.mount("small", &[]);
    let agents = processes_with(&world, "agent");
    assert!(!agents.is_empty(), "an agent serves the mount");
    world.kill_worker();
    kill_now(&agents);
    world.run(&[], &["true"]).success();
    assert!(!is_mount_point(&mounted), "the dead mount is gone");
    let again = world.mount("small", &[]);
    assert_eq!(std::fs::read_to_string(again.join("etc/greeting")).unwrap(), "hello from snowmelt\n");
    world.unmount(&again);
    world.assert_nothing_left();
}

#[test]
fn a_living_mount_survives_other_commands() {
    let world = World::with_small();
    let mounted = world.mount("small", &[]);
    world.run(&[], &["true"]).success();
    world.snowmelt(["images"]).success();
    assert_eq!(std::fs::read_to_string(mounted.join("etc/greeting")).unwrap(), "hello from snowmelt\n");
    world.unmount(&mounted);
    world.assert_nothing_left();
}

#[test]
fn a_publish_killed_anywhere_harms_nothing() {
    let world = World::with_small();
    let digest = |name: &str| {
        let file = world.path("exported");
        let _ = std::fs::remove_file(&file);
        world.snowmelt(["export", name, file.to_str().unwrap()]).success();
        crate::tree::file_digest(&file)
    };
    let expected = digest("small");
    // Another salt would need other chunks; a directory of fresh content does too, so each round has work to be killed in.
    for round in 0..8_u64 {
        let rootfs = world.path(&format!("rootfs-{round}"));
        std::fs::create_dir_all(&rootfs).unwrap();
        for file in 0..16_u64 {
            let content: Vec<u8> = (0..128_u64 << 10).map(|index| (index * 31 + file * 17 + round * 7) as u8).collect();
            std::fs::write(rootfs.join(format!("file-{file}")), content).unwrap();
        }
        let source = format!("dir:{}", rootfs.display());
        let mut child = world.command(["publish", &source, "victim"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(10 * round));
        let _ = child.kill();
        finish(child);
        // Whatever is listed is whole, and the image from before is unharmed.
        for image in world.json(&["images"]).as_array().unwrap() {
            let name = image["name"].as_str().unwrap().to_owned();
            world.snowmelt(["verify", &name]).success();
        }
        assert_eq!(digest("small"), expected);
    }
    let source = format!("dir:{}", world.path("rootfs-0").display());
    world.snowmelt(["publish", &source, "victim"]).success();
    world.snowmelt(["verify", "victim"]).success();
    let mut drafts = Vec::new();
    crate::world::walk(&world.path("store"), &mut |path| {
        if path.file_name().is_some_and(|name| name.to_string_lossy().contains(".draft-")) {
            drafts.push(path.to_owned());
        }
    });
    assert!(drafts.is_empty(), "half-written chunks are not left behind: {drafts:?}");
}

#[test]
fn two_publishes_at_once_are_both_right() {
    let world = World::new();
    let source = test_image("small");
    let children: Vec<_> = ["small", "small", "other", "small"]
        .iter()
        .map(|name| world.command(["publish", &source, name]).spawn().unwrap())
        .collect();
    for child in children {
        finish(child).success();
    }
    for name in ["small", "other"] {
        world.snowmelt(["verify", name]).success();
    }
    world.run(&[], &["true"]).success();
}

#[test]
fn many_containers_at_once_from_an_empty_cache() {
    let world = World::with_small();
    let children: Vec<_> = (0..6)
        .map(|_| world.command(["run", "small", "--", "sh", "-c", "md5sum < /data/pattern"]).spawn().unwrap())
        .collect();
    let outputs: Vec<_> = children.into_iter().map(|child| finish(child).success().stdout()).collect();
    assert!(outputs.iter().all(|output| output == &outputs[0] && !output.is_empty()), "{outputs:?}");
    world.assert_nothing_left();
}

#[test]
fn an_image_removed_under_a_running_container_stays_readable_there() {
    let world = World::with_small();
    let mut child = world
        .command(["run", "small", "-i", "--", "sh", "-c", "echo ready; read line; wc -c < /data/pattern"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = read_until(&mut child, "ready");
    world.snowmelt(["rm", "small"]).success();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go on\n").unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
    assert_eq!((wait(&mut child), rest.trim()), (0, "4194304"));
}
