//! The plan: where everything goes, and the bytes of any part of the image.

use std::ops::Range;

use crate::directory::DirectoryLayout;
use crate::extents::{self, Mapping};
use crate::geometry::{
    BLOCKS_PER_GROUP, DESCRIPTOR_SIZE, Geometry, INODE_SIZE, INODES_PER_BLOCK, Needs, inode_number, node_of,
};
use crate::inode::{self, InodeParts};
use crate::superblock::{self, FreeCounts, GroupUse};
use crate::validate::{self, Walked};
use crate::xattr::Attributes;
use crate::{BLOCK, BLOCK_SIZE, Error, Kind, NodeId, Options, Placement, Tree, checksum};

/// Longest symlink that fits into the inode, where a zero byte ends it.
const SHORT_SYMLINK: usize = 59;

/// Supplies the bytes of a file: `content(node, offset, buf)` fills `buf` with those from `offset` on.
pub type Content<'a, E> = dyn Fn(NodeId, u64, &mut [u8]) -> Result<(), E> + 'a;

/// Takes a part of the image: `sink(offset, bytes)`.
pub type Sink<'a, E> = dyn FnMut(u64, &[u8]) -> Result<(), E> + 'a;

/// A range of the image that is not a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where it begins, in bytes from the image's start.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it holds.
    pub source: RunSource,
}

/// What a [`Run`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunSource {
    /// Structures of the file system.
    Metadata,
    /// Content of a file.
    File {
        /// The file.
        node: NodeId,
        /// Where in the file the run begins, in bytes.
        offset: u64,
    },
}

impl Run {
    /// The part of the run inside `range`; `None` where they do not meet.
    fn clipped(self, range: &Range<u64>) -> Option<Self> {
        let start = self.offset.max(range.start);
        let end = (self.offset + self.length).min(range.end);
        let source = match self.source {
            RunSource::Metadata => RunSource::Metadata,
            RunSource::File { node, offset } => {
                RunSource::File { node, offset: offset + start.saturating_sub(self.offset) }
            }
        };
        (start < end).then(|| Self { offset: start, length: end - start, source })
    }
}

/// A contiguous part of a file in the data region; blocks from the image's start.
#[derive(Clone, Copy, Debug)]
struct FilePart {
    start: u64,
    blocks: u64,
    in_file: u64,
    node: u32,
}

/// What owns a block between the inode tables and the data region.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Directory,
    Symlink,
    Attributes,
    ExtentTree,
}

#[derive(Clone, Copy, Debug)]
struct TreeBlocks {
    start: u64,
    node: u32,
    owner: Owner,
}

/// Where everything goes. Immutable; may be read from many threads.
#[derive(Debug)]
pub struct Plan {
    tree: Tree,
    options: Options,
    walked: Walked,
    geometry: Geometry,
    seed: u32,
    directories: Vec<Option<DirectoryLayout>>,
    /// Ascending by start.
    tree_blocks: Vec<TreeBlocks>,
    /// The first of each node's blocks in `tree_blocks`, by node; nodes without any repeat their successor's.
    first_tree_block: Vec<u32>,
    /// Ascending by start.
    parts: Vec<FilePart>,
    /// The first of each node's parts' mappings is found by its start; `None` where it has none.
    starts: Vec<Option<u64>>,
    groups: Vec<GroupUse>,
    /// Ascending ranges of metadata blocks that are not holes.
    metadata: Vec<Range<u64>>,
}

impl Plan {
    /// Plans the image of a tree.
    ///
    /// # Errors
    /// When the tree or the placement is not well formed, or holds what ext4 cannot.
    pub fn new(tree: &Tree, placement: &Placement, options: &Options) -> Result<Self, Error> {
        let walked = validate::walk(tree, placement)?;
        let mut sizes = Sizes::new(tree, placement, options, &walked)?;
        let geometry = Geometry::new(&Needs {
            nodes: tree.nodes.len() as u64,
            tree_blocks: sizes.total,
            data_blocks: placement.blocks,
            free_bytes: options.free_bytes,
            data_alignment: options.data_alignment,
        })?;
        for blocks in &mut sizes.blocks {
            blocks.start += geometry.tree_blocks_start;
        }
        let parts = file_parts(tree, placement, &geometry)?;
        let mut plan = Self {
            tree: tree.clone(),
            options: options.clone(),
            seed: checksum::file_system_seed(&options.uuid),
            walked,
            directories: sizes.directories,
            tree_blocks: sizes.blocks,
            first_tree_block: sizes.first,
            parts,
            starts: placement.starts.iter().map(|start| start.map(|start| start + geometry.data_start)).collect(),
            groups: Vec::new(),
            metadata: Vec::new(),
            geometry,
        };
        plan.groups = (0..plan.geometry.groups).map(|group| plan.group_use(group)).collect();
        plan.metadata = plan.metadata_ranges();
        Ok(plan)
    }

