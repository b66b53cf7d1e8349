//! Manifests, chunks and names that were edited, swapped, or put back.

use std::time::Duration;

use snowmelt_chunk::Error as ChunkError;
use snowmelt_store::{Error, NameRecord, SeenNames};

use crate::world::*;

// A manifest that was edited.

#[test]
fn every_byte_of_a_manifest_is_guarded() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT, b"more"]);
    let good = world.manifest(0, &published);
    assert!(world.open(0, "app").is_ok());
    // Under the id that the edited bytes have, so that only what is inside can tell.
    for at in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut edited = good.clone();
            edited[at] ^= bit;
            world.forge(0, "app", &published.record, &edited);
            assert!(world.open(0, "app").is_err(), "byte {at} is not guarded");
        }
    }
    // And under the id of what it was.
    let mut edited = good.clone();
    *edited.last_mut().unwrap() ^= 1;
    world.put(&manifest_path(0, &published), &edited);
    world.put_record(0, "app", &published.record);
    assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })));
    world.put(&manifest_path(0, &published), &good);
    assert!(world.open(0, "app").is_ok());
}

#[test]
fn a_key_wrapped_for_another_manifest_opens_no_other() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    let other = world.publish(0, "other", &[b"more"]);
    let (good, donor) = (world.manifest(0, &published), world.manifest(0, &other));
    // The wrapped keys of both are as long, and stand at the same place.
    let start = 56 + TENANTS[0].len() + "local:0123456789abcdef".len();
    let mut edited = good.clone();
    edited[start..start + 60].copy_from_slice(&donor[start..start + 60]);
    assert_ne!(edited, good);
    world.forge(0, "app", &published.record, &edited);
    let refused = world.open(0, "app").unwrap_err();
    assert!(matches!(refused, Error::Chunk(ChunkError::Unauthentic { .. })), "{refused}");
}

// Chunks that were swapped, poisoned, or made to collide.

#[test]
fn swapped_chunks_are_refused() {
    for world in World::both() {
        let published = world.publish(0, "app", &[CONTENT, b"more"]);
        let manifest = world.store.read_manifest("main", TENANTS[0], &published.manifest).unwrap();
        let paths: Vec<_> = manifest.records().map(|record| chunk_path(&record.id)).collect();
        let (first, second) = (world.get(&paths[0]), world.get(&paths[1]));
        world.put(&paths[0], &second);
        world.put(&paths[1], &first);
        let damage = world.damage(0, "app");
        assert!(damage.len() == 2 && damage.iter().all(|it| it.contains("not those that its id names")), "{damage:?}");
        world.put(&paths[0], &first);
        world.put(&paths[1], &second);
        assert!(world.damage(0, "app").is_empty());
        // In the manifest, the ids of the two records.
        let mut edited = manifest.as_bytes().to_vec();
        let at = edited.windows(32).position(|part| part == manifest.records().next().unwrap().id.0).unwrap();
        let (one, two) = edited[at..at + 72].split_at_mut(40);
        one[..32].swap_with_slice(&mut two[..32]);
        world.forge(0, "app", &published.record, &edited);
        assert!(matches!(world.open(0, "app"), Err(Error::Chunk(ChunkError::Unauthentic { .. }))));
    }
}

#[test]
fn a_poisoned_chunk_is_refused_and_can_be_replaced() {
    for world in World::both() {
        let published = world.publish(0, "app", &[CONTENT]);
        let manifest = world.store.read_manifest("main", TENANTS[0], &published.manifest).unwrap();
        let record = manifest.records().next().unwrap();
        let good = world.get(&chunk_path(&record.id));
        let mut bit = good.clone();
        bit[100] ^= 4;
        let mut longer = good.clone();
        longer.push(0);
        for poison in [vec![0; good.len()], bit, Vec::new(), good[..100].to_vec(), longer, vec![0; 1 << 20]] {
            world.put(&chunk_path(&record.id), &poison);
            assert_eq!(world.damage(0, "app").len(), 1, "{} bytes", poison.len());
        }
        // Who hides what exists, or repairs, puts every chunk: poison does not outlive the next publish.
        world.publish_as(0, "app", &Image::of(&[CONTENT]), true);
        assert!(world.damage(0, "app").is_empty());
    }
}

