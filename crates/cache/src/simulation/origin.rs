//! Object storage in virtual time: slow, away, or damaged. It counts what each worker asks of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_threads::Simulation;

/// After this a request has failed.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// What is wrong with the storage itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) is_away: bool,
    pub(super) is_slow: bool,
    pub(super) corrupts: bool,
}

/// The storage, which all workers share.
#[derive(Debug)]
pub(super) struct Origin {
    objects: InMemory,
    faults: Mutex<Faults>,
    rng: Mutex<ChaCha8Rng>,
}

/// What a worker asked.
#[derive(Debug, Default)]
struct Asked {
    now: BTreeMap<String, usize>,
    requests: u64,
    most_at_once: usize,
    /// Chunks that were asked for while they were on their way already.
    doubled: u64,
}

/// The way from one worker to the storage.
#[derive(Debug)]
pub(super) struct Way {
    origin: Arc<Origin>,
    simulation: Simulation,
    is_cut_off: Mutex<bool>,
    asked: Mutex<Asked>,
}

impl Origin {
    pub(super) fn new(simulation: &Simulation) -> Arc<Self> {
        let rng = Mutex::new(ChaCha8Rng::seed_from_u64(simulation.seed().rotate_left(7)));
        Arc::new(Self { objects: InMemory::new(), faults: Mutex::default(), rng })
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap());
    }

    fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.lock().unwrap().random_range(range)
    }

    async fn answer(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let found = self.objects.get_opts(at, options).await?;
        if !self.faults.lock().unwrap().corrupts || self.random(0..2) == 0 {
            return Ok(found);
        }
        let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
        let mut bytes = found.bytes().await?.to_vec();
        if self.random(0..2) == 0 {
            let at = self.random(0..bytes.len() as u64) as usize;
            bytes[at] ^= 1;
        } else {
            bytes.truncate(self.random(0..bytes.len() as u64) as usize);
        }
        let body = futures::stream::once(async move { Ok(bytes.into()) });
        let payload = GetResultPayload::Stream(Box::pin(body));
        Ok(GetResult { payload, meta, range, attributes, extensions: object_store::Extensions::default() })
    }
}

impl Way {
    pub(super) fn new(simulation: &Simulation, origin: &Arc<Origin>) -> Arc<Self> {
        Arc::new(Self {
            origin: Arc::clone(origin),
            simulation: simulation.clone(),
            is_cut_off: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    pub(super) fn cut_off(&self, is_cut_off: bool) {
        *self.is_cut_off.lock().unwrap() = is_cut_off;
    }

    pub(super) fn requests(&self) -> u64 {
        self.asked.lock().unwrap().requests
    }

    pub(super) fn most_at_once(&self) -> usize {
        self.asked.lock().unwrap().most_at_once
    }

    pub(super) fn doubled(&self) -> u64 {
        self.asked.lock().unwrap().doubled
    }

    fn begin(&self, name: &str) {
        let mut asked = self.asked.lock().unwrap();
        asked.requests += 1;
        let same = asked.now.entry(name.to_owned()).or_default();
        *same += 1;
        let is_double = *same > 1;
        asked.doubled += u64::from(is_double);
        let at_once = asked.now.values().sum();
        asked.most_at_once = asked.most_at_once.max(at_once);
    }

    fn end(&self, name: &str) {
        *self.asked.lock().unwrap().now.get_mut(name).unwrap() -= 1;
    }

    async fn get(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let faults = *self.origin.faults.lock().unwrap();
        if faults.is_away || *self.is_cut_off.lock().unwrap() {
            // Refused at once, or never answered.
            let refused = faults.is_away && self.origin.random(0..2) == 0;
            self.simulation.sleep(if refused { Duration::from_millis(1) } else { TIMEOUT });
            return Err(Error::Generic { store: "simulated", source: "nobody answers".into() });
        }
        let (least, most) = if faults.is_slow { (100_000, 1_900_000) } else { (3_000, 60_000) };
        self.simulation.sleep(Duration::from_micros(self.origin.random(least..most)));
        self.origin.answer(at, options).await
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait]
impl ObjectStore for Way {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.origin.objects.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.origin.objects.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let name = at.to_string();
        self.begin(&name);
        let got = self.get(at, options).await;
        self.end(&name);
        got
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.origin.objects.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.origin.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.origin.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.origin.objects.copy_opts(from, to, options).await
    }
}