    /// Bytes of the image: a multiple of 4096.
    pub fn size_bytes(&self) -> u64 {
        self.geometry.total_blocks * BLOCK_SIZE
    }

    /// Where the data region begins, in bytes.
    pub fn data_start_bytes(&self) -> u64 {
        self.geometry.data_start * BLOCK_SIZE
    }

    /// The parts of a byte range that are not holes, ascending.
    pub fn runs(&self, range: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let first_metadata = self.metadata.partition_point(|blocks| blocks.end * BLOCK_SIZE <= range.start);
        let metadata = self.metadata[first_metadata..].iter().map(|blocks| Run {
            offset: blocks.start * BLOCK_SIZE,
            length: (blocks.end - blocks.start) * BLOCK_SIZE,
            source: RunSource::Metadata,
        });
        let first_part = self.parts.partition_point(|part| (part.start + part.blocks) * BLOCK_SIZE <= range.start);
        let files = self.parts[first_part..].iter().map(|part| Run {
            offset: part.start * BLOCK_SIZE,
            length: part.blocks * BLOCK_SIZE,
            source: RunSource::File { node: NodeId(part.node), offset: part.in_file * BLOCK_SIZE },
        });
        // All metadata lies before all data.
        metadata
            .chain(files)
            .take_while({
                let end = range.end;
                move |run| run.offset < end
            })
            .filter_map(move |run| run.clipped(&range))
    }

    /// Fills `buf` with the image's bytes from `offset` on; beyond the image's end they are zeros.
    ///
    /// `content(node, offset, buf)` is asked for the bytes of a file from `offset` on, never beyond the file's size.
    ///
    /// # Errors
    /// Those of `content`; `buf` then holds nothing of use.
    pub fn read_at<E>(&self, offset: u64, buf: &mut [u8], content: &Content<'_, E>) -> Result<(), E> {
        let mut filled = 0;
        for run in self.runs(offset..offset.saturating_add(buf.len() as u64)) {
            let at = (run.offset - offset) as usize;
            buf[filled..at].fill(0);
            filled = at + run.length as usize;
            self.read_run(&run, &mut buf[at..filled], content)?;
        }
        buf[filled..].fill(0);
        Ok(())
    }

    fn read_run<E>(&self, run: &Run, buf: &mut [u8], content: &Content<'_, E>) -> Result<(), E> {
        match run.source {
            RunSource::Metadata => {
                self.read_metadata(run.offset, buf);
                Ok(())
            }
            RunSource::File { node, offset } => {
                let Kind::File { size, .. } = &self.tree.nodes[node.index()].kind else {
                    unreachable!("only files have parts")
                };
                let (inside, beyond) = buf.split_at_mut(size.saturating_sub(offset).min(buf.len() as u64) as usize);
                beyond.fill(0);
                if inside.is_empty() { Ok(()) } else { content(node, offset, inside) }
            }
        }
    }

    /// Streams the image in ascending offset, in pieces of at most 1 MiB, without its holes: `sink(offset, bytes)`.
    ///
    /// # Errors
    /// Those of `content` and `sink`; what went into the sink is then incomplete.
    pub fn write<E>(&self, content: &Content<'_, E>, sink: &mut Sink<'_, E>) -> Result<(), E> {
        const PIECE: u64 = 1 << 20;
        let mut buf = vec![0; PIECE as usize];
        for run in self.runs(0..self.size_bytes()) {
            for start in (run.offset..run.offset + run.length).step_by(PIECE as usize) {
                let piece = run.clipped(&(start..start + PIECE)).expect("the piece begins inside the run");
                let bytes = &mut buf[..piece.length as usize];
                self.read_run(&piece, bytes, content)?;
                sink(piece.offset, bytes)?;
            }
        }
        Ok(())
    }

