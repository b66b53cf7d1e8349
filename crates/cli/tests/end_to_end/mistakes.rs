//! What users get wrong: the message says what was wrong with what, and what to do.

use std::path::Path;

use crate::world::{World, test_image, tool, walk};

#[test]
fn typos_in_commands_and_options() {
    let world = World::new();
    world.snowmelt(["publsih", "oci:here"]).failure(2, &["publsih", "publish"]);
    world.snowmelt(["run", "small", "--read-onyl"]).failure(2, &["--read-onyl", "--read-only"]);
    world.snowmelt(["publish"]).failure(2, &["SOURCE"]);
    world.snowmelt(["run", "small", "--net", "bridge", "--", "true"]).failure(2, &["bridge", "host", "none"]);
    world.snowmelt(["publish", &test_image("small"), "small", "--suite", "rot13"]).failure(2, &["rot13", "blake3-gcm"]);
}

#[test]
fn sources_that_are_not_there() {
    let world = World::new();
    let missing = world.text("missing");
    world.snowmelt(["publish", &format!("oci:{missing}"), "x"]).failure(1, &[&missing]);
    world.snowmelt(["publish", &format!("docker-archive:{missing}"), "x"]).failure(1, &[&missing]);
    world.snowmelt(["publish", &format!("dir:{missing}"), "x"]).failure(1, &[&missing]);
    let layout = test_image("small").replace(":small", ":no-such-tag");
    world.snowmelt(["publish", &layout, "x"]).failure(1, &["no-such-tag"]);
    // A source without its kind: the message lists the kinds.
    let bare = world.snowmelt(["publish", "python:3.12"]);
    assert!(bare.code == 1 || bare.code == 2, "{bare:?}");
    for kind in ["docker://", "oci:", "docker-archive:", "dir:"] {
        assert!(bare.stderr.contains(kind), "{}", bare.stderr);
    }
    assert_eq!(world.json(&["images"]), serde_json::json!([]));
}

#[test]
fn registries_that_do_not_answer() {
    let world = World::new();
    // Nothing listens on port 1 of this host.
    world.snowmelt(["publish", "docker://127.0.0.1:1/small", "small"]).failure(1, &["127.0.0.1:1"]);
    let registry = crate::registry::Registry::start(&world);
    let unknown = format!("docker://{}/no/such/image:v1", registry.address);
    world.snowmelt(["publish", &unknown, "x"]).failure(1, &["no/such/image"]);
}

#[test]
fn names_that_are_not_names() {
    let world = World::with_small();
    for name in ["../up", "UPPER case", "a//b", "small:", "/absolute"] {
        let refused = world.snowmelt(["publish", &test_image("small"), name]);
        assert!(refused.code == 1 || refused.code == 2, "`{name}`: {refused:?}");
        assert!(refused.stderr.contains(name), "`{name}`: {}", refused.stderr);
    }
    // A name that is nearly right: the message helps.
    world.snowmelt(["inspect", "smal"]).failure(1, &["smal", "snowmelt images"]);
}

#[test]
fn mounts_in_the_wrong_place() {
    let world = World::with_small();
    let file = world.path("file");
    std::fs::write(&file, "").unwrap();
    world.snowmelt(["mount", "small", file.to_str().unwrap()]).failure(1, &[file.to_str().unwrap()]);
    let directory = world.path("not-mounted");
    std::fs::create_dir(&directory).unwrap();
    world.snowmelt(["unmount", directory.to_str().unwrap()]).failure(1, &[directory.to_str().unwrap()]);
    world.assert_nothing_left();
}

#[test]
fn a_mount_in_use_is_not_torn_away() {
    let world = World::with_small();
    let mounted = world.mount("small", &[]);
    let open = std::fs::File::open(mounted.join("data/pattern")).unwrap();
    world.snowmelt(["unmount", mounted.to_str().unwrap()]).failure(1, &["in use"]);
    drop(open);
    world.unmount(&mounted);
    world.assert_nothing_left();
}

