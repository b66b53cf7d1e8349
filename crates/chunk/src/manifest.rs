//! The manifest: an image's geometry and chunk ids in the clear, chunk keys and image metadata sealed.
//!
//! `Manifest` is the encoded form, checked; `OpenedManifest` is what a reader with the key sees. docs/format.md
//! describes the bytes, `layout` below is the one place in the code that knows their offsets.

mod opened;
mod seal;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
pub use opened::OpenedManifest;
pub use seal::ManifestBuilder;

use zeroize::Zeroizing;

use crate::keys::{DataKey, KeyService, KeyUse, WrappedKey};
use crate::secret_bytes::SecretBytes;
use crate::{ChunkId, Error, ManifestId, Suite};

/// Bytes of a page, the grain of trailing zeros that are not stored.
pub const PAGE_SIZE: u32 = 4096;

/// 512 KiB: the size that Lambda settled on (*On-demand Container Loading*, section 3). A manifest records the size it was made
/// with, so changing this does not change the format.
pub const DEFAULT_CHUNK_SIZE: u32 = 512 << 10;

/// Offsets and lengths of the fixed parts, in bytes; all numbers are little-endian.
mod layout {
    pub(super) const MAGIC: &[u8; 8] = b"SNOWMELT";
    pub(super) const VERSION: u16 = 1;
    pub(super) const HEADER: usize = 56;
    pub(super) const RECORD: usize = 40;
    pub(super) const NONCE: usize = 12;
    pub(super) const TAG: usize = 16;
    /// The largest chunk that a manifest may ask a reader to hold in memory.
    pub(super) const MAX_CHUNK_SIZE: u32 = 64 << 20;
    /// The largest image: what ext4 with 4 KiB blocks and 32-bit block numbers holds.
    pub(super) const MAX_IMAGE_SIZE: u64 = 16 << 40;
    /// The largest image metadata.
    pub(super) const MAX_METADATA: usize = 8 << 20;
}

/// The size of an image and of its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes of the image, a multiple of [`PAGE_SIZE`].
    pub image_size: u64,
    /// Bytes of a chunk, a power of two and at least [`PAGE_SIZE`].
    pub chunk_size: u32,
}

impl Geometry {
    /// How many chunks, holes included, the image is cut into.
    pub fn slot_count(&self) -> u64 {
        self.image_size.div_ceil(u64::from(self.chunk_size))
    }

    /// Bytes of the slot: the chunk size, less in the image's last one.
    pub fn slot_length(&self, slot: u32) -> u32 {
        let start = u64::from(slot) * u64::from(self.chunk_size);
        self.image_size.saturating_sub(start).min(u64::from(self.chunk_size)) as u32
    }

    fn check(&self) -> Result<(), Error> {
        if !self.chunk_size.is_power_of_two() || !(PAGE_SIZE..=layout::MAX_CHUNK_SIZE).contains(&self.chunk_size) {
            return Err(bad(format!("a chunk size of {} bytes: a power of two from 4096 to 64 MiB", self.chunk_size)));
        }
        if !self.image_size.is_multiple_of(u64::from(PAGE_SIZE)) || self.image_size > layout::MAX_IMAGE_SIZE {
            return Err(bad(format!("an image size of {} bytes: a multiple of 4096 up to 16 TiB", self.image_size)));
        }
        if self.slot_count() > u64::from(u32::MAX) {
            return Err(bad(format!("{} chunks: at most 4294967295", self.slot_count())));
        }
        Ok(())
    }
}

/// A stored chunk of an image, as everybody may see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRecord {
    /// Which slot of the image it fills; its offset is `slot * chunk_size` bytes.
    pub slot: u32,
    /// Bytes that are stored, a multiple of [`PAGE_SIZE`]; the rest of the slot is zeros.
    pub stored_length: u32,
    /// The name of its ciphertext.
    pub id: ChunkId,
}