    fn read_metadata(&self, offset: u64, buf: &mut [u8]) {
        let mut position = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let within = (position % BLOCK_SIZE) as usize;
            let length = rest.len().min(BLOCK - within);
            let block = self.metadata_block(position / BLOCK_SIZE);
            let (head, tail) = rest.split_at_mut(length);
            head.copy_from_slice(&block[within..within + length]);
            position += length as u64;
            rest = tail;
        }
    }

    fn metadata_block(&self, block: u64) -> [u8; BLOCK] {
        let geometry = &self.geometry;
        let mut bytes = [0; BLOCK];
        if block == 0 {
            bytes[1024..2048].copy_from_slice(&superblock::encode(geometry, self.free_counts(), &self.options));
        } else if block < geometry.block_bitmaps {
            let first = (block - 1) * (BLOCK / DESCRIPTOR_SIZE) as u64;
            for (group, slot) in (first..geometry.groups).zip(bytes.chunks_exact_mut(DESCRIPTOR_SIZE)) {
                let usage = &self.groups[group as usize];
                slot.copy_from_slice(&superblock::encode_descriptor(geometry, group, usage, self.seed));
            }
        } else if block < geometry.inode_bitmaps {
            bytes = self.block_bitmap(block - geometry.block_bitmaps);
        } else if block < geometry.inode_tables {
            bytes = self.inode_bitmap(block - geometry.inode_bitmaps);
        } else if block < geometry.tree_blocks_start {
            let first = (block - geometry.inode_tables) * INODES_PER_BLOCK + 1;
            for (number, slot) in (first..=geometry.used_inodes).zip(bytes.chunks_exact_mut(INODE_SIZE)) {
                if let Some(node) = node_of(number as u32) {
                    slot.copy_from_slice(&self.inode(node));
                }
            }
        } else {
            bytes = self.tree_block(block);
        }
        bytes
    }

    fn free_counts(&self) -> FreeCounts {
        self.groups.iter().fold(FreeCounts::default(), |sum, group| FreeCounts {
            blocks: sum.blocks + group.free_blocks,
            inodes: sum.inodes + group.free_inodes,
        })
    }

    fn group_use(&self, group: u64) -> GroupUse {
        let geometry = &self.geometry;
        let bitmap = self.block_bitmap(group);
        let padding = BLOCKS_PER_GROUP - geometry.blocks_in(group);
        let set: u64 = bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let used_inodes = geometry.used_inodes_in(group);
        let first_inode = group * geometry.inodes_per_group + 1;
        let directories = (first_inode..first_inode + used_inodes)
            .filter_map(|number| node_of(number as u32))
            .filter(|node| self.directories[*node].is_some())
            .count();
        GroupUse {
            free_blocks: BLOCKS_PER_GROUP - set,
            free_inodes: geometry.inodes_per_group - used_inodes,
            directories: directories as u64,
            // The last group's bitmap also marks the blocks that it does not have.
            block_bitmap_checksum: (set > 0 || padding > 0).then(|| checksum::extend(self.seed, &bitmap)),
            inode_bitmap_checksum: (used_inodes > 0).then(|| {
                checksum::extend(self.seed, &self.inode_bitmap(group)[..(geometry.inodes_per_group / 8) as usize])
            }),
        }
    }

    fn block_bitmap(&self, group: u64) -> [u8; BLOCK] {
        let mut bitmap = [0; BLOCK];
        let start = group * BLOCKS_PER_GROUP;
        let end = start + self.geometry.blocks_in(group);
        let mut mark = |blocks: Range<u64>| {
            let clipped = blocks.start.max(start)..blocks.end.min(start + BLOCKS_PER_GROUP);
            if clipped.start < clipped.end {
                set_bits(&mut bitmap, clipped.start - start..clipped.end - start);
            }
        };
        mark(0..self.geometry.tree_blocks_start + self.geometry.tree_blocks);
        let first = self.parts.partition_point(|part| part.start + part.blocks <= start);
        for part in self.parts[first..].iter().take_while(|part| part.start < end) {
            mark(part.start..part.start + part.blocks);
        }
        mark(end..start + BLOCKS_PER_GROUP);
        bitmap
    }

    fn inode_bitmap(&self, group: u64) -> [u8; BLOCK] {
        let mut bitmap = [0; BLOCK];
        set_bits(&mut bitmap, 0..self.geometry.used_inodes_in(group));
        set_bits(&mut bitmap, self.geometry.inodes_per_group..BLOCKS_PER_GROUP);
        bitmap
    }

    /// Bitmaps of groups that are in use, the used part of the inode tables, and the tree blocks.
    fn metadata_ranges(&self) -> Vec<Range<u64>> {
        let geometry = &self.geometry;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut add = |range: Range<u64>| match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => ranges.push(range),
        };
        add(0..geometry.block_bitmaps);
        for (first, in_use) in [
            (geometry.block_bitmaps, (|usage| usage.block_bitmap_checksum.is_some()) as fn(&GroupUse) -> bool),
            (geometry.inode_bitmaps, |usage| usage.inode_bitmap_checksum.is_some()),
        ] {
            for (group, _) in self.groups.iter().enumerate().filter(|(_, usage)| in_use(usage)) {
                add(first + group as u64..first + group as u64 + 1);
            }
        }
        add(geometry.inode_tables..geometry.inode_tables + geometry.used_inodes.div_ceil(INODES_PER_BLOCK));
        add(geometry.tree_blocks_start..geometry.tree_blocks_start + geometry.tree_blocks);
        ranges
    }

    /// The image blocks of a node's content.
    fn mappings(&self, node: usize) -> Vec<Mapping> {
        match &self.tree.nodes[node].kind {
            Kind::File { segments, .. } => {
                let mut in_image = self.starts[node].unwrap_or(0);
                segments
                    .iter()
                    .map(|segment| {
                        let mapping = Mapping { in_file: segment.first_block, in_image, blocks: segment.blocks };
                        in_image += segment.blocks;
                        mapping
                    })
                    .collect()
            }
            _ => match self.content_block(node) {
                Some(in_image) => {
                    vec![Mapping {
                        in_file: 0,
                        in_image,
                        blocks: self.directories[node].as_ref().map_or(1, DirectoryLayout::blocks),
                    }]
                }
                None => Vec::new(),
            },
        }
    }

    fn owned(&self, node: usize) -> &[TreeBlocks] {
        let end = self.first_tree_block.get(node + 1).map_or(self.tree_blocks.len(), |first| *first as usize);
        &self.tree_blocks[self.first_tree_block[node] as usize..end]
    }

    /// The first block of a directory or a long symlink.
    fn content_block(&self, node: usize) -> Option<u64> {
        self.owned(node)
            .iter()
            .find(|blocks| matches!(blocks.owner, Owner::Directory | Owner::Symlink))
            .map(|blocks| blocks.start)
    }

    fn inode(&self, node: usize) -> [u8; INODE_SIZE] {
        let source = &self.tree.nodes[node];
        let attributes = Attributes::new(&source.xattrs).expect("the plan was made with these attributes");
        let number = inode_number(node);
        let mappings = self.mappings(node);
        let place = |wanted: fn(&Owner) -> bool| {
            self.owned(node).iter().find(|blocks| wanted(&blocks.owner)).map_or(0, |blocks| blocks.start)
        };
        let attribute_block = place(|owner| matches!(owner, Owner::Attributes));
        let content: u64 = mappings.iter().map(|mapping| mapping.blocks).sum();
        let mut parts = InodeParts {
            number,
            links: self.walked.links[node],
            size: 0,
            blocks: content + extents::tree_blocks(&mappings) + u64::from(attribute_block != 0),
            block_area: [0; 60],
            has_extents: false,
            has_index: self.directories[node].as_ref().is_some_and(DirectoryLayout::is_indexed),
            attributes: &attributes,
            attribute_block,
        };
        match &source.kind {
            Kind::Directory { .. } => parts.size = content * BLOCK_SIZE,
            Kind::File { size, .. } => parts.size = *size,
            Kind::Symlink { target } => parts.size = target.len() as u64,
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                parts.block_area = inode::device_area(*major, *minor);
            }
            Kind::Fifo | Kind::Socket => {}
        }
        match &source.kind {
            Kind::Symlink { target } if target.len() <= SHORT_SYMLINK => {
                parts.block_area[..target.len()].copy_from_slice(target);
            }
            Kind::Directory { .. } | Kind::File { .. } | Kind::Symlink { .. } => {
                let first = place(|owner| matches!(owner, Owner::ExtentTree));
                parts.block_area = extents::encode(&mappings, first, checksum::inode_seed(self.seed, number)).0;
                parts.has_extents = true;
            }
            _ => {}
        }
        inode::encode(source, &parts, self.seed)
    }

    fn tree_block(&self, block: u64) -> [u8; BLOCK] {
        let index = self.tree_blocks.partition_point(|blocks| blocks.start <= block) - 1;
        let TreeBlocks { start, node, owner } = self.tree_blocks[index];
        let node = node as usize;
        let inode_seed = checksum::inode_seed(self.seed, inode_number(node));
        match owner {
            Owner::Directory => self.directories[node].as_ref().expect("the owner is a directory").block(
                &self.tree,
                node,
                self.walked.parents[node] as usize,
                block - start,
                inode_seed,
            ),
            Owner::Symlink => {
                let Kind::Symlink { target } = &self.tree.nodes[node].kind else {
                    unreachable!("the owner is a symlink")
                };
                let mut bytes = [0; BLOCK];
                bytes[..target.len()].copy_from_slice(target);
                bytes
            }
            Owner::Attributes => Attributes::new(&self.tree.nodes[node].xattrs)
                .expect("the plan was made with these attributes")
                .block(block, self.seed),
            Owner::ExtentTree => extents::encode(&self.mappings(node), start, inode_seed).1[(block - start) as usize],
        }
    }
}

