//! A session that goes on in another process.
//!
//! The kernel knows nothing of processes: it has a connection, which lives as long as a descriptor of it is open, with requests
//! that were not read yet and requests that were read and not answered. The former wait for whoever reads; the latter are
//! put back among them when the connection is told to (`FUSE_NOTIFY_RESEND`), so that a successor gets all that its
//! predecessor owed. A request may so be done twice; reads, writes and discards of a device can be.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::FuseExport;
use super::file::DeviceFile;
use super::init::Negotiated;
use super::protocol::{NOTIFY_RESEND, OutHeader};
use super::reply;
use super::session::Session;
use crate::{Device, Error};

/// The device number of `/dev/fuse` (Documentation/admin-guide/devices.txt).
const FUSE_DEVICE: (u32, u32) = (10, 229);
/// The layout of [`SessionState`].
const VERSION: u32 = 1;

/// What [`resume`] needs of a session that another process began.
#[derive(Debug)]
pub struct Handover {
    /// The connection to the kernel: one descriptor. The mount lives as long as any duplicate of it.
    pub descriptors: Vec<OwnedFd>,
    /// The rest.
    pub state: SessionState,
}

/// What a successor has to know of a session beside its descriptor. It never changes while the session lives, and there is no
/// secret in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionState {
    version: u32,
    mount_point: PathBuf,
    is_directory: bool,
    size_bytes: u64,
    writable: bool,
    negotiated: Negotiated,
}

impl FuseExport {
    pub(super) fn session_state(&self) -> SessionState {
        let device = &self.session.file.device;
        SessionState {
            version: VERSION,
            mount_point: self.mount_point.clone(),
            is_directory: self.session.file.is_directory,
            size_bytes: device.size_bytes(),
            writable: device.is_writable(),
            negotiated: self.session.negotiated,
        }
    }
}

/// Goes on with a session whose process is gone, or has let go of it ([`FuseExport::let_go`]). The kernel sends again what
/// that process read and did not answer.
///
/// A process that may still be running must be ended and waited for before.
///
/// # Errors
/// [`Error::Invalid`] where the handover is of another device, or of another version of this program that this one does not
/// understand; [`Error::Io`] where the kernel ended the session or cannot send requests again.
pub fn resume(device: Arc<Device>, handover: Handover) -> Result<FuseExport, Error> {
    let state = handover.state;
    let refuse = |why: String| Error::Invalid {
        operation: "take over",
        subject: format!("{}: {why}", state.mount_point.display()),
    };
    if state.version != VERSION {
        return Err(refuse(format!("its state has version {}, not {VERSION}", state.version)));
    }
    if (state.size_bytes, state.writable) != (device.size_bytes(), device.is_writable()) {
        let kind = |writable| if writable { "writable" } else { "read-only" };
        return Err(refuse(format!(
            "it is a {} device of {} bytes, not a {} one of {}",
            kind(state.writable),
            state.size_bytes,
            kind(device.is_writable()),
            device.size_bytes()
        )));
    }
    if !state.negotiated.can_resend() {
        return Err(refuse("its kernel does not send requests again: Linux 6.9 and later do".into()));
    }
    let [connection] = <[OwnedFd; 1]>::try_from(handover.descriptors)
        .map_err(|found| refuse(format!("it has one descriptor, not {}", found.len())))?;
    let metadata = rustix::fs::fstat(&connection).map_err(|error| Error::path("look at", &state.mount_point, error))?;
    if (rustix::fs::major(metadata.st_rdev), rustix::fs::minor(metadata.st_rdev)) != FUSE_DEVICE {
        return Err(refuse("its descriptor is not of /dev/fuse".into()));
    }
    let connection = File::from(connection);
    // Before anything is read: what is read from now on is ours to answer.
    let notification = OutHeader { length: 0, error: NOTIFY_RESEND, unique: 0 };
    reply::write(&connection, notification, &[])
        .map_err(|error| Error::path("have requests sent again to", &state.mount_point, error))?;
    let file = DeviceFile { device, is_directory: state.is_directory };
    let session = Session::new(connection, file, state.negotiated);
    let threads = session.start().map_err(|error| Error::path("serve", &state.mount_point, error))?;
    let export = FuseExport::new(&state.mount_point, session, threads);
    // Dropped, it leaves the mount to the next one: there still are duplicates.
    export.handed_over.store(true, std::sync::atomic::Ordering::Release);
    tracing::info!(path = %export.file.display(), "took a device over");
    Ok(export)
}
