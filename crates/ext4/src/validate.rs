//! Checks a tree before anything is planned, so that planning can rely on it.

use crate::{BLOCK_SIZE, Error, Kind, Node, Placement, Tree};

/// Directories in a chain, the root included: names of one byte in a path of 4096.
pub const MAX_DEPTH: usize = 2048;
/// Largest file in bytes: logical block numbers have 32 bits.
pub const MAX_FILE_BYTES: u64 = MAX_FILE_BLOCKS * BLOCK_SIZE;
/// Names that one file may have (the kernel's `EXT4_LINK_MAX`).
pub const MAX_LINKS: u32 = 65000;
const MAX_FILE_BLOCKS: u64 = u32::MAX as u64;

/// What walking the tree tells about each node.
#[derive(Debug)]
pub(crate) struct Walked {
    /// The directory that a node was first found in; the root is its own.
    pub(crate) parents: Vec<u32>,
    /// Link counts.
    pub(crate) links: Vec<u32>,
}

/// Walks the tree from its root and checks every node.
pub(crate) fn walk(tree: &Tree, placement: &Placement) -> Result<Walked, Error> {
    let count = tree.nodes.len();
    if count == 0 || !matches!(tree.nodes[0].kind, Kind::Directory { .. }) {
        return Err(Error::BadImage("the tree has no root directory".into()));
    }
    if count > (u32::MAX / 2) as usize {
        return Err(Error::BadImage(format!("{count} nodes are more than ext4 has inodes")));
    }
    if placement.starts.len() != count {
        return Err(Error::BadImage(format!(
            "the placement is for {} nodes, the tree has {count}",
            placement.starts.len()
        )));
    }
    let mut walk = Walk { tree, placement, parents: vec![u32::MAX; count], links: vec![0; count], path: Vec::new() };
    walk.parents[0] = 0;
    walk.run()?;
    if let Some(lost) = walk.links.iter().position(|links| *links == 0) {
        return Err(Error::BadImage(format!("node {lost} is not reachable from the root")));
    }
    Ok(Walked { parents: walk.parents, links: walk.links })
}

struct Walk<'a> {
    tree: &'a Tree,
    placement: &'a Placement,
    parents: Vec<u32>,
    links: Vec<u32>,
    /// The names from the root to where the walk is.
    path: Vec<&'a [u8]>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Error> {
        self.links[0] = 2;
        self.check_node(0)?;
        // Depth first with a stack of its own: a hostile tree must not overflow the thread's.
        let mut stack = vec![(0_usize, 0_usize)];
        while let Some((directory, position)) = stack.last_mut() {
            let (directory, at) = (*directory, *position);
            *position += 1;
            let Kind::Directory { entries } = &self.tree.nodes[directory].kind else {
                unreachable!("only directories are pushed")
            };
            let Some((name, id)) = entries.get(at) else {
                stack.pop();
                self.path.pop();
                continue;
            };
            self.path.push(name);
            let previous = at.checked_sub(1).map(|previous| entries[previous].0.as_slice());
            self.check_name(name, previous)?;
            let node = id.index();
            let Some(target) = self.tree.nodes.get(node) else {
                return Err(self.error(format!("it names node {node}, which does not exist")));
            };
            if self.parents[node] == u32::MAX {
                self.parents[node] = directory as u32;
                self.check_node(node)?;
            }
            if matches!(target.kind, Kind::Directory { .. }) {
                if self.links[node] != 0 {
                    return Err(self.error("a directory has more than one name"));
                }
                if stack.len() >= MAX_DEPTH {
                    return Err(self.error(format!("it is nested deeper than {MAX_DEPTH} directories")));
                }
                self.links[node] = 2;
                self.links[directory] += 1;
                stack.push((node, 0));
            } else {
                self.links[node] += 1;
                if self.links[node] > MAX_LINKS {
                    return Err(self.error(format!("it has more than {MAX_LINKS} hard links")));
                }
                self.path.pop();
            }
        }
        Ok(())
    }

    fn error(&self, what: impl Into<String>) -> Error {
        let path = self.path.iter().fold(String::new(), |path, name| path + "/" + &String::from_utf8_lossy(name));
        Error::BadNode { path: if path.is_empty() { "/".into() } else { path }, what: what.into() }
    }

    fn check_name(&self, name: &[u8], previous: Option<&[u8]>) -> Result<(), Error> {
        if name.is_empty() || name.len() > 255 {
            return Err(self.error(format!("a name of {} bytes: ext4 keeps 1 to 255", name.len())));
        }
        if name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
            return Err(self.error("a name may not be '.' or '..' nor contain '/' or a zero byte"));
        }
        if previous.is_some_and(|previous| previous >= name) {
            return Err(self.error("entries are not sorted by name, or a name stands twice"));
        }
        Ok(())
    }

    fn check_node(&self, node: usize) -> Result<(), Error> {
        let Node { kind, mode, .. } = &self.tree.nodes[node];
        if *mode > 0o7777 {
            return Err(self.error(format!("mode {mode:o} has more than permission bits")));
        }
        match kind {
            Kind::Symlink { target }
                if target.is_empty() || target.len() >= BLOCK_SIZE as usize || target.contains(&0) =>
            {
                Err(self.error(format!("a link target of {} bytes: 1 to 4095, none of them zero", target.len())))
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }
                if *major >= 1 << 12 || *minor >= 1 << 20 =>
            {
                Err(self.error(format!("device number {major}:{minor} is out of range (12 and 20 bits)")))
            }
            Kind::File { .. } => self.check_file(node),
            _ if self.placement.starts[node].is_some() => Err(self.error("only files are placed in the data region")),
            _ => Ok(()),
        }
    }

    fn check_file(&self, node: usize) -> Result<(), Error> {
        let Kind::File { size, segments } = &self.tree.nodes[node].kind else { return Ok(()) };
        if size.div_ceil(BLOCK_SIZE) > MAX_FILE_BLOCKS {
            return Err(self.error(format!("{size} bytes: a file of ext4 has less than 16 TiB")));
        }
        let mut next = 0;
        let mut total = 0;
        for segment in segments {
            let end = segment.first_block.checked_add(segment.blocks).filter(|_| segment.blocks > 0);
            let Some(end) = end.filter(|end| segment.first_block >= next && *end <= size.div_ceil(BLOCK_SIZE)) else {
                return Err(self.error("its segments are empty, overlap, or lie behind its end"));
            };
            next = end;
            total += segment.blocks;
        }
        match self.placement.starts[node] {
            None if total == 0 => Ok(()),
            Some(start) if total > 0 && start.checked_add(total).is_some_and(|end| end <= self.placement.blocks) => {
                Ok(())
            }
            _ => Err(self.error("its place is missing, not needed, or outside of the data region")),
        }
    }
}