fn set_bits(bitmap: &mut [u8; BLOCK], bits: Range<u64>) {
    let mut bit = bits.start;
    while bit < bits.end {
        if bit.is_multiple_of(8) && bits.end - bit >= 8 {
            bitmap[(bit / 8) as usize] = 0xff;
            bit += 8;
        } else {
            bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

/// How many blocks each node needs outside of the data region, numbered from 0.
struct Sizes {
    directories: Vec<Option<DirectoryLayout>>,
    blocks: Vec<TreeBlocks>,
    first: Vec<u32>,
    total: u64,
}

impl Sizes {
    fn new(tree: &Tree, placement: &Placement, options: &Options, walked: &Walked) -> Result<Self, Error> {
        let mut sizes =
            Self { directories: Vec::with_capacity(tree.nodes.len()), blocks: Vec::new(), first: Vec::new(), total: 0 };
        for (index, node) in tree.nodes.iter().enumerate() {
            let error = |what| Error::BadNode { path: path_of(tree, walked, index), what };
            sizes.first.push(sizes.blocks.len() as u32);
            let mut layout = None;
            match &node.kind {
                Kind::Directory { entries } => {
                    let directory = DirectoryLayout::new(entries, &options.hash_seed).map_err(error)?;
                    sizes.add(index, Owner::Directory, directory.blocks());
                    layout = Some(directory);
                }
                Kind::Symlink { target } if target.len() > SHORT_SYMLINK => sizes.add(index, Owner::Symlink, 1),
                Kind::File { segments, .. } => {
                    let mut in_image = placement.starts[index].unwrap_or(0);
                    let mappings: Vec<Mapping> = segments
                        .iter()
                        .map(|segment| {
                            let mapping = Mapping { in_file: segment.first_block, in_image, blocks: segment.blocks };
                            in_image += segment.blocks;
                            mapping
                        })
                        .collect();
                    sizes.add(index, Owner::ExtentTree, extents::tree_blocks(&mappings));
                }
                _ => {}
            }
            if Attributes::new(&node.xattrs).map_err(error)?.needs_block() {
                sizes.add(index, Owner::Attributes, 1);
            }
            sizes.directories.push(layout);
        }
        Ok(sizes)
    }

    fn add(&mut self, node: usize, owner: Owner, blocks: u64) {
        if blocks > 0 {
            self.blocks.push(TreeBlocks { start: self.total, node: node as u32, owner });
            self.total += blocks;
        }
    }
}

fn path_of(tree: &Tree, walked: &Walked, node: usize) -> String {
    let mut names = Vec::new();
    let mut at = node;
    while at != 0 {
        let parent = walked.parents[at] as usize;
        if let Kind::Directory { entries } = &tree.nodes[parent].kind
            && let Some((name, _)) = entries.iter().find(|(_, id)| id.index() == at)
        {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        at = parent;
    }
    names.iter().rev().fold(String::new(), |path, name| path + "/" + name)
}

fn file_parts(tree: &Tree, placement: &Placement, geometry: &Geometry) -> Result<Vec<FilePart>, Error> {
    let mut parts = Vec::new();
    for (index, node) in tree.nodes.iter().enumerate() {
        if let (Kind::File { segments, .. }, Some(start)) = (&node.kind, placement.starts[index]) {
            let mut start = start + geometry.data_start;
            for segment in segments {
                parts.push(FilePart {
                    start,
                    blocks: segment.blocks,
                    in_file: segment.first_block,
                    node: index as u32,
                });
                start += segment.blocks;
            }
        }
    }
    parts.sort_unstable_by_key(|part| part.start);
    for pair in parts.windows(2) {
        if pair[0].start + pair[0].blocks > pair[1].start {
            return Err(Error::BadImage(format!(
                "nodes {} and {} are placed over each other",
                pair[0].node, pair[1].node
            )));
        }
    }
    Ok(parts)
}
