#![allow(clippy::unwrap_used, missing_docs)]
use std::path::Path;

use crate::sources::fixtures::{
    Layout, TAG, assert_is_the_image, damage, open, read_layer, read_layers, run, skopeo_copy,
};
use crate::{Compression, Error};

fn message(result: Result<impl Sized, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn a_layout_made_by_umoci() {
    let layout = Layout::create();
    let source = open(&layout.source()).unwrap();
    assert_is_the_image(&*source);
    assert!(source.layers().iter().all(|layer| layer.compression == Compression::Gzip));
    assert!(source.manifest_digest().unwrap().starts_with("sha256:"));
    let untagged = open(&format!("oci:{}", layout.path().display())).unwrap();
    assert_eq!(untagged.manifest_digest(), source.manifest_digest());
    assert!(matches!(source.open_layer(2), Err(Error::Invalid { .. })));
}

#[test]
fn names_in_a_layout() {
    let layout = Layout::create();
    run("umoci", &["tag", "--image", &format!("{}:{TAG}", layout.path().display()), "v2"]);
    let path = layout.path().display().to_string();
    assert_is_the_image(&*open(&format!("oci:{path}:v2")).unwrap());
    let error = message(open(&format!("oci:{path}")));
    assert!(error.ends_with("the layout has the images v1, v2: add one of them behind a colon"), "{error}");
    assert!(message(open(&format!("oci:{path}:v3"))).ends_with("the layout has v1, v2"));
    assert!(message(open("oci:/nowhere")).ends_with("there is no such directory"));
    let content = layout.directory.path().join("content").display().to_string();
    assert!(message(open(&format!("oci:{content}"))).ends_with("perhaps dir: is meant"));
}

#[test]
fn a_damaged_layout_names_image_and_blob() {
    let layout = Layout::create();
    let source = open(&layout.source()).unwrap();
    let digest = source.layers()[0].digest.clone();
    let blob = layout.blob(&digest);
    damage(&blob);
    let error = message(read_layer(&*source, 0));
    assert!(
        error.starts_with(&format!("{}, layer {digest} is damaged: its digest is sha256:", layout.source())),
        "{error}"
    );
    let bytes = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, &bytes[..1000]).unwrap();
    let error = message(read_layer(&*source, 0));
    assert!(error.contains(&format!("it ends after 1000 of {} bytes", bytes.len())), "{error}");
    std::fs::remove_file(&blob).unwrap();
    assert!(matches!(read_layer(&*source, 0), Err(Error::NotFound { .. })));
    // The other layer is none the worse.
    read_layer(&*source, 1).unwrap();

    let manifest = layout.blob(source.manifest_digest().unwrap());
    damage(&manifest);
    assert!(matches!(open(&layout.source()), Err(Error::Corrupt { .. })));
}

#[test]
fn archives_as_docker_saves_them_also_compressed() {
    let layout = Layout::create();
    let file = layout.directory.path().join("image.tar");
    let path = file.to_str().unwrap().to_owned();
    skopeo_copy(&[], &layout.source(), &format!("docker-archive:{path}:some/name:1"));
    let source = open(&format!("docker-archive:{path}")).unwrap();
    assert_is_the_image(&*source);
    assert_eq!(source.manifest_digest(), None);
    let diff_ids = read_layers(&*open(&layout.source()).unwrap()).unwrap();
    assert!(source.layers().iter().zip(&diff_ids).all(|(layer, diff_id)| layer.digest == *diff_id));
    for name in ["some/name:1", "docker.io/some/name:1"] {
        assert_is_the_image(&*open(&format!("docker-archive:{path}:{name}")).unwrap());
    }
    let suggested = |source: &str| crate::suggested_name(&source.parse().unwrap()).unwrap();
    assert_eq!(suggested(&format!("docker-archive:{path}")).unwrap(), "docker.io/some/name:1");
    assert_eq!(suggested(&format!("docker-archive:{path}:x")), None);
    assert_eq!(suggested("dir:/"), None);
    let error = message(open(&format!("docker-archive:{path}:other")));
    assert!(error.ends_with("the archive has docker.io/some/name:1"), "{error}");
    run("gzip", &["-k1", &path]);
    run("zstd", &["-q", "-k", &path]);
    for end in ["gz", "zst"] {
        assert_is_the_image(&*open(&format!("docker-archive:{path}.{end}")).unwrap());
    }
    let bytes = std::fs::read(&file).unwrap();
    for length in [0, 100, 512, 100_000, bytes.len() / 2] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(matches!(open(&format!("docker-archive:{path}")), Err(Error::Corrupt { .. })), "{length}");
    }
    let mut damaged = bytes;
    damaged[1_000_000] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    assert!(matches!(read_layers(&*open(&format!("docker-archive:{path}")).unwrap()), Err(Error::Corrupt { .. })));
}

