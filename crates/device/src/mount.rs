//! Mounts of ext4 file systems.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Error;
use crate::loop_device::LoopDevice;

/// Mounts the ext4 file system on a device at a directory, for a container. Access times are not kept: they would turn
/// reads into writes. Device nodes do not work in it: an image comes from elsewhere and must not open this machine's
/// devices. Setuid programs do: what they gain they gain in the container.
///
/// # Errors
/// [`Error::Io`]; the kernel's log says more.
pub fn mount_ext4(device: &LoopDevice, directory: &Path, read_only: bool) -> Result<(), Error> {
    mount_with(device, directory, read_only, MsFlags::empty())
}

/// The same where every user of this machine can see it: setuid programs and file capabilities of the image give nobody
/// anything there.
///
/// # Errors
/// As [`mount_ext4`].
pub fn mount_ext4_for_all(device: &LoopDevice, directory: &Path, read_only: bool) -> Result<(), Error> {
    mount_with(device, directory, read_only, MsFlags::MS_NOSUID)
}

fn mount_with(device: &LoopDevice, directory: &Path, read_only: bool, more: MsFlags) -> Result<(), Error> {
    let mut flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | more;
    // Our images have no journal, so there is nothing to replay. Inode tables need not be zeroed in the background: what is
    // not written reads as zeros. Nor are there caches to be flushed.
    let options = if read_only { None } else { Some("noinit_itable,nobarrier") };
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(Some(device.path()), directory, Some("ext4"), flags, options).map_err(|error| {
        Error::io("mount", format!("{} at {} (see dmesg)", device.path().display(), directory.display()), error)
    })
}

/// Unmounts it.
///
/// # Errors
/// [`Error::Io`], also while files in it are open.
pub fn unmount(directory: &Path) -> Result<(), Error> {
    umount2(directory, MntFlags::UMOUNT_NOFOLLOW).map_err(|error| Error::path("unmount", directory, error))
}

/// Takes it out of the tree at once; it is unmounted when the last open file in it is closed. For cleaning up after a process
/// that is gone.
///
/// # Errors
/// [`Error::Io`]
pub fn detach(directory: &Path) -> Result<(), Error> {
    umount2(directory, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(|error| Error::path("detach", directory, error))
}
