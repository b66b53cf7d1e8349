//! The real runtime on a root file system that is a plain directory: what of a run does not need a device.
#![allow(clippy::unwrap_used)]
use std::os::unix::fs::symlink;

use super::*;
use crate::Volume;

struct Fixture {
    directory: tempfile::TempDir,
    state: StateDir,
}

/// What a command gave.
struct Ended {
    result: Result<u8, Error>,
    output: String,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        for name in ["bin", "etc", "kept", "plain"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("needs busybox-static: apt-get install it");
        for name in ["sh", "cat", "id", "env", "pwd", "touch", "mount", "unshare", "sleep", "ls", "hostname"] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n").unwrap();
        std::fs::write(root.join("etc/group"), "adm:x:4:web\n").unwrap();
        std::fs::write(root.join("plain/file"), "no program").unwrap();
        std::fs::write(root.join("kept/file"), "of the image\n").unwrap();
        let state = StateDir::new(directory.path().join("state")).unwrap();
        Self { directory, state }
    }

    fn image() -> ImageConfig {
        ImageConfig { volumes: vec!["/kept".into()], architecture: "amd64".into(), ..ImageConfig::default() }
    }

    fn run(&self, mut spec: RunSpec, command: &[&str]) -> Ended {
        spec.command = command.iter().map(|word| (*word).to_owned()).collect();
        let cgroups = CgroupVersion::probe();
        let runtime = Runtime::choose(cgroups, &self.state.runtime_state(), spec.detach_runtime).unwrap();
        let record = self.state.create(Kind::Run, "image", true, None, Some(&runtime)).unwrap();
        let bundle = self.state.directory(&record.id).join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let captured = bundle.join("output");
        let mut output = Output::to_file(std::fs::File::create(&captured).unwrap());
        let mut container = Container::start(&runtime, &record.container(), &bundle, &spec, &mut output).unwrap();
        let root_path = self.directory.path().join("root");
        let root = Root::open(&root_path).unwrap();
        let etc = EtcFiles::write(&bundle, "box", &spec).unwrap();
        let image = Self::image();
        let inputs = oci::Inputs {
            spec: &spec,
            image: &image,
            root: &root,
            root_path: &root_path,
            etc: &etc,
            hostname: "box",
            cgroups,
        };
        let (document, _) = oci::configuration(&inputs).unwrap();
        container.configure(&document).unwrap();
        assert!(crate::identity::wait_readable(&container.pidfd, Duration::from_mins(1)), "the command ends");
        if container.follow_command().unwrap() {
            assert!(spec.detach_runtime);
            assert!(crate::identity::wait_readable(&container.pidfd, Duration::from_mins(1)), "the command ends");
        }
        let result = container.exit_code(&runtime, command[0], "image");
        let output = std::fs::read_to_string(&captured).unwrap();
        self.state.dismantle(&record, Leftovers::Any).unwrap();
        Ended { result, output }
    }

    fn shell(&self, spec: RunSpec, script: &str) -> Ended {
        self.run(spec, &["sh", "-c", script])
    }
}

#[test]
fn statuses_are_those_of_docker_run() {
    let fixture = Fixture::new();
    let code = |command: &[&str]| match fixture.run(RunSpec::default(), command).result {
        Ok(code) => code,
        Err(error) => error.exit_code(),
    };
    assert_eq!(code(&["sh", "-c", "exit 0"]), 0);
    assert_eq!(code(&["sh", "-c", "exit 7"]), 7);
    assert_eq!(code(&["sh", "-c", "exit 1"]), 1, "1 is also what runtimes say of themselves");
    assert_eq!(code(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]), 137);
    assert_eq!(code(&["no-such-program"]), 127);
    assert_eq!(code(&["/no/such/program"]), 127);
    assert_eq!(code(&["/plain/file"]), 126);
    assert_eq!(code(&["/plain"]), 126);
}

