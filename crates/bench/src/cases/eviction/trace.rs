//! A made-up day of a worker: which chunks its starts ask for, in order.
//!
//! Interactive starts come at random, few images often and many seldom. Cron functions come all together at every period, each
//! once, while interactive starts go on: in a round they ask for more chunks than a worker may keep, and for none of them again
//! before the next. Images are replaced by new versions that share most of their chunks with the last.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Stored bytes of a whole chunk.
pub(crate) const CHUNK_BYTES: u64 = 512 << 10;

/// How much of what. All counts.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) seed: u64,
    /// Images that interactive starts choose from, and the exponent of Zipf's law by which they do.
    pub(crate) images: usize,
    pub(crate) skew: f64,
    /// Language runtimes that images are built on, and the chunks of one that a start reads.
    pub(crate) runtimes: usize,
    pub(crate) runtime_chunks: u32,
    /// Chunks of an image's own that a start reads, at least and at most.
    pub(crate) own_chunks: std::ops::Range<u32>,
    /// Chunks that a start asks for a second time, since its device has few of them decrypted.
    pub(crate) again_percent: u32,
    /// Cron functions, how many interactive starts lie between two of their rounds, and how many functions start beside each
    /// interactive start in a round.
    pub(crate) crons: usize,
    pub(crate) period: usize,
    pub(crate) crons_at_once: usize,
    /// Sandboxes that each cron function starts at once.
    pub(crate) sandboxes_per_cron: usize,
    /// Interactive starts between two new versions of some image, and the chunks of its own that a new version keeps.
    pub(crate) deploy_every: usize,
    pub(crate) kept_percent: u32,
    /// Interactive starts in all.
    pub(crate) starts: usize,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            seed: 1,
            images: 2000,
            skew: 0.9,
            runtimes: 8,
            runtime_chunks: 40,
            own_chunks: 20..120,
            again_percent: 10,
            crons: 400,
            period: 2000,
            crons_at_once: 8,
            sandboxes_per_cron: 1,
            deploy_every: 50,
            kept_percent: 80,
            starts: 10_000,
        }
    }
}

/// When an interactive start comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// While cron functions start.
    During,
    /// Among the first that come after such a round: a quarter of those until the next.
    After,
    /// Later, or before the first round.
    Quiet,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    Interactive(When),
    Cron,
}

/// A request for a chunk, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) chunk: u32,
    pub(crate) by: Asker,
}

/// Every request, in order, and the stored bytes of each chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) requests: Vec<Request>,
    pub(crate) chunk_bytes: Vec<u64>,
}

/// A function: the runtime that it is built on, and chunks of its own.
struct Image {
    runtime: usize,
    own: Vec<u32>,
}

struct Maker<'a> {
    workload: &'a Workload,
    random: ChaCha8Rng,
    runtimes: Vec<Vec<u32>>,
    trace: Trace,
}

impl Maker<'_> {
    fn fresh(&mut self, count: u32) -> Vec<u32> {
        let first = self.trace.chunk_bytes.len() as u32;
        for _ in 0..count {
            // Trailing zeros are not stored: an image of 692 MB in 1,801 chunks has chunks of 375 KiB in the mean. So do these.
            let is_full = self.random.random_bool(0.5);
            let bytes = if is_full { CHUNK_BYTES } else { self.random.random_range(4096..=CHUNK_BYTES) };
            self.trace.chunk_bytes.push(bytes);
        }
        (first..first + count).collect()
    }

    fn image(&mut self) -> Image {
        let runtime = self.random.random_range(0..self.workload.runtimes);
        let own = self.random.random_range(self.workload.own_chunks.clone());
        Image { runtime, own: self.fresh(own) }
    }

    /// A new version: the first chunks of its own stay, which are its libraries.
    fn deploy(&mut self, image: &mut Image) {
        let kept = image.own.len() * self.workload.kept_percent as usize / 100;
        let fresh = self.fresh((image.own.len() - kept) as u32);
        image.own.splice(kept.., fresh);
    }

    /// What a start asks for, in order.
    fn start(&mut self, image: &Image) -> Vec<u32> {
        let once = self.runtimes[image.runtime].iter().chain(&image.own);
        let mut places: Vec<(usize, u32)> = once.copied().enumerate().collect();
        for at in 0..places.len() {
            if self.random.random_ratio(self.workload.again_percent, 100) {
                // Soon: what is not in the device any more, but was a moment ago.
                places.push((at + self.random.random_range(8..40), places[at].1));
            }
        }
        places.sort_by_key(|(place, _)| *place);
        places.into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Starts that run at once: each asks for a chunk in turn.
    fn run(&mut self, starts: &[(Asker, Vec<u32>)]) {
        let longest = starts.iter().map(|(_, chunks)| chunks.len()).max().unwrap_or(0);
        for at in 0..longest {
            let now = starts.iter().filter_map(|(by, chunks)| Some(Request { chunk: *chunks.get(at)?, by: *by }));
            self.trace.requests.extend(now);
        }
    }
}

impl Workload {
    /// The same for the same workload.
    pub(crate) fn trace(&self) -> Trace {
        let random = ChaCha8Rng::seed_from_u64(self.seed);
        let trace = Trace { requests: Vec::new(), chunk_bytes: Vec::new() };
        let mut maker = Maker { workload: self, random, runtimes: Vec::new(), trace };
        maker.runtimes = (0..self.runtimes).map(|_| maker.fresh(self.runtime_chunks)).collect();
        let mut images: Vec<Image> = (0..self.images).map(|_| maker.image()).collect();
        let crons: Vec<Image> = (0..self.crons).map(|_| maker.image()).collect();
        let popularity = Zipf::new(self.images, self.skew);
        let mut waiting = crons[..0].iter();
        let mut since_round = self.period;
        for number in 0..self.starts {
            if number % self.deploy_every == self.deploy_every - 1 {
                let image = popularity.choose(&mut maker.random);
                maker.deploy(&mut images[image]);
            }
            if number % self.period == self.period - 1 {
                waiting = crons.iter();
            }
            let mut starts = Vec::new();
            for cron in waiting.by_ref().take(self.crons_at_once) {
                for _ in 0..self.sandboxes_per_cron {
                    starts.push((Asker::Cron, maker.start(cron)));
                }
            }
            since_round = if starts.is_empty() { since_round + 1 } else { 0 };
            let when = match since_round {
                0 => When::During,
                since if since <= self.period / 4 => When::After,
                _ => When::Quiet,
            };
            let image = popularity.choose(&mut maker.random);
            let chunks = maker.start(&images[image]);
            starts.push((Asker::Interactive(when), chunks));
            maker.run(&starts);
        }
        maker.trace
    }
}

/// Zipf's law over `0..count`: the n-th is chosen in proportion to `n^-skew`.
struct Zipf {
    /// Of the first n, in all.
    sums: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        Self { sums: sums.collect() }
    }

    fn choose(&self, random: &mut ChaCha8Rng) -> usize {
        let total = self.sums.last().copied().unwrap_or(0.0);
        let at = random.random::<f64>() * total;
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1)
    }
}
