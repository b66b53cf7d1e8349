#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::Volume;

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["default".into(), "arguments".into()],
        env: vec!["PATH=/image/bin".into(), "A=1".into(), "B=2".into(), "EMPTY".into()],
        user: "web".into(),
        working_dir: "/srv".into(),
        stop_signal: Some("SIGINT".into()),
        volumes: vec!["/var/lib/data".into(), "/named/".into()],
        architecture: "amd64".into(),
        ..ImageConfig::default()
    }
}

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("root/etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n").unwrap();
        std::fs::write(etc.join("group"), "web:x:34:\nadm:x:4:web\n").unwrap();
        Self { directory }
    }

    fn root_path(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    fn configure(&self, spec: &RunSpec, image: &ImageConfig, cgroups: CgroupVersion) -> Result<(Value, String), Error> {
        let root_path = self.root_path();
        let root = Root::open(&root_path).unwrap();
        let etc =
            EtcFiles::write(self.directory.path(), "box", &RunSpec { network: Network::None, ..spec.clone() }).unwrap();
        let inputs = Inputs { spec, image, root: &root, root_path: &root_path, etc: &etc, hostname: "box", cgroups };
        let (document, command) = configuration(&inputs)?;
        // An independent reading of the format accepts the document, and finds nothing in it that it does not know.
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(parsed.version(), OCI_VERSION);
        Ok((document, command))
    }

    /// The document with this test's directory replaced and the long list of system calls cut.
    fn golden(&self, mut document: Value) -> String {
        document["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["…"]);
        let text = serde_json::to_string_pretty(&document).unwrap();
        text.replace(self.directory.path().to_str().unwrap(), "/state")
    }
}

/// Compares with a file beside this one; `BLESS=1` rewrites it.
fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/oci/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{text}\n")).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        format!("{text}\n"),
        "{name}: run with BLESS=1 if this is meant"
    );
}

#[test]
fn the_image_decides_where_the_caller_says_nothing() {
    let fixture = Fixture::new();
    let (document, command) = fixture.configure(&RunSpec::default(), &image(), CgroupVersion::V1).unwrap();
    assert_eq!(command, "/entry");
    assert_golden("image.json", &fixture.golden(document));
    assert!(fixture.root_path().join("var/lib/data").is_dir(), "a volume of the image exists");
}

#[test]
fn the_caller_decides_over_the_image() {
    let fixture = Fixture::new();
    let spec = RunSpec {
        command: vec!["one".into(), "two".into()],
        entrypoint: Some(vec!["/other".into()]),
        env: vec![("B".into(), "over".into()), ("C".into(), "x=y".into()), ("HOME".into(), "/h".into())],
        volumes: vec![
            Volume { host: "/".into(), target: "/named".into(), read_only: true },
            Volume { host: "/tmp".into(), target: "/rw".into(), read_only: false },
        ],
        user: Some("5:6".into()),
        workdir: Some("/elsewhere".into()),
        read_only: true,
        network: Network::None,
        memory_bytes: Some(64 << 20),
        cpus: Some(1.5),
        tty: true,
        ..RunSpec::default()
    };
    let (document, _) = fixture.configure(&spec, &image(), CgroupVersion::V2).unwrap();
    assert_golden("caller.json", &fixture.golden(document));
}

