//! The `dir:PATH` source: a directory of this machine, taken as it is.
//!
//! Nothing is special here: names that would be whiteouts in a layer are plain names, and symlinks are not followed.
//! Times, owners, modes, extended attributes, devices, hard links within the directory and holes are kept. It is
//! one file system: a directory on which another one is mounted stays, empty. Directories are read in name order, so the
//! image does not depend on how the host's file system keeps them.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata as HostMetadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs as sys;
use snowmelt_ext4::{Timestamp, check_xattrs, has_xattr_namespace};

use crate::dropped::Dropped;
use crate::error::Error;
use crate::flatten::Progress;
use crate::merge::{Body, ImageTree, Index, MergedTree, ROOT};
use crate::spool::{Content, Spool, SpoolWriter};
use crate::tar_entries::{MAX_FILE_BYTES, MAX_XATTR_BYTES, Metadata, Xattrs};

const READ_BYTES: usize = 256 << 10;
/// Longest list of extended attribute names in bytes (the kernel's `XATTR_LIST_MAX`).
const MAX_XATTR_LIST_BYTES: usize = 64 << 10;

type ProgressSink<'a> = Option<&'a (dyn Fn(Progress) + Sync)>;

/// The walk's state.
struct Walk<'a> {
    tree: MergedTree,
    spool: SpoolWriter,
    /// Nodes of files with several names, by device and inode.
    links: BTreeMap<(u64, u64), Index>,
    /// The device of the one file system that is read.
    device: u64,
    dropped: Dropped,
    spool_directory: &'a Path,
    progress: ProgressSink<'a>,
    buffer: Vec<u8>,
}

/// Reads the tree at `path`, contents into a spool in `spool_directory`.
pub(crate) fn read(
    path: &Path,
    spool_directory: &Path,
    progress: ProgressSink<'_>,
) -> Result<(ImageTree, Spool), Error> {
    let write_error = |error| Error::io("store contents of files in", spool_directory, error);
    // The path itself may be a symlink; what is in it may not.
    let root = fs::canonicalize(path).map_err(|error| missing(path, error))?;
    let host = fs::metadata(&root).map_err(|error| missing(path, error))?;
    if !host.is_dir() {
        return Err(Error::invalid(format!("dir:{}", path.display()), "it is not a directory"));
    }
    let mut walk = Walk {
        tree: MergedTree::new(),
        spool: SpoolWriter::create(spool_directory, 0).map_err(write_error)?,
        links: BTreeMap::new(),
        device: host.dev(),
        dropped: Dropped::default(),
        spool_directory,
        progress,
        buffer: vec![0; READ_BYTES],
    };
    let metadata = walk.metadata(&root, &host)?;
    walk.tree.set_root_metadata(metadata);
    // Directories still to read; an explicit stack, since the depth is the host's choice.
    let mut pending = vec![(root.clone(), ROOT)];
    while let Some((directory, node)) = pending.pop() {
        walk.directory(&directory, node, &mut pending)?;
    }
    walk.dropped.warn();
    let image = walk
        .tree
        .finish()
        .map_err(|misfit| Error::invalid(format!("{}{}", root.display(), misfit.path), misfit.reason))?;
    Ok((image, walk.spool.finish().map_err(write_error)?))
}

