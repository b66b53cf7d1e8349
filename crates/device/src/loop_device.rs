//! A block device made of a file, by the kernel's loop driver (drivers/block/loop.c, loop(4)).
//!
//! The device detaches itself when its last user is gone (autoclear), so that nothing is left even after a SIGKILL, and it
//! reads its file with direct I/O, so that pages are cached once, by the file system on top.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::Error;

/// linux/loop.h
mod kernel {
    pub(super) const READ_ONLY: u32 = 1;
    pub(super) const AUTOCLEAR: u32 = 4;
    pub(super) const DIRECT_IO: u32 = 16;

    /// `struct loop_info64`
    #[repr(C)]
    #[derive(Clone)]
    pub(super) struct LoopInfo64 {
        pub(super) device: u64,
        pub(super) inode: u64,
        pub(super) rdevice: u64,
        pub(super) offset: u64,
        pub(super) size_limit: u64,
        pub(super) number: u32,
        pub(super) encrypt_type: u32,
        pub(super) encrypt_key_size: u32,
        pub(super) flags: u32,
        pub(super) file_name: [u8; 64],
        pub(super) crypt_name: [u8; 64],
        pub(super) encrypt_key: [u8; 32],
        pub(super) init: [u64; 2],
    }

    /// `struct loop_config`
    #[repr(C)]
    pub(super) struct LoopConfig {
        pub(super) fd: u32,
        pub(super) block_size: u32,
        pub(super) info: LoopInfo64,
        pub(super) reserved: [u64; 8],
    }

    nix::ioctl_none_bad!(ctl_get_free, 0x4C82);
    nix::ioctl_write_ptr_bad!(configure, 0x4C0A, LoopConfig);
    nix::ioctl_none_bad!(clear_fd, 0x4C01);
}

/// The block size that the device tells: that of the file systems on it, so that no request is smaller than a page.
const BLOCK_SIZE: u32 = 4096;
/// Sequential readers get whole chunks ahead: 512 KiB, the usual chunk size.
const READ_AHEAD_KIB: u32 = 512;
/// Another process may take the free device first; this often in a row it is not that.
const ATTEMPTS: u32 = 64;

/// A loop device that is attached. When this is dropped it detaches, as soon as nothing is mounted from it.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Such as `/dev/loop0`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Detaches it. While it is mounted the kernel waits until it is not.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn detach(self) -> Result<(), Error> {
        clear(&self.device).map_err(|error| Error::path("detach", &self.path, error))
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Detaches a loop device that a process which is gone left.
///
/// # Errors
/// [`Error::Io`] when there is none.
pub fn detach_stale(path: &Path) -> Result<(), Error> {
    let result = File::open(path).and_then(|device| clear(&device));
    result.map_err(|error| Error::path("detach", path, error))
}

#[allow(unsafe_code)]
fn clear(device: &File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument, and the descriptor is open.
    unsafe { kernel::clear_fd(device.as_raw_fd()) }?;
    Ok(())
}

/// Makes a block device of `size` bytes of a file.
///
/// # Errors
/// [`Error::Io`] without /dev/loop-control or the right to use it.
pub fn attach(file: &Path, read_only: bool, size: u64) -> Result<LoopDevice, Error> {
    let backing = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_DIRECT)
        .open(file)
        .map_err(|error| Error::path("open", file, error))?;
    let control_path = Path::new("/dev/loop-control");
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(control_path)
        .map_err(|error| Error::path("open (is the kernel module loop loaded?)", control_path, error))?;
    for _ in 0..ATTEMPTS {
        let number =
            free_number(&control).map_err(|error| Error::path("get a free loop device from", control_path, error))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_device(&path, number, read_only).map_err(|error| Error::path("open", &path, error))?;
        match configure(&device, &backing, read_only, size) {
            Ok(()) => {
                set_read_ahead(number);
                return Ok(LoopDevice { device, path });
            }
            Err(Errno::EBUSY) => {}
            Err(error) => return Err(Error::path("attach a file to", &path, error)),
        }
    }
    let error = io::Error::from(io::ErrorKind::ResourceBusy);
    Err(Error::path("attach a loop device to", file, error))
}

#[allow(unsafe_code)]
fn free_number(control: &File) -> nix::Result<i32> {
    // SAFETY: the ioctl takes no argument, and the descriptor is open.
    unsafe { kernel::ctl_get_free(control.as_raw_fd()) }
}

fn open_device(path: &Path, number: i32, read_only: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without a devtmpfs, as in a container, nobody makes the node of a new device. 7 is the loop driver's number.
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            match mknod(path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), makedev(7, number as u64)) {
                Ok(()) | Err(Errno::EEXIST) => options.open(path),
                Err(_) => Err(error),
            }
        }
        result => result,
    }
}

#[allow(unsafe_code)]
fn configure(device: &File, backing: &File, read_only: bool, size: u64) -> nix::Result<()> {
    let info = kernel::LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: size,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: kernel::AUTOCLEAR | kernel::DIRECT_IO | if read_only { kernel::READ_ONLY } else { 0 },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let mut config =
        kernel::LoopConfig { fd: backing.as_raw_fd() as u32, block_size: BLOCK_SIZE, info, reserved: [0; 8] };
    // SAFETY: both descriptors are open and the structure is laid out as linux/loop.h has it.
    let mut result = unsafe { kernel::configure(device.as_raw_fd(), &raw const config) };
    if result == Err(Errno::EINVAL) {
        // A kernel or a file that cannot do blocks of 4 KiB, or direct I/O.
        config.block_size = 0;
        config.info.flags &= !kernel::DIRECT_IO;
        // SAFETY: as above.
        result = unsafe { kernel::configure(device.as_raw_fd(), &raw const config) };
    }
    result.map(drop)
}

/// A wish, not a need: without it sequential reads are slower.
fn set_read_ahead(number: i32) {
    let path = format!("/sys/block/loop{number}/queue/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "the read-ahead stays as it is");
    }
}
