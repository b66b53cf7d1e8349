//! What users get wrong: the message says what was wrong with what, and what to do.

use std::path::Path;

use crate::stores::only_on_files;
use crate::world::{World, test_image, tool, walk};

#[test]
fn typos_in_commands_and_options() {
    let world = World::new();
    world.snowmelt(["publsih", "oci:here"]).failure(2, &["publsih", "publish"]);
    world.snowmelt(["publish"]).failure(2, &["SOURCE"]);
    // 2 could be the command's own code.
    world.snowmelt(["run", "small", "--read-onyl"]).failure(125, &["--read-onyl", "--read-only"]);
    world.snowmelt(["run", "small", "--net", "bridge", "--", "true"]).failure(125, &["bridge", "host", "none"]);
    world.snowmelt(["run", "Small", "--", "true"]).failure(125, &["Small"]);
    world.snowmelt(Vec::<&str>::new()).failure(2, &["Usage", "publish", "run"]);
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
    let platform = ["publish", &format!("dir:{}", world.text("")), "x", "--platform", "linux/arm64"];
    world.snowmelt(platform).failure(1, &["--platform", "dir:"]);
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
fn tenants_that_are_not_tenants() {
    let world = World::new();
    for tenant in ["../x", "a/b", "A B", "", &"x".repeat(300)] {
        for command in [&["images"][..], &["du"], &["inspect", "small"], &["rm", "small"]] {
            let arguments = [&["--tenant", tenant][..], command].concat();
            world.snowmelt(arguments).failure(1, &["tenant's name", "a-z"]);
        }
    }
}

/// A web server that only gives: publishing fails before any work is done.
#[test]
fn stores_that_can_only_be_read() {
    only_on_files!();
    let world = World::with_small();
    let (mut server, address) = crate::damage::serve(&world.path("store"));
    let url = format!("http://{address}/");
    let remote = |arguments: &[&str]| world.snowmelt([&["--store", &url, "--allow-http"][..], arguments].concat());
    remote(&["run", "small", "--", "true"]).success();
    remote(&["publish", &test_image("small"), "other"]).failure(1, &[&url, "can only be read"]);
    remote(&["rm", "small"]).failure(1, &[&url, "can only be read"]);
    let listed = remote(&["images"]).failure(1, &[&url, "lists nothing"]);
    assert!(!listed.stderr.contains('<'), "no page of HTML: {}", listed.stderr);
    world.run(&[], &["true"]).success();
    let _ = server.kill();
    let _ = server.wait();
}

#[test]
fn one_damaged_name_is_reported_and_can_be_removed() {
    let world = World::with_small();
    world.snowmelt(["publish", &test_image("small"), "other"]).success();
    world.objects("store").write("names/default/other/latest", "");
    let listed = world.snowmelt(["images"]).success();
    assert!(listed.stdout().contains("small"), "{listed:?}");
    assert!(listed.stderr.contains("other:latest") && listed.stderr.contains("snowmelt rm"), "{listed:?}");
    let listed = world.json(&["images"]);
    assert!(listed[0]["error"].is_string() && listed[1]["manifest"].is_string(), "{listed}");
    assert_eq!(world.json(&["du"])["damaged"][0]["name"], "other:latest");
    world.snowmelt(["rm", "other"]).success();
    assert_eq!(world.json(&["images"]).as_array().unwrap().len(), 1);
}

#[test]
fn configuration_files_with_mistakes() {
    let world = World::new();
    std::fs::write(world.path("config.toml"), "cache_size = -1\n").unwrap();
    world.snowmelt(["images"]).failure(1, &["config.toml", "cache_size", "below zero"]);
    std::fs::write(world.path("config.toml"), "cache_size = \"1 elephant\"\n").unwrap();
    world.snowmelt(["images"]).failure(1, &["config.toml", "1 elephant"]);
    std::fs::write(world.path("config.toml"), "").unwrap();
    let mut command = world.command(["images"]);
    crate::world::finish(command.env("SNOWMELT_LOG", "snowmelt=loudly").spawn().unwrap())
        .failure(1, &["SNOWMELT_LOG", "loudly"]);
    std::fs::write(world.path("config.toml"), "stroe = \"/somewhere\"\n").unwrap();
    world.snowmelt(["images"]).failure(1, &["config.toml", "stroe"]);
    std::fs::write(world.path("config.toml"), "store = \n").unwrap();
    world.snowmelt(["images"]).failure(1, &["config.toml"]);
    let missing = world.text("missing.toml");
    world.snowmelt(["--config", &missing, "images"]).failure(1, &["missing.toml"]);
}

#[test]
fn stores_over_plain_http_only_when_asked() {
    let mut world = World::new();
    world.set("SNOWMELT_ALLOW_HTTP", "false");
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
