//! A device shown as a file, through FUSE.
//!
//! The mount's root is that file itself, so the mount point is an empty file; where a kernel refuses that, the mount point is
//! made a directory with one file, `device`. Reads that find their chunk in memory are answered by the thread that took them;
//! others are answered by the loader when the chunk has come, so no FUSE thread waits for a tier.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    Session, SessionACL, WriteFlags,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Device, Error};

/// The file's name where the mount's root has to be a directory.
const FILE_NAME: &str = "device";
/// Attributes never change.
const TTL: Duration = Duration::from_hours(24);
/// The largest request: that of the kernel's default limit of 256 pages.
const MOST_REQUEST_BYTES: u32 = 1 << 20;
/// Requests that the kernel lets lie open at once: as many as the loop device has.
const MOST_REQUESTS: u16 = 128;

/// A device that is shown as a file. The file is there until [`FuseExport::unmount`]; when this is dropped it goes as soon as
/// nobody has it open any more.
#[derive(Debug)]
pub struct FuseExport {
    mount_point: PathBuf,
    file: PathBuf,
    session: Option<JoinHandle<io::Result<()>>>,
}

impl FuseExport {
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
        let session = self.session.take().expect("it is there until this or drop");
        let ended = session.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        match ended {
            // How the kernel tells threads that still read requests that the mount is gone: which of the two depends on who
            // reads at that moment. It was unmounted just now, so nobody has the file open and nothing is lost.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ECONNABORTED)) => Ok(()),
            ended => ended.map_err(|error| Error::path("serve", &self.mount_point, error)),
        }
    }
}

impl Drop for FuseExport {
    fn drop(&mut self) {
        // Not joined: a loop device may have the file open for longer, and the session then goes on for it.
        if self.session.is_some()
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
    let mut export = FuseExport {
        mount_point: path.into(),
        file: if is_directory { path.join(FILE_NAME) } else { path.into() },
        session: None,
    };
    match start(DeviceFile { device, is_directory }, connection.into()) {
        Ok(session) => {
            export.session = Some(session);
            Ok(export)
        }
        Err(error) => {
            let _ = unmount_stale(path);
            Err(Error::path("serve", path, error))
        }
    }
}

fn mount_connection(
    connection: &std::fs::File,
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

fn start(file: DeviceFile, connection: OwnedFd) -> io::Result<JoinHandle<io::Result<()>>> {
    let writable = file.device.is_writable();
    let mut config = fuser::Config::default();
    // Waiting is done elsewhere, so more threads than cores would only take turns.
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4));
    config.clone_fd = true;
    keep_large_buffers_lazy();
    let session = Session::from_fd(file, connection, SessionACL::All, config)?;
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        if writable {
            avoid_writeback_deadlock();
        }
        session.run()
    })
}

/// Every FUSE thread asks for a zeroed buffer of 16 MiB and uses the beginning of it. Mapped, its pages cost nothing until they
/// are used; but once glibc has seen one such buffer freed it serves the next from the heap and fills it with zeros, which
/// takes 3 ms and 16 MiB a thread. A threshold that is set stays as it is (mallopt(3), M_MMAP_THRESHOLD).
#[allow(unsafe_code)]
fn keep_large_buffers_lazy() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes numbers only, and glibc locks what it changes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// Tells the kernel that this thread, and those that it spawns, serve a disk: memory that they ask for is not got by writing
/// to that disk (prctl(2), PR_SET_IO_FLUSHER).
#[allow(unsafe_code)]
fn avoid_writeback_deadlock() {
    /// linux/prctl.h
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: this option of prctl takes numbers only.
    let refused = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } != 0;
    if refused {
        tracing::debug!(error = %io::Error::last_os_error(), "PR_SET_IO_FLUSHER was refused");
    }
}

/// The file system: one file.
struct DeviceFile {
    device: Arc<Device>,
    is_directory: bool,
}

impl DeviceFile {
    /// The number of the file's inode.
    fn file_inode(&self) -> INodeNo {
        INodeNo(if self.is_directory { 2 } else { 1 })
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let is_file = inode == self.file_inode();
        if !is_file && inode != INodeNo::ROOT {
            return None;
        }
        let size = if is_file { self.device.size_bytes() } else { 0 };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if !is_file {
                0o500
            } else if self.device.is_writable() {
                0o600
            } else {
                0o400
            },
            nlink: 1,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

impl Filesystem for DeviceFile {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // With asynchronous direct I/O the loop device's requests are served side by side. What a kernel does not have, it
        // does without.
        for wanted in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_MAX_PAGES, InitFlags::FUSE_BIG_WRITES] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(MOST_REQUEST_BYTES);
        let _ = config.set_max_readahead(MOST_REQUEST_BYTES);
        let _ = config.set_max_background(MOST_REQUESTS);
        let _ = config.set_congestion_threshold(MOST_REQUESTS);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if self.is_directory
            && parent == INodeNo::ROOT
            && name == FILE_NAME
            && let Some(attributes) = self.attributes(self.file_inode())
        {
            return reply.entry(&TTL, &attributes, Generation(0));
        }
        reply.error(Errno::ENOENT);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The file system on top caches pages: caching them here as well would take the memory twice.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // A read past the end is short, as that of any file.
        let left = self.device.size_bytes().saturating_sub(offset);
        let length = u64::from(size).min(left) as usize;
        self.device.read_with(offset.min(self.device.size_bytes()), length, move |result| match result {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = |result: Result<(), Error>, length: usize, reply: ReplyWrite| match result {
            Ok(()) => reply.written(length as u32),
            Err(error) => reply.error(errno(&error)),
        };
        if Device::writes_at_once(offset, bytes.len()) {
            return answer(self.device.write_at(offset, bytes), bytes.len(), reply);
        }
        // Seldom: file systems write blocks. It may need a chunk, so it must not keep this thread.
        let (device, bytes) = (Arc::clone(&self.device), bytes.to_vec());
        let spawned = std::thread::Builder::new()
            .name("fuse-write".into())
            .spawn(move || answer(device.write_at(offset, &bytes), bytes.len(), reply));
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to write with");
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // Holes and zeros only, and only whole pages, so that no chunk is needed.
        let (zero, punch) = (libc::FALLOC_FL_ZERO_RANGE, libc::FALLOC_FL_PUNCH_HOLE);
        if mode & !(libc::FALLOC_FL_KEEP_SIZE | zero | punch) != 0 || mode & (zero | punch) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let start = offset.next_multiple_of(4096);
        let end = offset.saturating_add(length).min(self.device.size_bytes()) / 4096 * 4096;
        if mode & zero != 0 && (start, end) != (offset, offset.saturating_add(length)) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        match self.device.write_zeroes(start.min(end), end.saturating_sub(start)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    // What the kernel asks once and, told that it is not there, never again: nothing has to be flushed.
    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (self.file_inode(), FileType::RegularFile, FILE_NAME),
        ];
        for (next, (inode, kind, name)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
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
