//! Reads inside a container's root file system, which is not to be trusted: its symbolic links are resolved against the
//! root and never against the host (`openat2` with `RESOLVE_IN_ROOT`), and special files are not opened.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

#[cfg(test)]
use rustix::fs::FileType;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::Error;

/// A mounted root file system.
pub(crate) struct Root {
    directory: OwnedFd,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::io("open", path.display(), source))?;
        Ok(Self { directory })
    }

    /// The content of a regular file; `None` if there is none. A file over `limit` bytes is an error.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let io = |source: std::io::Error| Error::io("read the image's", path, source);
        // NONBLOCK: opening a FIFO that an image has in this place must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match self.resolve(path, flags) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(source) => return Err(io(source.into())),
        };
        if !file.metadata().map_err(io)?.is_file() {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).map_err(io)?;
        if content.len() as u64 > limit {
            return Err(Error::invalid(format!("the image's {path}"), format!("is over {limit} bytes")));
        }
        Ok(Some(content))
    }

    /// Whether a path resolves to something.
    pub(crate) fn exists(&self, path: &str) -> bool {
        self.resolve(path, OFlags::PATH | OFlags::CLOEXEC).is_ok()
    }

    /// Whether a path is a directory with something in it.
    pub(crate) fn has_entries(&self, path: &str) -> bool {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let directory = self.resolve(path, flags).and_then(rustix::fs::Dir::read_from);
        directory.is_ok_and(|mut directory| {
            directory.any(|entry| entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")))
        })
    }

    /// Makes a directory and its missing parents, mode 0755, owned by root.
    pub(crate) fn make_directories(&self, path: &str) -> Result<(), Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut walked = String::new();
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            let parent = if walked.is_empty() { "." } else { &walked };
            if part != ".." {
                let parent =
                    self.resolve(parent, flags).map_err(|source| Error::io("open the image's", parent, source))?;
                match rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(source) => return Err(Error::io("make the directory", path, source)),
                }
            }
            walked.push('/');
            walked.push_str(part);
        }
        match self.resolve(path, flags) {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::io("make the directory", path, source)),
        }
    }

    /// Whether a path is a directory.
    #[cfg(test)]
    pub(crate) fn is_directory(&self, path: &str) -> bool {
        let found = self.resolve(path, OFlags::PATH | OFlags::CLOEXEC).and_then(rustix::fs::fstat);
        found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn resolve(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            // A rename elsewhere on the machine while `..` is resolved makes the kernel ask for another try.
            match rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                answer => return answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        std::fs::create_dir_all(path.join("etc")).unwrap();
        std::fs::create_dir_all(path.join("real")).unwrap();
        std::fs::write(directory.path().join("secret"), "outside").unwrap();
        std::fs::write(path.join("real/passwd"), "inside").unwrap();
        symlink("../../secret", path.join("etc/up")).unwrap();
        symlink(directory.path().join("secret"), path.join("etc/absolute")).unwrap();
        symlink("/real/passwd", path.join("etc/passwd")).unwrap();
        symlink("loop", path.join("etc/loop")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path.join("etc/fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        let root = Root::open(&path).unwrap();
        assert_eq!(root.read("/etc/passwd", 100).unwrap().unwrap(), b"inside");
        for name in ["up", "absolute", "loop", "fifo", "missing"] {
            assert_eq!(root.read(&format!("/etc/{name}"), 100).unwrap(), None, "{name}");
        }
        assert_eq!(root.read("/etc", 100).unwrap(), None);
        assert!(matches!(root.read("/etc/passwd", 5), Err(Error::Invalid { .. })));
        assert!(root.exists("/etc/passwd") && !root.exists("/etc/up"));
    }

    #[test]
    fn directories_are_made_inside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        std::fs::create_dir_all(path.join("var")).unwrap();
        symlink("/var", path.join("alias")).unwrap();
        symlink("/nowhere", path.join("dangling")).unwrap();
        let root = Root::open(&path).unwrap();
        root.make_directories("/alias/../alias/a/./b").unwrap();
        root.make_directories("/../../c").unwrap();
        assert!(path.join("var/a/b").is_dir() && path.join("c").is_dir());
        assert!(root.is_directory("/alias/a") && !root.is_directory("/dangling"));
        assert!(root.make_directories("/dangling/x").is_err());
        assert!(root.has_entries("/alias") && root.has_entries("/") && !root.has_entries("/alias/a/b"));
        assert!(!root.has_entries("/nothing") && !root.has_entries("/dangling"));
    }
}
