//! Publishing and reading back, with faults.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use snowmelt_chunk::{LocalKeys, Scope, Suite};
use snowmelt_image::ImageConfig;
use snowmelt_store::collect::{self, Retire};
use snowmelt_store::readback::{Opening, export, open_image, verify};
use snowmelt_store::{
    BlockSource, Error, ImageMetadata, ImageName, PublishOptions, Sharing, Store, StoreOptions, publish, usage,
};

const CHUNK: u32 = 16 << 10;

struct Source {
    bytes: Vec<u8>,
    /// Fails from this read on.
    fail_at: u64,
    reads: AtomicU64,
}

impl Source {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, fail_at: u64::MAX, reads: AtomicU64::new(0) }
    }
}

impl BlockSource for Source {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn chunk_size(&self) -> u32 {
        CHUNK
    }
    fn is_hole(&self, _: Range<u64>) -> bool {
        false
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.reads.fetch_add(1, Ordering::Relaxed) >= self.fail_at {
            return Err("the source broke".into());
        }
        buf.copy_from_slice(&self.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }
}

fn opening(keys: &LocalKeys) -> Opening<'_> {
    Opening { tenant: "default", keys, seen: None }
}

struct Place {
    folder: tempfile::TempDir,
    store: Store,
    keys: LocalKeys,
    repair: bool,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store").to_str().unwrap(), &StoreOptions::default()).unwrap();
    let keys = LocalKeys::new(folder.path().join("keys"));
    Place { folder, store, keys, repair: false }
}

impl Place {
    fn publish(&self, name: &str, source: &Source, suite: Suite) -> Result<snowmelt_store::Published, Error> {
        let metadata =
            ImageMetadata { config: ImageConfig::default(), source_digest: None, content_bytes: 1, binding: None };
        let name: ImageName = name.parse().unwrap();
        let sharing = Sharing { secret: &[1; 32], scope: Scope::Everyone, zone: String::new(), class: String::new() };
        let options = PublishOptions {
            tenant: "default",
            name: &name,
            source: "test",
            suite,
            sharing: &sharing,
            keys: &self.keys,
            repair: self.repair,
            hide_existing: false,
            threads: 4,
            progress: None,
        };
        publish(source, &metadata, &self.store, &options)
    }

    fn export(&self, name: &str) -> Vec<u8> {
        let image = open_image(&self.store, &name.parse().unwrap(), &opening(&self.keys)).unwrap();
        let path = self.folder.path().join("exported");
        export(&self.store, &image.manifest, &path, 3, &|_| {}).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    }

    fn chunk_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(self.folder.path().join("store/roots/main/chunks"))
            .into_iter()
            .flatten()
            .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        files
    }
}

