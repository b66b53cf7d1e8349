//! Making manifests: of an image that is being published, or again of one that is opened.

use aws_lc_rs::aead::{Aad, Nonce};

use super::{ChunkRecord, Geometry, Manifest, bad, layout, sealing_key};
use crate::keys::{KeyService, KeyUse, WrappedKey};
use crate::secret_bytes::SecretBytes;
use crate::{ChunkSecret, Error, Suite};

/// Collects the chunks of an image and seals them into a [`Manifest`].
#[derive(Debug)]
pub struct ManifestBuilder {
    suite: Suite,
    geometry: Geometry,
    chunks: Vec<(ChunkRecord, ChunkSecret)>,
}

impl ManifestBuilder {
    /// Begins the manifest of an image of that geometry.
    ///
    /// # Errors
    /// [`Error::BadManifest`] for a geometry outside of the format's limits.
    pub fn new(suite: Suite, geometry: Geometry) -> Result<Self, Error> {
        geometry.check()?;
        Ok(Self { suite, geometry, chunks: Vec::new() })
    }

    /// Adds a chunk, in any order of slots.
    pub fn push(&mut self, record: ChunkRecord, secret: ChunkSecret) {
        self.chunks.push((record, secret));
    }

    /// Seals the manifest of `tenant`'s `image`, a full name, under a fresh data key from `keys`. `metadata` (at most 8 MiB) is
    /// sealed with it. May be called again, for other metadata.
    ///
    /// # Errors
    /// Those of the key service, and [`Error::BadManifest`] for chunks that overlap or do not fit the geometry.
    pub fn seal(
        &mut self,
        tenant: &str,
        image: &str,
        metadata: &[u8],
        keys: &dyn KeyService,
    ) -> Result<Manifest, Error> {
        self.chunks.sort_by_key(|(record, _)| record.slot);
        let records: Vec<ChunkRecord> = self.chunks.iter().map(|(record, _)| *record).collect();
        let entry_bytes = self.suite.secret_bytes();
        let write_table = |table: &mut [u8]| {
            for (entry, (_, secret)) in table.chunks_exact_mut(entry_bytes).zip(&self.chunks) {
                let (key, tag) = entry.split_at_mut(32);
                key.copy_from_slice(&secret.key);
                tag.copy_from_slice(&secret.tag[..tag.len()]);
            }
        };
        Parts { suite: self.suite, geometry: self.geometry, records: &records, metadata }.seal(
            &KeyUse { tenant, image },
            keys,
            write_table,
        )
    }
}

/// What a manifest is made of, but for its secrets.
pub(super) struct Parts<'a> {
    pub(super) suite: Suite,
    pub(super) geometry: Geometry,
    /// By ascending slot.
    pub(super) records: &'a [ChunkRecord],
    pub(super) metadata: &'a [u8],
}

impl Parts<'_> {
    /// Seals it under a fresh data key. `write_table` is given the room of the key table, in which it puts the secrets in the
    /// order of the records, so that they are nowhere else.
    pub(super) fn seal(
        &self,
        use_: &KeyUse<'_>,
        keys: &dyn KeyService,
        write_table: impl FnOnce(&mut [u8]),
    ) -> Result<Manifest, Error> {
        if self.metadata.len() > layout::MAX_METADATA {
            return Err(bad(format!("{} bytes of metadata: at most 8 MiB", self.metadata.len())));
        }
        let (data_key, wrapped_key) = keys.generate_data_key(use_)?;
        // A fresh data key per manifest makes any nonce unique; a random one stays safe even if a key service repeats itself.
        let mut nonce = [0; layout::NONCE];
        crate::keys::fill_random(&mut nonce)?;
        let mut bytes = self.encode_clear(use_.tenant, &wrapped_key)?;
        let table_bytes = self.records.len() * self.suite.secret_bytes();
        let mut sealed = SecretBytes::zeroed(table_bytes + self.metadata.len());
        let (table, metadata) = sealed.split_at_mut(table_bytes);
        write_table(table);
        metadata.copy_from_slice(self.metadata);
        let tag = sealing_key(&data_key)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&bytes), &mut sealed)
            .map_err(|_| bad("it is too large to be sealed"))?;
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        bytes.extend_from_slice(tag.as_ref());
        Manifest::decode(&bytes)
    }

    fn encode_clear(&self, tenant: &str, wrapped: &WrappedKey) -> Result<Vec<u8>, Error> {
        let length = |what: &str, bytes: usize| {
            u16::try_from(bytes).map_err(|_| bad(format!("a {what} of {bytes} bytes: at most 65535")))
        };
        let count = self.records.len();
        let sealed_length = layout::NONCE + count * self.suite.secret_bytes() + self.metadata.len() + layout::TAG;
        let clear_length = layout::HEADER + 256 + wrapped.bytes.len() + count * layout::RECORD;
        let mut bytes = Vec::with_capacity(clear_length + sealed_length);
        bytes.extend_from_slice(layout::MAGIC);
        bytes.extend_from_slice(&layout::VERSION.to_le_bytes());
        bytes.extend_from_slice(&[self.suite.code(), 0]);
        bytes.extend_from_slice(&self.geometry.chunk_size.to_le_bytes());
        bytes.extend_from_slice(&self.geometry.image_size.to_le_bytes());
        bytes.extend_from_slice(&(count as u64).to_le_bytes());
        bytes.extend_from_slice(&(sealed_length as u64).to_le_bytes());
        bytes.extend_from_slice(&length("tenant", tenant.len())?.to_le_bytes());
        bytes.extend_from_slice(&length("key id", wrapped.key_id.len())?.to_le_bytes());
        bytes.extend_from_slice(&length("wrapped key", wrapped.bytes.len())?.to_le_bytes());
        bytes.extend_from_slice(&[0; 10]);
        debug_assert_eq!(bytes.len(), layout::HEADER);
        bytes.extend_from_slice(tenant.as_bytes());
        bytes.extend_from_slice(wrapped.key_id.as_bytes());
        bytes.extend_from_slice(&wrapped.bytes);
        for record in self.records {
            bytes.extend_from_slice(&record.slot.to_le_bytes());
            bytes.extend_from_slice(&record.stored_length.to_le_bytes());
            bytes.extend_from_slice(&record.id.0);
        }
        Ok(bytes)
    }
}
