//! Threats of docs/security.md to chunks themselves, tried as an attacker would.
#![allow(clippy::unwrap_used, missing_docs)]

use aes::cipher::{BlockEncrypt as _, KeyInit as _};
use snowmelt_chunk::{Salt, Suite};

/// Multiplies in the field of GCM (NIST SP 800-38D, 6.3): the first bit of a block is that of x to the power of 0.
fn multiply(x: u128, y: u128) -> u128 {
    let (mut product, mut shifted) = (0, y);
    for bit in (0..128).rev() {
        if x >> bit & 1 == 1 {
            product ^= shifted;
        }
        let carry = shifted & 1 == 1;
        shifted >>= 1;
        if carry {
            shifted ^= 0xe1 << 120;
        }
    }
    product
}

/// Another ciphertext with the same tag under a key that is known: what is added to one block is made up for in the next.
fn forge(key: &[u8; 32], ciphertext: &[u8], at: usize, added: u128) -> Vec<u8> {
    let mut hash_key = [0; 16].into();
    aes::Aes256::new(key.into()).encrypt_block(&mut hash_key);
    let hash_key = u128::from_be_bytes(hash_key.into());
    let mut forged = ciphertext.to_vec();
    for (block, added) in [(at, added), (at + 1, multiply(added, hash_key))] {
        let bytes: &mut [u8] = &mut forged[block * 16..][..16];
        let changed = u128::from_be_bytes((&*bytes).try_into().unwrap()) ^ added;
        bytes.copy_from_slice(&changed.to_be_bytes());
    }
    forged
}

#[test]
fn a_collision_under_a_known_key_passes_the_tag_and_not_the_id() {
    let suite = Suite::Blake3Gcm;
    let plaintext = vec![7; 8192];
    let mut ciphertext = vec![0; plaintext.len()];
    let sealed = suite.seal(&Salt::from_bytes([1; 32]), &plaintext, &mut ciphertext);
    for (at, added) in [(0, 1), (3, 0xdead_beef << 64), (510, u128::MAX)] {
        let forged = forge(&sealed.secret.key, &ciphertext, at, added);
        assert_ne!(forged, ciphertext);
        let mut opened = vec![0; forged.len()];
        suite.open(&sealed.secret, &forged, &mut opened).unwrap();
        assert_ne!(opened, plaintext, "the tag alone stops nobody who holds the manifest");
        assert_ne!(suite.id_of(&forged), sealed.id, "the id does");
    }
    // Who does not know the key does not pass the tag.
    let forged = forge(&[0; 32], &ciphertext, 0, 1);
    assert!(suite.open(&sealed.secret, &forged, &mut vec![0; forged.len()]).is_err());
}

#[test]
fn equal_content_has_equal_keys_only_under_an_equal_salt() {
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let plaintext = vec![7; 4096];
        let seal = |salt: u8, plaintext: &[u8]| {
            let mut ciphertext = vec![0; plaintext.len()];
            let sealed = suite.seal(&Salt::from_bytes([salt; 32]), plaintext, &mut ciphertext);
            (sealed.id, sealed.secret.key, ciphertext)
        };
        let (id, key, ciphertext) = seal(1, &plaintext);
        assert!(seal(1, &plaintext) == (id, key, ciphertext.clone()));
        let other = seal(2, &plaintext);
        assert!(other.0 != id && other.1 != key && other.2 != ciphertext);
        // One key never encrypts two plaintexts: the nonce is constant.
        let mut changed = plaintext;
        changed[4095] ^= 1;
        assert_ne!(seal(1, &changed).1, key);
    }
}