impl Walk<'_> {
    fn directory(&mut self, path: &Path, node: Index, pending: &mut Vec<(PathBuf, Index)>) -> Result<(), Error> {
        let failed = |error| Error::io("list", path, error);
        let names = fs::read_dir(path).map_err(failed)?.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        names.sort();
        for name in names {
            let path = path.join(&name);
            let host = fs::symlink_metadata(&path).map_err(|error| Error::io("look at", &path, error))?;
            let name = name.into_vec();
            let key = (host.dev(), host.ino());
            let is_linked = host.nlink() > 1 && !host.is_dir();
            if let Some(&first) = self.links.get(&key).filter(|_| is_linked) {
                self.tree.link(node, &name, first);
                continue;
            }
            let metadata = self.metadata(&path, &host)?;
            let body = self.body(&path, &host)?;
            let child = self
                .tree
                .insert(node, &name, metadata, body)
                .map_err(|reason| Error::invalid(path.display().to_string(), reason))?;
            if host.is_dir() {
                // Files are not compared: overlayfs gives them devices of their own.
                if host.dev() == self.device {
                    pending.push((path, child));
                }
            } else if is_linked {
                self.links.insert(key, child);
            }
        }
        Ok(())
    }

    fn body(&mut self, path: &Path, host: &HostMetadata) -> Result<Body, Error> {
        let kind = host.file_type();
        let (major, minor) = (sys::major(host.rdev()), sys::minor(host.rdev()));
        Ok(if kind.is_dir() {
            Body::Directory(BTreeMap::new())
        } else if kind.is_file() {
            Body::File(self.content(path, host)?)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|error| Error::io("read the link", path, error))?;
            Body::Symlink(target.into_os_string().into_vec())
        } else if kind.is_char_device() {
            Body::CharDevice(major, minor)
        } else if kind.is_block_device() {
            Body::BlockDevice(major, minor)
        } else if kind.is_fifo() {
            Body::Fifo
        } else if kind.is_socket() {
            Body::Socket
        } else {
            return Err(Error::invalid(path.display().to_string(), "a kind of file that Linux images don't have"));
        })
    }

    fn metadata(&mut self, path: &Path, host: &HostMetadata) -> Result<Metadata, Error> {
        let mut xattrs = xattrs(path).map_err(|error| Error::io("read extended attributes of", path, error))?;
        xattrs.retain(|(name, _)| {
            let is_kept = has_xattr_namespace(name);
            if !is_kept {
                self.dropped.add_xattr(&path.display().to_string(), name);
            }
            is_kept
        });
        check_xattrs(&xattrs).map_err(|reason| Error::invalid(path.display().to_string(), reason))?;
        Ok(Metadata {
            mode: (host.mode() & 0o7777) as u16,
            uid: host.uid(),
            gid: host.gid(),
            mtime: Timestamp { seconds: host.mtime(), nanoseconds: host.mtime_nsec() as u32 },
            xattrs,
        })
    }

    fn content(&mut self, path: &Path, host: &HostMetadata) -> Result<Content, Error> {
        if host.len() > MAX_FILE_BYTES {
            let reason = format!("it has {} bytes, the limit is {MAX_FILE_BYTES}", host.len());
            return Err(Error::invalid(path.display().to_string(), reason));
        }
        let failed = |error| Error::io("read", path, error);
        // Something else may take the file's place between looking and opening: neither follow nor wait for it.
        let flags = (sys::OFlags::NOFOLLOW | sys::OFlags::NONBLOCK).bits() as i32;
        let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?;
        let unchanged = |now: &HostMetadata| {
            now.is_file()
                && (now.dev(), now.ino(), now.len()) == (host.dev(), host.ino(), host.len())
                && (now.mtime(), now.mtime_nsec()) == (host.mtime(), host.mtime_nsec())
        };
        let changed = || {
            Error::invalid(
                path.display().to_string(),
                "it changed while it was read; stop what writes it and try again",
            )
        };
        if !unchanged(&before) {
            return Err(changed());
        }
        let mut position = 0;
        let mut writer = self.spool.content();
        let spool_directory = self.spool_directory;
        let write_failed = |error| Error::io("store contents of files in", spool_directory, error);
        while position < host.len() {
            let (start, end) = next_data(&file, position, host.len()).map_err(failed)?;
            writer.zeros(start - position).map_err(write_failed)?;
            file.seek(SeekFrom::Start(start)).map_err(failed)?;
            position = start;
            while position < end {
                let want = self.buffer.len().min(usize::try_from(end - position).unwrap_or(usize::MAX));
                let count = file.read(&mut self.buffer[..want]).map_err(failed)?;
                if count == 0 {
                    return Err(changed());
                }
                writer.write(&self.buffer[..count]).map_err(write_failed)?;
                position += count as u64;
                if let Some(progress) = self.progress {
                    progress(Progress::FileBytes { read: count as u64 });
                }
            }
        }
        if !unchanged(&file.metadata().map_err(failed)?) {
            return Err(changed());
        }
        writer.finish().map_err(write_failed)
    }
}

/// The next range with data at or after `position`, clipped to the file; empty at its end if only a hole is left.
fn next_data(file: &File, position: u64, length: u64) -> io::Result<(u64, u64)> {
    let start = match sys::seek(file, sys::SeekFrom::Data(position)) {
        Ok(start) => start.min(length),
        // No data up to the end.
        Err(rustix::io::Errno::NXIO) => return Ok((length, length)),
        // A file system that knows no holes.
        Err(rustix::io::Errno::INVAL) => return Ok((position, length)),
        Err(error) => return Err(error.into()),
    };
    let end = sys::seek(file, sys::SeekFrom::Hole(start))?.min(length);
    Ok((start, end))
}

/// All extended attributes but those that speak of this host: its SELinux labels and its overlay mounts.
fn xattrs(path: &Path) -> io::Result<Xattrs> {
    let mut list = vec![0; 1024];
    let length = loop {
        match sys::llistxattr(path, &mut list[..]) {
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) if list.len() < MAX_XATTR_LIST_BYTES => list.resize(MAX_XATTR_LIST_BYTES, 0),
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut xattrs = BTreeMap::new();
    for name in list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name == b"security.selinux" || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let mut value = vec![0; MAX_XATTR_BYTES];
        let length = sys::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        value.shrink_to_fit();
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs.into_iter().collect())
}

fn missing(path: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::not_found(format!("dir:{}", path.display()), "there is no such directory");
    }
    Error::io("look at", path, error)
}
