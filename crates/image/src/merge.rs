//! Applies layers, lowest first, to one tree in memory.
//!
//! The rules are those of the OCI image specification ("Image Layer Filesystem Changeset") as containerd and umoci
//! carry them out; where these differ, umoci's. A layer only knows paths, so each name in a directory remembers the last
//! layer that wrote it or something below it: whiteouts remove what this layer did not write, in whatever order its
//! entries come. Contents stay where they are; nodes carry them along.

mod resolve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use snowmelt_ext4::{Kind, MAX_DEPTH, MAX_LINKS, Node, NodeId, Timestamp, Tree};

use crate::entry_path::EntryPath;
use crate::spool::Content;
use crate::tar_entries::{Entry, EntryKind, Metadata};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// What other union file systems keep for themselves starts so; it means nothing to anyone else.
const RESERVED_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// An entry of a layer, and a file's content.
#[derive(Clone, Debug)]
pub(crate) struct LayerEntry {
    pub(crate) entry: Entry,
    /// Present for files only.
    pub(crate) content: Option<Content>,
}

impl LayerEntry {
    /// Bytes of its name, link target, extended attributes and sparse map: what makes one entry larger than another.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let Entry { path, kind, metadata } = &self.entry;
        let target = match kind {
            EntryKind::Symlink { target } => target.len(),
            EntryKind::HardLink { target } => target.byte_count(),
            _ => 0,
        };
        let xattrs: usize = metadata.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let ranges = self.content.as_ref().map_or(0, |content| size_of_val(&*content.ranges));
        (path.byte_count() + target + xattrs + ranges) as u64
    }
}

/// A node's index in [`MergedTree::nodes`].
pub(crate) type Index = u32;
pub(crate) const ROOT: Index = 0;

/// The tree as merged so far. Nodes that no name leads to any more stay in the list until the end.
#[derive(Debug)]
pub(crate) struct MergedTree {
    nodes: Vec<MergedNode>,
    /// Number of the layer being applied, from 1; 0 is what was there before all layers.
    layer: u32,
}

#[derive(Debug)]
struct MergedNode {
    metadata: Metadata,
    body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    Directory(BTreeMap<Box<[u8]>, Child>),
    File(Content),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    node: Index,
    /// The last layer that wrote this name or a path below it.
    layer: u32,
}

/// A node that no file system can hold, though each entry alone could be held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The layer that wrote the name last, from 0; `None` in a source without layers.
    pub(crate) layer: Option<usize>,
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// The finished tree, with the content of each node.
#[derive(Debug)]
pub(crate) struct ImageTree {
    pub(crate) tree: Tree,
    /// One for each node; `None` for what is no file.
    pub(crate) contents: Vec<Option<Content>>,
}

impl MergedTree {
    /// A root directory (0755, owned by root, at the epoch) and nothing in it.
    pub(crate) fn new() -> MergedTree {
        let root = MergedNode { metadata: implied_directory(), body: Body::Directory(BTreeMap::new()) };
        MergedTree { nodes: vec![root], layer: 0 }
    }

