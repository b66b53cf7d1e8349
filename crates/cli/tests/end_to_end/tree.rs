//! Reads a file tree entry by entry, so that two of them can be compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// All that matters about one entry, as text that reads well in a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Names of the same file; not of a directory, whose count file systems fill as they like.
    pub links: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// SHA-256 of a file, target of a symlink, numbers of a device.
    pub content: String,
    /// The path of the first name of the same file, for files with several.
    pub same_as: Option<Vec<u8>>,
}

pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// Reads the tree below `root`. `lost+found`, which every ext4 file system has and no layer, is left out at the top.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    visit(root, &PathBuf::new(), &mut tree, &mut first_names);
    tree
}

fn visit(root: &Path, relative: &Path, tree: &mut Tree, first_names: &mut BTreeMap<u64, Vec<u8>>) {
    let path = root.join(relative);
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    let name = relative.as_os_str().as_bytes().to_vec();
    let file_type = metadata.file_type();
    let device = || format!("{}:{}", rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let (kind, content) = if file_type.is_dir() {
        ("directory", String::new())
    } else if file_type.is_symlink() {
        ("symlink", std::fs::read_link(&path).unwrap().as_os_str().as_bytes().escape_ascii().to_string())
    } else if file_type.is_file() {
        ("file", format!("{} bytes, {}", metadata.len(), digest(&path)))
    } else if file_type.is_char_device() {
        ("character device", device())
    } else if file_type.is_block_device() {
        ("block device", device())
    } else if file_type.is_fifo() {
        ("fifo", String::new())
    } else {
        ("socket", String::new())
    };
    let links = if file_type.is_dir() { 0 } else { metadata.nlink() };
    let same_as = (links > 1).then(|| first_names.entry(metadata.ino()).or_insert_with(|| name.clone()).clone());
    let entry = Entry {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        links,
        xattrs: xattrs(&path),
        content,
        same_as,
    };
    tree.insert(name, entry);
    if file_type.is_dir() {
        let mut children: Vec<_> = std::fs::read_dir(&path).unwrap().map(|child| child.unwrap().file_name()).collect();
        children.sort();
        for child in children {
            if relative.as_os_str().is_empty() && child == "lost+found" {
                continue;
            }
            visit(root, &relative.join(child), tree, first_names);
        }
    }
}

fn digest(path: &Path) -> String {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path).unwrap(), &mut hasher).unwrap();
    hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}

/// SHA-256 of a file as hexadecimal digits.
pub fn file_digest(path: &Path) -> String {
    digest(path)
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut list = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(length);
        list.push((name.to_vec(), value));
    }
    list.sort();
    list
}

/// Lines that say how `actual` differs from `expected`; empty if it does not. `ignore` may clear fields that the tool
/// which made `expected` is known to get wrong, in both entries alike.
pub fn differences(expected: &Tree, actual: &Tree, ignore: impl Fn(&[u8], &mut Entry, &mut Entry)) -> Vec<String> {
    let mut lines = Vec::new();
    let show = |name: &[u8]| name.escape_ascii().to_string();
    for name in expected.keys().filter(|name| !actual.contains_key(*name)) {
        lines.push(format!("missing: {}", show(name)));
    }
    for (name, entry) in actual {
        let Some(wanted) = expected.get(name) else {
            lines.push(format!("too many: {}", show(name)));
            continue;
        };
        let (mut wanted, mut entry) = (wanted.clone(), entry.clone());
        ignore(name, &mut wanted, &mut entry);
        if wanted != entry {
            lines.push(format!("{}:\n  expected {wanted:?}\n  actual   {entry:?}", show(name)));
        }
    }
    lines
}
