#![allow(clippy::unwrap_used)]
use std::fs;

use snowmelt_chunk::{Salt, Sealed};
use snowmelt_store::StoreOptions;

use super::*;

struct Place {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    tiers: Tiers,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store").to_str().unwrap(), &StoreOptions::default()).unwrap();
    let store = Arc::new(store);
    let disk = DiskCache::open(folder.path().join("cache"), 1 << 20).unwrap();
    let tiers = Tiers::new(Arc::clone(&store), Some(disk), None);
    Place { folder, store, tiers }
}

impl Place {
    fn put(&self, suite: Suite, byte: u8) -> Sealed {
        let mut ciphertext = vec![0; 8192];
        let sealed = suite.seal(&Salt::from_bytes([1; 32]), &[byte; 8192], &mut ciphertext);
        self.store.put_chunk(&sealed.id, &ciphertext).unwrap();
        sealed
    }

    fn read(&self, suite: Suite, sealed: &Sealed) -> Result<(Tier, Vec<u8>), Error> {
        let mut plaintext = vec![0; 8192];
        let request = ChunkRequest { id: sealed.id, suite, secret: &sealed.secret, priority: Priority::Demand };
        self.tiers.read_chunk(&request, &mut plaintext, &|_| {}).map(|tier| (tier, plaintext))
    }

    fn file(&self, tier: &str, sealed: &Sealed) -> std::path::PathBuf {
        let id = sealed.id.to_string();
        self.folder.path().join(tier).join("chunks").join(&id[..2]).join(id)
    }
}

const SUITES: [Suite; 2] = [Suite::Blake3Gcm, Suite::Sha256Ctr];

#[test]
fn a_chunk_comes_from_the_origin_once() {
    let place = place();
    for suite in SUITES {
        let sealed = place.put(suite, 5);
        assert_eq!(place.read(suite, &sealed).unwrap(), (Tier::Origin, vec![5; 8192]));
        place.tiers.flush();
        assert_eq!(place.read(suite, &sealed).unwrap(), (Tier::Disk, vec![5; 8192]));
    }
    let stats = place.tiers.stats();
    assert_eq!((stats.origin_chunks, stats.disk_chunks, stats.origin_bytes, stats.damaged_chunks), (2, 2, 16384, 0));
}

#[test]
fn a_damaged_copy_on_disk_heals_from_the_origin() {
    let place = place();
    for suite in SUITES {
        let sealed = place.put(suite, 6);
        place.read(suite, &sealed).unwrap();
        place.tiers.flush();
        let file = place.file("cache", &sealed);
        for damage in [vec![0; 8192], vec![1; 100], vec![]] {
            fs::write(&file, damage).unwrap();
            assert_eq!(place.read(suite, &sealed).unwrap(), (Tier::Origin, vec![6; 8192]));
            place.tiers.flush();
            assert_eq!(place.read(suite, &sealed).unwrap(), (Tier::Disk, vec![6; 8192]));
        }
    }
}

#[test]
fn a_damaged_or_missing_chunk_of_the_origin_is_an_error_and_never_kept() {
    let place = place();
    for suite in SUITES {
        let sealed = place.put(suite, 7);
        let file = place.file("store/roots/main", &sealed);
        for damage in [vec![0; 8192], vec![1; 100]] {
            fs::write(&file, damage).unwrap();
            let error = place.read(suite, &sealed).unwrap_err();
            assert!(matches!(error, Error::Lost { .. }), "{error}");
            assert!(error.to_string().contains(&sealed.id.to_string()));
        }
        fs::remove_file(&file).unwrap();
        assert!(matches!(place.read(suite, &sealed), Err(Error::Lost { .. })));
        place.tiers.flush();
        assert!(!place.file("cache", &sealed).exists());
    }
}

#[test]
fn a_key_that_does_not_fit_is_told_from_damage() {
    let place = place();
    let mut sealed = place.put(Suite::Blake3Gcm, 8);
    sealed.secret.key[0] ^= 1;
    assert!(matches!(place.read(Suite::Blake3Gcm, &sealed), Err(Error::Sealed { .. })));
}

#[test]
fn an_origin_that_does_not_answer_is_unavailable_but_the_disk_still_serves() {
    let good = place();
    let sealed = good.put(Suite::Blake3Gcm, 9);
    good.read(Suite::Blake3Gcm, &sealed).unwrap();
    good.tiers.flush();
    let gone = Arc::new(
        Store::open("http://127.0.0.1:1/", &StoreOptions { allow_http: true, ..StoreOptions::default() }).unwrap(),
    );
    let disk = DiskCache::open(good.folder.path().join("cache"), 1 << 20).unwrap();
    let tiers = Tiers::new(gone, Some(disk), None);
    let request =
        ChunkRequest { id: sealed.id, suite: Suite::Blake3Gcm, secret: &sealed.secret, priority: Priority::Demand };
    let mut plaintext = vec![0; 8192];
    assert_eq!(tiers.read_chunk(&request, &mut plaintext, &|_| {}).unwrap(), Tier::Disk);
    let other = ChunkRequest { id: ChunkId([1; 32]), ..request };
    assert!(tiers.read_chunk(&other, &mut plaintext, &|_| {}).unwrap_err().is_unavailable());
}

#[test]
fn without_a_disk_everything_comes_from_the_origin() {
    let place = place();
    let sealed = place.put(Suite::Sha256Ctr, 3);
    let tiers = Tiers::new(Arc::clone(&place.store), None, None);
    let request =
        ChunkRequest { id: sealed.id, suite: Suite::Sha256Ctr, secret: &sealed.secret, priority: Priority::Demand };
    for _ in 0..2 {
        assert_eq!(tiers.read_chunk(&request, &mut vec![0; 8192], &|_| {}).unwrap(), Tier::Origin);
    }
}
