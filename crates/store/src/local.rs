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
use std::time::Duration;

use crate::Error;
use crate::store::PutOutcome;

/// A draft that was not written to for so long belongs to nobody: its writer was killed. Writing one takes milliseconds.
const ABANDONED_AFTER: Duration = Duration::from_mins(10);

/// Puts `bytes` at `path` unless a file of that length is there.
///
/// A shorter or longer file is what a crash of the machine left before its bytes reached the disk: it is replaced.
pub(crate) fn put_if_absent(path: &Path, bytes: &[u8]) -> Result<PutOutcome, Error> {
    match fs::metadata(path) {
        Ok(found) if found.len() == bytes.len() as u64 => return Ok(PutOutcome::AlreadyThere),
        Ok(_) => {
            replace(path, bytes)?;
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

/// Puts `bytes` at `path`, whatever is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let draft = write_draft(path, bytes)?;
    fs::rename(&draft, path).map_err(|error| {
        let _ = fs::remove_file(&draft);
        Error::io("replace", path)(error)
    })
}

/// Removes drafts below `chunks` whose writers are gone. Whatever cannot be read or removed stays for the next time.
pub(crate) fn remove_abandoned_drafts(chunks: &Path) {
    for shard in fs::read_dir(chunks).into_iter().flatten().flatten() {
        for entry in fs::read_dir(shard.path()).into_iter().flatten().flatten() {
            let is_draft = entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes());
            if is_draft && is_abandoned(&entry) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn is_abandoned(draft: &fs::DirEntry) -> bool {
    let written = draft.metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED_AFTER))
}

/// What names of drafts begin with. Ids have hexadecimal digits only.
const DRAFT: &str = ".draft-";

fn write_draft(path: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // By chance and not by process: publishers on several machines may share the folder.
    let mut number = [0; 16];
    getrandom::fill(&mut number)
        .map_err(|error| Error::io("name a draft of", path)(io::Error::other(error.to_string())))?;
    let draft = folder.join(format!("{DRAFT}{:032x}", u128::from_ne_bytes(number)));
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
    options.write(true).create_new(true);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(draft).and_then(|mut file| file.write_all(bytes));
    match direct {
        // EINVAL: the file system has no direct writes, or the buffer is not aligned. It may have made the file first.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let _ = fs::remove_file(draft);
            options.open(draft)?.write_all(bytes)
        }
        result => result,
    }
}

/// Reads the whole file; of one that is longer than `most` bytes, one byte more than that.
pub(crate) fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(length.min(most) + 1);
    file.take((most as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until everything written to the file system of `folder` is on its disk.
pub(crate) fn sync(folder: &Path) -> Result<(), Error> {
    let file = File::open(folder).map_err(Error::io("open", folder))?;
    nix::unistd::syncfs(&file).map_err(|error| Error::io("sync", folder)(error.into()))
}
