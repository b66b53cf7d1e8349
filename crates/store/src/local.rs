//! Chunks in a directory of this machine.
//!
//! Chunks go through here rather than through `object_store`, which writes by way of the page cache: on the machines that
//! snowmelt is made for, the first touch of a page costs more than the disk. The layout is the same, so that either can
//! read what the other wrote. A chunk is written under a draft name and linked to its own, so that no reader and no crash
//! sees half of one under its id.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::store::PutOutcome;

/// Counts drafts of this process; with its id no two drafts have one name.
static DRAFTS: AtomicU64 = AtomicU64::new(0);

/// Puts `bytes` at `path` unless a file of that length is there.
///
/// A shorter or longer file is what a crash of the machine left before its bytes reached the disk: it is replaced.
pub(crate) fn put_if_absent(path: &Path, bytes: &[u8]) -> Result<PutOutcome, Error> {
    match fs::metadata(path) {
        Ok(found) if found.len() == bytes.len() as u64 => return Ok(PutOutcome::AlreadyThere),
        Ok(_) => {
            let draft = write_draft(path, bytes)?;
            fs::rename(&draft, path).map_err(Error::io("replace", path))?;
            return Ok(PutOutcome::New);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io("look up", path)(error)),
    }
    let draft = write_draft(path, bytes)?;
    let linked = fs::hard_link(&draft, path);
    let removed = fs::remove_file(&draft);
    match linked {
        Ok(()) => removed.map(|()| PutOutcome::New).map_err(Error::io("remove", draft)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(PutOutcome::AlreadyThere),
        Err(error) => Err(Error::io("write", path)(error)),
    }
}

fn write_draft(path: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = folder.join(format!(".draft-{}-{number}", std::process::id()));
    let written = match write_direct(&draft, bytes) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
            write_direct(&draft, bytes)
        }
        written => written,
    };
    written.map_err(|error| {
        let _ = fs::remove_file(&draft);
        Error::io("write", path)(error)
    })?;
    Ok(draft)
}

/// Writes past the page cache where the file system can; else through it.
fn write_direct(draft: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(draft).and_then(|mut file| file.write_all(bytes));
    match direct {
        // EINVAL: the file system has no direct writes, or the buffer is not aligned.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => options.open(draft)?.write_all(bytes),
        result => result,
    }
}

/// Reads the whole file, which is expected to have `length` bytes; another length is given as it is.
pub(crate) fn read(path: &Path, length: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = Vec::with_capacity(length + 1);
    file.take(length as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until everything written to the file system of `folder` is on its disk.
pub(crate) fn sync(folder: &Path) -> Result<(), Error> {
    let file = File::open(folder).map_err(Error::io("open", folder))?;
    nix::unistd::syncfs(&file).map_err(|error| Error::io("sync", folder)(error.into()))
}
