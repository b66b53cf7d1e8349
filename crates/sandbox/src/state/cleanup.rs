//! Removes what sandboxes leave whose processes were killed: containers, mounts, loop devices, files.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};

use super::{Record, StateDir, UNFINISHED, UNFINISHED_AGE};
use crate::{Error, cgroups};

impl StateDir {
    /// Removes what killed processes left. Called at the start of each command; costs one directory listing when there
    /// is nothing to do. Gives the ids of the sandboxes removed. What cannot be removed stays recorded for the next time.
    ///
    /// # Errors
    /// [`Error::Io`] if the state directory cannot be read.
    pub fn cleanup_stale(&self) -> Result<Vec<String>, Error> {
        let stale: Vec<Record> = self.records()?.into_iter().filter(|record| !record.is_alive()).collect();
        self.remove_unfinished();
        if stale.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.path.join("lock");
        let lock = std::fs::File::create(&path).map_err(|source| Error::io("make", path.display(), source))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Another command is at it.
            return Ok(Vec::new());
        }
        let mut removed = Vec::new();
        for record in stale {
            match self.dismantle(&record, Leftovers::Any) {
                Ok(()) => {
                    self.cleaned.lock().unwrap_or_else(PoisonError::into_inner).push(record.directory);
                    removed.push(record.id);
                }
                Err(error) => eprintln!("snowmelt: cannot remove what is left of sandbox {}: {error}", record.id),
            }
        }
        Ok(removed)
    }

    /// Removes a sandbox that no process serves any more, from the outside in: what uses a thing before the thing, and
    /// the record last, so that what could not be removed is found again.
    pub(crate) fn dismantle(&self, record: &Record, leftovers: Leftovers) -> Result<(), Error> {
        let directory = self.directory(&record.id);
        if let Some(runtime) = &record.runtime {
            runtime.delete(&record.container())?;
            if leftovers == Leftovers::Any {
                cgroups::remove(&record.container())?;
            }
        }
        if leftovers == Leftovers::Any {
            unmount_all(&directory, &record.directory)?;
            detach_loops(&directory);
        }
        remove_directory(&directory).map_err(|source| Error::io("remove", directory.display(), source))
    }

    fn remove_unfinished(&self) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            let is_id = name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !(name.starts_with(UNFINISHED) || is_id && !path.join("record.json").exists()) {
                continue;
            }
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.is_some_and(|age| age > UNFINISHED_AGE) && unmount_all(&path, &path).is_ok() {
                let _ = remove_directory(&path);
            }
        }
    }
}

/// What may be left of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// Its files: its processes ended in order and took down the rest.
    Files,
    /// Anything.
    Any,
}

/// Removes a sandbox's directory, its record last. None is no error.
fn remove_directory(directory: &Path) -> std::io::Result<()> {
    let gone = |result: std::io::Result<()>| match result {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    let entries = match std::fs::read_dir(directory) {
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name() == "record.json" {
            continue;
        }
        let is_directory = entry.file_type()?.is_dir();
        gone(if is_directory { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) })?;
    }
    gone(std::fs::remove_file(directory.join("record.json")))?;
    gone(std::fs::remove_dir(directory))
}

/// Unmounts everything below `directory`, and what a loop device of it shows at `mount_point`; last mounted first.
fn unmount_all(directory: &Path, mount_point: &Path) -> Result<(), Error> {
    // The thread's and not the process's: a run has moved its thread to another mount namespace.
    let path = "/proc/thread-self/mountinfo";
    let text = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    let mounts: Vec<Mount> = text.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect();
    for mount in mounts.iter().rev() {
        let below = mount.point.starts_with(directory) && mount.point != *directory;
        let ours =
            mount.point == *mount_point && backing_file(&mount.source).is_some_and(|file| file.starts_with(directory));
        if below || ours {
            match unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Somebody else did at the same time.
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(source) => return Err(Error::io("unmount", mount.point.display(), source)),
            }
        }
    }
    Ok(())
}

/// Loop devices clear themselves when their last user goes; this is for one that was attached and never mounted.
fn detach_loops(directory: &Path) {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return };
    for entry in entries.flatten() {
        let device = Path::new("/dev").join(entry.file_name());
        if backing_file(&device).is_some_and(|file| file.starts_with(directory)) {
            let _ = snowmelt_device::loop_device::detach_stale(&device);
        }
    }
}

/// The file behind a loop device.
fn backing_file(device: &Path) -> Option<PathBuf> {
    let name =
        device.strip_prefix("/dev").ok().filter(|name| name.as_os_str().as_encoded_bytes().starts_with(b"loop"))?;
    let text = std::fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()?;
    // The kernel says so of a file whose mount is gone.
    let text = text.trim_end_matches('\n');
    Some(text.strip_suffix(" (deleted)").unwrap_or(text).into())
}

/// A line of mountinfo (`proc(5)`), as far as it is used.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    source: PathBuf,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescape(fields.nth(4)?);
        let source = unescape(fields.skip_while(|field| *field != b"-").nth(2)?);
        Some(Self { point, source })
    }
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => bytes.push(*first),
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mount_lines() {
        let line = b"36 35 98:0 / /mnt/a\\040b\\134 rw,noatime master:1 shared:2 - ext4 /dev/loop3 rw";
        assert_eq!(Mount::parse(line), Some(Mount { point: "/mnt/a b\\".into(), source: "/dev/loop3".into() }));
        assert_eq!(Mount::parse(b""), None);
        assert_eq!(Mount::parse(b"1 2 3 4 5 6"), None);
        assert_eq!(unescape(b"a\\04"), Path::new("a\\04"));
    }
}
