//! Both suites against a second implementation of every algorithm (RustCrypto).
#![allow(clippy::unwrap_used)]

use aes_gcm::KeyInit;
use aes_gcm::aead::AeadInPlace;
use ctr::cipher::{KeyIvInit, StreamCipher};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;

fn seal(suite: Suite, salt: [u8; 32], plaintext: &[u8]) -> (Sealed, Vec<u8>) {
    let mut ciphertext = vec![0; plaintext.len()];
    let sealed = suite.seal(&Salt::from_bytes(salt), plaintext, &mut ciphertext);
    (sealed, ciphertext)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn what_was_sealed_opens(salt: [u8; 32], plaintext in proptest::collection::vec(any::<u8>(), 0..10_000)) {
        for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
            let (sealed, ciphertext) = seal(suite, salt, &plaintext);
            prop_assert_eq!(suite.id_of(&ciphertext), sealed.id);
            let mut opened = vec![1; plaintext.len()];
            suite.open(&sealed.secret, &ciphertext, &mut opened).unwrap();
            prop_assert_eq!(&opened, &plaintext);
            let mut in_place = ciphertext;
            suite.open_in_place(&sealed.secret, &mut in_place).unwrap();
            prop_assert_eq!(&in_place, &plaintext);
        }
    }

    #[test]
    fn blake3_gcm_agrees_with_another_implementation(salt: [u8; 32], plaintext in proptest::collection::vec(any::<u8>(), 0..5_000)) {
        let (sealed, ciphertext) = seal(Suite::Blake3Gcm, salt, &plaintext);
        let key = *blake3::Hasher::new_keyed(&salt).update(&plaintext).finalize().as_bytes();
        prop_assert_eq!(sealed.secret.key, key);
        let mut expected = plaintext.clone();
        let tag = aes_gcm::Aes256Gcm::new(&key.into())
            .encrypt_in_place_detached(&[0; 12].into(), b"", &mut expected)
            .unwrap();
        prop_assert_eq!(ciphertext, expected);
        prop_assert_eq!(sealed.secret.tag.as_slice(), tag.as_slice());
    }

    #[test]
    fn sha256_ctr_agrees_with_another_implementation(salt: [u8; 32], plaintext in proptest::collection::vec(any::<u8>(), 0..5_000)) {
        let (sealed, ciphertext) = seal(Suite::Sha256Ctr, salt, &plaintext);
        let mut key = [0; 32];
        hkdf::Hkdf::<Sha256>::new(Some(&salt), &Sha256::digest(&plaintext)).expand(CHUNK_KEY_INFO, &mut key).unwrap();
        prop_assert_eq!(sealed.secret.key, key);
        let mut expected = plaintext.clone();
        ctr::Ctr128BE::<aes::Aes256>::new(&key.into(), &[0; 16].into()).apply_keystream(&mut expected);
        prop_assert_eq!(&ciphertext, &expected);
        let id: [u8; 32] = Sha256::digest(&expected).into();
        prop_assert_eq!(sealed.id.0, id);
    }

    #[test]
    fn a_flipped_bit_is_found(salt: [u8; 32], plaintext in proptest::collection::vec(any::<u8>(), 1..2_000), bit: prop::sample::Index) {
        for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
            let (sealed, mut ciphertext) = seal(suite, salt, &plaintext);
            let bit = bit.index(ciphertext.len() * 8);
            ciphertext[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(suite.id_of(&ciphertext), sealed.id);
            let opened = suite.open(&sealed.secret, &ciphertext, &mut vec![0; plaintext.len()]);
            prop_assert_eq!(opened.is_err(), suite.open_authenticates());
            prop_assert_eq!(suite.open_in_place(&sealed.secret, &mut ciphertext).is_err(), suite.open_authenticates());
        }
    }
}

#[test]
fn equal_plaintext_is_shared_only_under_an_equal_salt() {
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let (first, _) = seal(suite, [1; 32], &[9; 4096]);
        assert_eq!(first, seal(suite, [1; 32], &[9; 4096]).0);
        assert_ne!(first.id, seal(suite, [2; 32], &[9; 4096]).0.id);
        assert_ne!(first.id, seal(suite, [1; 32], &[8; 4096]).0.id);
    }
}

#[test]
fn secrets_do_not_show() {
    let (sealed, _) = seal(Suite::Blake3Gcm, [1; 32], b"abc");
    assert!(format!("{sealed:?}").ends_with("secret: ChunkSecret(secret) }"));
}
