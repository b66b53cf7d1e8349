//! Opens files by inode number, as an NFS server does (`open_by_handle_at(2)`): no path has to be known or walked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};

/// `struct file_handle` with a handle of type `FILEID_INO32_GEN` (linux/exportfs.h), which ext4 understands.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    inode: u32,
    /// 0 is any (`ext4_nfs_get_inode`).
    generation: u32,
}

/// Opens an inode of the file system that `root` is a directory of, for reading. Needs `CAP_DAC_READ_SEARCH`.
///
/// # Errors
/// The kernel's: `ESTALE` where there is no such inode.
#[allow(unsafe_code)]
pub(crate) fn open(root: &File, inode: u32) -> io::Result<File> {
    let mut handle = Handle { bytes: 8, kind: 1, inode, generation: 0 };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the handle is laid out as `struct file_handle` with 8 bytes of its own, and lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw mut handle, flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { File::from_raw_fd(result as libc::c_int) })
}
