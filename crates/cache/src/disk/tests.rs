#![allow(clippy::unwrap_used)]
use std::time::Duration;

use snowmelt_chunk::Suite;

use super::*;

fn chunk(number: u32, length: usize) -> (ChunkId, Vec<u8>) {
    let bytes: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(length).collect();
    (Suite::Blake3Gcm.id_of(&bytes), bytes)
}

fn age(cache: &DiskCache, id: &ChunkId, seconds: u64) {
    File::open(cache.path(id)).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

#[test]
fn what_was_put_is_got() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), 1 << 20).unwrap();
    let (id, bytes) = chunk(1, 4096);
    let mut read = vec![0; 4096];
    assert!(!cache.get(&id, &mut read));
    assert!(cache.put(&id, &bytes).unwrap());
    assert!(cache.put(&id, &bytes).unwrap());
    assert!(cache.get(&id, &mut read));
    assert_eq!(read, bytes);
    assert!(!cache.get(&id, &mut vec![0; 8192]), "another length is another chunk");
    cache.remove(&id);
    assert!(!cache.get(&id, &mut read));
}

#[test]
fn the_budget_holds_and_the_least_recently_used_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), 40 * 4096).unwrap();
    let chunks: Vec<_> = (0..100).map(|number| chunk(number, 4096)).collect();
    for (at, (id, bytes)) in chunks.iter().enumerate() {
        assert!(cache.put(id, bytes).unwrap());
        age(&cache, id, 1000 - at as u64);
        // The first stays in use.
        age(&cache, &chunks[0].0, 1);
        assert!(cache.count().unwrap() <= 40 * 4096);
    }
    let kept: Vec<bool> = chunks.iter().map(|(id, _)| cache.get(id, &mut vec![0; 4096])).collect();
    assert!(kept[0] && kept[99] && !kept[1] && !kept[50]);
    assert!(cache.count().unwrap() >= 30 * 4096);
}

#[test]
fn a_chunk_larger_than_the_budget_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), 5000).unwrap();
    let (id, bytes) = chunk(1, 8192);
    assert!(!cache.put(&id, &bytes).unwrap());
    assert_eq!(cache.count().unwrap(), 0);
}

#[test]
fn many_at_once_stay_inside_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let folder = folder.path();
            scope.spawn(move || {
                // A cache of its own, as another process would have.
                let cache = DiskCache::open(folder, 20 * 4096).unwrap();
                for number in 0..100 {
                    let (id, bytes) = chunk(thread * 50 + number, 4096);
                    cache.put(&id, &bytes).unwrap();
                    let mut read = vec![0; 4096];
                    assert!(!cache.get(&id, &mut read) || read == bytes);
                }
            });
        }
    });
    assert!(DiskCache::open(folder.path(), 20 * 4096).unwrap().count().unwrap() <= 20 * 4096);
}

#[test]
fn what_killed_processes_left_is_found_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = DiskCache::open(folder.path(), 10 * 4096).unwrap();
    let (id, bytes) = chunk(0, 4096);
    cache.put(&id, &bytes).unwrap();
    // Killed an hour ago, after it had reserved room and begun to write.
    let draft = cache.path(&id).parent().unwrap().join(".draft-4194305");
    fs::write(&draft, vec![1; 4096]).unwrap();
    let hour_ago = SystemTime::now() - Duration::from_hours(1);
    File::options().write(true).open(&draft).unwrap().set_modified(hour_ago).unwrap();
    cache.reserve(9 * 4096).unwrap();
    for number in 1..10 {
        let (id, bytes) = chunk(number, 4096);
        cache.put(&id, &bytes).unwrap();
    }
    assert!(!draft.exists());
    assert!(cache.count().unwrap() >= 9 * 4096, "room reserved for nothing is given back");

    fs::write(folder.path().join("usage"), b"cut").unwrap();
    let (id, bytes) = chunk(77, 4096);
    cache.put(&id, &bytes).unwrap();
    assert!(cache.count().unwrap() <= 10 * 4096);
}