#[test]
fn configuration_files_with_mistakes() {
    let world = World::new();
    std::fs::write(world.path("config.toml"), "stroe = \"/somewhere\"\n").unwrap();
    world.snowmelt(["images"]).failure(1, &["config.toml", "stroe"]);
    std::fs::write(world.path("config.toml"), "store = \n").unwrap();
    world.snowmelt(["images"]).failure(1, &["config.toml"]);
    let missing = world.text("missing.toml");
    world.snowmelt(["--config", &missing, "images"]).failure(1, &["missing.toml"]);
}

#[test]
fn stores_over_plain_http_only_when_asked() {
    let world = World::new();
    world.snowmelt(["--store", "http://127.0.0.1:1/", "run", "small", "--", "true"]).failure(125, &["--allow-http"]);
}

/// A copy of the layout of `small` in the world, with its largest layer changed by `change`.
fn with_changed_layer(world: &World, name: &str, change: impl Fn(&mut Vec<u8>)) -> (String, String) {
    let layout = world.path(name);
    let source = format!("oci:{}:small", layout.display());
    tool("skopeo", &["copy", "--quiet", &test_image("small"), &source]);
    let mut blobs = Vec::new();
    walk(&layout.join("blobs"), &mut |path| blobs.push(path.to_owned()));
    let largest = blobs.iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    change(&mut bytes);
    std::fs::write(largest, bytes).unwrap();
    (source, short_name(largest))
}

fn short_name(blob: &Path) -> String {
    blob.file_name().unwrap().to_str().unwrap()[..12].to_owned()
}

#[test]
fn layers_that_are_not_what_their_digest_says() {
    let world = World::new();
    let (source, layer) = with_changed_layer(&world, "changed", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    world.snowmelt(["publish", &source, "broken"]).failure(1, &[&layer]);
    let (source, layer) = with_changed_layer(&world, "truncated", |bytes| bytes.truncate(bytes.len() / 2));
    world.snowmelt(["publish", &source, "broken"]).failure(1, &[&layer]);
    assert_eq!(world.json(&["images"]), serde_json::json!([]), "nothing is half published");
}

#[test]
fn archives_that_climb_out_of_the_root() {
    let world = World::new();
    for (name, entry) in [("up", "../escaped"), ("nested", "a/../../escaped")] {
        let script = format!(
            "import io, tarfile\n\
             tar = tarfile.open({:?}, 'w')\n\
             entry = tarfile.TarInfo({entry:?}); entry.size = 1\n\
             tar.addfile(entry, io.BytesIO(b'x')); tar.close()",
            world.text("layer.tar")
        );
        tool("python3", &["-c", &script]);
        let layout = world.text(name);
        tool("umoci", &["init", "--layout", &layout]);
        tool("umoci", &["new", "--image", &format!("{layout}:x")]);
        tool("umoci", &["raw", "add-layer", "--image", &format!("{layout}:x"), &world.text("layer.tar")]);
        world.snowmelt(["publish", &format!("oci:{layout}:x"), "x"]).failure(1, &["escaped"]);
    }
    assert_eq!(world.json(&["images"]), serde_json::json!([]));
    assert!(!world.path("escaped").exists());
}

#[test]
fn commands_that_need_root_say_so() {
    let world = World::with_small();
    // The binary may lie where only root looks, so `nobody` gets a copy, and a world of its own.
    let copy = world.path("snowmelt");
    std::fs::copy(env!("CARGO_BIN_EXE_snowmelt"), &copy).unwrap();
    tool("chown", &["-R", "65534:65534", world.path("").to_str().unwrap()]);
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(["run", "small", "--", "true"]);
    for (name, value) in world.command(["--version"]).get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    crate::world::finish(command.spawn().unwrap()).failure(125, &["root"]);
}