/// Pages of noise and of zeros.
fn images() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0_u8..5, 0..40).prop_map(|pages| {
        pages
            .into_iter()
            .flat_map(|page| {
                (0..4096).map(move |at: u32| if page == 0 { 0 } else { ((at * u32::from(page)) >> 3) as u8 })
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]

    #[test]
    fn what_was_published_is_exported(bytes in images()) {
        let place = place();
        for (name, suite) in [("a", Suite::Blake3Gcm), ("b", Suite::Sha256Ctr)] {
            place.publish(name, &Source::new(bytes.clone()), suite).unwrap();
            prop_assert!(place.export(name) == bytes);
        }
    }
}

fn noise(pages: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..pages * 4096)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

#[test]
fn a_second_publish_of_the_same_bytes_stores_nothing_new() {
    let place = place();
    let first = place.publish("a", &Source::new(noise(40)), Suite::default()).unwrap();
    assert_eq!((first.new_chunks, first.record.chunk_count, first.record.generation), (10, 10, 1));
    let second = place.publish("a", &Source::new(noise(40)), Suite::default()).unwrap();
    assert_eq!((second.new_chunks, second.record.chunk_count, second.record.generation), (0, 10, 2));
    let other = place.publish("b", &Source::new([noise(40), vec![5; 4096]].concat()), Suite::default()).unwrap();
    assert_eq!((other.new_chunks, other.new_bytes), (1, 4096));
    let usage = usage(&place.store, &["default".to_owned()], &[]).unwrap();
    assert_eq!((usage.chunks, usage.logical_bytes, usage.stored_bytes), (11, 81 * 4096, 41 * 4096));
    assert_eq!(usage.images.iter().map(|image| image.unique_bytes).collect::<Vec<_>>(), [0, 4096]);
}

#[test]
fn two_publishes_at_once_are_both_right() {
    let place = place();
    let bytes = noise(200);
    std::thread::scope(|scope| {
        for name in ["a", "a", "b", "c"] {
            scope.spawn(|| place.publish(name, &Source::new(bytes.clone()), Suite::default()).unwrap());
        }
    });
    for name in ["a", "b", "c"] {
        assert!(place.export(name) == bytes);
    }
    assert_eq!(place.chunk_files().len(), 50);
}

#[test]
fn a_publish_that_fails_leaves_no_name_and_can_be_done_again() {
    let place = place();
    let mut source = Source::new(noise(200));
    source.fail_at = 20;
    assert!(matches!(place.publish("a", &source, Suite::default()), Err(Error::Source(_))));
    assert!(place.store.list_names("default").unwrap().is_empty());
    let published = place.publish("a", &Source::new(noise(200)), Suite::default()).unwrap();
    assert!(published.new_chunks < 50, "what was stored before is used");
    assert!(place.export("a") == noise(200));
}

#[test]
fn a_publish_that_fails_leaves_the_name_as_it_was() {
    let place = place();
    place.publish("a", &Source::new(noise(10)), Suite::default()).unwrap();
    let mut source = Source::new(noise(200));
    source.fail_at = 3;
    place.publish("a", &source, Suite::default()).unwrap_err();
    assert!(place.export("a") == noise(10));
}

#[test]
fn every_damage_is_found_and_mended_by_publishing_again() {
    let place = place();
    place.publish("a", &Source::new(noise(40)), Suite::Sha256Ctr).unwrap();
    let files = place.chunk_files();
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[100] ^= 1;
    fs::write(&files[0], bytes).unwrap();
    fs::write(&files[1], b"short").unwrap();
    fs::remove_file(&files[2]).unwrap();
    let image = open_image(&place.store, &"a".parse().unwrap(), &opening(&place.keys)).unwrap();
    let verified = verify(&place.store, &image.manifest, 2, &|_| {}).unwrap();
    assert_eq!((verified.chunks, verified.damage.len()), (10, 3));
    let damaged: Vec<_> = verified.damage.iter().map(|damage| damage.record.id.to_string()).collect();
    for file in &files[..3] {
        assert!(damaged.contains(&file.file_name().unwrap().to_str().unwrap().to_string()));
    }
    let path = place.folder.path().join("out");
    assert!(export(&place.store, &image.manifest, &path, 2, &|_| {}).is_err());
    assert!(!path.exists(), "half an image is not left behind");

    // Length tells two of them; the flipped bit needs its file to be removed first.
    fs::remove_file(&files[0]).unwrap();
    place.publish("a", &Source::new(noise(40)), Suite::Sha256Ctr).unwrap();
    let image = open_image(&place.store, &"a".parse().unwrap(), &opening(&place.keys)).unwrap();
    assert!(verify(&place.store, &image.manifest, 2, &|_| {}).unwrap().damage.is_empty());
}

#[test]
fn a_record_cannot_pass_off_another_image() {
    let place = place();
    place.publish("a", &Source::new(noise(40)), Suite::default()).unwrap();
    let name: ImageName = "a".parse().unwrap();
    let mut record = place.store.read_name("default", &name).unwrap();
    record.chunk_count += 1;
    let path = place.folder.path().join("store/names/default/a/latest");
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
    assert!(matches!(open_image(&place.store, &name, &opening(&place.keys)), Err(Error::Corrupt { .. })));
}

#[test]
fn export_does_not_overwrite() {
    let place = place();
    place.publish("a", &Source::new(noise(4)), Suite::default()).unwrap();
    let image = open_image(&place.store, &"a".parse().unwrap(), &opening(&place.keys)).unwrap();
    let path = place.folder.path().join("precious");
    fs::write(&path, b"precious").unwrap();
    assert!(export(&place.store, &image.manifest, &path, 2, &|_| {}).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn an_image_of_another_root_is_read_from_there() {
    let place = place();
    let other = place.store.at_root("other").unwrap();
    let elsewhere = Place { store: other, ..place };
    elsewhere.publish("a", &Source::new(noise(8)), Suite::default()).unwrap();
    let Place { folder, keys, .. } = elsewhere;
    let store = Store::open(folder.path().join("store").to_str().unwrap(), &StoreOptions::default()).unwrap();
    let image = open_image(&store, &"a".parse().unwrap(), &opening(&keys)).unwrap();
    assert!(verify(&image.store, &image.manifest, 2, &|_| {}).unwrap().damage.is_empty());
}

/// A chunk with other bytes of the same length cannot be told from a good one without reading it.
#[test]
fn publishing_with_repair_replaces_damaged_chunks() {
    let mut place = place();
    let bytes: Vec<u8> = (0..3 * CHUNK).map(|at| (at / 4096) as u8 | 1).collect();
    let source = Source::new(bytes);
    place.publish("a", &source, Suite::Blake3Gcm).unwrap();
    let chunk = place.chunk_files().remove(0);
    let good = std::fs::read(&chunk).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    std::fs::write(&chunk, &bad).unwrap();
    let again = place.publish("a", &source, Suite::Blake3Gcm).unwrap();
    assert_eq!((again.new_chunks, again.repaired_chunks), (0, 0));
    assert_eq!(std::fs::read(&chunk).unwrap(), bad);
    place.repair = true;
    let repaired = place.publish("a", &source, Suite::Blake3Gcm).unwrap();
    assert_eq!((repaired.new_chunks, repaired.repaired_chunks), (0, 1));
    assert_eq!(std::fs::read(&chunk).unwrap(), good);
}

/// However many images are migrated at once: what they share is copied once.
#[test]
fn migrating_copies_a_chunk_once_for_all_images() {
    let mut place = place();
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    place.store = Store::over_objects(Arc::clone(&objects), &StoreOptions::default());
    let distinct = place.publish("app:1", &Source::new(noise(64)), Suite::default()).unwrap().distinct_chunks;
    for tag in 2..=8 {
        place.publish(&format!("app:{tag}"), &Source::new(noise(64)), Suite::default()).unwrap();
    }
    collect::rotate(&place.store, None, Retire::All).unwrap();
    // Copies take so long that all images are begun before the first has what it needs.
    let slow = ThrottleConfig { wait_put_per_call: Duration::from_millis(50), ..ThrottleConfig::default() };
    let slow = Store::over_objects(Arc::new(ThrottledStore::new(objects, slow)), &StoreOptions::default());
    let migrated = collect::migrate(&slow, "main", 8, &|_| {}).unwrap();
    assert_eq!((migrated.names, migrated.manifests), (8, 8));
    assert_eq!((migrated.chunks, migrated.present_chunks), (distinct, 7 * distinct));
}
