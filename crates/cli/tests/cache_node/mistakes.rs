//! Nonsense is refused with what to do about it.

use crate::node::{Process, command};

/// What it says when it does not start.
fn refused(args: &[&str]) -> String {
    let output = command().args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked") && output.stdout.is_empty(), "{said}");
    said
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let good = ["--listen", "127.0.0.1:0", "--memory", "64MiB"];
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    for (args, part) in [
        (vec!["--memory", "1GiB"], "--listen"),
        (vec!["--listen", "127.0.0.1:0"], "--memory"),
        (vec!["--listen", "127.0.0.1:0", "--memory", "1MiB"], "at least 16.0 MiB"),
        (vec!["--listen", "nowhere", "--memory", "1GiB"], "expected HOST:PORT"),
        (vec!["--listen", "192.0.2.1:7070", "--memory", "1GiB"], "listening on 192.0.2.1:7070"),
        ([&good[..], &["--disk-size", "1GiB"]].concat(), "--disk"),
        ([&good[..], &["--disk", "/tmp/x"]].concat(), "--disk-size"),
        ([&good[..], &["--tls-ca", "/x"]].concat(), "three files"),
        ([&good[..], &["--tls-ca", "/x", "--tls-cert", "/x", "--tls-key", "/x"]].concat(), "read /x"),
        ([&good[..], &["--token-file", "/x"]].concat(), "read /x"),
        ([&good[..], &["--token-file", empty.to_str().unwrap()]].concat(), "no token"),
        ([&good[..], &["--register", "etcd://x"]].concat(), "PREFIX"),
        ([&good[..], &["--domain", "r1"]].concat(), "--register"),
        (vec!["--listen", "0.0.0.0:0", "--memory", "1GiB", "--register", "etcd://127.0.0.1:1/z"], "--advertise"),
    ] {
        let said = refused(&args);
        assert!(said.contains(part), "{args:?}: {said}");
    }
}

#[test]
fn a_port_and_a_folder_have_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let disk = ["--disk", folder.path().to_str().unwrap(), "--disk-size", "64MiB"];
    let node = Process::start("127.0.0.1:0", &disk);
    let port = node.listen.to_string();
    let said = refused(&["--listen", &port, "--memory", "64MiB"]);
    assert!(said.contains(&format!("listening on {port}")) && said.contains("in use"), "{said}");
    let said = refused(&[&["--listen", "127.0.0.1:0", "--memory", "64MiB"][..], &disk].concat());
    assert!(said.contains("another cache node uses this folder"), "{said}");
}

#[test]
fn a_configuration_file_may_have_it_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "[cache_node]\nlisten = '127.0.0.1:0'\nmemory = '64MiB'\ndisk_size = '1GiB'\n").unwrap();
    let said = refused(&["--config", path.to_str().unwrap()]);
    assert!(said.contains("--disk"), "{said}");
    std::fs::write(&path, "[cache_node]\nlistens = '127.0.0.1:0'\n").unwrap();
    let said = refused(&["--config", path.to_str().unwrap()]);
    assert!(said.contains("listens"), "{said}");
}
