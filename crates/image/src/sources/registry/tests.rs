#![allow(clippy::unwrap_used, missing_docs)]
//! Against Debian's docker-registry, with images that umoci made and skopeo pushed.

mod misbehaving;
mod tokens;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::TempDir;

use super::credentials::Credentials;
use super::open_with;
use crate::sources::fixtures::proxy::Proxy;
use crate::sources::fixtures::registry::{PASSWORD, Registry, USER};
use crate::sources::fixtures::{Layout, assert_is_the_image, damage, open, read_layer, read_layers, run, skopeo_copy};
use crate::{Error, Platform, Source};

/// Opens without any configuration of Docker.
fn open_anonymously(source: &str) -> Result<Box<dyn Source>, Error> {
    open_with(&source.parse()?, &Platform::host(), false, None)
}

fn message(result: Result<impl Sized, Error>) -> String {
    result.err().expect("an error").to_string()
}

/// A registry that has the image of `layout` as `test/image:v1`.
fn serve(layout: &Layout, options: &[&str]) -> (Registry, String) {
    let registry = Registry::start(false);
    let source = format!("docker://{}/test/image:v1", registry.address);
    skopeo_copy(options, &layout.source(), &source);
    (registry, source)
}

fn docker_config(content: &serde_json::Value) -> TempDir {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("config.json"), content.to_string()).unwrap();
    directory
}

#[test]
fn oci_and_docker_manifests_by_tag_and_digest() {
    let layout = Layout::create();
    for format in ["oci", "v2s2"] {
        let (registry, source) = serve(&layout, &["--format", format]);
        let opened = open_anonymously(&source).unwrap();
        assert_is_the_image(&*opened);
        let digest = opened.manifest_digest().unwrap();
        let by_digest = open_anonymously(&format!("docker://{}/test/image@{digest}", registry.address)).unwrap();
        assert_is_the_image(&*by_digest);
        let missing = message(open_anonymously(&format!("docker://{}/test/image:v2", registry.address)));
        assert!(missing.contains("127.0.0.1 has nothing of this name (manifest unknown): check registry"), "{missing}");
    }
}

#[test]
fn a_layer_goes_on_after_each_of_many_cuts() {
    let layout = Layout::create();
    let (registry, _) = serve(&layout, &[]);
    // Every connection that gets so far is cut; the layer is 3 MiB.
    let proxy = Proxy::start(&registry.address, 12, 200_000);
    let source = open_anonymously(&format!("docker://{}/test/image:v1", proxy.address)).unwrap();
    assert_is_the_image(&*source);
    let ranges = proxy.ranges();
    assert!(proxy.cuts_left() == 0 && ranges.len() >= 12, "{ranges:?}");
    assert!(ranges.is_sorted() && ranges[0] > 0, "{ranges:?}");
}

#[test]
fn a_registry_that_stays_away_is_given_up() {
    let layout = Layout::create();
    let (registry, _) = serve(&layout, &[]);
    let proxy = Proxy::start(&registry.address, usize::MAX, 20_000);
    let source = open_anonymously(&format!("docker://{}/test/image:v1", proxy.address)).unwrap();
    let error = read_layer(&*source, 0).unwrap_err();
    let Error::Unavailable { .. } = error else { panic!("{error}") };
    let text = error.to_string();
    let subject = format!("fetch docker://{}/test/image:v1, layer {}: ", proxy.address, source.layers()[0].digest);
    assert!(text.starts_with(&subject) && text.contains("7 tries in a row brought no more"), "{text}");
}

