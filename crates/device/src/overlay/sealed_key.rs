//! An overlay's key, sealed for a process that holds it for a successor and must not be able to use it.
//!
//! AES-256-GCM under the sealing key: one byte of version, a random nonce of 12 bytes, the sealed key, a tag of 16 bytes. What
//! authenticates with it is which overlay it is of.

use std::io;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::Error;

const VERSION: u8 = 1;
/// Bytes of a key, also of one that seals.
pub(super) const KEY_BYTES: usize = 32;
const SEALED_BYTES: usize = 1 + NONCE_LEN + KEY_BYTES + 16;

fn key_of(sealing_key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, sealing_key).expect("an AES-256 key has 32 bytes"))
}

fn bound_to(overlay: u128) -> Aad<Vec<u8>> {
    Aad::from([b"snowmelt overlay key 1".as_slice(), &overlay.to_le_bytes()].concat())
}

pub(super) fn seal(sealing_key: &[u8; KEY_BYTES], overlay: u128, secret: &[u8; KEY_BYTES]) -> Result<Vec<u8>, Error> {
    let failed = |why: &str| Error::io("seal the key of", "an overlay", io::Error::other(why));
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|_| failed("no random bytes"))?;
    let mut sealed = Vec::with_capacity(SEALED_BYTES);
    sealed.push(VERSION);
    sealed.extend_from_slice(&nonce);
    let mut secret = Zeroizing::new(*secret);
    let tag = key_of(sealing_key)
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), bound_to(overlay), secret.as_mut())
        .map_err(|_| failed("it was refused"))?;
    sealed.extend_from_slice(secret.as_ref());
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// # Errors
/// [`Error::Invalid`] where key, overlay or bytes do not belong together.
pub(super) fn open(
    sealing_key: &[u8; KEY_BYTES],
    overlay: u128,
    sealed: &[u8],
) -> Result<Zeroizing<[u8; KEY_BYTES]>, Error> {
    let refused = || Error::Invalid {
        operation: "take over an overlay",
        subject: "its key does not open: it was sealed under another key or for another overlay, or was changed".into(),
    };
    let (VERSION, rest) = sealed.split_first().map(|(version, rest)| (*version, rest)).ok_or_else(refused)? else {
        return Err(refused());
    };
    let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(refused)?;
    let mut bytes = Zeroizing::new(ciphertext.to_vec());
    let opened = key_of(sealing_key)
        .open_in_place(Nonce::assume_unique_for_key(*nonce), bound_to(overlay), &mut bytes)
        .map_err(|_| refused())?;
    Ok(Zeroizing::new(<[u8; KEY_BYTES]>::try_from(&*opened).map_err(|_| refused())?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_same_key_overlay_and_bytes_open() {
        let sealed = seal(&[1; 32], 7, &[2; 32]).unwrap();
        assert_eq!(sealed.len(), SEALED_BYTES);
        assert_eq!(*open(&[1; 32], 7, &sealed).unwrap(), [2; 32]);
        assert!(open(&[3; 32], 7, &sealed).is_err());
        assert!(open(&[1; 32], 8, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(open(&[1; 32], 7, &changed).is_err(), "byte {at}");
            assert!(open(&[1; 32], 7, &sealed[..at]).is_err(), "{at} bytes");
        }
        assert_ne!(seal(&[1; 32], 7, &[2; 32]).unwrap(), sealed, "a nonce of its own");
    }
}
