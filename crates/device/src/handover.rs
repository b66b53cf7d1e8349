//! A device that goes on in another process. What is in memory is loaded again; what was written stays.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snowmelt_cache::Tiers;
use snowmelt_chunk::OpenedManifest;

use crate::options::DeviceOptions;
use crate::overlay::{Overlay, OverlayHandover};
use crate::reader::ChunkReader;
use crate::{Device, Error, ImageChunks};

/// The layout of [`DeviceState`].
const VERSION: u32 = 1;

/// What [`Device::resume`] needs of a device that another process had.
#[derive(Debug)]
pub struct DeviceHandover {
    /// Of a writable device the file with its written pages and the memory with their states, in this order; of a read-only
    /// one nothing.
    pub descriptors: Vec<OwnedFd>,
    /// The rest.
    pub state: DeviceState,
}

/// What a successor has to know beside the descriptors. It does not change while the device is used, and says nothing to who
/// has not the key that it was sealed with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceState {
    version: u32,
    image: String,
    size_bytes: u64,
    chunk_bytes: u64,
    /// Of a writable device.
    sealed_key: Option<Vec<u8>>,
}

impl Device {
    /// Duplicates of what outlives this process, to be held by another for a successor; this one goes on. The overlay's key
    /// is sealed under `sealing_key`, which the successor has to have and whoever holds this should not.
    ///
    /// # Errors
    /// [`Error::Io`] without a free descriptor or random bytes.
    pub fn handover(&self, sealing_key: &[u8; 32]) -> Result<DeviceHandover, Error> {
        let overlay = self.overlay.as_ref().map(|overlay| overlay.handover(sealing_key)).transpose()?;
        let (descriptors, sealed_key) = match overlay {
            Some(overlay) => (vec![overlay.pages, overlay.states], Some(overlay.sealed_key)),
            None => (Vec::new(), None),
        };
        let state = DeviceState {
            version: VERSION,
            image: self.image().into(),
            size_bytes: self.size_bytes(),
            chunk_bytes: self.chunk_size,
            sealed_key,
        };
        Ok(DeviceHandover { descriptors, state })
    }

    /// The device that another process had, over the same image; see [`Device::new`]. That process should be gone; if it is
    /// not, its writes fail from now on.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the handover is of another device, the key is not the one that it was made with, or something of it is
    /// damaged.
    pub fn resume(
        image: OpenedManifest,
        tiers: Arc<Tiers>,
        options: DeviceOptions,
        handover: DeviceHandover,
        sealing_key: &[u8; 32],
    ) -> Result<Self, Error> {
        let name = options.image_name.clone().unwrap_or_else(|| image.id().to_string());
        let reader = Arc::new(ImageChunks::new(name, image, tiers));
        Self::resume_with_reader(reader, options, handover, sealing_key)
    }

    /// The same over any chunks.
    ///
    /// # Errors
    /// As [`Device::resume`].
    pub fn resume_with_reader(
        reader: Arc<dyn ChunkReader>,
        options: DeviceOptions,
        handover: DeviceHandover,
        sealing_key: &[u8; 32],
    ) -> Result<Self, Error> {
        let DeviceHandover { descriptors, state } = handover;
        let refuse = |why: String| Error::Invalid {
            operation: "take over",
            subject: format!("the device of {}: {why}", state.image),
        };
        if state.version != VERSION {
            return Err(refuse(format!("its state has version {}, not {VERSION}", state.version)));
        }
        let geometry = reader.geometry();
        let expected = (reader.image(), geometry.image_size, u64::from(geometry.chunk_size));
        if (state.image.as_str(), state.size_bytes, state.chunk_bytes) != expected {
            return Err(refuse(format!(
                "it has {} bytes in chunks of {}; {} has {} in chunks of {}",
                state.size_bytes, state.chunk_bytes, expected.0, expected.1, expected.2
            )));
        }
        if options.writable != state.sealed_key.is_some() {
            return Err(refuse("one of both is writable and the other is not".into()));
        }
        let count = descriptors.len();
        let overlay = match (state.sealed_key.clone(), <[OwnedFd; 2]>::try_from(descriptors)) {
            (Some(sealed_key), Ok([pages, states])) => {
                let handover = OverlayHandover { pages, states, sealed_key };
                let (image, budget, size) = (reader.image(), options.overlay_bytes, geometry.image_size);
                Some(Overlay::resume(image, handover, sealing_key, budget, size)?)
            }
            (None, Err(none)) if none.is_empty() => None,
            _ => return Err(refuse(format!("{count} descriptors came with it"))),
        };
        Ok(Self::with_overlay(reader, overlay, options))
    }

    /// Takes no more writes, and waits for those that have begun: they are another process's from now on.
    pub(crate) fn stop_writes(&self) {
        if let Some(overlay) = &self.overlay {
            overlay.stop_writes();
        }
    }
}
