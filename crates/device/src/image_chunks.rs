use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use snowmelt_cache::{ChunkRequest, Tiers};
use snowmelt_chunk::{Geometry, OpenedManifest};

use crate::Error;
use crate::reader::{ChunkReader, LoadRequest, Spent, Tier};

/// The chunks of a published image, through the tiers.
#[derive(Debug)]
pub struct ImageChunks {
    name: String,
    manifest: OpenedManifest,
    tiers: Arc<Tiers>,
}

impl ImageChunks {
    /// The chunks that the manifest lists; messages call the image `name`.
    pub fn new(name: impl Into<String>, manifest: OpenedManifest, tiers: Arc<Tiers>) -> Self {
        Self { name: name.into(), manifest, tiers }
    }

    fn error(&self, index: u64, tier: Tier, error: snowmelt_cache::Error) -> Error {
        let operation = "read";
        let subject = format!("chunk {} of image {} in {tier}", self.chunk_name(index), self.name);
        let source: Option<crate::Cause> = Some(Arc::new(error));
        match source.as_ref().and_then(|error| error.downcast_ref::<snowmelt_cache::Error>()) {
            Some(snowmelt_cache::Error::Unavailable { .. }) => Error::Unavailable { operation, subject, source },
            Some(snowmelt_cache::Error::Lost { source: snowmelt_store::Error::NotFound { .. }, .. }) => {
                Error::NotFound { operation, subject, source }
            }
            _ => Error::Corrupt { operation, subject, source },
        }
    }
}

impl ChunkReader for ImageChunks {
    fn geometry(&self) -> Geometry {
        self.manifest.geometry()
    }

    fn stored_length(&self, index: u64) -> u32 {
        let chunk = u32::try_from(index).ok().and_then(|slot| self.manifest.chunk(slot));
        chunk.map_or(0, |(record, _)| record.stored_length)
    }

    fn read_chunk(&self, index: u64, request: &LoadRequest, plaintext: &mut [u8]) -> Result<(), Error> {
        let chunk = u32::try_from(index).ok().and_then(|slot| self.manifest.chunk(slot));
        let Some((record, secret)) = chunk else {
            plaintext.fill(0);
            return Ok(());
        };
        // Until it is answered the origin is what it waits for: the disk answers or misses in less than a millisecond.
        request.set_tier(Tier::Origin);
        let wanted = ChunkRequest { id: record.id, suite: self.manifest.suite(), secret };
        let tier = self.tiers.read_chunk(&wanted, plaintext).map_err(|error| self.error(index, Tier::Origin, error))?;
        request.set_tier(match tier {
            snowmelt_cache::Tier::Disk => Tier::Disk,
            snowmelt_cache::Tier::Origin => Tier::Origin,
        });
        Ok(())
    }

    fn warm_chunk(&self, index: u64, request: &LoadRequest) -> Result<(), Error> {
        thread_local! {
            static UNUSED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let length = self.stored_length(index) as usize;
        UNUSED.with_borrow_mut(|plaintext| {
            plaintext.resize(plaintext.len().max(length), 0);
            self.read_chunk(index, request, &mut plaintext[..length])
        })
    }

    fn spent(&self) -> Spent {
        let stats = self.tiers.stats();
        Spent {
            verifying: Duration::from_nanos(stats.verify_nanoseconds),
            decrypting: Duration::from_nanos(stats.decrypt_nanoseconds),
        }
    }

    fn image(&self) -> &str {
        &self.name
    }

    fn chunk_name(&self, index: u64) -> String {
        let chunk = u32::try_from(index).ok().and_then(|slot| self.manifest.chunk(slot));
        chunk.map_or_else(|| format!("#{index}"), |(record, _)| format!("{} (#{index})", record.id))
    }
}
