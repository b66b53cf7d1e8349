#![allow(clippy::unwrap_used)]
use std::sync::mpsc::{Receiver, Sender, channel};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use snowmelt_chunk::Suite;
use snowmelt_store::StoreOptions;

use super::*;
use crate::L1Options;

/// A store whose reads wait until they are let go, and that says which it was asked for.
#[derive(Debug)]
struct Gate {
    inner: InMemory,
    asked: Mutex<Sender<String>>,
    open: tokio::sync::Semaphore,
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("gate")
    }
}

type Result<T> = std::result::Result<T, object_store::Error>;

#[async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let name = at.filename().unwrap_or_default().to_owned();
        self.asked.lock().unwrap().send(name).unwrap();
        self.open.acquire().await.unwrap().forget();
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

struct Place {
    gate: Arc<Gate>,
    asked: Receiver<String>,
    store: Arc<Store>,
    l1: Arc<L1>,
    fetcher: Fetcher,
    told: Sender<(u32, Fetched)>,
    answers: Receiver<(u32, Fetched)>,
}

struct Told(u32, Sender<(u32, Fetched)>);

impl Waiter for Told {
    fn asks(&self, _tier: Tier) {}

    fn done(self: Box<Self>, fetched: Fetched) {
        let _ = self.1.send((self.0, fetched));
    }
}

fn bytes_of(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(256)
}

fn name_of(number: u32) -> ChunkName {
    let bytes = bytes_of(number);
    ChunkName { id: Suite::Blake3Gcm.id_of(&bytes), suite: Suite::Blake3Gcm, stored_length: bytes.len() as u32 }
}

fn place(limits: FetchLimits) -> Place {
    let (sender, asked) = channel();
    let gate = Gate { inner: InMemory::new(), asked: Mutex::new(sender), open: tokio::sync::Semaphore::new(0) };
    let gate = Arc::new(gate);
    let objects: Arc<dyn ObjectStore> = Arc::<Gate>::clone(&gate);
    let store = Arc::new(Store::over_objects(objects, &StoreOptions::default()));
    for number in 0..20 {
        store.put_new_chunk(&name_of(number).id, &bytes_of(number)).unwrap();
    }
    let l1 = Arc::new(L1::open(L1Options { memory_bytes: 1 << 20, disk: None }).unwrap());
    let fetcher = Fetcher::new(Upstream::new(None), Arc::clone(&l1), limits, |_, _, _| {});
    let (told, answers) = channel();
    Place { gate, asked, store, l1, fetcher, told, answers }
}

impl Place {
    fn fetch(&self, number: u32, priority: Priority) {
        self.fetcher.fetch(name_of(number), &self.store, priority, Box::new(Told(number, self.told.clone())));
    }

    fn let_go(&self, reads: usize) {
        self.gate.open.add_permits(reads);
    }

    fn next_asked(&self) -> String {
        self.asked.recv().unwrap()
    }
}

#[test]
fn many_who_wait_for_a_chunk_cost_one_request_and_it_is_kept() {
    let place = place(FetchLimits::default());
    for _ in 0..50 {
        place.fetch(1, Priority::Demand);
    }
    assert_eq!(place.next_asked(), name_of(1).id.to_string());
    place.let_go(1);
    for _ in 0..50 {
        let (number, fetched) = place.answers.recv().unwrap();
        assert_eq!((number, fetched.unwrap().0), (1, Tier::Origin));
    }
    assert_eq!(place.l1.get(&name_of(1)).unwrap().0, Tier::Memory);
    assert!(place.asked.try_recv().is_err());
    let stats = place.fetcher.stats();
    assert_eq!((stats.flights, stats.joined, stats.failed), (0, 49, 0));
}

#[test]
fn what_is_read_goes_before_what_is_prefetched_and_a_reader_promotes() {
    let place = place(FetchLimits { origin_reads: 1, ..FetchLimits::default() });
    place.fetch(0, Priority::Demand);
    assert_eq!(place.next_asked(), name_of(0).id.to_string());
    // All of these wait for the one thread.
    place.fetch(1, Priority::Background);
    place.fetch(2, Priority::Prefetch);
    place.fetch(3, Priority::Prefetch);
    place.fetch(4, Priority::Demand);
    place.fetch(1, Priority::Demand);
    place.let_go(20);
    let order: Vec<String> = (0..4).map(|_| place.next_asked()).collect();
    let expected: Vec<String> = [4, 1, 2, 3].iter().map(|number| name_of(*number).id.to_string()).collect();
    assert_eq!(order, expected);
    let mut told: Vec<u32> = (0..6).map(|_| place.answers.recv().unwrap().0).collect();
    told.sort_unstable();
    assert_eq!(told, [0, 1, 1, 2, 3, 4]);
}

#[test]
fn no_more_is_asked_at_once_than_may_be_and_no_more_waits() {
    let limits = FetchLimits { origin_reads: 2, flights: 4, ..FetchLimits::default() };
    let place = place(limits);
    for number in 0..6 {
        place.fetch(number, Priority::Demand);
    }
    for _ in 0..2 {
        let (number, fetched) = place.answers.recv().unwrap();
        assert!(number >= 4, "{number}");
        let error = fetched.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
    }
    place.next_asked();
    place.next_asked();
    assert!(place.asked.try_recv().is_err());
    place.let_go(4);
    for _ in 0..4 {
        place.answers.recv().unwrap().1.unwrap();
    }
    assert_eq!(place.fetcher.stats().refused, 2);
}

#[test]
fn a_chunk_that_is_not_there_is_said_to_all_and_asked_for_again_later() {
    let place = place(FetchLimits::default());
    place.let_go(2);
    for _ in 0..2 {
        place.fetch(77, Priority::Demand);
        let error = place.answers.recv().unwrap().1.unwrap_err();
        assert!(error.is_missing(), "{error}");
    }
    assert_eq!(place.fetcher.stats().failed, 2);
}

#[test]
fn those_who_wait_are_told_when_it_ends() {
    let place = place(FetchLimits { origin_reads: 1, ..FetchLimits::default() });
    place.fetch(0, Priority::Demand);
    place.next_asked();
    place.fetch(1, Priority::Demand);
    let Place { fetcher, answers, gate, told, .. } = place;
    drop(told);
    drop(fetcher);
    let (number, fetched) = answers.recv().unwrap();
    assert_eq!((number, fetched.unwrap_err().is_unavailable()), (1, true));
    gate.open.add_permits(1);
    assert_eq!(answers.recv().unwrap().0, 0);
}
