//! One test for each rule of merging, on trees written as the paths they must have.

#![allow(clippy::unwrap_used, missing_docs)]

mod umoci;

use snowmelt_ext4::{Kind, NodeId, Tree};

use crate::error::Error;
use crate::layers;
use crate::merge::{ImageTree, MergedTree};
use crate::testing::{Item, MemorySource, flatten_with};

fn merge(layers: &[&[Item]]) -> ImageTree {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = MergedTree::new();
    for layer in layers::read_all(&MemorySource::of(layers), directory.path(), None).unwrap() {
        tree.begin_layer();
        for entry in layer.entries {
            tree.apply(entry).unwrap();
        }
    }
    tree.finish().unwrap()
}

/// Every path with a letter for its type, such as `d /etc`; files with their size, symlinks with their target, and a
/// `=path` for all names of a file but the first.
fn listing(layers: &[&[Item]]) -> Vec<String> {
    let image = merge(layers);
    let mut lines = Vec::new();
    let mut names = vec![None; image.tree.nodes.len()];
    list(&image.tree, NodeId(0), "", &mut names, &mut lines);
    lines
}

fn list(tree: &Tree, directory: NodeId, path: &str, names: &mut Vec<Option<String>>, lines: &mut Vec<String>) {
    let Kind::Directory { entries } = &tree.nodes[directory.0 as usize].kind else { panic!("not a directory") };
    for (name, id) in entries {
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        if let Some(first) = &names[id.0 as usize] {
            lines.push(format!("= {path} {first}"));
            continue;
        }
        names[id.0 as usize] = Some(path.clone());
        match &tree.nodes[id.0 as usize].kind {
            Kind::Directory { .. } => {
                lines.push(format!("d {path}"));
                list(tree, *id, &path, names, lines);
            }
            Kind::File { size, .. } => lines.push(format!("f {path} {size}")),
            Kind::Symlink { target } => lines.push(format!("l {path} {}", String::from_utf8_lossy(target))),
            Kind::CharDevice { major, minor } => lines.push(format!("c {path} {major}:{minor}")),
            Kind::BlockDevice { major, minor } => lines.push(format!("b {path} {major}:{minor}")),
            Kind::Fifo => lines.push(format!("p {path}")),
            Kind::Socket => lines.push(format!("s {path}")),
        }
    }
}

fn error(layers: &[&[Item]]) -> String {
    match flatten_with(&MemorySource::of(layers), crate::PlacementKind::Aligned) {
        Ok(_) => panic!("must fail"),
        Err(error @ (Error::Invalid { .. } | Error::Corrupt { .. })) => error.to_string(),
        Err(error) => panic!("{error}"),
    }
}

fn file(path: &str, size: usize) -> Item {
    Item::file(path, vec![b'x'; size])
}

fn dir(path: &str) -> Item {
    Item::directory(path)
}

#[test]
fn no_layers_give_an_empty_root() {
    let image = merge(&[]);
    assert_eq!(image.tree.nodes.len(), 1);
    assert_eq!(image.tree.nodes[0].mode, 0o755);
    assert_eq!(listing(&[&[]]), [""; 0]);
}

#[test]
fn whiteout_removes_lower_files_and_trees() {
    let lower = [dir("a"), file("a/x", 1), file("a/y", 2), file("b", 3)];
    assert_eq!(listing(&[&lower, &[file("a/.wh.x", 0)]]), ["d /a", "f /a/y 2", "f /b 3"]);
    assert_eq!(listing(&[&lower, &[file(".wh.a", 0)]]), ["f /b 3"]);
    // Of what is not there, and in directories that are not there, too.
    assert_eq!(listing(&[&lower, &[file("no/.wh.x", 0), file(".wh.no", 0), file("b/.wh.x", 0)]]).len(), 4);
}

#[test]
fn whiteout_keeps_what_its_own_layer_wrote() {
    let lower = [dir("a"), file("a/x", 1), file("a/y", 2)];
    assert_eq!(listing(&[&lower, &[file("a/x", 9), file("a/.wh.x", 0)]]), ["d /a", "f /a/x 9", "f /a/y 2"]);
    assert_eq!(listing(&[&lower, &[file("a/.wh.x", 0), file("a/x", 9)]]), ["d /a", "f /a/x 9", "f /a/y 2"]);
    // A directory in which the layer wrote stays, with what the layer wrote.
    assert_eq!(listing(&[&lower, &[file("a/z", 9), file(".wh.a", 0)]]), ["d /a", "f /a/z 9"]);
    assert_eq!(listing(&[&lower, &[file(".wh.a", 0), file("a/z", 9)]]), ["d /a", "f /a/z 9"]);
}