/// Opening a named pipe waits for a writer, and an archive is read from several places.
#[test]
fn pipes_are_refused_at_once() {
    let directory = tempfile::TempDir::new().unwrap();
    let pipe = directory.path().join("pipe").display().to_string();
    run("mkfifo", &[&pipe]);
    for path in [pipe.as_str(), "/dev/null"] {
        let error = message(open(&format!("docker-archive:{path}")));
        assert!(error.contains("save it to a file first"), "{error}");
    }
    assert!(crate::suggested_name(&format!("docker-archive:{pipe}").parse().unwrap()).is_err());
}

/// A directory as `docker save` of version 25 and later lays it out, packed: a layout whose layers stay compressed, and a
/// `manifest.json` that names them.
#[test]
fn archives_that_are_layouts() {
    let layout = Layout::create();
    let directory = layout.path();
    let tar = layout.directory.path().join("x.tar");
    let pack = |tar: &Path| run("tar", &["-C", directory.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "."]);
    pack(&tar);
    let name = format!("docker-archive:{}", tar.display());
    let plain = open(&name).unwrap();
    assert_is_the_image(&*plain);
    assert!(plain.manifest_digest().is_some());

    let manifest = std::fs::read(layout.blob(plain.manifest_digest().unwrap())).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let blob = |value: &serde_json::Value| {
        value["digest"].as_str().unwrap().replace(':', "/").replace("sha256", "blobs/sha256")
    };
    let layers: Vec<String> = manifest["layers"].as_array().unwrap().iter().map(blob).collect();
    let entry = serde_json::json!([{ "Config": blob(&manifest["config"]), "RepoTags": null, "Layers": layers }]);
    std::fs::write(directory.join("manifest.json"), entry.to_string()).unwrap();
    pack(&tar);
    let saved = open(&name).unwrap();
    assert_is_the_image(&*saved);
    assert_eq!(saved.layers()[0].digest, plain.layers()[0].digest);
    assert_eq!(saved.layers()[0].compression, Compression::Gzip);
}

/// Docker before version 25 gave each layer a directory, and wrote a repeated layer as a symlink.
#[test]
fn archives_with_links() {
    let directory = tempfile::TempDir::new().unwrap();
    let tree = directory.path().join("tree");
    for name in ["aaa", "bbb"] {
        std::fs::create_dir_all(tree.join(name)).unwrap();
    }
    let layer = vec![0; 10_240];
    let diff_id = crate::digest::Digest::of(&layer).to_string();
    std::fs::write(tree.join("aaa/layer.tar"), &layer).unwrap();
    std::os::unix::fs::symlink("../aaa/layer.tar", tree.join("bbb/layer.tar")).unwrap();
    let config = serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": [diff_id, diff_id] } });
    std::fs::write(tree.join("c.json"), config.to_string()).unwrap();
    let entry =
        serde_json::json!([{ "Config": "c.json", "RepoTags": ["x:1"], "Layers": ["aaa/layer.tar", "bbb/layer.tar"] }]);
    std::fs::write(tree.join("manifest.json"), entry.to_string()).unwrap();
    let tar = directory.path().join("x.tar").display().to_string();
    run("tar", &["-C", tree.to_str().unwrap(), "--format=pax", "-cf", &tar, "manifest.json", "c.json", "aaa", "bbb"]);
    let source = open(&format!("docker-archive:{tar}:x:1")).unwrap();
    assert_eq!(read_layers(&*source).unwrap(), [diff_id.clone(), diff_id]);
}

#[test]
fn zstd_layers() {
    let layout = Layout::create();
    let plain = format!("docker-archive:{}", layout.directory.path().join("plain.tar").display());
    let to = format!("oci:{}:{TAG}", layout.directory.path().join("zstd").display());
    // What is compressed already is copied as it is.
    skopeo_copy(&[], &layout.source(), &plain);
    skopeo_copy(&["--dest-compress-format", "zstd"], &plain, &to);
    let source = open(&to).unwrap();
    assert!(source.layers().iter().all(|layer| layer.compression == Compression::Zstd), "{:?}", source.layers());
    assert_is_the_image(&*source);
}
