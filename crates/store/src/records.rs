//! What is kept about an image besides its chunks.

use std::fmt;

use serde::{Deserialize, Serialize};
use snowmelt_chunk::{ManifestId, OpenedManifest};
use snowmelt_image::ImageConfig;

use crate::Error;
use crate::roots::MOST_COUNT;

/// What a name stands for, in the clear.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct NameRecord {
    /// Version of this record: 1.
    pub version: u32,
    /// The manifest's id, 64 hexadecimal digits.
    pub manifest: String,
    /// The root that manifest and chunks are in.
    pub root: String,
    /// Counts how often the name was published.
    pub generation: u64,
    /// Seconds since 1970.
    pub published_at: u64,
    /// Where the image came from, as its publisher named it.
    pub source: String,
    /// Bytes of the image, holes included.
    pub image_size: u64,
    /// Bytes of its stored chunks.
    pub stored_bytes: u64,
    /// How many chunks it has.
    pub chunk_count: u64,
    /// Counts changes of this object that change nothing else: see `Store::fence_name`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fence: u64,
    /// Which salt its chunks were published under; records of older versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<SaltLabel>,
}

/// What a salt was derived for, besides the root; see docs/format.md.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SaltLabel {
    /// Counts rotations.
    pub epoch: u32,
    /// Zone and popularity class.
    pub class: String,
    /// `everyone`, `tenant` or `layer:NAME`.
    pub scope: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl NameRecord {
    /// The manifest's id.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the record does not hold one.
    pub fn manifest_id(&self) -> Result<ManifestId, Error> {
        self.manifest
            .parse()
            .map_err(|_| Error::corrupt("a name's record", format!("{:?} is no manifest id", self.manifest)))
    }

    pub(crate) fn decode(subject: &str, bytes: &[u8]) -> Result<Self, Error> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(subject, error.to_string()))?;
        if record.version != 1 {
            return Err(Error::corrupt(subject, format!("its version is {}: upgrade snowmelt", record.version)));
        }
        record.manifest_id()?;
        let numbers = [record.generation, record.published_at, record.fence];
        let sizes = [record.image_size, record.stored_bytes, record.chunk_count];
        if numbers.into_iter().chain(sizes).any(|number| number > MOST_COUNT) {
            return Err(Error::corrupt(subject, "a number in it is too large"));
        }
        crate::store::check_root(&record.root).map_err(|error| Error::corrupt(subject, error.to_string()))?;
        Ok(record)
    }
}

/// What is sealed in the manifest with the chunk keys: only who may read the image may see how it runs.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ImageMetadata {
    /// How to run it.
    pub config: ImageConfig,
    /// Digest of the source's manifest, where it has one.
    pub source_digest: Option<String>,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// What binds the manifest to its name; manifests of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<NameBinding>,
}

/// Which name a manifest was published under, and when: sealed, so that a name's record, which is in the clear, cannot be made to
/// stand for another image or an older one unnoticed.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct NameBinding {
    /// `name:tag`.
    pub name: String,
    /// As in the name's record.
    pub generation: u64,
    /// As in the name's record.
    pub published_at: u64,
}

impl fmt::Debug for ImageMetadata {
    /// Variables of the environment may be secrets, so the configuration does not show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageMetadata")
            .field("source_digest", &self.source_digest)
            .field("content_bytes", &self.content_bytes)
            .field("binding", &self.binding)
            .finish_non_exhaustive()
    }
}

impl ImageMetadata {
    /// The bytes that are sealed, bound to a name.
    pub(crate) fn encode(&self, binding: &NameBinding) -> Vec<u8> {
        let bound = Self { binding: Some(binding.clone()), ..self.clone() };
        serde_json::to_vec(&bound).expect("metadata of plain fields is JSON")
    }

    /// Reads the metadata of an opened manifest.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is not that of an image.
    pub fn of(manifest: &OpenedManifest) -> Result<Self, Error> {
        serde_json::from_slice(manifest.metadata())
            .map_err(|error| Error::corrupt(format!("the metadata of manifest {}", manifest.id()), error.to_string()))
    }
}
