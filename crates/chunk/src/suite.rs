//! The two suites: how a chunk is encrypted, named and checked.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::digest;
use aws_lc_rs::iv::FixedLength;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::salt::hkdf_sha256;
use crate::{ChunkId, Error, Salt};

/// Which algorithms a manifest's chunks use (section 2 of the design).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Suite {
    /// `key = BLAKE3-keyed(salt, plaintext)`, AES-256-GCM with nonce 0, the tag kept beside the key, `id = BLAKE3(ciphertext)`.
    ///
    /// The default: opening a chunk costs one pass of GCM, where the other suite needs SHA-256 and CTR.
    #[default]
    Blake3Gcm,
    /// `key = HKDF-SHA256(SHA-256(plaintext), salt)`, AES-256-CTR with IV 0, `id = SHA-256(ciphertext)`: that of
    /// *On-demand Container Loading in AWS Lambda* (USENIX ATC 2023), section 3.1.
    Sha256Ctr,
}

/// What opens one chunk: its key and, in [`Suite::Blake3Gcm`], its tag. Zeroised when dropped, never shown.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ChunkSecret {
    /// AES-256 key.
    pub key: [u8; 32],
    /// GCM tag; all zeros where the suite has none.
    pub tag: [u8; 16],
}

impl fmt::Debug for ChunkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChunkSecret(secret)")
    }
}

/// A chunk that has been encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The name of its ciphertext.
    pub id: ChunkId,
    /// What opens it.
    pub secret: ChunkSecret,
}

/// The info of HKDF in [`Suite::Sha256Ctr`].
const CHUNK_KEY_INFO: &[u8] = b"snowmelt chunk key v1";

impl Suite {
    /// The suite's number in a manifest.
    pub fn code(self) -> u8 {
        match self {
            Self::Sha256Ctr => 1,
            Self::Blake3Gcm => 2,
        }
    }

    /// The suite with this number in a manifest.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Sha256Ctr, Self::Blake3Gcm].into_iter().find(|suite| suite.code() == code)
    }

    /// Bytes of a chunk's entry in the sealed key table: a key of 32, and a tag of 16 where the suite has one.
    pub(crate) fn secret_bytes(self) -> usize {
        match self {
            Self::Sha256Ctr => 32,
            Self::Blake3Gcm => 48,
        }
    }

    /// Encrypts `plaintext` into `ciphertext`, which has the same length.
    ///
    /// # Panics
    /// When the two lengths differ.
    pub fn seal(self, salt: &Salt, plaintext: &[u8], ciphertext: &mut [u8]) -> Sealed {
        ciphertext.copy_from_slice(plaintext);
        let mut tag = [0; 16];
        let key = match self {
            Self::Blake3Gcm => *blake3::keyed_hash(salt.expose(), plaintext).as_bytes(),
            Self::Sha256Ctr => {
                hkdf_sha256(salt.expose(), digest::digest(&digest::SHA256, plaintext).as_ref(), CHUNK_KEY_INFO)
            }
        };
        match self {
            Self::Blake3Gcm => {
                let sealed = gcm_key(&key)
                    .seal_in_place_separate_tag(zero_nonce(), Aad::empty(), ciphertext)
                    .expect("a chunk is far below the limit of GCM");
                tag.copy_from_slice(sealed.as_ref());
            }
            Self::Sha256Ctr => ctr_apply(&key, ciphertext),
        }
        Sealed { id: self.id_of(ciphertext), secret: ChunkSecret { key, tag } }
    }

    /// The id of a stored chunk, from its ciphertext.
    pub fn id_of(self, ciphertext: &[u8]) -> ChunkId {
        ChunkId(match self {
            Self::Blake3Gcm => *blake3::hash(ciphertext).as_bytes(),
            Self::Sha256Ctr => {
                let mut id = [0; 32];
                id.copy_from_slice(digest::digest(&digest::SHA256, ciphertext).as_ref());
                id
            }
        })
    }

    /// Decrypts `ciphertext` into `plaintext`, which has the same length.
    ///
    /// [`Suite::Blake3Gcm`] finds damage here; [`Suite::Sha256Ctr`] has no tag, so its ciphertext must have been
    /// compared with its id ([`Suite::id_of`]) since it last was in anybody else's hands.
    ///
    /// # Errors
    /// [`Error::BadChunk`] when the tag does not match. `plaintext` then holds nothing of use.
    ///
    /// # Panics
    /// When the two lengths differ.
    pub fn open(self, secret: &ChunkSecret, ciphertext: &[u8], plaintext: &mut [u8]) -> Result<(), Error> {
        assert_eq!(ciphertext.len(), plaintext.len(), "a chunk's plaintext is as long as its ciphertext");
        match self {
            Self::Blake3Gcm => gcm_key(&secret.key)
                .open_separate_gather(zero_nonce(), Aad::empty(), ciphertext, &secret.tag, plaintext)
                .map_err(|_| Error::BadChunk { id: "?".into(), what: "its tag does not match" }),
            Self::Sha256Ctr => {
                plaintext.copy_from_slice(ciphertext);
                ctr_apply(&secret.key, plaintext);
                Ok(())
            }
        }
    }

    /// As [`Suite::open`], in the memory that holds the ciphertext.
    ///
    /// # Errors
    /// [`Error::BadChunk`] when the tag does not match. `bytes` then hold nothing of use.
    pub fn open_in_place(self, secret: &ChunkSecret, bytes: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::Blake3Gcm => gcm_key(&secret.key)
                .open_in_place_separate_tag(zero_nonce(), Aad::empty(), &secret.tag, bytes)
                .map(drop)
                .map_err(|_| Error::BadChunk { id: "?".into(), what: "its tag does not match" }),
            Self::Sha256Ctr => {
                ctr_apply(&secret.key, bytes);
                Ok(())
            }
        }
    }

    /// Whether [`Suite::open`] finds damage by itself, so that bytes from a trusted tier need no second hash.
    pub fn open_authenticates(self) -> bool {
        matches!(self, Self::Blake3Gcm)
    }
}

/// Every key encrypts one plaintext only, so a constant nonce is never reused with a key.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn gcm_key(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes"))
}

/// AES-256-CTR with IV 0: encrypts and decrypts alike.
fn ctr_apply(key: &[u8; 32], bytes: &mut [u8]) {
    let key = UnboundCipherKey::new(&AES_256, key).expect("an AES-256 key has 32 bytes");
    EncryptingKey::ctr(key)
        .and_then(|key| key.less_safe_encrypt(bytes, EncryptionContext::Iv128(FixedLength::from([0; 16]))))
        .expect("CTR encrypts any length that a chunk may have");
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blake3Gcm => "blake3-gcm",
            Self::Sha256Ctr => "sha256-ctr",
        })
    }
}

impl FromStr for Suite {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "blake3-gcm" => Ok(Self::Blake3Gcm),
            "sha256-ctr" => Ok(Self::Sha256Ctr),
            _ => Err(Error::Invalid(format!("unknown suite {text:?}: blake3-gcm or sha256-ctr"))),
        }
    }
}

#[cfg(test)]
mod tests;
