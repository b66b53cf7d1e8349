//! Random stacks of layers, merged here and unpacked by umoci: the trees must be the same, and where umoci refuses, so
//! must we. Needs umoci and root (for owners and devices), as `make setup` and the project's CI have them.

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use snowmelt_ext4::{Kind, NodeId, Timestamp};

use super::*;
use crate::directory;
use crate::testing::archive;

/// Times that the items below have. All others come from the clock: umoci leaves it on directories that no entry
/// describes, and on those in which it made such a directory.
const TIMES: std::ops::Range<i64> = 1_000_000..1_000_100;

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "c"])
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

/// Symlinks may lead anywhere, out of the root too: that is clamped.
fn target() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["", "/", "../", "../../../", "./"]), path())
        .prop_map(|(start, path)| format!("{start}{path}"))
}

fn item() -> impl Strategy<Value = Item> {
    let kind = prop_oneof![
        6 => (path(), 0..5000usize).prop_map(|(path, size)| Item::file(path, vec![b'x'; size])),
        6 => path().prop_map(Item::directory),
        3 => (path(), target()).prop_map(|(path, target)| Item::symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Item::hard_link(path, target)),
        1 => path().prop_map(|path| Item::new(b'6', path)),
        1 => path().prop_map(|path| Item { device: (1, 3), ..Item::new(b'3', path) }),
        3 => path().prop_map(|path| {
            let (parent, name) = path.rsplit_once('/').unwrap_or((".", &path));
            Item::file(format!("{parent}/.wh.{name}"), "")
        }),
        1 => path().prop_map(|path| Item::file(format!("{path}/.wh..wh..opq"), "")),
    ];
    let modes = prop::sample::select(vec![0o755, 0o700, 0o4711, 0o2755, 0o1777, 0o644]);
    (kind, modes, 0..3u32, TIMES, prop::option::of("[a-z]{1,8}")).prop_map(|(item, mode, uid, mtime, xattr)| {
        let xattr = xattr.filter(|_| matches!(item.flag, b'0' | b'5'));
        // Where umoci makes a missing parent, the kernel hands it the setgid bit and group of the directory above.
        let mode = if item.flag == b'5' { mode & !0o2000 } else { mode };
        let item = Item { mode, uid, gid: uid * 2, mtime, ..item };
        match xattr {
            Some(value) => item.with_pax("SCHILY.xattr.user.test", value),
            None => item,
        }
    })
}

/// Writes an image of these layers as an OCI layout with the tag `test`.
fn write_layout(directory: &Path, layers: &[Vec<Item>]) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = format!("{:x}", Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let descriptor = |media: &str, bytes: &[u8]| {
        let (digest, size) = put(bytes);
        serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{media}"), "digest": digest, "size": size })
    };
    let archives: Vec<Vec<u8>> = layers.iter().map(|layer| archive(layer)).collect();
    let layers: Vec<_> = archives.iter().map(|bytes| descriptor("layer.v1.tar", bytes)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| layer["digest"].clone()).collect::<Vec<_>>() },
    });
    let config = descriptor("config.v1+json", config.to_string().as_bytes());
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = descriptor("manifest.v1+json", manifest.to_string().as_bytes());
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "test" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn ours(layers: &[Vec<Item>]) -> Result<Vec<Line>, String> {
    let spools = tempfile::tempdir().unwrap();
    let layers: Vec<&[Item]> = layers.iter().map(Vec::as_slice).collect();
    let mut tree = MergedTree::new();
    for layer in layers::read_all(&MemorySource::of(&layers), spools.path(), None).unwrap() {
        tree.begin_layer();
        for entry in layer.entries {
            tree.apply(entry)?;
        }
    }
    Ok(describe(&tree.finish().map_err(|misfit| misfit.reason)?))
}

fn umocis(directory: &Path, layers: &[Vec<Item>]) -> Result<Vec<Line>, String> {
    write_layout(&directory.join("image"), layers);
    let image = format!("{}:test", directory.join("image").display());
    let bundle = directory.join("bundle");
    let mut command = Command::new("umoci");
    command.args(["unpack", "--image", &image]).arg(&bundle);
    let output = command.output().expect("umoci is installed");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let (tree, _spool) = directory::read(&bundle.join("rootfs"), directory, None).unwrap();
    Ok(describe(&tree))
}

/// What must be equal, and the time if it is one of [`TIMES`].
type Line = (String, Option<Timestamp>);

/// One line for each node with all that images must agree in, and one for each name.
fn describe(image: &ImageTree) -> Vec<Line> {
    let mut lines = vec![describe_node(image, NodeId(0), "/")];
    let mut names = vec![None; image.tree.nodes.len()];
    let mut paths = Vec::new();
    list(&image.tree, NodeId(0), "", &mut names, &mut paths);
    for (index, name) in names.iter().enumerate() {
        if let Some(name) = name {
            lines.push(describe_node(image, NodeId(index as u32), name));
        }
    }
    lines.extend(paths.into_iter().map(|path| (path, None)));
    lines
}

fn describe_node(image: &ImageTree, id: NodeId, path: &str) -> Line {
    let node = &image.tree.nodes[id.0 as usize];
    let mtime = Some(node.mtime).filter(|mtime| TIMES.contains(&mtime.seconds));
    // The kernel gives symlinks no mode of their own.
    let mode = if matches!(node.kind, Kind::Symlink { .. }) { 0o777 } else { node.mode };
    let digest = image.contents[id.0 as usize].as_ref().map(|content| content.digest);
    (format!("{path} {mode:o} {}:{} {:?} {digest:?}", node.uid, node.gid, node.xattrs), mtime)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_merge_as_umoci_unpacks_them(layers in prop::collection::vec(prop::collection::vec(item(), 0..12), 1..4)) {
        let directory = tempfile::tempdir().unwrap();
        match (ours(&layers), umocis(directory.path(), &layers)) {
            (Ok(mut ours), Ok(umocis)) => {
                for ((_, mtime), (_, theirs)) in ours.iter_mut().zip(&umocis) {
                    *mtime = mtime.filter(|_| theirs.is_some());
                }
                prop_assert_eq!(ours, umocis);
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => prop_assert!(false, "only umoci refuses: {}", error),
            (Err(error), Ok(_)) => prop_assert!(false, "only we refuse: {}", error),
        }
    }
}
