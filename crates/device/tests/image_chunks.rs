//! A device over a published image: manifest, store, disk cache.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snowmelt_cache::{DiskCache, Tiers};
use snowmelt_chunk::{ChunkId, ChunkRecord, Geometry, LocalKeys, Manifest, ManifestBuilder, Salt, Suite};
use snowmelt_device::{Device, DeviceOptions, Error, OnUnavailable, Tier};
use snowmelt_store::{Store, StoreOptions};

const CHUNK: usize = 64 << 10;
const SIZE: u64 = 3 * CHUNK as u64 + 8192;

/// Chunk 0 is whole, 1 is a hole, 2 ends in zeros, 3 is the short last one.
const STORED: [(u32, usize); 3] = [(0, CHUNK), (2, 8192), (3, 8192)];

struct Published {
    folder: tempfile::TempDir,
    manifest: Manifest,
    keys: LocalKeys,
    ids: Vec<ChunkId>,
}

fn publish(suite: Suite) -> Published {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut builder = ManifestBuilder::new(suite, Geometry { image_size: SIZE, chunk_size: CHUNK as u32 }).unwrap();
    let mut ids = Vec::new();
    for (slot, length) in STORED {
        let mut ciphertext = vec![0; length];
        let sealed = suite.seal(&Salt::from_bytes([1; 32]), &vec![slot as u8 + 1; length], &mut ciphertext);
        store.put_chunk(&sealed.id, &ciphertext).unwrap();
        ids.push(sealed.id);
        builder.push(ChunkRecord { slot, stored_length: length as u32, id: sealed.id }, sealed.secret);
    }
    let keys = LocalKeys::new(folder.path().join("keys"));
    let manifest = builder.seal("default", "image:latest", b"", &keys).unwrap();
    Published { folder, manifest, keys, ids }
}

fn store(folder: &Path) -> Arc<Store> {
    Arc::new(Store::open(folder.join("store").to_str().unwrap(), &StoreOptions::default()).unwrap())
}

impl Published {
    fn device(&self, tiers: &Arc<Tiers>) -> Device {
        let options = DeviceOptions {
            image_name: Some("python:3".into()),
            on_unavailable: OnUnavailable::Fail,
            ..DeviceOptions::default()
        };
        Device::new(self.manifest.open(&self.keys, "image:latest").unwrap(), Arc::clone(tiers), options).unwrap()
    }

    fn file(&self, chunk: usize) -> PathBuf {
        let id = self.ids[chunk].to_string();
        self.folder.path().join("store/roots/main/chunks").join(&id[..2]).join(id)
    }
}

fn expected() -> Vec<u8> {
    let mut image = vec![0; SIZE as usize];
    for (slot, length) in STORED {
        let start = slot as usize * CHUNK;
        image[start..start + length].fill(slot as u8 + 1);
    }
    image
}

#[test]
fn an_image_is_read_from_the_origin_and_then_from_the_disk() {
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let published = publish(suite);
        let disk = DiskCache::open(published.folder.path().join("cache"), 1 << 20).unwrap();
        let tiers = Arc::new(Tiers::new(store(published.folder.path()), Some(disk), None));
        for tier in [Tier::Origin, Tier::Disk] {
            let device = published.device(&tiers);
            let mut read = vec![9; SIZE as usize];
            device.read_at(0, &mut read).unwrap();
            assert!(read == expected());
            let stats = device.stats();
            assert_eq!(stats.loads.iter().find(|(from, _)| *from == tier), Some(&(tier, 3)), "{stats:?}");
            assert_eq!(stats.touched_chunks, 3);
            tiers.flush();
        }
    }
}

#[test]
fn what_the_origin_cannot_give_is_an_error_that_names_image_and_chunk() {
    let published = publish(Suite::Blake3Gcm);
    fs::write(published.file(0), vec![0; CHUNK]).unwrap();
    fs::remove_file(published.file(1)).unwrap();
    let device = published.device(&Arc::new(Tiers::new(store(published.folder.path()), None, None)));
    let mut buf = [0; 100];
    let damaged = device.read_at(0, &mut buf).unwrap_err();
    assert!(matches!(damaged, Error::Corrupt { .. }), "{damaged}");
    let missing = device.read_at(2 * CHUNK as u64, &mut buf).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    for (error, chunk) in [(damaged, 0), (missing, 1)] {
        let text = error.to_string();
        assert!(text.contains("python:3") && text.contains(&published.ids[chunk].to_string()), "{text}");
    }
    assert_eq!(buf, [0; 100], "nothing unverified was given");
    device.read_at(3 * CHUNK as u64, &mut buf).unwrap();
}

#[test]
fn an_origin_that_is_gone_is_unavailable() {
    let published = publish(Suite::Blake3Gcm);
    let options = StoreOptions { allow_http: true, ..StoreOptions::default() };
    let gone = Arc::new(Store::open("http://127.0.0.1:1/", &options).unwrap());
    let error = published.device(&Arc::new(Tiers::new(gone, None, None))).read_at(0, &mut [0; 10]).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}