    /// Everything applied from now on belongs to the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// Applies one entry. The error is a reason, without the names of layer and entry.
    pub(crate) fn apply(&mut self, layer_entry: LayerEntry) -> Result<(), String> {
        let LayerEntry { entry, content } = layer_entry;
        let Some((parent, name)) = entry.path.split() else {
            if entry.kind != EntryKind::Directory {
                return Err("the root of an image must be a directory".into());
            }
            self.set_root_metadata(entry.metadata);
            return Ok(());
        };
        if name == OPAQUE_MARKER {
            return self.hide_children(&parent);
        }
        // Names below a reserved directory are as meaningless as the directory.
        if entry.path.components().any(|component| component.starts_with(RESERVED_PREFIX)) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.hide(&parent, hidden);
        }
        let parent = self.make_directories(&parent)?;
        let body = match entry.kind {
            EntryKind::HardLink { target } => {
                // What the link replaces goes first, so it can't be what the link leads to.
                self.children_mut(parent).remove(name);
                let node = self.link_target(&target)?;
                self.set_child(parent, name, node);
                return Ok(());
            }
            EntryKind::Directory => {
                let old = self.children(parent).get(name).copied();
                if let Some(old) = old.filter(|old| self.is_directory(old.node)) {
                    self.nodes[old.node as usize].metadata = entry.metadata;
                    self.set_child(parent, name, old.node);
                    return Ok(());
                }
                Body::Directory(BTreeMap::new())
            }
            EntryKind::File { .. } => Body::File(content.ok_or("a file without its content")?),
            EntryKind::Symlink { target } => Body::Symlink(target),
            EntryKind::CharDevice { major, minor } => Body::CharDevice(major, minor),
            EntryKind::BlockDevice { major, minor } => Body::BlockDevice(major, minor),
            EntryKind::Fifo => Body::Fifo,
        };
        let node = self.add_node(entry.metadata, body)?;
        self.set_child(parent, name, node);
        Ok(())
    }

    /// Adds a node as it is, for sources that have no layers: names mean nothing special, and `parent` has no such name.
    pub(crate) fn insert(
        &mut self,
        parent: Index,
        name: &[u8],
        metadata: Metadata,
        body: Body,
    ) -> Result<Index, String> {
        let node = self.add_node(metadata, body)?;
        self.set_child(parent, name, node);
        Ok(node)
    }

    /// Gives `node`, which is no directory, one more name.
    pub(crate) fn link(&mut self, parent: Index, name: &[u8], node: Index) {
        self.set_child(parent, name, node);
    }

    pub(crate) fn set_root_metadata(&mut self, metadata: Metadata) {
        self.nodes[ROOT as usize].metadata = metadata;
    }

    /// Removes `name` from `parent` as far as lower layers made it. Nothing to remove is no error: other whiteouts of
    /// the same layer may have taken it.
    fn hide(&mut self, parent: &EntryPath, name: &[u8]) -> Result<(), String> {
        if matches!(name, b"" | b"." | b"..") {
            return Err("a whiteout that names no file".into());
        }
        let Some(parent) = self.find_directory(parent)? else {
            return Ok(());
        };
        let Some(child) = self.children(parent).get(name).copied() else {
            return Ok(());
        };
        if child.layer == self.layer {
            self.remove_lower(child.node);
        } else {
            self.children_mut(parent).remove(name);
        }
        Ok(())
    }

    fn hide_children(&mut self, directory: &EntryPath) -> Result<(), String> {
        if let Some(node) = self.find_directory(directory)? {
            self.remove_lower(node);
        }
        Ok(())
    }

    /// Removes all below `top` that this layer did not write; no effect on what is no directory.
    fn remove_lower(&mut self, top: Index) {
        let layer = self.layer;
        let mut pending = vec![top];
        while let Some(node) = pending.pop() {
            if let Body::Directory(children) = &mut self.nodes[node as usize].body {
                children.retain(|_, child| child.layer == layer);
                pending.extend(children.values().map(|child| child.node));
            }
        }
    }

    /// The node that a hard link names: its parents resolved, itself not followed, as link(2) does.
    fn link_target(&self, target: &EntryPath) -> Result<Index, String> {
        let missing = || format!("hard link to a file that does not exist: {target}");
        let (parent, name) = target.split().ok_or_else(missing)?;
        let parent = self.find_directory(&parent)?.ok_or_else(missing)?;
        let node = self.children(parent).get(name).ok_or_else(missing)?.node;
        if self.is_directory(node) {
            return Err(format!("hard link to a directory: {target}"));
        }
        Ok(node)
    }

    fn is_directory(&self, node: Index) -> bool {
        matches!(self.nodes[node as usize].body, Body::Directory(_))
    }

    fn children(&self, directory: Index) -> &BTreeMap<Box<[u8]>, Child> {
        match &self.nodes[directory as usize].body {
            Body::Directory(children) => children,
            _ => unreachable!("callers pass directories only"),
        }
    }

    fn children_mut(&mut self, directory: Index) -> &mut BTreeMap<Box<[u8]>, Child> {
        match &mut self.nodes[directory as usize].body {
            Body::Directory(children) => children,
            _ => unreachable!("callers pass directories only"),
        }
    }

    fn set_child(&mut self, parent: Index, name: &[u8], node: Index) {
        let layer = self.layer;
        self.children_mut(parent).insert(name.into(), Child { node, layer });
    }

    fn add_node(&mut self, metadata: Metadata, body: Body) -> Result<Index, String> {
        // ext4 numbers inodes with 32 bits and reserves the first ten.
        let index = Index::try_from(self.nodes.len()).ok().filter(|&index| index < u32::MAX - 64);
        self.nodes.push(MergedNode { metadata, body });
        index.ok_or_else(|| "more files than a file system can hold".into())
    }

    /// The tree in one order: each directory's names sorted, nodes numbered as a walk from the root meets them.
    ///
    /// # Errors
    /// A file with more names, or a directory that is deeper, than ext4 takes.
    pub(crate) fn finish(mut self) -> Result<ImageTree, Misfit> {
        let mut numbers: Vec<Option<NodeId>> = vec![None; self.nodes.len()];
        let mut order = vec![ROOT];
        numbers[ROOT as usize] = Some(NodeId(0));
        // Depth first, without recursion: the depth is the image's choice.
        let mut walks = vec![self.children(ROOT).iter()];
        let mut path: Vec<&[u8]> = Vec::new();
        let mut links: HashMap<Index, u32> = HashMap::new();
        while let Some(walk) = walks.last_mut() {
            let Some((name, child)) = walk.next() else {
                walks.pop();
                path.pop();
                continue;
            };
            let node = child.node;
            if numbers[node as usize].is_none() {
                numbers[node as usize] = Some(NodeId(order.len() as u32));
                order.push(node);
                if self.is_directory(node) {
                    if walks.len() >= MAX_DEPTH {
                        return Err(child.misfit(&path, name, format!("it lies in {MAX_DEPTH} directories or more")));
                    }
                    walks.push(self.children(node).iter());
                    path.push(name);
                }
            } else {
                // The second name is the first that is met here.
                let links = links.entry(node).or_insert(1);
                *links += 1;
                if *links > MAX_LINKS {
                    return Err(child.misfit(&path, name, format!("its file has more than {MAX_LINKS} hard links")));
                }
            }
        }
        let mut tree = Tree { nodes: Vec::with_capacity(order.len()) };
        let mut contents = Vec::with_capacity(order.len());
        for index in order {
            let placeholder = MergedNode { metadata: implied_directory(), body: Body::Fifo };
            let node = std::mem::replace(&mut self.nodes[index as usize], placeholder);
            let (node, content) = finish_node(node, &numbers);
            tree.nodes.push(node);
            contents.push(content);
        }
        Ok(ImageTree { tree, contents })
    }
}