#[test]
fn opaque_hides_lower_layers_in_any_order() {
    let lower = [dir("a"), dir("a/d"), file("a/d/x", 1), file("a/y", 2), file("b", 3)];
    let marker = file("a/.wh..wh..opq", 0);
    let expected = ["d /a", "d /a/d", "f /a/d/n 5", "f /a/new 4", "f /b 3"];
    let before = [marker.clone(), file("a/new", 4), file("a/d/n", 5)];
    let after = [file("a/new", 4), file("a/d/n", 5), marker.clone()];
    let between = [dir("a"), file("a/new", 4), marker.clone(), dir("a/d"), file("a/d/n", 5)];
    assert_eq!(listing(&[&lower, &before]), expected);
    assert_eq!(listing(&[&lower, &after]), expected);
    assert_eq!(listing(&[&lower, &between]), expected);
    assert_eq!(
        listing(&[&lower, std::slice::from_ref(&marker), &[file("a/last", 6)]]),
        ["d /a", "f /a/last 6", "f /b 3"]
    );
    assert_eq!(listing(&[&lower, &[file(".wh..wh..opq", 0)]]), [""; 0]);
}

#[test]
fn other_union_file_systems_marks_are_ignored() {
    let layer = [dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", 1), file(".wh..wh.aufs", 1), file("a", 1)];
    assert_eq!(listing(&[&layer]), ["f /a 1"]);
}

#[test]
fn kinds_replace_each_other() {
    let lower = [dir("a"), file("a/x", 1), file("b", 2), Item::symlink("c", "a")];
    assert_eq!(listing(&[&lower, &[file("a", 5)]]), ["f /a 5", "f /b 2", "l /c a"]);
    assert_eq!(listing(&[&lower, &[dir("b"), file("b/n", 1)]])[2..], ["d /b", "f /b/n 1", "l /c a"]);
    // A directory entry replaces a symlink to a directory; it does not follow it.
    assert_eq!(listing(&[&lower, &[dir("c")]])[3..], ["d /c"]);
    assert_eq!(listing(&[&[dir("a"), file("a/x", 1), file("a", 5), dir("a")]]), ["d /a"]);
}

#[test]
fn the_last_of_repeated_entries_wins() {
    assert_eq!(listing(&[&[file("a", 1), file("a", 2)]]), ["f /a 2"]);
    let image = merge(&[&[dir("d"), file("d/x", 1), dir("d").with_mode(0o700)]]);
    assert_eq!(image.tree.nodes[1].mode, 0o700);
    assert_eq!(image.tree.nodes.len(), 3, "a repeated directory keeps its children");
}

#[test]
fn missing_parents_are_made() {
    let image = merge(&[&[file("a/b/c", 1)]]);
    for node in &image.tree.nodes[1..3] {
        assert!(matches!(node.kind, Kind::Directory { .. }));
        assert_eq!((node.mode, node.uid, node.gid, node.mtime.seconds), (0o755, 0, 0, 0));
    }
}

#[test]
fn the_root_entry_sets_the_root() {
    for name in ["./", "/", "."] {
        let image = merge(&[&[Item { uid: 7, ..dir(name).with_mode(0o1777) }]]);
        assert_eq!((image.tree.nodes[0].mode, image.tree.nodes[0].uid), (0o1777, 7));
    }
    assert!(error(&[&[Item::symlink("./", "x")]]).contains("must be a directory"));
}

#[test]
fn hard_links_share_the_node_across_layers() {
    let lower = [file("a", 1)];
    assert_eq!(listing(&[&lower, &[Item::hard_link("z", "a")]]), ["f /a 1", "= /z /a"]);
    assert_eq!(listing(&[&lower, &[Item::hard_link("z", "/a"), file("a", 2)]]), ["f /a 2", "f /z 1"]);
    assert_eq!(listing(&[&lower, &[Item::hard_link("z", "a"), file(".wh.a", 0)]]), ["f /z 1"]);
    // A link to a symlink is one more name of the symlink.
    assert_eq!(listing(&[&[Item::symlink("s", "nowhere"), Item::hard_link("t", "s")]]), ["l /s nowhere", "= /t /s"]);
    // The target's parents may be symlinks.
    let linked = [dir("d"), file("d/f", 3), Item::symlink("e", "d"), Item::hard_link("g", "e/f")];
    assert_eq!(listing(&[&linked]), ["d /d", "f /d/f 3", "l /e d", "= /g /d/f"]);
}

#[test]
fn hard_links_to_nothing_or_directories_are_errors() {
    assert!(error(&[&[Item::hard_link("a", "b")]]).contains("does not exist: /b"));
    assert!(error(&[&[Item::hard_link("a", "a")]]).contains("does not exist"));
    assert!(error(&[&[dir("d"), Item::hard_link("a", "d")]]).contains("hard link to a directory: /d"));
    assert!(error(&[&[dir("d"), file("d/x", 1), Item::hard_link("d", "d/x")]]).contains("does not exist"));
}

#[test]
fn entries_go_through_symlinked_parents_inside_the_root() {
    let lower = [dir("usr"), dir("usr/lib"), Item::symlink("lib", "usr/lib")];
    assert_eq!(listing(&[&lower, &[file("lib/x", 1)]]), ["l /lib usr/lib", "d /usr", "d /usr/lib", "f /usr/lib/x 1"]);
    let escaping = [dir("a"), Item::symlink("a/up", "../../../b"), file("a/up/x", 1)];
    assert_eq!(listing(&[&escaping]), ["d /a", "l /a/up ../../../b", "d /b", "f /b/x 1"]);
    let absolute = [dir("a"), Item::symlink("a/s", "/c/./d//"), file("a/s/x", 1)];
    assert_eq!(listing(&[&absolute]), ["d /a", "l /a/s /c/./d//", "d /c", "d /c/d", "f /c/d/x 1"]);
    // A whiteout goes through them too, and the symlink itself can be whited out.
    let with_file = [dir("usr"), dir("usr/lib"), file("usr/lib/x", 1), Item::symlink("lib", "usr/lib")];
    assert_eq!(listing(&[&with_file, &[file("lib/.wh.x", 0)]]), ["l /lib usr/lib", "d /usr", "d /usr/lib"]);
    assert_eq!(listing(&[&with_file, &[file(".wh.lib", 0)]]), ["d /usr", "d /usr/lib", "f /usr/lib/x 1"]);
}

#[test]
fn loops_and_files_as_parents_are_errors() {
    let looping = [Item::symlink("a", "b"), Item::symlink("b", "a"), file("a/x", 1)];
    assert!(error(&[&looping]).contains("loop of symlinks"));
    let growing = [dir("d"), Item::symlink("d/s", "s/s"), file("d/s/x", 1)];
    assert!(error(&[&growing]).contains("symlinks"));
    assert!(error(&[&[file("a", 1), file("a/x", 1)]]).contains("`a` in its path is not a directory"));
}

#[test]
fn errors_name_layer_and_entry() {
    let message = error(&[&[dir("ok")], &[file("f", 1), Item::hard_link("opt/link", "missing")]]);
    assert!(message.starts_with("layer 1 (sha256:0000"), "{message}");
    assert!(message.contains("entry /opt/link"), "{message}");
    let message = error(&[&[file("ok", 1), file("../../etc/passwd", 1)]]);
    assert!(message.contains("layer 0") && message.contains("entry ../../etc/passwd"), "{message}");
    assert!(message.contains("leaves the root"), "{message}");
    assert!(error(&[&[file(".wh.", 0)]]).contains("whiteout"));
    assert!(error(&[&[file("d/.wh...", 0)]]).contains("whiteout"));
}

/// Only the plan of the file system refused these, when it no longer knew where they came from.
#[test]
fn what_ext4_cannot_hold_names_layer_and_entry() {
    let mut upper = vec![file("a", 1)];
    upper.extend((0..65_000).map(|number| Item::hard_link(format!("links/{number:05}"), "a")));
    let message = error(&[&[dir("d")], &upper]);
    assert!(message.starts_with("layer 1 (sha256:0000"), "{message}");
    assert!(
        message.ends_with("entry /links/64999 cannot be used: its file has more than 65000 hard links"),
        "{message}"
    );
    // What a later layer removes does not count.
    assert_eq!(merge(&[&upper, &[file(".wh.links", 0)]]).tree.nodes.len(), 2);

    let message = error(&[&[file("f", 1)], &[dir(&"d/".repeat(2048))]]);
    assert!(message.starts_with("layer 1 (") && message.ends_with("it lies in 2048 directories or more"), "{message}");
    merge(&[&[dir(&"d/".repeat(2047))]]);

    let large = Item::file("x", "").with_pax("SCHILY.xattr.user.a", vec![b'x'; 5000]);
    let message = error(&[&[dir("ok")], &[large]]);
    assert!(message.starts_with("layer 1 (") && message.contains("entry x cannot be used: its extended"), "{message}");
}

#[test]
fn devices_and_pipes_are_kept() {
    let items = [
        Item { device: (1, 3), ..Item::new(b'3', "null") },
        Item { device: (8, 0), ..Item::new(b'4', "sda") },
        Item::new(b'6', "pipe"),
    ];
    assert_eq!(listing(&[&items]), ["c /null 1:3", "p /pipe", "b /sda 8:0"]);
}

#[test]
fn very_deep_trees_do_not_overflow_the_stack() {
    let path = vec!["d"; 2000].join("/");
    assert_eq!(merge(&[&[dir(&path)]]).tree.nodes.len(), 2001);
    // Symlinks lead deeper than any path is long; that ends somewhere.
    let mut items = vec![Item::symlink("s", &path), file("s/x", 1)];
    items.push(Item::symlink("t", format!("s/{path}")));
    items.push(file("t/x", 1));
    assert!(error(&[&items]).contains("too deep"));
}
