//! Who reads without the right to: other tenants, and whoever has the bucket.

use snowmelt_chunk::Error as ChunkError;
use snowmelt_store::Error;
use snowmelt_store::readback::{Opening, open_image};

use crate::captured_log::spellings;
use crate::world::*;

#[test]
fn who_guesses_ids_reads_nothing_of_another_tenant() {
    for world in World::both() {
        let alices = world.publish(0, "app", &[CONTENT, b"more"]);
        world.publish(1, "own", &[b"own"]);
        // Mallory knows every id, may read every object, and has her own key.
        assert!(matches!(world.open(1, "app"), Err(Error::NotFound { .. })));
        let name = "app".parse().unwrap();
        let as_alice = Opening { tenant: TENANTS[0], keys: &world.keys[1], seen: None };
        assert!(matches!(open_image(&world.store, &name, &as_alice), Err(Error::Chunk(ChunkError::NoKey { .. }))));
        let manifest = world.store.read_manifest("main", TENANTS[0], &alices.manifest).unwrap();
        for record in manifest.records() {
            let bytes = world.store.read_chunk(&record.id, record.stored_length).unwrap();
            assert!(!contains(&bytes, CONTENT), "chunks are ciphertext");
        }
        // She copies the manifest to herself, as it is and with her name in the place of Alice's.
        let bytes = world.manifest(0, &alices);
        world.forge(1, "stolen", &alices.record, &bytes);
        assert!(matches!(world.open(1, "stolen"), Err(Error::Corrupt { .. })), "it says whose it is");
        world.forge(1, "stolen", &alices.record, &renamed(&bytes, TENANTS[0], TENANTS[1]));
        let refused = world.open(1, "stolen").unwrap_err();
        assert!(
            matches!(refused, Error::Chunk(ChunkError::NoKey { .. } | ChunkError::Unauthentic { .. })),
            "{refused}"
        );
    }
}

/// A manifest that names another tenant.
fn renamed(manifest: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(&manifest[56..][..from.len()], from.as_bytes());
    let mut bytes = manifest[..56].to_vec();
    bytes[40..42].copy_from_slice(&(to.len() as u16).to_le_bytes());
    bytes.extend_from_slice(to.as_bytes());
    bytes.extend_from_slice(&manifest[56 + from.len()..]);
    bytes
}

#[test]
fn another_tenants_manifest_under_ones_own_name_is_refused() {
    for world in World::both() {
        let mallorys = world.publish(1, "trap", &[b"evil"]);
        let alices = world.publish(0, "app", &[CONTENT]);
        // Mallory, who can write to the bucket, gives Alice an image that Mallory has made.
        let bytes = world.manifest(1, &mallorys);
        for bytes in [bytes.clone(), renamed(&bytes, TENANTS[1], TENANTS[0])] {
            world.forge(0, "app", &mallorys.record, &bytes);
            assert!(world.open(0, "app").is_err());
        }
        world.put_record(0, "app", &alices.record);
        assert!(world.open(0, "app").is_ok());
    }
}

// Who reads the bucket without keys.

#[test]
fn the_bucket_without_keys_shows_no_content_and_no_key() {
    for world in World::both() {
        world.publish(0, "app", &[CONTENT, b"more"]);
        let image = world.open(0, "app").unwrap();
        let mut secrets = vec![CONTENT.to_vec(), VARIABLE.into(), SALT_SECRET.to_vec()];
        for record in image.manifest.records() {
            let (_, secret) = image.manifest.chunk(record.slot).unwrap();
            secrets.extend([secret.key.to_vec(), secret.tag.to_vec()]);
        }
        let objects = world.objects();
        assert!(objects.len() >= 4, "{:?}", objects.keys());
        for (path, bytes) in &objects {
            for secret in secrets.iter().flat_map(|secret| spellings(secret)) {
                assert!(!contains(bytes, &secret) && !contains(path.as_bytes(), &secret), "{path}");
            }
        }
    }
}
