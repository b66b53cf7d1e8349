//! Chunks in a directory of this machine.
//!
//! Chunks go through here rather than through `object_store`, which writes by way of the page cache: on the machines that
//! snowmelt is made for, the first touch of a page costs more than the disk. The layout is the same, so that either can
//! read what the other wrote. A chunk is written without a name, or under a draft's, and then linked to its own, so that no reader
//! and no crash sees half of one under its id.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};

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
    let linked = match write(path, bytes)? {
        Written::Unnamed(file) => link_unnamed(&file, path),
        Written::Draft(draft) => {
            let linked = fs::hard_link(&draft, path);
            fs::remove_file(&draft).map_err(Error::io("remove", draft))?;
            linked
        }
    };
    match linked {
        Ok(()) => Ok(PutOutcome::New),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(PutOutcome::AlreadyThere),
        Err(error) => Err(Error::io("write", path)(error)),
    }
}

/// Puts `bytes` at `path`, whatever is there. On the disk it is after [`sync`].
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_with(path, bytes, false)
}

/// The same, and on the disk.
fn replace_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_with(path, bytes, true)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}

fn replace_with(path: &Path, bytes: &[u8], durably: bool) -> Result<(), Error> {
    let draft = match write(path, bytes)? {
        Written::Draft(draft) => {
            if durably {
                File::open(&draft).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))?;
            }
            draft
        }
        Written::Unnamed(file) => {
            // Before it has a name, so that there is next to no time in which a kill leaves a draft.
            if durably {
                file.sync_all().map_err(Error::io("sync", path))?;
            }
            let draft = draft_path(path)?;
            link_unnamed(&file, &draft).map_err(Error::io("write", path))?;
            draft
        }
    };
    fs::rename(&draft, path).map_err(|error| {
        let _ = fs::remove_file(&draft);
        Error::io("replace", path)(error)
    })
}

/// Replaces the file at `path` if it holds `was` (`None`: if there is none); whether it did. All who do so in one store, on all
/// machines that share its folder, wait for one lock; who reads sees the old file or the new.
pub(crate) fn swap(store: &Path, path: &Path, bytes: &[u8], was: Option<&[u8]>) -> Result<bool, Error> {
    let folder = path.parent().unwrap_or(store);
    fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
    let lock_path = store.join(LOCK);
    let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
    let lock = lock.map_err(Error::io("open", &lock_path))?;
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, error)| Error::io("lock", &lock_path)(error.into()))?;
    // Of a longer file one byte more, which is enough to tell it apart.
    let now = match read(path, was.map_or(0, <[u8]>::len)) {
        Ok(now) => Some(now),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    if now.as_deref() != was {
        return Ok(false);
    }
    replace_durably(path, bytes)?;
    Ok(true)
}

/// The file that is locked; nothing is in it.
const LOCK: &str = ".lock";

/// Removes drafts anywhere below `folder` whose writers are gone, as [`remove_abandoned_drafts`].
pub(crate) fn remove_all_abandoned_drafts(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_all_abandoned_drafts(&entry.path());
        } else if entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes()) && is_abandoned(&entry) {
            let _ = fs::remove_file(entry.path());
        }
    }
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

/// Bytes that are written and not yet under their name.
enum Written {
    /// A file without a name: whatever ends its writer, nothing of it is left.
    Unnamed(File),
    /// Under a draft's name, where the file system has no files without one.
    Draft(PathBuf),
}

fn write(path: &Path, bytes: &[u8]) -> Result<Written, Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    match write_in(folder, path, bytes) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
            write_in(folder, path, bytes)
        }
        written => written,
    }
}

fn write_in(folder: &Path, path: &Path, bytes: &[u8]) -> Result<Written, Error> {
    let io = || Error::io("write", path);
    let unnamed = write_direct(folder, OpenOptions::new().read(true).write(true), libc::O_TMPFILE, bytes);
    match unnamed {
        Ok(file) => return Ok(Written::Unnamed(file)),
        // The folder is not there, or there is no room.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::StorageFull) => return Err(io()(error)),
        Err(_) => {}
    }
    let draft = draft_path(path)?;
    write_direct(&draft, OpenOptions::new().write(true).create_new(true), 0, bytes).map_err(|error| {
        let _ = fs::remove_file(&draft);
        io()(error)
    })?;
    Ok(Written::Draft(draft))
}

/// A name for a draft beside `path`: by chance and not by process, since publishers on several machines may share the folder.
fn draft_path(path: &Path) -> Result<PathBuf, Error> {
    let mut number = [0; 16];
    getrandom::fill(&mut number)
        .map_err(|error| Error::io("name a draft of", path)(io::Error::other(error.to_string())))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    Ok(folder.join(format!("{DRAFT}{:032x}", u128::from_ne_bytes(number))))
}

/// Gives a file that has no name one (`open(2)`, O_TMPFILE), unless there is such a file.
pub(crate) fn link_unnamed(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
}

/// Writes past the page cache where the file system can; else through it.
fn write_direct(path: &Path, options: &OpenOptions, flags: libc::c_int, bytes: &[u8]) -> io::Result<File> {
    let open = |flags| options.clone().custom_flags(flags).open(path);
    let direct = open(flags | libc::O_DIRECT).and_then(|mut file| file.write_all(bytes).map(|()| file));
    match direct {
        // EINVAL: the file system has no direct writes, or the buffer is not aligned. It may have made the file first.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            if flags & libc::O_TMPFILE != libc::O_TMPFILE {
                let _ = fs::remove_file(path);
            }
            let mut file = open(flags)?;
            file.write_all(bytes)?;
            Ok(file)
        }
        result => result,
    }
}

/// Reads the whole file; of one that is longer than `most` bytes, one byte more than that.
pub(crate) fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // Opening a pipe would wait for who writes to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a file"));
    }
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(length.min(most) + 1);
    file.take((most as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until everything written to the file system of `folder` is on its disk.
pub(crate) fn sync(folder: &Path) -> Result<(), Error> {
    let file = File::open(folder).map_err(Error::io("open", folder))?;
    nix::unistd::syncfs(&file).map_err(|error| Error::io("sync", folder)(error.into()))
}
