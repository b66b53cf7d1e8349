//! Which small files belong together: the same package, the same kind.
//!
//! A group is what one directory subtree holds of one class of files, if that is at least half a chunk; what is less goes
//! to the group of the parent directory. So the files of a package such as `site-packages/numpy` form groups that depend
//! on nothing outside of the package, while many small packages share one. Classes are apart because they change and
//! are read apart: a Python start reads compiled modules but not their sources, and compiled modules hold time stamps.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use snowmelt_ext4::{Kind, NodeId};

use crate::merge::ImageTree;

/// A file to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) node: NodeId,
    pub(super) blocks: u64,
    /// Of the content; decides where bins are cut.
    pub(super) digest: [u8; 32],
}

/// Files that are read and changed together. The order of the variants is the order in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Programs and shared objects.
    Executable,
    /// Compiled Python modules.
    Compiled,
    /// Sources of interpreted languages.
    Source,
    Other,
}

const CLASSES: usize = 4;

/// A directory during the walk.
struct Frame<'a> {
    entries: std::slice::Iter<'a, (Vec<u8>, NodeId)>,
    /// Files that no group took yet, by class.
    rest: [Vec<File>; CLASSES],
}

/// All files with blocks, in groups. A large file is a group of its own. Order and membership follow from the tree.
pub(super) fn groups(image: &ImageTree, chunk_blocks: u64) -> Vec<Vec<File>> {
    let threshold = chunk_blocks.div_ceil(2);
    let mut groups = Vec::new();
    // A hard link belongs where the walk meets it first.
    let mut seen = vec![false; image.tree.nodes.len()];
    let mut frames = vec![Frame { entries: entries(image, NodeId(0)).iter(), rest: Default::default() }];
    while let Some(frame) = frames.last_mut() {
        if let Some((name, id)) = frame.entries.next() {
            let index = id.0 as usize;
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            if let Kind::Directory { entries } = &image.tree.nodes[index].kind {
                frames.push(Frame { entries: entries.iter(), rest: Default::default() });
            } else if let Some(content) = &image.contents[index] {
                let file = File { node: *id, blocks: content.allocated_blocks(), digest: content.digest };
                if file.blocks >= chunk_blocks {
                    groups.push(vec![file]);
                } else if file.blocks > 0 {
                    frame.rest[classify(name, image.tree.nodes[index].mode) as usize].push(file);
                }
            }
            continue;
        }
        let Some(done) = frames.pop() else { break };
        for (class, files) in done.rest.into_iter().enumerate() {
            let blocks: u64 = files.iter().map(|file| file.blocks).sum();
            match frames.last_mut() {
                Some(parent) if blocks < threshold => parent.rest[class].extend(files),
                _ if files.is_empty() => {}
                _ => groups.push(files),
            }
        }
    }
    groups
}

fn entries(image: &ImageTree, directory: NodeId) -> &[(Vec<u8>, NodeId)] {
    match &image.tree.nodes[directory.0 as usize].kind {
        Kind::Directory { entries } => entries,
        _ => &[],
    }
}

fn classify(name: &[u8], mode: u16) -> Class {
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    let is_shared_object = name.windows(4).any(|part| part == b".so.") || name.ends_with(b".so");
    match path.extension().map(OsStrExt::as_bytes) {
        Some(b"pyc") => Class::Compiled,
        Some(b"py" | b"pyi" | b"pyx" | b"pxd" | b"js" | b"ts" | b"rb" | b"pm" | b"pl") => Class::Source,
        _ if is_shared_object || mode & 0o111 != 0 => Class::Executable,
        _ => Class::Other,
    }
}
