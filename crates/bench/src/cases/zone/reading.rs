//! Readers that read as fast as they can, and how long each read takes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use snowmelt_zone::{Client, ClientOptions, Code, Found, Node, Placement};

use super::{CHUNK_BYTES, Chunk};

/// Reads of one kind.
pub(super) struct Reads {
    /// In nanoseconds, those too that found nothing.
    pub(super) times: Histogram<u64>,
    pub(super) hits: u64,
    /// Seconds that the readers were at it.
    pub(super) seconds: f64,
}

impl Reads {
    pub(super) fn new() -> Result<Self> {
        // Up to a minute, to three digits.
        Ok(Self { times: Histogram::new_with_bounds(1, 60_000_000_000, 3)?, hits: 0, seconds: 0.0 })
    }

    /// In seconds.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        self.times.value_at_quantile(share) as f64 / 1e9
    }

    pub(super) fn hit_percent(&self) -> f64 {
        100.0 * self.hits as f64 / self.times.len().max(1) as f64
    }

    /// Bytes of chunks that were found.
    pub(super) fn bytes(&self) -> f64 {
        (self.hits * CHUNK_BYTES as u64) as f64
    }

    pub(super) fn bytes_per_second(&self) -> f64 {
        self.bytes() / self.seconds
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.times.add(&other.times)?;
        self.hits += other.hits;
        Ok(())
    }

    /// So many readers at once, for so long; what they read is added.
    pub(super) fn read(&mut self, client: &Client, chunks: &[Chunk], how: How) -> Result<()> {
        let started = Instant::now();
        let all: Vec<Result<Self>> = std::thread::scope(|scope| {
            let reader = |number: usize| {
                move || read_one(client, chunks, how.first + number * 7, started + how.time, how.verifies)
            };
            let readers: Vec<_> = (0..how.readers).map(|number| scope.spawn(reader(number))).collect();
            let join = |reader: std::thread::ScopedJoinHandle<'_, Result<Self>>| {
                reader.join().unwrap_or_else(|_| Err(anyhow!("a reader panicked")))
            };
            readers.into_iter().map(join).collect()
        });
        self.seconds += started.elapsed().as_secs_f64();
        for reads in all {
            self.add(&reads?)?;
        }
        Ok(())
    }
}

/// How chunks are read.
#[derive(Clone, Copy)]
pub(super) struct How {
    pub(super) readers: usize,
    /// The chunk that the first of them begins with; the others begin elsewhere.
    pub(super) first: usize,
    pub(super) time: Duration,
    /// Whether each chunk is hashed, as it must be where it comes from others.
    pub(super) verifies: bool,
}

fn read_one(client: &Client, chunks: &[Chunk], mut at: usize, until: Instant, verifies: bool) -> Result<Reads> {
    let mut reads = Reads::new()?;
    let mut into = vec![0; CHUNK_BYTES];
    while Instant::now() < until {
        let chunk = &chunks[at % chunks.len()];
        at += 1;
        let begun = Instant::now();
        let is_right = |bytes: &[u8]| !verifies || blake3::hash(bytes).as_bytes() == &chunk.id.0;
        let found = client.read(&chunk.id, &mut into, &is_right);
        reads.times.record((begun.elapsed().as_nanos() as u64).max(1))?;
        reads.hits += u64::from(matches!(found, Found::Hit { .. }));
    }
    Ok(reads)
}

/// Nodes by their names, with the addresses that they have now.
pub(super) type Addresses = Vec<(String, SocketAddr)>;

/// Where chunks of a code lie.
pub(super) fn placement(code: Code, nodes: &Addresses) -> Placement {
    let node = |(name, address): &(String, SocketAddr)| Node {
        name: name.clone(),
        address: address.to_string(),
        domain: None,
    };
    Placement::new(nodes.iter().map(node).collect(), code.shards())
}

/// Tells a client where nodes are.
pub(super) fn connect(client: &Client, nodes: &Addresses) {
    let placement = placement(client.code(), nodes);
    let address = |node: &Node| nodes.iter().find(|(name, _)| *name == node.name).map(|(_, address)| *address);
    let addresses: Vec<_> = placement.nodes().iter().map(address).collect();
    client.set_nodes(placement, &addresses);
}

/// A client as readers have it, but for patience, where that is given.
pub(super) fn client(code: Code, nodes: &Addresses, patience: Option<Duration>) -> Client {
    let mut options = ClientOptions { code, ..ClientOptions::default() };
    options.patience = patience.unwrap_or(options.patience);
    let client = Client::new(options);
    connect(&client, nodes);
    client
}
