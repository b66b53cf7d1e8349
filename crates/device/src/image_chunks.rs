use std::sync::Arc;
use std::time::Duration;

use snowmelt_cache::{ChunkRequest, Tiers};
use snowmelt_chunk::{ChunkId, ChunkRecord, ChunkSecret, Geometry, OpenedManifest};

use crate::Error;
use crate::reader::{ChunkReader, LoadRequest, Priority, Spent, Tier};

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

    fn request<'a>(&self, record: &ChunkRecord, secret: &'a ChunkSecret, request: &LoadRequest) -> ChunkRequest<'a> {
        let priority = match request.priority {
            Priority::Demand => snowmelt_cache::Priority::Demand,
            Priority::Prefetch => snowmelt_cache::Priority::Prefetch,
            Priority::Background => snowmelt_cache::Priority::Background,
        };
        ChunkRequest { id: record.id, suite: self.manifest.suite(), secret, priority }
    }

    fn error(&self, index: u64, tier: Tier, error: snowmelt_cache::Error) -> Error {
        let operation = "read";
        let subject = format!("chunk {} of image {} in {tier}", self.chunk_name(index), self.name);
        let (is_unavailable, is_missing) = (error.is_unavailable(), error.is_missing());
        let source: Option<crate::Cause> = Some(Arc::new(error));
        if is_unavailable {
            Error::Unavailable { operation, subject, source }
        } else if is_missing {
            Error::NotFound { operation, subject, source }
        } else {
            Error::Corrupt { operation, subject, source }
        }
    }
}

impl From<snowmelt_cache::Tier> for Tier {
    fn from(tier: snowmelt_cache::Tier) -> Self {
        match tier {
            snowmelt_cache::Tier::Memory => Self::Memory,
            snowmelt_cache::Tier::Disk => Self::Disk,
            snowmelt_cache::Tier::Zone => Self::Zone,
            snowmelt_cache::Tier::Origin => Self::Origin,
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
        let wanted = self.request(record, &secret, request);
        let read = self.tiers.read_chunk(&wanted, plaintext, &|tier| request.set_tier(tier.into()));
        read.map(|tier| request.set_tier(tier.into())).map_err(|error| self.error(index, request.tier(), error))
    }

    fn warm_chunk(&self, index: u64, request: &LoadRequest) -> Result<(), Error> {
        let chunk = u32::try_from(index).ok().and_then(|slot| self.manifest.chunk(slot));
        let Some((record, secret)) = chunk else { return Ok(()) };
        let wanted = self.request(record, &secret, request);
        let warmed = self.tiers.warm_chunk(&wanted, record.stored_length, &|tier| request.set_tier(tier.into()));
        warmed.map_err(|error| self.error(index, request.tier(), error))
    }

    fn are_near(&self, indices: &[u64]) -> Vec<bool> {
        let chunks = indices.iter().map(|index| {
            let chunk = u32::try_from(*index).ok().and_then(|slot| self.manifest.chunk(slot));
            chunk.map(|(record, _)| (record.id, record.stored_length))
        });
        let chunks: Vec<Option<(ChunkId, u32)>> = chunks.collect();
        let asked: Vec<(ChunkId, u32)> = chunks.iter().flatten().copied().collect();
        let mut near = self.tiers.are_near(&asked).into_iter();
        chunks.iter().map(|chunk| chunk.is_none() || near.next().unwrap_or(false)).collect()
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