#[test]
fn damaged_and_truncated_blobs_are_told() {
    let layout = Layout::create();
    let (registry, source) = serve(&layout, &[]);
    let opened = open_anonymously(&source).unwrap();
    let layer = &opened.layers()[0];
    let blob = registry.blob(&layer.digest);
    damage(&blob);
    let error = message(read_layer(&*opened, 0));
    assert!(
        error.starts_with(&format!("{source}, layer {} is damaged: its digest is sha256:", layer.digest)),
        "{error}"
    );
    let bytes = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, &bytes[..bytes.len() / 2]).unwrap();
    let error = message(read_layer(&*opened, 0));
    let expected = format!("the registry gives {} bytes, and the manifest says {}", bytes.len() / 2, bytes.len());
    assert!(error.contains(&expected), "{error}");
    std::fs::remove_file(&blob).unwrap();
    let error = read_layer(&*opened, 0).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    read_layer(&*opened, 1).unwrap();
}

#[test]
fn an_index_gives_the_platform_asked_for() {
    let layout = Layout::create();
    let (registry, _) = serve(&layout, &["--format", "oci"]);
    let arm = layout.directory.path().join("arm");
    let image = format!("{}:v1", arm.display());
    run("cp", &["-r", layout.path().to_str().unwrap(), arm.to_str().unwrap()]);
    run("umoci", &["config", "--image", &image, "--architecture", "arm64", "--config.cmd", "arm"]);
    // An index of both, pushed as a layout with one entry that is an index.
    let entry = |layout: &Path, platform: serde_json::Value| {
        let index = std::fs::read(layout.join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = platform;
        entry
    };
    let entries = [
        entry(&layout.path(), json!({ "os": "linux", "architecture": "amd64" })),
        entry(&arm, json!({ "os": "linux", "architecture": "arm64", "variant": "v8" })),
    ];
    let media_type = crate::sources::documents::OCI_INDEX;
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries }).to_string();
    let digest = crate::digest::Digest::of(index.as_bytes());
    std::fs::write(arm.join("blobs/sha256").join(digest.hex()), &index).unwrap();
    let top = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": media_type, "digest": digest.to_string(), "size": index.len(),
        "annotations": { "org.opencontainers.image.ref.name": "all" } }] });
    std::fs::write(arm.join("index.json"), top.to_string()).unwrap();
    let target = format!("docker://{}/test/image:all", registry.address);
    skopeo_copy(&["--all"], &format!("oci:{}:all", arm.display()), &target);

    let find = |source: &str, platform: &str| {
        let options = crate::OpenOptions { platform: Some(platform.parse().unwrap()), insecure_http: false };
        crate::open(&source.parse().unwrap(), &options)
    };
    for source in [target, format!("oci:{}:all", arm.display())] {
        assert_is_the_image(&*find(&source, "linux/amd64").unwrap());
        let opened = find(&source, "linux/arm64").unwrap();
        assert_eq!(opened.config().cmd, ["arm"]);
        assert_eq!(read_layers(&*opened).unwrap().len(), 2);
        let error = message(find(&source, "linux/riscv64"));
        assert!(error.ends_with("the image is for linux/amd64, linux/arm64: choose with --platform"), "{error}");
    }
}

#[test]
fn a_login_from_dockers_configuration() {
    let layout = Layout::create();
    let registry = Registry::start(true);
    let source = format!("docker://{}/private:v1", registry.address);
    skopeo_copy(&["--dest-creds", &format!("{USER}:{PASSWORD}")], &layout.source(), &source);
    let open_as = |password: &str| {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        let directory = docker_config(&json!({ "auths": { &registry.address: { "auth": auth } } }));
        open_with(&source.parse().unwrap(), &Platform::host(), false, Some(directory.path()))
    };
    assert_is_the_image(&*open_as(PASSWORD).unwrap());
    let error = open_as("wrong").err().unwrap();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(error.to_string().contains("does not accept the login in Docker's configuration"), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
    let error = message(open_anonymously(&source));
    assert!(error.ends_with(&format!("log in with docker login {}", registry.address)), "{error}");
}

/// Runs the test of this name again, in a process with this environment: that belongs to the whole process.
fn run_again(test: &str, environment: &[(&str, &OsStr)]) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("sources::registry::tests::{test}")])
        .envs(environment.iter().copied())
        .status()
        .unwrap();
    assert!(status.success());
}

