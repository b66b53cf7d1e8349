//! Images in temporary files, judged by e2fsck and the kernel.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};
use snowmelt_ext4::{Kind, Node, NodeId, Options, Placement, Plan, Segment, Timestamp, Tree};

/// What a file holds at an offset: a function of both, so that misplaced content shows.
pub(crate) fn content_byte(node: NodeId, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ (offset >> 12) as u8 ^ node.0 as u8
}

#[expect(clippy::unnecessary_wraps, reason = "the shape that plans ask for")]
pub(crate) fn content(node: NodeId, offset: u64, buf: &mut [u8]) -> Result<(), std::io::Error> {
    for (at, byte) in buf.iter_mut().enumerate() {
        *byte = content_byte(node, offset + at as u64);
    }
    Ok(())
}

pub(crate) fn node(kind: Kind, mode: u16) -> Node {
    Node {
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds: 1_600_000_000, nanoseconds: 123_456_789 },
        xattrs: vec![],
    }
}

pub(crate) fn file(size: u64) -> Node {
    let blocks = size.div_ceil(4096);
    let segments = if blocks == 0 { vec![] } else { vec![Segment { first_block: 0, blocks }] };
    node(Kind::File { size, segments }, 0o644)
}

pub(crate) fn directory(entries: impl IntoIterator<Item = (impl Into<Vec<u8>>, u32)>) -> Node {
    let mut entries: Vec<_> = entries.into_iter().map(|(name, id)| (name.into(), NodeId(id))).collect();
    entries.sort();
    node(Kind::Directory { entries }, 0o755)
}

/// One file after the other.
pub(crate) fn place(tree: &Tree) -> Placement {
    let mut placement = Placement::default();
    for node in &tree.nodes {
        let blocks: u64 = match &node.kind {
            Kind::File { segments, .. } => segments.iter().map(|segment| segment.blocks).sum(),
            _ => 0,
        };
        placement.starts.push((blocks > 0).then_some(placement.blocks));
        placement.blocks += blocks;
    }
    placement
}

pub(crate) fn options() -> Options {
    Options { free_bytes: 64 << 20, data_alignment: 512 << 10, ..Options::default() }
}

pub(crate) struct Image {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) plan: Plan,
}

impl Image {
    pub(crate) fn write(tree: &Tree, options: &Options) -> Self {
        let plan = Plan::new(tree, &place(tree), options).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.ext4");
        let out = File::create_new(&path).unwrap();
        out.set_len(plan.size_bytes()).unwrap();
        let mut last = 0;
        plan.write(&content, &mut |offset, bytes| {
            assert!(offset >= last, "ascending");
            last = offset + bytes.len() as u64;
            out.write_all_at(bytes, offset)
        })
        .unwrap();
        Self { _folder: folder, path, plan }
    }

    /// e2fsck finds nothing: no message but its summary, exit code 0.
    pub(crate) fn check(&self) {
        let out = Command::new("e2fsck").arg("-fn").arg(&self.path).env("LC_ALL", "C").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("Pass ")).collect();
        assert!(out.status.success() && lines.len() == 1, "{text}{}", String::from_utf8_lossy(&out.stderr));
    }

    pub(crate) fn mount(&self, options: &str) -> Mount {
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("mount")
            .args(["-t", "ext4", "-o", &format!("loop,{options}")])
            .arg(&self.path)
            .arg(folder.path()));
        Mount { folder }
    }

    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        std::io::copy(&mut File::open(&self.path).unwrap(), &mut hash).unwrap();
        hex(&hash.finalize())
    }
}

pub(crate) struct Mount {
    folder: tempfile::TempDir,
}

impl Mount {
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.folder.path()));
    }
}

pub(crate) fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
