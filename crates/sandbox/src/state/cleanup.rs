//! Removes what sandboxes leave whose processes were killed: containers, mounts, loop devices, files.

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};

use super::{Record, StateDir, UNFINISHED, UNFINISHED_AGE};
use crate::Error;

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
            match self.dismantle(&record) {
                Ok(()) => removed.push(record.id),
                Err(error) => eprintln!("snowmelt: cannot remove what is left of sandbox {}: {error}", record.id),
            }
        }
        Ok(removed)
    }

    /// Removes a sandbox that no process serves any more, from the outside in: what uses a thing before the thing.
    pub(crate) fn dismantle(&self, record: &Record) -> Result<(), Error> {
        let directory = self.directory(&record.id);
        if let Some(runtime) = &record.runtime {
            runtime.delete(&record.container())?;
        }
        unmount_all(&directory, &record.directory)?;
        detach_loops(&directory);
        match std::fs::remove_dir_all(&directory) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", directory.display(), source))
            }
            _ => Ok(()),
        }
    }

    fn remove_unfinished(&self) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let hidden = entry.file_name().as_encoded_bytes().first() == Some(&(UNFINISHED as u8));
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if hidden && age.is_some_and(|age| age > UNFINISHED_AGE) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Unmounts everything below `directory`, and what a loop device of it shows at `mount_point`; last mounted first.
fn unmount_all(directory: &Path, mount_point: &Path) -> Result<(), Error> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    let mounts: Vec<Mount> = text.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect();
    for mount in mounts.iter().rev() {
        let below = mount.point.starts_with(directory) && mount.point != *directory;
        let ours =
            mount.point == *mount_point && backing_file(&mount.source).is_some_and(|file| file.starts_with(directory));
        if below || ours {
            unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .map_err(|source| Error::io("unmount", mount.point.display(), source))?;
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
