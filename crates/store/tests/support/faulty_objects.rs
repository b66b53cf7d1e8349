//! Object storage in memory with faults: what networks and servers do to requests, and processes that die between two of them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// What is done to requests.
pub struct Faults {
    random: Mutex<ChaCha8Rng>,
    /// Of a thousand requests: so many fail before they are carried out.
    pub refused: u32,
    /// So many are carried out, and their answer is lost.
    pub unanswered: u32,
    /// So many bodies are cut short, and so many have a bit flipped.
    pub truncated: u32,
    pub flipped: u32,
    /// So many come late: other requests that were sent later are carried out before.
    pub late: u32,
    /// The process dies at this request, counted from 1; whether that one is still carried out.
    crash: Option<(u64, bool)>,
    count: Mutex<u64>,
    /// Whose turn it is, where several processes run.
    turns: Option<(Arc<Turns>, usize)>,
}

impl Faults {
    pub fn none(seed: u64) -> Self {
        Self {
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            refused: 0,
            unanswered: 0,
            truncated: 0,
            flipped: 0,
            late: 0,
            crash: None,
            count: Mutex::new(0),
            turns: None,
        }
    }

    pub fn process(seed: u64, crash: Option<(u64, bool)>, turns: Arc<Turns>, number: usize) -> Self {
        Self { crash, turns: Some((turns, number)), ..Self::none(seed) }
    }

    fn happens(&self, of_thousand: u32) -> bool {
        of_thousand > 0 && self.random.lock().unwrap().random_range(0..1000) < of_thousand
    }

    /// Whether the request is carried out, and whether its answer arrives.
    fn request(&self) -> (bool, bool) {
        if let Some((turns, number)) = &self.turns {
            turns.wait(*number);
        }
        let mut count = self.count.lock().unwrap();
        *count += 1;
        if let Some((at, carried_out)) = self.crash
            && *count >= at
        {
            return (*count == at && carried_out, false);
        }
        if self.happens(self.refused) {
            return (false, false);
        }
        (true, !self.happens(self.unanswered))
    }
}

fn failure() -> Error {
    Error::Generic { store: "faulty", source: "the connection broke".into() }
}

/// Lets several processes make requests in an order that only chance decides: one request at a time, and nobody runs between them
/// but the one whose turn it is.
pub struct Turns {
    state: Mutex<TurnState>,
    changed: Condvar,
}

struct TurnState {
    random: ChaCha8Rng,
    alive: BTreeSet<usize>,
    waiting: BTreeSet<usize>,
    turn: Option<usize>,
    /// Who goes on for how many requests: sleepers sleep for long, so that others get much done meanwhile.
    burst: Option<(usize, u32)>,
}

impl Turns {
    pub fn new(seed: u64, processes: usize) -> Arc<Self> {
        let state = TurnState {
            random: ChaCha8Rng::seed_from_u64(seed),
            alive: (0..processes).collect(),
            waiting: BTreeSet::new(),
            turn: None,
            burst: None,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn choose(state: &mut TurnState) {
        if state.turn.is_none() && !state.alive.is_empty() && state.waiting == state.alive {
            let number = match state.burst {
                Some((number, left)) if left > 0 && state.waiting.contains(&number) => {
                    state.burst = Some((number, left - 1));
                    number
                }
                _ => {
                    let index = state.random.random_range(0..state.waiting.len());
                    let number = *state.waiting.iter().nth(index).expect("it has as many");
                    let longest = [1, 6, 300][state.random.random_range(0..3)];
                    state.burst = Some((number, state.random.random_range(0..longest)));
                    number
                }
            };
            state.turn = Some(number);
        }
    }

    fn wait(&self, number: usize) {
        let mut state = self.state.lock().unwrap();
        // Its last turn ends where it asks for another.
        if state.turn == Some(number) {
            state.turn = None;
        }
        state.waiting.insert(number);
        Self::choose(&mut state);
        self.changed.notify_all();
        while state.turn != Some(number) {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting.remove(&number);
    }

    /// The process has ended.
    pub fn end(&self, number: usize) {
        let mut state = self.state.lock().unwrap();
        state.alive.remove(&number);
        state.waiting.remove(&number);
        if state.turn == Some(number) {
            state.turn = None;
        }
        Self::choose(&mut state);
        self.changed.notify_all();
    }
}

/// Objects in memory, as one process sees them.
pub struct FaultyObjects {
    inner: Arc<InMemory>,
    faults: Arc<Faults>,
}

impl FaultyObjects {
    pub fn new(inner: &Arc<InMemory>, faults: Faults) -> Arc<Self> {
        Arc::new(Self { inner: Arc::clone(inner), faults: Arc::new(faults) })
    }

    async fn carry_out<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let (carried_out, answered) = self.faults.request();
        if self.faults.happens(self.faults.late) {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
        }
        if !carried_out {
            return Err(failure());
        }
        let result = request.await;
        if answered { result } else { Err(failure()) }
    }
}

impl fmt::Debug for FaultyObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyObjects")
    }
}

impl fmt::Display for FaultyObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyObjects")
    }
}

#[async_trait::async_trait]
impl ObjectStore for FaultyObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.carry_out(self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.carry_out(self.inner.put_multipart_opts(location, options)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let wants_body = !options.head;
        let mut found = self.carry_out(self.inner.get_opts(location, options)).await?;
        if !wants_body {
            return Ok(found);
        }
        let (truncated, flipped) =
            (self.faults.happens(self.faults.truncated), self.faults.happens(self.faults.flipped));
        if truncated || flipped {
            let meta = found.meta.clone();
            let range = found.range.clone();
            let attributes = found.attributes.clone();
            let extensions = found.extensions.clone();
            let mut bytes = found.bytes().await?.to_vec();
            if truncated {
                bytes.truncate(bytes.len() / 2);
            } else if !bytes.is_empty() {
                let at = self.faults.random.lock().unwrap().random_range(0..bytes.len());
                bytes[at] ^= 1;
            }
            let payload =
                GetResultPayload::Stream(futures::stream::once(async move { Ok(Bytes::from(bytes)) }).boxed());
            found = GetResult { payload, meta, range, attributes, extensions };
        }
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), Arc::clone(&self.faults));
        locations
            .then(move |location| {
                let (inner, faults) = (Arc::clone(&inner), Arc::clone(&faults));
                async move {
                    let location = location?;
                    let (carried_out, answered) = faults.request();
                    if carried_out {
                        object_store::ObjectStoreExt::delete(&*inner, &location).await?;
                    }
                    if answered { Ok(location) } else { Err(failure()) }
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (carried_out, answered) = self.faults.request();
        if !carried_out || !answered {
            return futures::stream::once(async { Err(failure()) }).boxed();
        }
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.carry_out(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.carry_out(self.inner.copy_opts(from, to, options)).await
    }
}
