//! Publishing from every kind of source: the same layers give the same image, byte for byte.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::proxy::Proxy;
use crate::registry::Registry;
use crate::tree;
use crate::world::{World, test_image, tool};

/// Publishes `source` and returns the digest of the raw image.
fn published_digest(world: &World, source: &str, name: &str) -> String {
    world.snowmelt(["publish", source, name]).success();
    let file = world.path("exported.ext4");
    let _ = std::fs::remove_file(&file);
    world.snowmelt(["export", name, file.to_str().unwrap()]).success();
    tree::file_digest(&file)
}

#[test]
fn every_source_of_the_same_layers_gives_the_same_bytes() {
    let world = World::new();
    let registry = Registry::start(&world);
    let layout = test_image("small");
    let archive = world.text("small.tar");
    tool("skopeo", &["copy", "--quiet", &layout, &format!("docker-archive:{archive}:small:latest")]);
    let zstd = format!("oci:{}:small", world.text("zstd"));
    tool("skopeo", &["copy", "--quiet", "--dest-compress-format=zstd", "--dest-compress", &layout, &zstd]);

    let expected = published_digest(&world, &layout, "from-layout");
    let from_registry = registry.push(&layout, "small:latest");
    assert_eq!(published_digest(&world, &from_registry, "from-registry"), expected, "from a registry");
    assert_eq!(
        published_digest(&world, &format!("docker-archive:{archive}"), "from-archive"),
        expected,
        "plain layers"
    );
    assert_eq!(published_digest(&world, &zstd, "from-zstd"), expected, "zstd layers");

    // The chunks are therefore the same too: publishing again stores none.
    let before = world.chunk_files();
    world.snowmelt(["publish", &layout, "again"]).success();
    assert_eq!(world.chunk_files(), before);
}

#[test]
fn a_directory_is_a_source_and_gives_the_same_tree() {
    let world = World::new();
    let bundle = world.text("bundle");
    tool("umoci", &["unpack", "--image", test_image("small").strip_prefix("oci:").unwrap(), &bundle]);
    let rootfs = PathBuf::from(&bundle).join("rootfs");
    world.snowmelt(["publish", &format!("dir:{}", rootfs.display()), "copy"]).success();
    let mounted = world.mount("copy", &[]);
    let differences = tree::differences(&tree::read(&rootfs), &tree::read(&mounted), |_, _, _| {});
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    world.unmount(&mounted);
}

#[test]
fn the_image_for_the_asked_platform_is_taken_from_an_index() {
    let world = World::new();
    let layout = world.path("layout");
    let source = format!("oci:{}:both", layout.display());
    tool("skopeo", &["copy", "--quiet", &test_image("small"), &format!("oci:{}:one", layout.display())]);
    let top: Value = read_json(&layout.join("index.json"));
    let native = top["manifests"][0].clone();

    // A second image with another layer list, said to be for another processor.
    let manifest: Value = read_json(&stored(&layout, native["digest"].as_str().unwrap()));
    let mut config: Value = read_json(&stored(&layout, manifest["config"]["digest"].as_str().unwrap()));
    config["architecture"] = json!("riscv64");
    config["config"]["Env"] = json!(["PATH=/bin", "GREETING=foreign"]);
    let mut foreign = manifest.clone();
    foreign["config"] = store(&layout, &config, "application/vnd.oci.image.config.v1+json");
    let foreign = store(&layout, &foreign, "application/vnd.oci.image.manifest.v1+json");
    let with_platform = |mut descriptor: Value, architecture: &str| {
        descriptor.as_object_mut().unwrap().remove("annotations");
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [with_platform(foreign, "riscv64"), with_platform(native, host)],
    });
    let mut descriptor = store(&layout, &index, "application/vnd.oci.image.index.v1+json");
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": "both"});
    std::fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string())
        .unwrap();

    world.snowmelt(["publish", &source, "small"]).success();
    assert_eq!(world.run(&[], &["sh", "-c", "echo $GREETING"]).success().stdout(), "hello\n");
    world.snowmelt(["publish", &source, "small", "--platform", "linux/riscv64"]).success();
    assert_eq!(world.run(&[], &["sh", "-c", "echo $GREETING"]).success().stdout(), "foreign\n");
    world.snowmelt(["publish", &source, "small", "--platform", "linux/s390x"]).failure(1, &["s390x", "riscv64"]);
}

fn stored(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Stores a document in a layout; returns its descriptor.
fn store(layout: &Path, document: &Value, media_type: &str) -> Value {
    let bytes = document.to_string().into_bytes();
    let path = layout.join("written");
    std::fs::write(&path, &bytes).unwrap();
    let digest = format!("sha256:{}", tree::file_digest(&path));
    std::fs::rename(&path, stored(layout, &digest)).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

#[test]
fn a_download_goes_on_after_a_broken_connection() {
    let world = World::new();
    let registry = Registry::start(&world);
    let source = registry.push(&test_image("small"), "small:latest");
    // The largest layer is over 1 MB, so some of these cuts hit the middle of it.
    let proxy = Proxy::cutting(&registry.address, 2, 300_000);
    let through_proxy = source.replace(&registry.address, &proxy.address);
    let expected = published_digest(&world, &source, "direct");
    assert_eq!(published_digest(&world, &through_proxy, "interrupted"), expected);
    assert_eq!(proxy.cuts_made(), 2, "the proxy was to break the connection twice");
}

#[test]
fn credentials_come_from_the_docker_config_file() {
    let world = World::new();
    let registry = Registry::start_with_password(&world, "ada", "lovelace");
    let layout = test_image("small");
    let source = format!("docker://{}/private/small:latest", registry.address);
    tool("skopeo", &["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", "ada:lovelace", &layout, &source]);

    let refused = world.snowmelt(["publish", &source, "small"]).failure(1, &[&registry.address]);
    assert!(refused.stderr.contains("credentials") || refused.stderr.contains("login"), "{}", refused.stderr);

    std::fs::create_dir_all(world.path("docker")).unwrap();
    let login = json!({"auths": {&registry.address: {"auth": "YWRhOmxvdmVsYWNl"}}});
    std::fs::write(world.path("docker/config.json"), login.to_string()).unwrap();
    world.snowmelt(["publish", &source, "small"]).success();
    world.run(&[], &["true"]).success();
}

#[test]
fn a_digest_names_an_image_in_a_registry() {
    let world = World::new();
    let registry = Registry::start(&world);
    let source = registry.push(&test_image("small"), "small:latest");
    let digest = tool("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &source]);
    let by_digest = format!("docker://{}/small@{}", registry.address, digest.trim());
    world.snowmelt(["publish", &by_digest, "small"]).success();
    world.run(&[], &["true"]).success();
    let wrong = format!("docker://{}/small@sha256:{:x}", registry.address, Sha256::digest(b"no such image"));
    world.snowmelt(["publish", &wrong, "small"]).failure(1, &["small"]);
}
