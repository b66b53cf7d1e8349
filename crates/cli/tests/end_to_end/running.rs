//! What a user of other runtimes expects of `run`: streams, exit codes, signals, and every option.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{World, finish, read_until, tool, wait, wait_until};

fn pid_of(child: &std::process::Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[test]
fn hello_from_a_container() {
    let world = World::with_small();
    let hello = world.run(&[], &["echo", "hello"]).success();
    assert_eq!(hello.stdout(), "hello\n");
    assert_eq!(hello.stderr, "", "a run that goes well says nothing of its own");
    world.assert_nothing_left();
}

#[test]
fn the_exit_code_is_the_commands() {
    let world = World::with_small();
    for code in [0, 1, 42, 255] {
        assert_eq!(world.run(&[], &["sh", "-c", &format!("exit {code}")]).code, code);
    }
    let missing = world.run(&[], &["no-such-command"]).failure(127, &["no-such-command"]);
    assert_eq!(missing.stderr.matches("no-such-command\"").count(), 1, "the runtime's words once: {}", missing.stderr);
    assert_eq!(missing.stderr.lines().count(), 1, "{}", missing.stderr);
    world.run(&[], &["/srv/lower"]).failure(126, &["/srv/lower"]);
    world.snowmelt(["run", "nothing-of-this-name", "--", "true"]).failure(125, &["nothing-of-this-name"]);
    world.assert_nothing_left();
}

#[test]
fn streams_stay_apart_and_carry_every_byte() {
    let world = World::with_small();
    let both = world.run(&[], &["sh", "-c", "echo to-stdout; echo to-stderr >&2"]).success();
    assert_eq!((both.stdout(), both.stderr), ("to-stdout\n".to_owned(), "to-stderr\n".to_owned()));

    let long = world.run(&[], &["cat", "/data/pattern"]).success();
    assert_eq!(long.stdout.len(), 4 << 20);
    assert_eq!(long.stdout[..1 << 20], long.stdout[3 << 20..]);
}

#[test]
fn standard_input_goes_in_only_when_asked() {
    let world = World::with_small();
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(5_000_000).collect();
    let arguments = |options: &[&'static str]| [&["run", "small"][..], options, &["--", "cat"]].concat();
    let echoed = world.snowmelt_with_input(arguments(&["-i"]), &input).success();
    assert!(echoed.stdout == input, "{} bytes came back of {}", echoed.stdout.len(), input.len());
    assert_eq!(world.snowmelt_with_input(arguments(&[]), b"not for the container").success().stdout(), "");
    // Without a command the image's own runs: a shell, which reads its script from there.
    let shell = world.snowmelt_with_input(["run", "small", "-i"], b"echo from the shell; exit 3\n");
    assert_eq!((shell.code, shell.stdout()), (3, "from the shell\n".to_owned()));
}

#[test]
fn signals_reach_the_command() {
    let world = World::with_small();
    for (signal, name) in
        [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGHUP, "HUP"), (Signal::SIGUSR1, "USR1")]
    {
        let script = format!("trap 'echo caught; exit 7' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child = world.command(["run", "small", "--", "sh", "-c", &script]).spawn().unwrap();
        let mut output = read_until(&mut child, "ready");
        kill(pid_of(&child), signal).unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
        assert_eq!((wait(&mut child), rest.as_str()), (7, "caught\n"), "SIG{name}");
    }
    world.assert_nothing_left();
}

#[test]
fn a_command_that_dies_of_a_signal_gives_128_and_its_number() {
    let world = World::with_small();
    // A shell as the first process would not get its own signal: it is the container's init.
    let script = "sleep 100 & kill -TERM $!; wait $!";
    assert_eq!(world.run(&[], &["sh", "-c", script]).code, 128 + 15);

    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; exec sleep 98765"]).spawn().unwrap();
    drop(read_until(&mut child, "ready"));
    let sleeper = container_process("sleep\098765\0");
    kill(Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
    assert_eq!(wait(&mut child), 128 + 9);
    world.assert_nothing_left();
}

#[test]
fn the_third_request_to_end_is_not_a_question() {
    // A command that handles neither INT nor TERM ignores both: it is the first process of its PID namespace. Users had to
    // kill the run itself to be rid of it.
    let world = World::with_small();
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo ready; exec sleep 98764"]).spawn().unwrap();
    let output = read_until(&mut child, "ready");
    container_process("sleep\098764\0");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        kill(pid_of(&child), signal).unwrap();
        // One that is not taken yet would swallow the next of its kind.
        wait_until("the signal is taken", || !has_pending(child.id(), signal));
    }
    assert!(child.try_wait().unwrap().is_none(), "two are passed on");
    kill(pid_of(&child), Signal::SIGINT).unwrap();
    drop(output);
    finish(child).failure(128 + 2, &["killed", "three times"]);
    world.assert_nothing_left();
}

/// A run whose start goes on when its agent, which is given too, is told to continue.
fn start_and_hold(world: &World) -> (std::process::Child, Pid) {
    loop {
        let child = world.command(["run", "small", "--", "true"]).spawn().unwrap();
        let mut agent = None;
        wait_until("there is an agent", || {
            agent = world.processes().into_iter().find(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0agent\0"))
            });
            agent.is_some()
        });
        let pid = agent.unwrap();
        let file = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        if kill(Pid::from_raw(pid), Signal::SIGSTOP).is_ok() {
            wait_until("it is stopped or gone", || {
                let status = file("status");
                status.is_empty() || status.contains("\nState:\tT") || status.contains("\nState:\tZ")
            });
            if file("status").contains("\nState:\tT") && !file("mountinfo").contains(&world.text("state")) {
                return (child, Pid::from_raw(pid));
            }
            // It was quicker.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        finish(child).success();
        world.assert_nothing_left();
    }
}

/// Whether a signal waits to be taken by a process, in `SigPnd` or `ShdPnd` (`proc(5)`).
fn has_pending(pid: u32, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let sets = status.lines().filter_map(|line| line.strip_prefix("ShdPnd:").or_else(|| line.strip_prefix("SigPnd:")));
    sets.map(|set| u64::from_str_radix(set.trim(), 16).unwrap()).any(|set| set & 1 << (signal as i32 - 1) != 0)
}

#[test]
fn term_becomes_the_images_stop_signal() {
    let world = World::new();
    let layout = world.text("layout");
    let source = crate::world::test_image("small");
    tool("skopeo", &["copy", "--quiet", &source, &format!("oci:{layout}:base")]);
    // The runtime passes the first two on; it takes WINCH for itself, and real-time signals have no names everywhere.
    for (stop_signal, number, trap) in
        [("SIGUSR1", 10, "USR1"), ("SIGQUIT", 3, "QUIT"), ("WINCH", 28, "WINCH"), ("SIGRTMIN+3", 37, "37")]
    {
        let image = format!("{layout}:stops-by-{number}");
        tool("umoci", &["tag", "--image", &format!("{layout}:base"), &format!("stops-by-{number}")]);
        tool("umoci", &["config", "--image", &image, "--config.stopsignal", stop_signal]);
        world.snowmelt(["publish", &format!("oci:{image}"), "stops"]).success();
        let script =
            format!("trap 'echo stopped; exit 6' {trap}; trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done");
        let mut child = world.command(["run", "stops", "--", "sh", "-c", &script]).spawn().unwrap();
        let mut output = read_until(&mut child, "ready");
        kill(pid_of(&child), Signal::SIGTERM).unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
        let finished = finish(child);
        assert_eq!((finished.code, rest.as_str()), (6, "stopped\n"), "{stop_signal}: {}", finished.stderr);
    }
    world.assert_nothing_left();
}

#[test]
fn a_start_is_ended_only_by_signals_that_mean_it() {
    // Whoever resized the window while an image opened found the run ended, with 156.
    let world = World::with_small();
    for (signal, expected) in [
        (Signal::SIGWINCH, 0),
        (Signal::SIGCONT, 0),
        (Signal::SIGUSR1, 0),
        (Signal::SIGINT, 128 + 2),
        (Signal::SIGTERM, 128 + 15),
        (Signal::SIGHUP, 128 + 1),
    ] {
        let (child, agent) = start_and_hold(&world);
        kill(pid_of(&child), signal).unwrap();
        if expected == 0 {
            wait_until("the signal is taken", || !has_pending(child.id(), signal));
        }
        kill(agent, Signal::SIGCONT).unwrap();
        let finished = finish(child);
        assert_eq!(finished.code, expected, "{signal}: {}", finished.stderr);
    }
    world.assert_nothing_left();
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    // runc copies the output and does not say what it cannot write: a full disk was a success.
    let world = World::with_small();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let child = world.command(["run", "small", "--", "cat", "/etc/passwd"]).stdout(full()).spawn().unwrap();
    finish(child).failure(125, &["write standard output: No space left on device"]);
    let mut child = world.command(["run", "small", "--", "sh", "-c", "echo lost >&2"]).stderr(full()).spawn().unwrap();
    assert_eq!(wait(&mut child), 125);
    world.assert_nothing_left();
}

/// The process with this command line, seen from the host.
fn container_process(command_line: &str) -> i32 {
    let mut found = None;
    wait_until("the command runs", || {
        found = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            (std::fs::read(entry.path().join("cmdline")).ok()? == command_line.as_bytes()).then_some(pid)
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn environment_of_the_image_and_of_the_caller() {
    let mut world = World::with_small();
    world.set("FROM_THE_CALLER", "passed on");
    let script = "echo \"$GREETING|$ADDED|$FROM_THE_CALLER|$HOME\"";
    assert_eq!(world.run(&[], &["sh", "-c", script]).success().stdout(), "hello|||/root\n");
    let options = ["-e", "ADDED=a=b c", "-e", "GREETING=moin", "-e", "FROM_THE_CALLER"];
    assert_eq!(world.run(&options, &["sh", "-c", script]).success().stdout(), "moin|a=b c|passed on|/root\n");
}

#[test]
fn users_by_name_and_number() {
    let world = World::with_small();
    let id = |user: &str, format: &str| world.run(&["--user", user], &["id", format]).success().stdout();
    assert_eq!(id("ada", "-u"), "1000\n");
    assert_eq!(id("ada", "-g"), "1000\n");
    let groups = id("ada", "-G");
    assert!(groups.split_whitespace().any(|group| group == "50"), "ada is in staff too: {groups}");
    assert_eq!(id("1234:50", "-u"), "1234\n");
    assert_eq!(id("1234:50", "-g"), "50\n");
    assert_eq!(id("ada:staff", "-g"), "50\n");
    world.run(&["--user", "babbage"], &["true"]).failure(125, &["babbage"]);
    // An unprivileged user gets none of root's powers over files.
    assert_ne!(world.run(&["--user", "ada"], &["ls", "/root"]).code, 0);
    assert_eq!(world.run(&["--user", "ada"], &["sh", "-c", "echo $HOME"]).success().stdout(), "/home/ada\n");
}

#[test]
fn working_directories() {
    let world = World::with_small();
    assert_eq!(world.run(&[], &["pwd"]).success().stdout(), "/srv\n");
    assert_eq!(world.run(&["--workdir", "/tmp"], &["pwd"]).success().stdout(), "/tmp\n");
}

#[test]
fn writes_last_as_long_as_the_container() {
    let world = World::with_small();
    let script =
        "echo changed > /srv/lower && cat /srv/lower && rm /etc/greeting && mkdir /new && echo x > /new/file && sync";
    assert_eq!(world.run(&[], &["sh", "-c", script]).success().stdout(), "changed\n");
    let after = world.run(&[], &["sh", "-c", "cat /srv/lower /etc/greeting; ls -d /new"]);
    assert_eq!(after.stdout(), "replaced by the top layer\nhello from snowmelt\n");
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn a_read_only_root() {
    let world = World::with_small();
    let refused = world.run(&["--read-only"], &["touch", "/srv/new"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("Read-only file system"), "{}", refused.stderr);
}

#[test]
fn more_than_the_free_space_does_not_fit() {
    let world = World::new();
    let image = crate::world::test_image("small");
    world.snowmelt(["publish", &image, "small", "--free", "16MiB"]).success();
    let full = world.run(&[], &["dd", "if=/dev/urandom", "of=/srv/big", "bs=1M", "count=64"]);
    assert_ne!(full.code, 0);
    assert!(full.stderr.contains("No space left"), "{}", full.stderr);
    let fits =
        world.run(&[], &["sh", "-c", "dd if=/dev/urandom of=/srv/big bs=1M count=8 && sync && wc -c < /srv/big"]);
    assert_eq!(fits.success().stdout(), "8388608\n");
}

#[test]
fn volumes_show_the_hosts_files() {
    let world = World::with_small();
    std::fs::create_dir(world.path("shared")).unwrap();
    std::fs::write(world.path("shared/note"), "from the host\n").unwrap();
    let volume = format!("{}:/mnt/shared", world.text("shared"));
    let script = "cat /mnt/shared/note && echo from the container > /mnt/shared/reply";
    assert_eq!(world.run(&["-v", &volume], &["sh", "-c", script]).success().stdout(), "from the host\n");
    assert_eq!(std::fs::read_to_string(world.path("shared/reply")).unwrap(), "from the container\n");

    let read_only = format!("{volume}:ro");
    let refused = world.run(&["-v", &read_only], &["touch", "/mnt/shared/more"]);
    assert_ne!(refused.code, 0);
    assert!(!world.path("shared/more").exists());

    let file = format!("{}:/etc/greeting", world.text("shared/note"));
    assert_eq!(world.run(&["-v", &file], &["cat", "/etc/greeting"]).success().stdout(), "from the host\n");
    let missing = format!("{}:/mnt", world.text("not-there"));
    world.run(&["-v", &missing], &["true"]).failure(125, &["not-there"]);
}

#[test]
fn networks() {
    let world = World::with_small();
    let interfaces = |network: &str| {
        let mut names: Vec<_> = world
            .run(&["--net", network], &["sh", "-c", "sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev"])
            .success()
            .stdout()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    assert_eq!(interfaces("none"), ["lo"]);
    let mut host: Vec<_> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "bonding_masters")
        .collect();
    host.sort();
    assert_eq!(interfaces("host"), host);
    let files = world.run(&[], &["sh", "-c", "grep -c localhost /etc/hosts; cat /etc/resolv.conf"]).success().stdout();
    let (localhost, resolv) = files.split_once('\n').unwrap();
    assert_ne!(localhost, "0", "localhost has a name");
    assert_eq!(resolv, std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
}

#[test]
fn memory_limits_hold() {
    let world = World::with_small();
    let eat =
        |limit: &str| world.run(&["--memory", limit], &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    eat("512m").success();
    eat("64m").failure(128 + 9, &["killed, perhaps by its memory limit of 64 MiB"]);
    world.assert_nothing_left();
}

#[test]
fn capabilities_and_seccomp_are_as_restricted_as_elsewhere() {
    let world = World::with_small();
    let status = world.run(&[], &["cat", "/proc/self/status"]).success().stdout();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_start_matches(':').trim().to_owned())
    };
    assert_eq!(field("CapEff").unwrap(), "00000000a80425fb", "the default set of other runtimes");
    assert_eq!(field("Seccomp").unwrap(), "2", "a filter is in force");
    assert_eq!(field("NoNewPrivs").as_deref(), Some("0"), "setuid programs and file capabilities work");
    // Only root with CAP_SYS_ADMIN mounts, and a container's has none.
    assert_ne!(world.run(&[], &["mount", "-t", "tmpfs", "none", "/tmp"]).code, 0);
}

#[test]
fn processors_are_limited_in_the_containers_group() {
    let world = World::with_small();
    // Two busy processes for as long as it takes them to count: with half a processor that takes four times as long
    // as the time they use, however busy the machine is.
    let script =
        "(i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done) & i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; wait";
    let started = std::time::Instant::now();
    let finished = world.run(&["--cpus", "0.25"], &["sh", "-c", &format!("time -p sh -c '{script}'")]).success();
    let elapsed = started.elapsed().as_secs_f64();
    let used: f64 = finished
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("user ").or_else(|| line.strip_prefix("sys ")))
        .map(|seconds| seconds.trim().parse::<f64>().unwrap())
        .sum();
    assert!(elapsed > 2.0 * used, "{used} s of processor time in {elapsed} s, with a quarter of a processor");
}

#[test]
fn entrypoints_can_be_replaced() {
    let world = World::with_small();
    let replaced = world.snowmelt(["run", "small", "--entrypoint", "/bin/echo", "--", "one", "two"]).success();
    assert_eq!(replaced.stdout(), "one two\n");
}

#[test]
fn two_containers_of_one_image_do_not_see_each_other() {
    let world = World::with_small();
    let script = "echo $0 > /srv/lower; echo ready; read line; cat /srv/lower";
    let mut children: Vec<_> = ["first", "second"]
        .iter()
        .map(|name| {
            world
                .command(["run", "small", "-i", "--", "sh", "-c", script, name])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut outputs: Vec<_> = children.iter_mut().map(|child| read_until(child, "ready")).collect();
    for (index, name) in ["first", "second"].iter().enumerate() {
        std::io::Write::write_all(&mut children[index].stdin.take().unwrap(), b"go on\n").unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut outputs[index], &mut rest).unwrap();
        assert_eq!(rest, format!("{name}\n"));
        assert_eq!(wait(&mut children[index]), 0);
    }
    world.assert_nothing_left();
}

#[test]
fn stats_say_what_a_run_cost_and_leave_its_output_alone() {
    let world = World::with_small();
    let run = world.run(&["--stats"], &["cat", "/etc/greeting"]).success();
    assert_eq!(run.stdout(), "hello from snowmelt\n");
    for word in ["chunks", "origin", "cache", "first output"] {
        assert!(run.stderr.to_lowercase().contains(word), "no `{word}` in the statistics: {}", run.stderr);
    }
}

#[test]
fn a_closed_output_ends_the_command() {
    let world = World::with_small();
    let mut child = world.command(["run", "small", "--", "yes"]).spawn().unwrap();
    drop(read_until(&mut child, "y"));
    let finished = finish(child);
    assert_ne!(finished.code, 0, "`yes` ends by a broken pipe");
    world.assert_nothing_left();
}

#[test]
fn who_is_not_root_is_told_so() {
    // It said "cannot list state: Permission denied".
    let world = World::with_small();
    for arguments in [&["run", "small", "--", "true"][..], &["mount", "small", "/mnt"], &["unmount", "/mnt"]] {
        // The state directory is root's; that the world's is not readable by others would be another error, as would be a
        // program that lies where only root looks.
        let copy = world.path("snowmelt");
        std::fs::copy(env!("CARGO_BIN_EXE_snowmelt"), &copy).unwrap();
        std::fs::set_permissions(world.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(arguments);
        for (name, value) in world.command(arguments).get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.current_dir("/").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let finished = finish(command.spawn().unwrap());
        assert_ne!(finished.code, 0);
        assert!(finished.stderr.contains("root") && finished.stderr.contains("sudo"), "{}", finished.stderr);
    }
}

/// The other runtime, with the other cgroups. On a machine whose cgroups are of version 1, or of both, it gets a mount namespace in
/// which only version 2 is seen.
#[test]
fn crun_with_cgroups_of_version_2() {
    let mut world = World::with_small();
    // To restrict devices crun loads a BPF program, and for that raises a limit that not every virtual machine's root may.
    let may_raise = std::process::Command::new("prlimit").args(["--memlock=unlimited", "true"]).output().unwrap();
    if may_raise.status.success() {
        world.set("SNOWMELT_RUNTIME", "crun");
    } else {
        println!(
            "NOT ALL OF crun_with_cgroups_of_version_2 CAN RUN HERE: root may not raise RLIMIT_MEMLOCK, so crun runs without \
             rules for devices"
        );
        let wrapper = world.path("crun-without-device-rules");
        let script = "#!/bin/bash\n\
            for word in \"$@\"; do [ \"${before:-}\" = --bundle ] && bundle=$word; before=$word; done\n\
            if [ -n \"${bundle:-}\" ]; then\n\
                document=$(cat \"$bundle/config.json\") && rm \"$bundle/config.json\"\n\
                jq 'del(.linux.resources.devices)' <<<\"$document\" >\"$bundle/config.json\"\n\
            fi\n\
            exec crun \"$@\"\n";
        std::fs::write(&wrapper, script).unwrap();
        std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        world.set("SNOWMELT_RUNTIME", wrapper.to_str().unwrap());
    }
    let run = |options: &[&str], command: &[&str], input: &[u8]| {
        let inside = "mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";
        let snowmelt = world.command([&["run", "small"], options, &["--"], command].concat());
        let mut wrapped = std::process::Command::new("unshare");
        wrapped.args(["--mount", "sh", "-c", inside, "sh"]).arg(snowmelt.get_program()).args(snowmelt.get_args());
        for (name, value) in snowmelt.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        let pipe = std::process::Stdio::piped;
        let mut child = wrapped.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
        crate::world::finish(child)
    };
    assert_eq!(run(&[], &["cat", "/etc/greeting"], b"").success().stdout(), "hello from snowmelt\n");
    assert_eq!(run(&["-i"], &["cat"], b"input").success().stdout(), "input");
    assert_eq!(run(&[], &["sh", "-c", "exit 7"], b"").code, 7);
    let missing = run(&[], &["nosuch"], b"").failure(127, &["nosuch", "small"]);
    assert_eq!(missing.stderr.lines().count(), 1, "said once: {}", missing.stderr);
    run(&[], &["/etc/greeting"], b"").failure(126, &["/etc/greeting", "small"]);
    let user = run(&["--user", "ada"], &["id"], b"").success().stdout();
    assert!(user.contains("uid=1000(ada)") && user.contains("50(staff)"), "{user}");
    assert_ne!(run(&["--read-only"], &["touch", "/new"], b"").code, 0);
    let status = run(&[], &["cat", "/proc/self/status"], b"").success().stdout();
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let cgroup = run(&[], &["cat", "/proc/self/cgroup"], b"").success().stdout();
    assert!(cgroup.contains("0::/"), "a cgroup namespace of its own: {cgroup}");
    world.assert_nothing_left();
}
