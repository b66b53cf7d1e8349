//! A demand-loaded block device.
//!
//! [`Device`] reads an image chunk by chunk, when a chunk is first needed, through a [`ChunkReader`]; writes go to an
//! encrypted overlay that dies with whoever holds its descriptors. [`fuse`] shows a device as a file, [`loop_device`] makes a block device of the
//! file, [`mount`] mounts it. A read takes this way:
//!
//! application -> ext4 -> loop device (direct I/O) -> FUSE -> [`Device`] -> overlay, or chunk in memory, or [`ChunkReader`]
//!
//! The process that does this may be killed or replaced while the device is in use. [`Device::handover`] and
//! [`fuse::FuseExport::handover`] give what a third process has to hold meanwhile, [`Device::resume`] and [`fuse::resume`] go on with it:
//! reads and writes wait, and are then answered.
//!
//! ```
//! use std::sync::Arc;
//! use snowmelt_device::{Device, DeviceOptions, MemoryChunks};
//!
//! let image = vec![7; 1 << 20];
//! let device = Device::with_reader(Arc::new(MemoryChunks::new(image, 512 << 10)), DeviceOptions::default())?;
//! let mut bytes = [0; 16];
//! device.read_at(600_000, &mut bytes)?;
//! assert_eq!(bytes, [7; 16]);
//! # Ok::<(), snowmelt_device::Error>(())
//! ```

mod access_log;
mod buffers;
mod clock;
mod device;
mod error;
mod file_handle;
pub mod fuse;
#[doc(hidden)]
pub mod fuzz;
mod handover;
mod image_chunks;
mod loader;
pub mod loop_device;
mod memory_chunks;
pub mod mount;
mod options;
mod overlay;
mod reader;
mod resident;
mod shared_memory;
mod stall;
mod start_log;
mod stats;

pub use access_log::Access;
pub use clock::{Clock, ManualClock, SystemClock};
pub use device::Device;
pub use error::{Cause, Error};
pub use handover::{DeviceHandover, DeviceState};
pub use image_chunks::ImageChunks;
pub use memory_chunks::{Fault, MemoryChunks};
pub use options::{DeviceOptions, OnUnavailable, Stall, StallObserver};
pub use reader::{ChunkReader, LoadRequest, Priority, Spent, Tier};
pub use start_log::{FileRead, LoggedChunk, StartLog, Vain};
pub use stats::Stats;