#[test]
fn a_command_that_the_runtime_leaves_ends_with_the_same_statuses() {
    let fixture = Fixture::new();
    let detached = || RunSpec { detach_runtime: true, ..RunSpec::default() };
    let code = |command: &[&str]| match fixture.run(detached(), command).result {
        Ok(code) => code,
        Err(error) => error.exit_code(),
    };
    assert_eq!(code(&["sh", "-c", "exit 0"]), 0);
    assert_eq!(code(&["sh", "-c", "exit 7"]), 7);
    // A signal by its own hand does not end the first process of a container.
    assert_eq!(code(&["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]), 137);
    assert_eq!(code(&["no-such-program"]), 127);
    assert_eq!(code(&["/plain/file"]), 126);
}

#[test]
fn identity_environment_and_place() {
    let fixture = Fixture::new();
    let spec = RunSpec {
        user: Some("web".into()),
        workdir: Some("/made/for/this".into()),
        env: vec![("GREETING".into(), "hello world".into())],
        network: Network::None,
        ..RunSpec::default()
    };
    let ended =
        fixture.shell(spec, "id; pwd; hostname; echo $GREETING $HOME $HOSTNAME; ls /sys/class/net; cat /etc/hosts");
    assert_eq!(ended.result.unwrap(), 0, "{}", ended.output);
    let expected = [
        "uid=33(web) gid=34 groups=4(adm),34",
        "/made/for/this",
        "box",
        "hello world /var/www box",
        "lo",
        "127.0.0.1\tlocalhost box",
    ];
    assert_eq!(ended.output.lines().take(expected.len()).collect::<Vec<_>>(), expected);
}

#[test]
fn a_read_only_root_with_writable_volumes() {
    let fixture = Fixture::new();
    let host = fixture.directory.path().join("host");
    std::fs::create_dir(&host).unwrap();
    let volume = |target: &str, read_only| Volume { host: host.clone(), target: target.into(), read_only };
    let spec =
        RunSpec { read_only: true, volumes: vec![volume("/rw", false), volume("/ro", true)], ..RunSpec::default() };
    let script = "cat /kept/file; touch /kept/new && touch /rw/made && ls /ro; touch /ro/x || touch /x || echo refused";
    let ended = fixture.shell(spec, script);
    assert_eq!(ended.output.lines().collect::<Vec<_>>(), ["of the image", "made", "refused"]);
    assert!(host.join("made").exists());
    assert!(!fixture.directory.path().join("root/kept/new").exists(), "the image's volume was written in memory");
}

#[test]
fn what_a_container_must_not_do() {
    let fixture = Fixture::new();
    let ended = fixture.shell(RunSpec::default(), "mount -t tmpfs x /plain || echo no mount; unshare -m true || echo no unshare; cat /proc/kcore | wc -c 2>/dev/null; cat /proc/self/status");
    assert!(ended.output.contains("no mount") && ended.output.contains("no unshare"), "{}", ended.output);
    assert!(ended.output.contains("Seccomp:\t2"), "{}", ended.output);
    assert!(ended.output.contains("CapBnd:\t00000000a80425fb"), "docker's default set: {}", ended.output);
}

#[test]
fn limits_are_the_cgroups() {
    let fixture = Fixture::new();
    let spec = RunSpec { memory_bytes: Some(64 << 20), cpus: Some(0.5), ..RunSpec::default() };
    let (script, expected) = match CgroupVersion::probe() {
        CgroupVersion::V1 => {
            ("cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us", "67108864\n50000\n")
        }
        CgroupVersion::V2 => ("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "67108864\n50000 100000\n"),
    };
    assert_eq!(fixture.shell(spec, script).output, expected);
}

#[test]
fn a_runtime_whose_maker_dies_starts_nothing() {
    let fixture = Fixture::new();
    let runtime = Runtime::choose(CgroupVersion::probe(), &fixture.state.runtime_state(), false).unwrap();
    let record = fixture.state.create(Kind::Run, "image", true, None, Some(&runtime)).unwrap();
    let bundle = fixture.state.directory(&record.id).join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    let mut output = Output::default();
    let spec = RunSpec::default();
    let mut container = Container::start(&runtime, &record.container(), &bundle, &spec, &mut output).unwrap();
    // What the death of this process would do to the pipe.
    container.configuration = None;
    assert!(crate::identity::wait_readable(&container.pidfd, Duration::from_mins(1)));
    assert!(!container.process.wait().unwrap().success());
    fixture.state.dismantle(&record, Leftovers::Any).unwrap();
    assert!(!fixture.state.runtime_state().join(record.container()).exists());
}
