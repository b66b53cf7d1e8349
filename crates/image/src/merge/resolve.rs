//! Finds directories by path, following symlinks inside the image's root as `securejoin` does: absolute targets start
//! at the root, `..` never leaves it, and what does not exist is taken as it is written.

use std::collections::BTreeMap;

use super::{Body, Index, MergedTree, ROOT, implied_directory};
use crate::entry_path::{EntryPath, MAX_PATH};

/// Symlinks followed in one path before it counts as a loop, as in `securejoin`.
const MAX_SYMLINKS: usize = 255;

/// A name on the way to a directory, and its node where there is one.
struct Step {
    name: Box<[u8]>,
    node: Option<Index>,
}

impl MergedTree {
    /// The directory at `path`; `None` when it, or a directory on the way, is missing or something else.
    pub(super) fn find_directory(&self, path: &EntryPath) -> Result<Option<Index>, String> {
        let steps = self.resolve(path)?;
        let node = steps.last().map_or(Some(ROOT), |step| step.node);
        Ok(node.filter(|&node| self.is_directory(node)))
    }

    /// The directory at `path`, made with its parents where missing. Marks all of them as written by this layer.
    pub(super) fn make_directories(&mut self, path: &EntryPath) -> Result<Index, String> {
        let mut directory = ROOT;
        for step in self.resolve(path)? {
            let node = match step.node {
                Some(node) if self.is_directory(node) => node,
                Some(_) => {
                    return Err(format!("`{}` in its path is not a directory", step.name.escape_ascii()));
                }
                None => self.add_node(implied_directory(), Body::Directory(BTreeMap::new()))?,
            };
            self.set_child(directory, &step.name, node);
            directory = node;
        }
        Ok(directory)
    }

    fn resolve(&self, path: &EntryPath) -> Result<Vec<Step>, String> {
        // Names still to follow, the next one last.
        let mut pending: Vec<&[u8]> = path.components().rev().collect();
        let mut steps: Vec<Step> = Vec::new();
        let mut symlinks = 0;
        while let Some(name) = pending.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let directory = steps.last().map_or(Some(ROOT), |step| step.node).filter(|&node| self.is_directory(node));
            let node = directory.and_then(|directory| self.children(directory).get(name)).map(|child| child.node);
            if let Some(node) = node
                && let Body::Symlink(target) = &self.nodes[node as usize].body
            {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err("its path runs through a loop of symlinks".into());
                }
                if target.starts_with(b"/") {
                    steps.clear();
                }
                pending.extend(target.split(|&byte| byte == b'/').rev());
                if pending.len() > MAX_PATH {
                    return Err("its path grows without end through symlinks".into());
                }
                continue;
            }
            steps.push(Step { name: name.into(), node });
        }
        // Symlinks can lead ever deeper; nothing could open such a path.
        if steps.len() > MAX_PATH / 2 {
            return Err("its path is too deep".into());
        }
        Ok(steps)
    }
}
