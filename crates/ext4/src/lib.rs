//! Writes an ext4 file system image from a tree of nodes, deterministically.
//!
//! Two steps. [`Plan::new`] is pure: it decides where every inode, directory block and extent goes. The plan then gives
//! the image's bytes, in ascending order ([`Plan::write`]) or at any place and from any thread ([`Plan::read_at`]), asking
//! the caller for the content of files. The same tree and [`Placement`] give the same bytes, everywhere and always.
//!
//! The caller decides where file content lies within the *data region*; everything else (superblock, descriptors,
//! bitmaps, inode tables, directories, extended attributes, extent trees) lies before it, so that a mount and path walks
//! read one compact range. Blocks that no one owns are holes.
//!
//! Source of all structures: the kernel's Documentation/filesystems/ext4. Linux 5.10 and later mount the result read-only
//! and read-write; `e2fsck -fn` finds nothing. There is no journal: an image is discarded or published, never recovered.
//!
//! ```
//! use snowmelt_ext4::{Kind, Node, NodeId, Options, Placement, Plan, Segment, Timestamp, Tree};
//!
//! let node = |kind, mode| Node { kind, mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: vec![] };
//! let tree = Tree {
//!     nodes: vec![
//!         node(Kind::Directory { entries: vec![(b"hello".to_vec(), NodeId(1))] }, 0o755),
//!         node(Kind::File { size: 6, segments: vec![Segment { first_block: 0, blocks: 1 }] }, 0o644),
//!     ],
//! };
//! let placement = Placement { starts: vec![None, Some(0)], blocks: 1 };
//! let plan = Plan::new(&tree, &placement, &Options::default()).unwrap();
//! let mut image = vec![0; plan.size_bytes() as usize];
//! plan.read_at(0, &mut image, &|_node, offset, buf: &mut [u8]| -> Result<(), std::io::Error> {
//!     buf.copy_from_slice(&b"hello\n"[offset as usize..][..buf.len()]);
//!     Ok(())
//! })
//! .unwrap();
//! ```

mod checksum;
mod directory;
mod error;
mod extents;
mod geometry;
mod htree_hash;
mod inode;
mod le;
mod owners;
mod plan;
mod superblock;
mod tree;
mod validate;
mod xattr;

pub use error::Error;
pub use owners::{Owned, ReadDevice, owners};
pub use plan::{Content, Plan, Run, RunSource, Sink};
pub use tree::{Kind, Node, NodeId, Options, Placement, Segment, Timestamp, Tree};
pub use validate::{MAX_DEPTH, MAX_FILE_BYTES, MAX_LINKS};
pub use xattr::{check_xattrs, has_xattr_namespace};

/// Bytes of a block, the unit of allocation. Part of the format: 4 KiB is also the page size of the machines we run on.
pub const BLOCK_SIZE: u64 = 4096;

const BLOCK: usize = BLOCK_SIZE as usize;

/// Entry points for fuzzers: bytes from outside in, no panic out.
#[doc(hidden)]
pub mod fuzz;