impl Child {
    fn misfit(self, directory: &[&[u8]], name: &[u8], reason: String) -> Misfit {
        let mut path = String::new();
        for name in directory.iter().copied().chain([name]) {
            path.push('/');
            path.extend(name.escape_ascii().map(char::from));
        }
        Misfit { layer: (self.layer as usize).checked_sub(1), path, reason }
    }
}

fn finish_node(node: MergedNode, numbers: &[Option<NodeId>]) -> (Node, Option<Content>) {
    let mut content = None;
    let kind = match node.body {
        Body::Directory(children) => {
            let number = |child: Child| numbers[child.node as usize].expect("the walk met every child");
            Kind::Directory {
                entries: children.into_iter().map(|(name, child)| (name.into_vec(), number(child))).collect(),
            }
        }
        Body::File(stored) => {
            let kind = Kind::File { size: stored.size, segments: stored.segments() };
            content = Some(stored);
            kind
        }
        Body::Symlink(target) => Kind::Symlink { target },
        Body::CharDevice(major, minor) => Kind::CharDevice { major, minor },
        Body::BlockDevice(major, minor) => Kind::BlockDevice { major, minor },
        Body::Fifo => Kind::Fifo,
        Body::Socket => Kind::Socket,
    };
    let Metadata { mode, uid, gid, mtime, xattrs } = node.metadata;
    (Node { kind, mode, uid, gid, mtime, xattrs }, content)
}

/// Of directories that entries lie in but no entry describes.
fn implied_directory() -> Metadata {
    Metadata { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 }, xattrs: Vec::new() }
}
