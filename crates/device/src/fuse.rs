//! A device shown as a file, through FUSE.
//!
//! The mount's root is that file itself, so the mount point is an empty file; where a kernel refuses that, the mount point is
//! made a directory with one file, `device`. Reads that find their chunk in memory are answered by the thread that took them;
//! others are answered by the loader when the chunk has come, so no FUSE thread waits for a tier.
//!
//! The protocol is spoken here and not by a library, because a session outlives its process: whoever holds a duplicate of the
//! connection's descriptor keeps the mount alive, requests wait, and [`resume`] goes on with them in another process
//! ([`Handover`]). `protocol` has the kernel's structures, `init` how a session begins, `session` the threads, `file` what is
//! answered, `reply` how.

mod file;
mod handover;
mod init;
mod interrupt;
mod protocol;
mod reply;
mod session;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub use handover::{Handover, SessionState, resume};
pub(crate) use protocol::fuzz as fuzz_request;

use crate::{Device, Error};
use file::{DeviceFile, FILE_NAME};
use session::{Session, Threads};

/// A device that is shown as a file. The file is there until [`FuseExport::unmount`]; when this is dropped it goes as soon as
/// nobody has it open any more, unless it was handed over.
pub struct FuseExport {
    mount_point: PathBuf,
    file: PathBuf,
    session: Arc<Session>,
    /// `None` once it is not for this value any more to take the mount away.
    threads: Option<Threads>,
    handed_over: AtomicBool,
}

impl std::fmt::Debug for FuseExport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseExport").field("file", &self.file).finish_non_exhaustive()
    }
}

impl FuseExport {
    fn new(mount_point: &Path, session: Arc<Session>, threads: Threads) -> Self {
        let file = if session.file.is_directory { mount_point.join(FILE_NAME) } else { mount_point.into() };
        Self {
            mount_point: mount_point.into(),
            file,
            session,
            threads: Some(threads),
            handed_over: AtomicBool::new(false),
        }
    }

    /// The file that is the device.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What was mounted over.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Takes the file away and waits for the last request.
    ///
    /// # Errors
    /// [`Error::Io`] when it is still in use; it stays then, until this is dropped.
    pub fn unmount(mut self) -> Result<(), Error> {
        umount2(&self.mount_point, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|error| Error::path("unmount", &self.mount_point, error))?;
        let ended = self.threads.take().map_or(Ok(()), Threads::join);
        ended.map_err(|error| Error::path("serve", &self.mount_point, error))
    }

    /// Whether another process can take the file over under whoever uses it ([`FuseExport::handover`]). False where the
    /// kernel cannot send requests again: before Linux 6.9.
    pub fn can_be_taken_over(&self) -> bool {
        self.session.negotiated.can_resend()
    }

    /// What a successor needs to go on with this session: duplicates, to be held by a process that outlives this one. This
    /// process serves on. From now on the mount stays when this is dropped, for the successor; [`FuseExport::unmount`] still
    /// takes it away.
    ///
    /// Whoever holds a duplicate keeps the file's users waiting when this process ends. Without a successor all of them have
    /// to be closed: then users get errors.
    ///
    /// # Errors
    /// [`Error::Invalid`] where [`FuseExport::can_be_taken_over`] is false, [`Error::Io`] without a free descriptor.
    pub fn handover(&self) -> Result<Handover, Error> {
        if !self.can_be_taken_over() {
            return Err(Error::Invalid {
                operation: "hand over",
                subject: format!(
                    "{} cannot be served by another process: this kernel does not send requests again, Linux 6.9 and later do",
                    self.mount_point.display()
                ),
            });
        }
        let connection = self.session.connection().try_clone();
        let connection =
            connection.map_err(|error| Error::path("duplicate the connection of", &self.mount_point, error))?;
        self.handed_over.store(true, Ordering::Release);
        Ok(Handover { descriptors: vec![connection.into()], state: self.session_state() })
    }

    /// Ends serving for a successor's sake: reads no more requests, waits at most `patience` for the answers to those that
    /// were read, and has the device take no more writes, so that a late one cannot undo what the successor does. The mount
    /// stays. Gives how many requests were not answered: the successor gets them sent again.
    ///
    /// The connection ends when its last duplicate is closed, so [`FuseExport::handover`] comes first.
    ///
    /// # Errors
    /// [`Error::Invalid`] where nothing was handed over; the file is then served no more, and goes. [`Error::Io`] where
    /// threads cannot be stopped, or had failed.
    pub fn let_go(mut self, patience: Duration) -> Result<usize, Error> {
        if !self.handed_over.load(Ordering::Acquire) {
            return Err(Error::Invalid {
                operation: "let go of",
                subject: format!("{}: nobody holds it for a successor", self.mount_point.display()),
            });
        }
        let Some(threads) = self.threads.take() else { return Ok(0) };
        let left = self.session.stop(threads, patience);
        self.session.file.device.stop_writes();
        left.map_err(|error| Error::path("let go of", &self.mount_point, error))
    }
}