// An older manifest, or another image's, under a name.

#[test]
fn a_name_rolled_back_is_noticed_by_who_has_seen_a_newer_one() {
    for world in World::both() {
        let seen = SeenNames::new(&world.folder.path().join("cache"));
        let old = world.publish(0, "app", &[b"vulnerable"]);
        let old_record = world.get(&name_path(0, "app"));
        let new = world.publish(0, "app", &[b"mended"]);
        assert_eq!(world.open_seeing(0, "app", Some(&seen)).unwrap().manifest.id(), new.manifest);
        world.put(&name_path(0, "app"), &old_record);
        let refused = world.open_seeing(0, "app", Some(&seen)).unwrap_err();
        assert!(matches!(refused, Error::RolledBack { .. }), "{refused}");
        // The old manifest cannot be given the new one's number, or time.
        for forged in [
            NameRecord { generation: 3, ..old.record.clone() },
            NameRecord { published_at: old.record.published_at + 100, ..old.record.clone() },
            NameRecord { generation: 3, published_at: old.record.published_at + 100, ..old.record.clone() },
            NameRecord { manifest: old.manifest.to_string(), ..new.record.clone() },
        ] {
            world.put_record(0, "app", &forged);
            assert!(world.open_seeing(0, "app", Some(&seen)).is_err(), "{forged:?}");
        }
        // Who has seen nothing cannot tell.
        world.put(&name_path(0, "app"), &old_record);
        assert_eq!(world.open(0, "app").unwrap().manifest.id(), old.manifest);
    }
}

#[test]
fn a_name_rolled_back_behind_a_new_count_is_noticed() {
    let world = World::in_memory();
    let seen = SeenNames::new(&world.folder.path().join("cache"));
    for text in [b"1", b"2", b"3"] {
        world.publish(0, "app", &[text]);
    }
    let old_record = world.get(&name_path(0, "app"));
    assert_eq!(world.open_seeing(0, "app", Some(&seen)).unwrap().record.generation, 3);
    // The attacker removes the record, so that the next publish counts from 1; then puts the old one back, whose number is higher.
    world.delete(&name_path(0, "app"));
    std::thread::sleep(Duration::from_millis(1100));
    world.publish(0, "app", &[b"mended"]);
    assert_eq!(world.open_seeing(0, "app", Some(&seen)).unwrap().record.generation, 1);
    world.put(&name_path(0, "app"), &old_record);
    let refused = world.open_seeing(0, "app", Some(&seen)).unwrap_err();
    assert!(matches!(refused, Error::RolledBack { .. }), "{refused}");
}

#[test]
fn a_name_pointed_at_another_image_is_refused() {
    for world in World::both() {
        let app = world.publish(0, "app", &[CONTENT]);
        let test = world.publish(0, "test", &[b"for tests"]);
        world.put_record(0, "app", &test.record);
        let refused = world.open(0, "app").unwrap_err();
        assert!(matches!(&refused, Error::Corrupt { .. }), "{refused}");
        assert!(refused.to_string().contains("test:latest"), "{refused}");
        for forged in [
            NameRecord { manifest: test.manifest.to_string(), ..app.record.clone() },
            NameRecord { image_size: 0, ..app.record.clone() },
            NameRecord { chunk_count: 9, ..app.record.clone() },
            NameRecord { root: "another".into(), ..app.record.clone() },
        ] {
            world.put_record(0, "app", &forged);
            assert!(world.open(0, "app").is_err(), "{forged:?}");
        }
    }
}