/// An encoded manifest whose clear part has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    bytes: Vec<u8>,
    suite: Suite,
    geometry: Geometry,
    tenant: String,
    wrapped_key: WrappedKey,
    records: std::ops::Range<usize>,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest")
            .field("id", &self.id())
            .field("tenant", &self.tenant)
            .field("suite", &self.suite)
            .field("geometry", &self.geometry)
            .field("chunk_count", &self.chunk_count())
            .finish_non_exhaustive()
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::BadManifest(what.into())
}

/// Takes numbers and strings off the front of a slice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.0.split_at_checked(length).ok_or_else(|| bad("it is truncated"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.bytes(N).map(|bytes| bytes.try_into().expect("a slice of N bytes"))
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, length: u16, what: &str) -> Result<String, Error> {
        let bytes = self.bytes(usize::from(length))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| bad(format!("its {what} is not UTF-8")))
    }
}

impl Manifest {
    /// Checks the clear part of an encoded manifest. Whether the sealed part is whole shows when it is opened.
    ///
    /// # Errors
    /// [`Error::BadManifest`] and [`Error::Unsupported`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut cursor = Cursor(bytes);
        if cursor.array::<8>().ok().as_ref() != Some(layout::MAGIC) {
            return Err(bad("it does not begin with SNOWMELT"));
        }
        let version = cursor.u16()?;
        if version != layout::VERSION {
            return Err(Error::Unsupported(format!("format version {version}")));
        }
        let [suite, reserved] = cursor.array()?;
        let suite = Suite::from_code(suite).ok_or_else(|| Error::Unsupported(format!("suite number {suite}")))?;
        let chunk_size = cursor.u32()?;
        let image_size = cursor.u64()?;
        let chunk_count = cursor.u64()?;
        let sealed_length = cursor.u64()?;
        let (tenant_length, key_id_length, wrapped_length) = (cursor.u16()?, cursor.u16()?, cursor.u16()?);
        let reserved_2 = cursor.array::<10>()?;
        if reserved != 0 || reserved_2 != [0; 10] {
            return Err(bad("its reserved bytes are not zero"));
        }
        let geometry = Geometry { image_size, chunk_size };
        geometry.check()?;
        if chunk_count > geometry.slot_count() {
            return Err(bad(format!("{chunk_count} chunks in an image of {} slots", geometry.slot_count())));
        }
        let tenant = cursor.text(tenant_length, "tenant")?;
        let wrapped_key = WrappedKey {
            key_id: cursor.text(key_id_length, "key id")?,
            bytes: cursor.bytes(usize::from(wrapped_length))?.to_vec(),
        };
        // What remains must be exactly the records and the sealed part; comparing in u128 leaves no room for overflow.
        let records_length = u128::from(chunk_count) * layout::RECORD as u128;
        if cursor.0.len() as u128 != records_length + u128::from(sealed_length) {
            return Err(bad("its length is not what its header says: it is truncated or has grown"));
        }
        let key_table = u128::from(chunk_count) * suite.secret_bytes() as u128;
        let overhead = (layout::NONCE + layout::TAG) as u128;
        if !(key_table + overhead..=key_table + overhead + layout::MAX_METADATA as u128)
            .contains(&u128::from(sealed_length))
        {
            return Err(bad("its sealed part cannot hold the keys of its chunks"));
        }
        let start = bytes.len() - cursor.0.len();
        let manifest = Self {
            bytes: bytes.to_vec(),
            suite,
            geometry,
            tenant,
            wrapped_key,
            records: start..start + records_length as usize,
        };
        manifest.check_records()?;
        Ok(manifest)
    }

    fn check_records(&self) -> Result<(), Error> {
        let mut next_slot = 0;
        for record in self.records() {
            if u64::from(record.slot) < next_slot || u64::from(record.slot) >= self.geometry.slot_count() {
                return Err(bad(format!("chunk {} is out of order or outside of the image", record.slot)));
            }
            next_slot = u64::from(record.slot) + 1;
            let length = record.stored_length;
            if length == 0 || !length.is_multiple_of(PAGE_SIZE) || length > self.geometry.slot_length(record.slot) {
                return Err(bad(format!("chunk {} cannot have a stored length of {length} bytes", record.slot)));
            }
        }
        Ok(())
    }

    /// The encoded manifest, as it is stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name under which it is stored.
    pub fn id(&self) -> ManifestId {
        ManifestId::of(&self.bytes)
    }

    /// Which algorithms its chunks use.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The size of the image and of its chunks.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Who owns it.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The id of the key that its data key is wrapped under.
    pub fn key_id(&self) -> &str {
        &self.wrapped_key.key_id
    }

    /// How many chunks are stored; the image's other slots are holes.
    pub fn chunk_count(&self) -> usize {
        self.records.len() / layout::RECORD
    }

    /// The stored chunks, by ascending slot. Needs no key: this is what garbage collection reads.
    pub fn records(&self) -> impl ExactSizeIterator<Item = ChunkRecord> + '_ {
        self.bytes[self.records.clone()].chunks_exact(layout::RECORD).map(|record| {
            let number = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
            ChunkRecord {
                slot: number(0),
                stored_length: number(4),
                id: ChunkId(record[8..].try_into().expect("a record ends with an id of 32 bytes")),
            }
        })
    }

    /// Bytes of all stored chunks, each counted once for every slot that it fills.
    pub fn stored_bytes(&self) -> u64 {
        self.records().map(|record| u64::from(record.stored_length)).sum()
    }

    /// Opens the sealed part. `image` is the full name that it was published under, which key services may have bound its key to.
    ///
    /// # Errors
    /// Those of the key service: [`Error::NoKey`] without the tenant's key, [`Error::KeyServiceUnavailable`],
    /// [`Error::KeyService`]. [`Error::Unauthentic`] when the key does not open it, any byte of the manifest was changed, or it
    /// is another image's.
    pub fn open(&self, keys: &dyn KeyService, image: &str) -> Result<OpenedManifest, Error> {
        self.open_with(&self.data_key(keys, image)?)
    }

    /// The key of the sealed part, from the key service.
    ///
    /// # Errors
    /// Those of the key service, as [`Manifest::open`].
    pub fn data_key(&self, keys: &dyn KeyService, image: &str) -> Result<DataKey, Error> {
        keys.unwrap_data_key(&KeyUse { tenant: &self.tenant, image }, &self.wrapped_key)
    }

    /// Opens the sealed part with its key.
    ///
    /// # Errors
    /// [`Error::Unauthentic`], as [`Manifest::open`].
    pub fn open_with(&self, data_key: &DataKey) -> Result<OpenedManifest, Error> {
        let (clear, sealed) = self.bytes.split_at(self.records.end);
        let (nonce, sealed) = sealed.split_at(layout::NONCE);
        let mut opened = SecretBytes::copy_of(sealed);
        sealing_key(data_key)
            .open_in_place(
                Nonce::try_assume_unique_for_key(nonce).expect("the nonce was cut to its length"),
                Aad::from(clear),
                &mut opened,
            )
            .map_err(|_| Error::Unauthentic { tenant: self.tenant.clone() })?;
        let handover_key = blake3::derive_key(HANDOVER_CONTEXT, data_key.expose());
        let handover_key = SecretBytes::copy_of(&Zeroizing::new(handover_key)[..]);
        Ok(OpenedManifest::new(self, opened, handover_key))
    }
}

/// Says what the key of [`OpenedManifest::handover_key`] is for. The data key, and not the key table: images that share chunks share
/// their keys.
const HANDOVER_CONTEXT: &str = "snowmelt 2026-11-26 what one agent leaves to the next";

fn sealing_key(data_key: &DataKey) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, data_key.expose()).expect("an AES-256 key has 32 bytes"))
}

#[cfg(test)]
mod tests;
