//! A manifest that is open: what a reader with the key has.

use std::fmt;

use zeroize::Zeroizing;

use super::seal::Parts;
use super::{ChunkRecord, Geometry, Manifest, layout};
use crate::keys::{KeyService, KeyUse};
use crate::secret_bytes::SecretBytes;
use crate::{ChunkSecret, Error, ManifestId, Suite};

/// A manifest with its keys: what can read the image. What was sealed stays in memory that is not swapped or dumped.
pub struct OpenedManifest {
    id: ManifestId,
    suite: Suite,
    geometry: Geometry,
    records: Vec<ChunkRecord>,
    /// The sealed part as it was decrypted: the key table, the metadata, and what is left of the tag.
    opened: SecretBytes,
    /// 32 bytes that are derived from the data key.
    handover_key: SecretBytes,
}

impl fmt::Debug for OpenedManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedManifest")
            .field("id", &self.id)
            .field("suite", &self.suite)
            .field("geometry", &self.geometry)
            .field("chunk_count", &self.records.len())
            .finish_non_exhaustive()
    }
}

impl OpenedManifest {
    /// `opened` is the sealed part after its nonce, decrypted in place.
    pub(super) fn new(manifest: &Manifest, opened: SecretBytes, handover_key: SecretBytes) -> Self {
        Self {
            id: manifest.id(),
            suite: manifest.suite,
            geometry: manifest.geometry,
            records: manifest.records().collect(),
            opened,
            handover_key,
        }
    }

    /// A key that whoever opens this manifest has and nobody else: for what a process leaves to the next that opens it.
    pub fn handover_key(&self) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&self.handover_key);
        key
    }

    /// The manifest's id.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// Which algorithms its chunks use.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The size of the image and of its chunks.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The metadata that was sealed with it.
    pub fn metadata(&self) -> &[u8] {
        &self.opened[self.table_bytes()..self.opened.len() - layout::TAG]
    }

    /// The stored chunks, by ascending slot.
    pub fn records(&self) -> &[ChunkRecord] {
        &self.records
    }

    /// The chunk in a slot and what opens it; `None` for a hole.
    pub fn chunk(&self, slot: u32) -> Option<(&ChunkRecord, ChunkSecret)> {
        let index = self.records.binary_search_by_key(&slot, |record| record.slot).ok()?;
        let entry_bytes = self.suite.secret_bytes();
        let (key, tag) = self.opened[index * entry_bytes..][..entry_bytes].split_at(32);
        let mut secret = ChunkSecret { key: [0; 32], tag: [0; 16] };
        secret.key.copy_from_slice(key);
        secret.tag[..tag.len()].copy_from_slice(tag);
        Some((&self.records[index], secret))
    }

    /// Seals the same chunks again, under a fresh data key: for a new tenant key, another name or tenant, or changed metadata.
    /// No chunk is touched.
    ///
    /// # Errors
    /// Those of the key service, and [`Error::BadManifest`] for more than 8 MiB of metadata.
    pub fn reseal(&self, use_: &KeyUse<'_>, metadata: &[u8], keys: &dyn KeyService) -> Result<Manifest, Error> {
        let parts = Parts { suite: self.suite, geometry: self.geometry, records: &self.records, metadata };
        parts.seal(use_, keys, |table| table.copy_from_slice(&self.opened[..self.table_bytes()]))
    }

    fn table_bytes(&self) -> usize {
        self.records.len() * self.suite.secret_bytes()
    }
}
