//! What goes into an image: nodes, and where the content of files goes.

/// A point in time: seconds since 1970, and nanoseconds (below 1,000,000,000) after that second.
///
/// ext4 keeps seconds from -2^31 (1901) to 2^34 - 2^31 - 1 (2446); times outside of that are kept as the nearest one inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanoseconds: u32,
}

/// The index of a node in [`Tree::nodes`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file system tree. The first node is the root directory. A node that several directory entries name is a hard link;
/// a directory is named exactly once. Every node is reachable from the root.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tree {
    /// All nodes. Inode numbers follow this order.
    pub nodes: Vec<Node>,
}

/// A file, directory or other inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification; access, change and creation are given the same.
    pub mtime: Timestamp,
    /// Extended attributes: full name (such as `security.capability`) and value as the kernel gives it, ascending by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// Name and node, ascending by name, without `.` and `..`.
        entries: Vec<(Vec<u8>, NodeId)>,
    },
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Ranges that have content, ascending and disjoint; the rest is a hole and reads as zeros.
        segments: Vec<Segment>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads, 1 to 4095 bytes.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number, 12 bits.
        major: u32,
        /// Minor number, 20 bits.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A range of a file, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The first block, counted from the file's start.
    pub first_block: u64,
    /// How many, at least one.
    pub blocks: u64,
}

/// Where the content of files goes: blocks relative to the start of the data region.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// For each node, where its segments begin; they follow each other without a gap. `None` for nodes without segments.
    pub starts: Vec<Option<u64>>,
    /// Blocks of the data region. What no file covers is free space.
    pub blocks: u64,
}

/// Choices that are no part of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of free space after the data region, rounded up to blocks. Costs no stored bytes.
    pub free_bytes: u64,
    /// The data region begins at a multiple of this many bytes, itself a multiple of 4096: the chunk size.
    pub data_alignment: u64,
    /// The file system's uuid; checksums depend on it.
    pub uuid: [u8; 16],
    /// Seeds the hashes of directory entries.
    pub hash_seed: [u8; 16],
}

impl Default for Options {
    /// No free space, no alignment beyond blocks, and an arbitrary fixed uuid and seed.
    fn default() -> Self {
        Self { free_bytes: 0, data_alignment: 4096, uuid: *b"snowmelt-ext4-01", hash_seed: *b"snowmelt-hash-01" }
    }
}
