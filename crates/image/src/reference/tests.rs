#![allow(clippy::unwrap_used, missing_docs)]
use super::*;

fn source(text: &str) -> SourceRef {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn registry_names_are_completed_as_docker_does() {
    for (written, complete) in [
        ("docker://debian".to_owned(), "docker://docker.io/library/debian:latest".to_owned()),
        ("docker://debian:12".into(), "docker://docker.io/library/debian:12".into()),
        ("docker://index.docker.io/debian".into(), "docker://docker.io/library/debian:latest".into()),
        ("docker://user/app".into(), "docker://docker.io/user/app:latest".into()),
        ("docker://ghcr.io/a/b/c:v1.2_x-y".into(), "docker://ghcr.io/a/b/c:v1.2_x-y".into()),
        ("docker://localhost/a".into(), "docker://localhost/a:latest".into()),
        ("docker://localhost:5000/a:1".into(), "docker://localhost:5000/a:1".into()),
        ("docker://[::1]:5000/a:1".into(), "docker://[::1]:5000/a:1".into()),
        ("docker://host.example/a__b/c--d.e".into(), "docker://host.example/a__b/c--d.e:latest".into()),
        (format!("docker://debian@{DIGEST}"), format!("docker://docker.io/library/debian@{DIGEST}")),
        (format!("docker://debian:12@{DIGEST}"), format!("docker://docker.io/library/debian:12@{DIGEST}")),
    ] {
        assert_eq!(source(&written).to_string(), complete);
        assert_eq!(source(&complete).to_string(), complete);
    }
}

#[test]
fn files_and_directories() {
    assert_eq!(source("oci:/a/b"), SourceRef::OciLayout { path: "/a/b".into(), tag: None });
    assert_eq!(
        source("oci:b:docker.io/library/x:1"),
        SourceRef::OciLayout { path: "b".into(), tag: Some("docker.io/library/x:1".into()) }
    );
    assert_eq!(source("docker-archive:x.tar"), SourceRef::DockerArchive { path: "x.tar".into(), name: None });
    assert_eq!(
        source("docker-archive:x.tar:a:1"),
        SourceRef::DockerArchive { path: "x.tar".into(), name: Some("a:1".into()) }
    );
    assert_eq!(source("dir:/a:b"), SourceRef::Directory { path: "/a:b".into() });
}

#[test]
fn errors_say_what_to_write() {
    for (text, reason) in [
        ("docker://", "it has no image name: docker://registry/name:tag"),
        (
            "docker://Debian",
            "\"Debian\" in \"library/Debian\" is not part of a repository name: repository names are lower-case",
        ),
        ("docker://a/../b", "\"..\" in \"a/../b\" is not part of a repository name"),
        (
            "docker://a:b c",
            "\"b c\" is not a tag: up to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'",
        ),
        ("docker://a@sha256:12", "the digest \"sha256:12\" must have 64 lower-case hexadecimal digits"),
        ("docker://localhost:99999/a", "the port of the registry \"localhost:99999\" is not a number from 1 to 65535"),
        ("docker://a_b.c/d", "\"a_b.c\" is not the name or address of a registry"),
        ("docker://[::1/d", "the registry \"[::1\" is not HOST[:PORT]"),
        ("docker:debian", "it lacks the slashes: docker://debian"),
        ("oci:", "there is no path behind oci:"),
        ("oci:a:", "there is nothing behind its last colon: add a tag, or leave the colon out"),
        (
            "debian:12",
            "it names no kind of source; sources are docker://NAME[:TAG], oci:DIR[:TAG], docker-archive:FILE and dir:PATH: \
             perhaps docker://debian:12",
        ),
        (
            "oci-archive:x.tar:v1",
            "oci-archive is not supported: make it a layout with skopeo copy oci-archive:x.tar:v1 oci:DIR, then publish oci:DIR",
        ),
        ("docker-archive:-", NO_PIPE),
        (
            "./tree",
            "it names no kind of source; sources are docker://NAME[:TAG], oci:DIR[:TAG], docker-archive:FILE and dir:PATH: \
             perhaps dir:./tree or oci:./tree",
        ),
    ] {
        let error = text.parse::<SourceRef>().unwrap_err().to_string();
        assert_eq!(error, format!("the source {text:?} cannot be used: {reason}"));
    }
}

#[test]
fn what_exists_is_suggested_as_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("small.tar"), "").unwrap();
    std::fs::create_dir(path("root")).unwrap();
    std::fs::create_dir(path("layout")).unwrap();
    std::fs::write(path("layout/index.json"), "{}").unwrap();
    for (name, kind) in [("small.tar", "docker-archive"), ("root", "dir"), ("layout", "oci")] {
        let error = path(name).parse::<SourceRef>().unwrap_err().to_string();
        assert!(error.ends_with(&format!("dir:PATH: perhaps {kind}:{}", path(name))), "{error}");
    }
}

#[test]
fn loopback_is_this_machine_alone() {
    for host in ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"] {
        assert!(is_loopback(host), "{host}");
    }
    for host in ["localhost.example", "128.0.0.1", "10.0.0.1", "[::2]", "registry"] {
        assert!(!is_loopback(host), "{host}");
    }
    assert_eq!(host_of("[::1]:5000"), "[::1]");
    assert_eq!(host_of("a.b:1"), "a.b");
}
