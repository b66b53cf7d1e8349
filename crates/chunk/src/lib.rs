//! Chunks, their keys, and the manifest that lists them.
//!
//! A flattened image is cut into chunks of equal size. Each chunk is encrypted *convergently*: its key is a function of
//! its plaintext and a secret [`Salt`], so equal plaintext under an equal salt gives equal ciphertext, which is stored
//! once for everybody under the hash of that ciphertext, its [`ChunkId`]. A [`Manifest`] lists the chunks of an image in
//! the clear and their keys sealed under a tenant's key. This crate does no I/O but for the key files of [`LocalKeys`].
//!
//! ```
//! use snowmelt_chunk::{Salt, Suite};
//!
//! let salt = Salt::from_bytes([7; 32]);
//! let plaintext = vec![42; 8192];
//! let mut ciphertext = vec![0; plaintext.len()];
//! let sealed = Suite::Blake3Gcm.seal(&salt, &plaintext, &mut ciphertext);
//! assert_eq!(Suite::Blake3Gcm.id_of(&ciphertext), sealed.id);
//!
//! let mut opened = vec![0; ciphertext.len()];
//! Suite::Blake3Gcm.open(&sealed.secret, &ciphertext, &mut opened).unwrap();
//! assert_eq!(opened, plaintext);
//! ```
//!
//! docs/format.md describes every byte; `tests/vectors` pins them.

mod error;
mod id;
mod keys;
mod manifest;
mod salt;
mod secret_bytes;
mod suite;

pub use error::Error;
pub use id::{ChunkId, ManifestId};
pub use keys::{DataKey, KeyRing, KeyService, KeyUse, LocalKeys, Rotated, WrappedKey, check_tenant};
pub use manifest::{ChunkRecord, DEFAULT_CHUNK_SIZE, Geometry, Manifest, ManifestBuilder, OpenedManifest, PAGE_SIZE};
pub use salt::{Salt, SaltDomain, Scope};
pub use secret_bytes::no_core_files;
pub use suite::{ChunkSecret, Sealed, Suite};

/// Entry points for fuzzers: bytes from outside in, no panic out.
#[doc(hidden)]
pub mod fuzz {
    /// Decodes `input` as a manifest; one that decodes must encode to the same bytes. Then once more with the length of the
    /// sealed part mended, which a fuzzer seldom gets right by chance.
    pub fn fuzz_manifest(input: &[u8]) {
        decode(input);
        // Offsets as in docs/format.md: chunk count at 24, sealed length at 32, three lengths from 40, header of 56 bytes.
        if input.len() >= 56 {
            let mut mended = input.to_vec();
            let length = |at: usize| usize::from(u16::from_le_bytes([input[at], input[at + 1]]));
            let chunks = usize::from(input[24]);
            mended[24..32].copy_from_slice(&(chunks as u64).to_le_bytes());
            let clear = 56 + length(40) + length(42) + length(44) + chunks * 40;
            mended[32..40].copy_from_slice(&(input.len().saturating_sub(clear) as u64).to_le_bytes());
            decode(&mended);
        }
    }

    fn decode(input: &[u8]) {
        if let Ok(manifest) = crate::Manifest::decode(input) {
            assert_eq!(manifest.as_bytes(), input);
            for record in manifest.records() {
                assert!(u64::from(record.slot) < manifest.geometry().slot_count());
            }
        }
    }
}
