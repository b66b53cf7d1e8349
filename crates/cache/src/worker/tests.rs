#![allow(clippy::unwrap_used)]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use snowmelt_chunk::{ChunkId, Salt, Sealed, Suite};
use snowmelt_store::{Store, StoreOptions};

use super::protocol::{GREETING, receive, send};
use super::*;
use crate::{ChunkRequest, Error, FetchLimits, Fetcher, L1, L1Options, Priority, Tier, Tiers, Upstream};

struct Place {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    l1: Arc<L1>,
    server: Option<ChunkServer>,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().join("store");
    let store = Arc::new(Store::open(url.to_str().unwrap(), &StoreOptions::default()).unwrap());
    let disk = Some((folder.path().join("l1"), 1 << 20));
    // So little memory that nothing stays there.
    let l1 = Arc::new(L1::open(L1Options { memory_bytes: 0, disk }).unwrap());
    let mut place = Place { folder, store, l1, server: None };
    place.start();
    place
}

impl Place {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("worker.sock")
    }

    fn start(&mut self) {
        self.server = None;
        let fetcher =
            Arc::new(Fetcher::new(Upstream::new(None), Arc::clone(&self.l1), FetchLimits::default(), |_, _, _| {}));
        let store = Arc::clone(&self.store);
        let store_of = move |sandbox: &str, _user: u32| (sandbox == "known").then(|| Arc::clone(&store));
        let listener = ChunkServer::listen(&self.socket()).unwrap();
        self.server = Some(ChunkServer::start(listener, Arc::clone(&self.l1), fetcher, store_of).unwrap());
    }

    fn tiers(&self, sandbox: &str) -> Tiers {
        let socket = self.socket();
        let connect = move || ChunkServer::connect(&socket);
        Tiers::of_worker(WorkerClient::new(sandbox, Duration::from_mins(1), connect))
    }

    fn put(&self, suite: Suite, byte: u8) -> Sealed {
        let mut ciphertext = vec![0; 8192];
        let sealed = suite.seal(&Salt::from_bytes([1; 32]), &[byte; 8192], &mut ciphertext);
        self.store.put_chunk(&sealed.id, &ciphertext).unwrap();
        sealed
    }

    fn damage(&self, sealed: &Sealed) {
        let id = sealed.id.to_string();
        std::fs::write(self.folder.path().join("l1/chunks").join(&id[..2]).join(id), vec![7; 8192]).unwrap();
    }
}

fn read(tiers: &Tiers, suite: Suite, sealed: &Sealed) -> Result<(Tier, Vec<u8>), Error> {
    let mut plaintext = vec![0; 8192];
    let request = ChunkRequest { id: sealed.id, suite, secret: &sealed.secret, priority: Priority::Demand };
    tiers.read_chunk(&request, &mut plaintext, &|_| {}).map(|tier| (tier, plaintext))
}

#[test]
fn a_sandbox_reads_through_its_worker_what_no_other_fetched_and_what_one_did() {
    let place = place();
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let sealed = place.put(suite, 5);
        let tiers = place.tiers("known");
        assert_eq!(tiers.are_near(&[(sealed.id, 8192)]), [false]);
        assert_eq!(read(&tiers, suite, &sealed).unwrap(), (Tier::Origin, vec![5; 8192]));
        place.l1.flush();
        assert_eq!(read(&place.tiers("known"), suite, &sealed).unwrap(), (Tier::Disk, vec![5; 8192]));
        assert_eq!(tiers.are_near(&[(ChunkId([9; 32]), 5), (sealed.id, 8192)]), [false, true]);
    }
}

#[test]
fn a_damaged_copy_heals_and_a_wrong_key_is_told_from_it() {
    let place = place();
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let sealed = place.put(suite, 6);
        let tiers = place.tiers("known");
        read(&tiers, suite, &sealed).unwrap();
        place.l1.flush();
        place.damage(&sealed);
        assert_eq!(read(&tiers, suite, &sealed).unwrap(), (Tier::Origin, vec![6; 8192]));
        assert_eq!(tiers.stats().damaged_chunks, 1);
        place.l1.flush();
    }
    let mut sealed = place.put(Suite::Blake3Gcm, 8);
    sealed.secret.key[0] ^= 1;
    assert!(matches!(read(&place.tiers("known"), Suite::Blake3Gcm, &sealed), Err(Error::Sealed { .. })));
}

#[test]
fn what_is_not_in_the_store_and_who_is_not_known_are_told_apart() {
    let place = place();
    let sealed = Sealed { id: ChunkId([3; 32]), ..place.put(Suite::Blake3Gcm, 1) };
    let error = read(&place.tiers("known"), Suite::Blake3Gcm, &sealed).unwrap_err();
    assert!(error.is_missing(), "{error}");
    let error = read(&place.tiers("stranger"), Suite::Blake3Gcm, &sealed).unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("does not know the sandbox stranger"), "{error}");
}

#[test]
fn a_worker_that_was_started_again_is_found_and_one_that_is_gone_is_unavailable() {
    let mut place = place();
    let sealed = place.put(Suite::Blake3Gcm, 2);
    let tiers = place.tiers("known");
    read(&tiers, Suite::Blake3Gcm, &sealed).unwrap();
    place.start();
    read(&tiers, Suite::Blake3Gcm, &sealed).unwrap();
    place.server = None;
    std::fs::remove_file(place.socket()).unwrap();
    let error = read(&tiers, Suite::Blake3Gcm, &sealed).unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("the worker does not answer"), "{error}");
    place.start();
    read(&tiers, Suite::Blake3Gcm, &sealed).unwrap();
}

#[test]
fn many_threads_read_at_once() {
    let place = place();
    let sealed: Vec<Sealed> = (0..40).map(|byte| place.put(Suite::Blake3Gcm, byte)).collect();
    let tiers = place.tiers("known");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for (byte, sealed) in sealed.iter().enumerate() {
                    assert_eq!(read(&tiers, Suite::Blake3Gcm, sealed).unwrap().1, vec![byte as u8; 8192]);
                }
            });
        }
    });
    assert!(place.l1.stats().misses >= 40);
}

#[test]
fn who_breaks_the_rules_is_cut_off_and_others_are_served() {
    let place = place();
    let sealed = place.put(Suite::Blake3Gcm, 4);
    let greeting = format!("{GREETING}known");
    for messages in [&[&b"hello"[..]][..], &[greeting.as_bytes(), b"nonsense"], &[greeting.as_bytes(), &[1; 40]]] {
        let rude = ChunkServer::connect(&place.socket()).unwrap();
        for message in messages {
            send(&rude, message, None).unwrap();
        }
        let mut bytes = [0; 4096];
        let end = receive(&rude, &mut bytes);
        assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    }
    read(&place.tiers("known"), Suite::Blake3Gcm, &sealed).unwrap();
}