#[test]
fn commands() {
    let fixture = Fixture::new();
    let arguments = |entrypoint: Option<&[&str]>, command: &[&str]| {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let spec = RunSpec { entrypoint: entrypoint.map(words), command: words(command), ..RunSpec::default() };
        let (document, _) = fixture.configure(&spec, &image(), CgroupVersion::V1)?;
        Ok::<_, Error>(
            document["process"]["args"]
                .as_array()
                .unwrap()
                .iter()
                .map(|word| word.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join(" "),
        )
    };
    assert_eq!(arguments(None, &[]).unwrap(), "/entry default arguments");
    assert_eq!(arguments(None, &["x"]).unwrap(), "/entry x");
    assert_eq!(arguments(Some(&["/e"]), &[]).unwrap(), "/e");
    assert_eq!(arguments(Some(&["/e"]), &["x"]).unwrap(), "/e x");
    assert_eq!(arguments(Some(&[]), &["x"]).unwrap(), "x");
    assert!(matches!(arguments(Some(&[]), &[]), Err(Error::Invalid { .. })));
    assert!(matches!(arguments(None, &["a\0b"]), Err(Error::Invalid { .. })));
}

#[test]
fn a_first_process_only_where_the_image_has_something_for_it() {
    let fixture = Fixture::new();
    let first = crate::FirstProcess {
        program: b"program",
        where_in_use: "/opt/extensions".into(),
        arguments: vec!["argument".into()],
    };
    let spec = RunSpec {
        first_process: Some(first),
        without_capabilities: vec!["CAP_NET_RAW".into()],
        user: Some("0".into()),
        ..RunSpec::default()
    };
    let configure = || fixture.configure(&spec, &image(), CgroupVersion::V2).unwrap().0;
    let without = configure();
    assert_eq!(without["process"]["args"], json!(["/entry", "default", "arguments"]));
    for set in ["bounding", "effective", "permitted"] {
        let names = without["process"]["capabilities"][set].as_array().unwrap();
        assert!(names.len() == CAPABILITIES.len() - 1 && !names.contains(&json!("CAP_NET_RAW")), "{names:?}");
    }
    let directory = fixture.root_path().join("opt/extensions");
    std::fs::create_dir_all(&directory).unwrap();
    assert_eq!(configure(), without);
    std::fs::write(directory.join("one"), "").unwrap();
    let with = configure();
    assert_eq!(with["process"]["args"], json!([FIRST_PROCESS, "argument", "/entry", "default", "arguments"]));
    let mount = with["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == FIRST_PROCESS).unwrap();
    let program = std::path::Path::new(mount["source"].as_str().unwrap());
    assert_eq!(std::fs::read(program).unwrap(), b"program");
    assert_eq!(program.metadata().unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn a_variable_says_the_command() {
    let fixture = Fixture::new();
    let said = |entrypoint: Option<Vec<String>>, command: &[&str]| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let variable = Some("SAID".to_owned());
        let spec = RunSpec { entrypoint, command, command_variable: variable, ..RunSpec::default() };
        let (document, _) = fixture.configure(&spec, &image(), CgroupVersion::V1).unwrap();
        let environment = document["process"]["env"].as_array().unwrap().clone();
        environment.iter().find_map(|variable| variable.as_str()?.strip_prefix("SAID=").map(str::to_owned))
    };
    assert_eq!(said(None, &[]).as_deref(), Some("default"));
    assert_eq!(said(None, &["x", "y"]).as_deref(), Some("x"));
    assert_eq!(said(Some(vec!["/e".into()]), &["x"]).as_deref(), Some("x"));
    assert_eq!(said(Some(vec!["/e".into()]), &[]), None);
}

#[test]
fn what_cannot_be_is_said() {
    let fixture = Fixture::new();
    let configure = |spec: RunSpec| fixture.configure(&spec, &image(), CgroupVersion::V1).unwrap_err();
    assert!(configure(RunSpec { workdir: Some("rel".into()), ..RunSpec::default() }).to_string().contains("absolute"));
    assert!(configure(RunSpec { user: Some("nobody".into()), ..RunSpec::default() }).to_string().contains("nobody"));
    let volume = Volume { host: "/surely/missing".into(), target: "/x".into(), read_only: false };
    let error = configure(RunSpec { volumes: vec![volume], ..RunSpec::default() });
    assert!(error.to_string().contains("/surely/missing"), "{error}");
}

#[test]
fn names_that_a_container_sees() {
    let directory = tempfile::tempdir().unwrap();
    let alone = RunSpec { network: Network::None, ..RunSpec::default() };
    EtcFiles::write(directory.path(), "box", &alone).unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!(read("hostname"), "box\n");
    assert!(read("hosts").contains("127.0.0.1\tlocalhost box"));
    assert_eq!(read("resolv.conf"), "");
    let named = RunSpec { own_names: vec!["own".into()], name_servers: vec!["192.0.2.1".into()], ..alone };
    EtcFiles::write(directory.path(), "box", &named).unwrap();
    assert!(read("hosts").contains("127.0.0.1\town\n"));
    assert_eq!(read("resolv.conf"), "nameserver 192.0.2.1\n");
    EtcFiles::write(directory.path(), "box", &RunSpec::default()).unwrap();
    assert_eq!(read("hosts"), std::fs::read_to_string("/etc/hosts").unwrap());
}

#[test]
fn system_calls_of_32_bit_programs_only_where_they_exist() {
    let fixture = Fixture::new();
    let root = Root::open(&fixture.root_path()).unwrap();
    assert_eq!(seccomp::Abi::of(&root, &image()), seccomp::Abi::Native);
    let other = ImageConfig { architecture: "386".into(), ..image() };
    assert_eq!(seccomp::Abi::of(&root, &other), seccomp::Abi::NativeAnd32Bit);
    std::fs::create_dir(fixture.root_path().join("lib")).unwrap();
    let loader = if cfg!(target_arch = "x86_64") { "ld-linux.so.2" } else { "ld-linux-armhf.so.3" };
    let loader = fixture.root_path().join("lib").join(loader);
    std::fs::write(&loader, "").unwrap();
    std::fs::set_permissions(&loader, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(seccomp::Abi::of(&root, &image()), seccomp::Abi::NativeAnd32Bit);
    let both = seccomp::profile(seccomp::Abi::NativeAnd32Bit);
    assert_eq!(both["architectures"].as_array().unwrap().len(), 2);
    for name in [
        "mount",
        "umount2",
        "bpf",
        "kexec_load",
        "io_uring_setup",
        "unshare",
        "setns",
        "keyctl",
        "add_key",
        "reboot",
        "clone",
        "clone3",
    ] {
        assert!(!both["syscalls"][0]["names"].as_array().unwrap().contains(&json!(name)), "{name}");
    }
}