/// The environment decides where the configuration and helpers are, so this test runs itself again.
#[test]
fn a_login_from_a_credential_helper() {
    const SOURCE: &str = "SNOWMELT_TEST_HELPER_SOURCE";
    if let Ok(source) = std::env::var(SOURCE) {
        assert_is_the_image(&*open(&source).unwrap());
        return;
    }
    let layout = Layout::create();
    let registry = Registry::start(true);
    let source = format!("docker://{}/private:v1", registry.address);
    skopeo_copy(&["--dest-creds", &format!("{USER}:{PASSWORD}")], &layout.source(), &source);
    let directory = docker_config(&json!({ "credHelpers": { &registry.address: "test" } }));
    let helper = directory.path().join("docker-credential-test");
    let answer = json!({ "ServerURL": "", "Username": USER, "Secret": PASSWORD });
    let script = format!("#!/bin/sh\nread -r server\n[ \"$server\" = {} ] && echo '{answer}'\n", registry.address);
    std::fs::write(&helper, script).unwrap();
    run("chmod", &["755", helper.to_str().unwrap()]);
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    run_again(
        "a_login_from_a_credential_helper",
        &[(SOURCE, source.as_ref()), ("DOCKER_CONFIG", directory.path().as_ref()), ("PATH", path.as_ref())],
    );
}

/// Which authorities are trusted is the environment's too.
#[test]
fn https_with_a_certificate_that_is_trusted_or_not() {
    const SOURCE: &str = "SNOWMELT_TEST_HTTPS_SOURCE";
    if let Ok(source) = std::env::var(SOURCE) {
        assert_is_the_image(&*open_anonymously(&source).unwrap());
        return;
    }
    let directory = TempDir::new().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (file("certificate.pem"), file("key.pem"));
    let mut arguments = vec!["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    arguments.extend(["-subj", "/CN=test", "-days", "2", "-keyout", &key, "-out", &certificate]);
    arguments.extend(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]);
    run("openssl", &arguments);
    let layout = Layout::create();
    let registry = Registry::start_https(&certificate, &key);
    let source = format!("docker://{}/test/image:v1", registry.address);
    skopeo_copy(&[], &layout.source(), &source);
    run_again(
        "https_with_a_certificate_that_is_trusted_or_not",
        &[(SOURCE, source.as_ref()), ("SSL_CERT_FILE", certificate.as_ref())],
    );
    let error = open_anonymously(&source).err().unwrap();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[test]
fn configurations_that_cannot_be_used_say_why() {
    let find = |content: serde_json::Value| {
        let directory = docker_config(&content);
        super::credentials::find("example.com", Some(directory.path()))
    };
    assert_eq!(find(json!({})).unwrap(), Credentials::Anonymous);
    assert_eq!(find(json!({ "auths": { "example.com": {} } })).unwrap(), Credentials::Anonymous);
    assert_eq!(
        find(json!({ "auths": { "https://example.com": { "identitytoken": "t" } } })).unwrap(),
        Credentials::Identity("t".into())
    );
    assert!(message(find(json!([]))).contains("is not valid JSON of Docker's configuration"));
    assert!(message(find(json!({ "credsStore": "not-there" }))).contains("could not be run: install it"));
    assert_eq!(super::credentials::find("example.com", Some(Path::new("/nowhere"))).unwrap(), Credentials::Anonymous);
    assert_eq!(format!("{:?}", Credentials::Identity("secret".into())), "Identity");
}

#[test]
fn a_registry_that_is_not_there() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let started = std::time::Instant::now();
    let error = open_anonymously(&format!("docker://127.0.0.1:{port}/a")).err().unwrap();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    // Nobody waits through seven tries for a mistyped port.
    assert!(
        error.to_string().ends_with(
            "does not answer (Connection refused (os error 111)): check that it runs, and its name and port"
        ),
        "{error}"
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
}