impl Drop for FuseExport {
    fn drop(&mut self) {
        // Not joined: a loop device may have the file open for longer, and the session then goes on for it.
        if self.threads.is_some()
            && !self.handed_over.load(Ordering::Acquire)
            && let Err(error) = umount2(&self.mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        {
            tracing::warn!(path = %self.mount_point.display(), %error, "not unmounted");
        }
    }
}

/// Takes away what a process that is gone left mounted.
///
/// # Errors
/// [`Error::Io`] when there is nothing mounted, or not by us to unmount.
pub fn unmount_stale(mount_point: &Path) -> Result<(), Error> {
    umount2(mount_point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(|error| Error::path("unmount", mount_point, error))
}

/// Shows the device as a file at `path`: an empty file, which is made where there is none.
///
/// # Errors
/// [`Error::Io`] without /dev/fuse or the right to mount.
pub fn serve(device: Arc<Device>, path: &Path) -> Result<FuseExport, Error> {
    serve_with(device, path, true)
}

/// `tries_file` is false for tests of what is done where the kernel refuses a file as the root of a mount.
fn serve_with(device: Arc<Device>, path: &Path, tries_file: bool) -> Result<FuseExport, Error> {
    let fuse = Path::new("/dev/fuse");
    let connection = OpenOptions::new()
        .read(true)
        .write(true)
        .open(fuse)
        .map_err(|error| Error::path("open (is the kernel module fuse loaded?)", fuse, error))?;
    if !path.exists() {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|error| Error::path("make the mount point", path, error))?;
    }
    let mounted =
        if tries_file { mount_connection(&connection, path, &device, false) } else { Err(nix::errno::Errno::ENOTDIR) };
    let is_directory = match mounted {
        Ok(()) => false,
        Err(nix::errno::Errno::ENOTDIR | nix::errno::Errno::EINVAL | nix::errno::Errno::EISDIR) => {
            if path.is_file() {
                std::fs::remove_file(path).map_err(|error| Error::path("replace", path, error))?;
                std::fs::create_dir(path).map_err(|error| Error::path("make the mount point", path, error))?;
            }
            mount_connection(&connection, path, &device, true).map_err(|error| Error::path("mount at", path, error))?;
            true
        }
        Err(error) => return Err(Error::path("mount at", path, error)),
    };
    let started = init::negotiate(&connection, device.is_writable()).and_then(|negotiated| {
        let session = Session::new(connection, DeviceFile { device, is_directory }, negotiated);
        let threads = session.start()?;
        Ok(FuseExport::new(path, session, threads))
    });
    started.map_err(|error| {
        let _ = unmount_stale(path);
        Error::path("serve", path, error)
    })
}

fn mount_connection(
    connection: &File,
    path: &Path,
    device: &Device,
    is_directory: bool,
) -> Result<(), nix::errno::Errno> {
    let mode = if is_directory { libc::S_IFDIR | 0o500 } else { libc::S_IFREG | 0o600 };
    let options = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions",
        connection.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid()
    );
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    if !device.is_writable() {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(Some("snowmelt"), path, Some("fuse.snowmelt"), flags, Some(options.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{DeviceOptions, MemoryChunks};

    #[test]
    fn where_a_file_cannot_be_a_mounts_root_it_lies_in_a_directory() {
        let image: Vec<u8> = (0..3_u32 << 18).map(|at| (at / 4096 + at) as u8).collect();
        let chunks = Arc::new(MemoryChunks::new(image.clone(), 64 << 10));
        let device = Arc::new(Device::with_reader(chunks, DeviceOptions::default()).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let export = serve_with(device, &folder.path().join("shown"), false).unwrap();
        assert_eq!(export.file(), folder.path().join("shown").join(FILE_NAME));
        assert_eq!(std::fs::read(export.file()).unwrap(), image);
        let names: Vec<_> =
            std::fs::read_dir(export.mount_point()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE_NAME]);
        let size = image.len() as u64;
        let attached = crate::loop_device::attach(export.file(), true, size).unwrap();
        assert_eq!(std::fs::read(attached.path()).unwrap(), image);
        attached.detach().unwrap();
        export.unmount().unwrap();
    }
}
