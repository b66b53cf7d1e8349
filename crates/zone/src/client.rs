//! The zone as a reader sees it: asks all nodes of a chunk at once and goes on with the first shards that are enough.
//!
//! A read takes one connection to each node from a pool, sends its requests, and waits for all of them together on the reader's own
//! thread: there is nothing to be woken, and a shard's bytes go from the socket to their place in the chunk. Nothing is tried
//! again. As soon as enough shards are whole the others are left to themselves: what still comes on their connections is thrown
//! away when they are needed next. A node that is behind by too many requests is not asked, so a slow one costs no memory.

pub(crate) mod connection;
mod network;
mod pool;
mod rooms;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod simulation;
mod transport;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use snowmelt_chunk::ChunkId;
use snowmelt_threads::Threads;

use self::connection::{Connection, Head, Progress};
use self::network::Network;
use self::pool::Pool;
use self::rooms::Begun;
use crate::erasure::Code;
use crate::placement::{Node, Placement};
use crate::shard::{ShardKey, checksum};
use crate::tls::{ClientTls, server_name};
use crate::wire;

/// What readers may set.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How chunks are cut. All readers and writers of a zone need the same.
    pub code: Code,
    /// How long a read waits for shards, in all. After that it is a miss.
    pub patience: Duration,
    /// How long a write waits for nodes to take their shards, in all.
    pub write_patience: Duration,
    /// What nodes want to see of those who ask.
    pub token: Option<String>,
    /// Speaks TLS, and only TLS, where it is set.
    pub tls: Option<Arc<ClientTls>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            code: Code::default(),
            patience: Duration::from_millis(100),
            write_patience: Duration::from_secs(2),
            token: None,
            tls: None,
        }
    }
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The chunk is in the buffer, and is the right one. Of the shards, those whose nodes said that they do not have them.
    Hit {
        /// Shards to be written again.
        missing: Vec<u8>,
    },
    /// Too few shards are there, or not in time.
    Miss,
    /// Shards were there, and none of their combinations are the chunk.
    Corrupt,
}

/// What was asked and answered, since the client was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Chunks that were found.
    pub hits: u64,
    /// Chunks that were not.
    pub misses: u64,
    /// Chunks whose parity was needed.
    pub rebuilt: u64,
    /// Shards that were not what their checksum says, or whole responses that were no HTTP.
    pub damaged_shards: u64,
    /// Requests that failed otherwise.
    pub failed_requests: u64,
    /// Shards that were not asked for, since their node is behind.
    pub skipped_requests: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    rebuilt: AtomicU64,
    damaged_shards: AtomicU64,
    failed_requests: AtomicU64,
    skipped_requests: AtomicU64,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Reads from a zone. May be used from many threads; each read blocks its own.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    zone: ArcSwap<Zone>,
    network: Network,
    counters: Counters,
}

/// Nodes, and connections to them.
#[derive(Debug)]
struct Zone {
    placement: Placement,
    /// Of each node of the placement; `None` where its address is not known.
    pools: Vec<Option<Arc<Pool>>>,
}

/// A shard that was asked for.
struct Asked {
    index: usize,
    pool: Arc<Pool>,
    /// While it is on its way.
    connection: Option<Connection>,
    is_whole: bool,
}

/// Shards on their way.
struct Reading<'a> {
    client: &'a Client,
    chunk: &'a ChunkId,
    asked: Vec<Asked>,
    parity: Vec<u8>,
    missing: Vec<u8>,
}

impl Client {
    /// A client of a zone without nodes, which finds nothing.
    pub fn new(options: ClientOptions) -> Self {
        let placement = Placement::new(Vec::new(), options.code.shards());
        Self {
            options,
            zone: ArcSwap::from_pointee(Zone { placement, pools: Vec::new() }),
            network: Network::Real,
            counters: Counters::default(),
        }
    }

    /// A client in a simulation.
    #[cfg(any(test, feature = "simulation"))]
    pub fn simulated(options: ClientOptions, world: &Arc<simulation::World>) -> Self {
        let mut client = Self::new(options);
        client.network = Network::Simulated(Arc::clone(world));
        client
    }

    /// Where it runs: what is built on it runs there too.
    pub fn threads(&self) -> Threads {
        self.network.threads()
    }

    /// How long a read may take.
    pub fn patience(&self) -> Duration {
        self.options.patience
    }

    /// How chunks are cut.
    pub fn code(&self) -> Code {
        self.options.code
    }

    /// How it speaks TLS, where it does.
    pub(crate) fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.options.tls.as_ref()
    }

    /// Uses these nodes from now on, each with its address, where that is known. Connections to those that stay are kept.
    pub fn set_nodes(&self, placement: Placement, addresses: &[Option<SocketAddr>]) {
        let before = self.zone.load();
        let mut known: HashMap<(SocketAddr, Option<ServerName<'static>>), Arc<Pool>> =
            before.pools.iter().flatten().map(|pool| ((pool.address, pool.host.clone()), Arc::clone(pool))).collect();
        let pools = placement.nodes().iter().zip(addresses).map(|(node, address)| {
            let address = (*address)?;
            let tls = self.options.tls.clone();
            let host = tls.as_ref().and_then(|_| server_name(&node.address));
            let fresh = || Arc::new(Pool::new(address, host.clone(), tls, self.network.clone()));
            Some(Arc::clone(known.entry((address, host.clone())).or_insert_with(fresh)))
        });
        let pools = pools.collect();
        self.zone.store(Arc::new(Zone { placement, pools }));
    }

    /// The nodes that it uses.
    pub fn nodes(&self) -> Vec<Node> {
        self.zone.load().placement.nodes().to_vec()
    }

    /// What was asked and answered.
    pub fn stats(&self) -> ClientStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientStats {
            hits: get(&self.counters.hits),
            misses: get(&self.counters.misses),
            rebuilt: get(&self.counters.rebuilt),
            damaged_shards: get(&self.counters.damaged_shards),
            failed_requests: get(&self.counters.failed_requests),
            skipped_requests: get(&self.counters.skipped_requests),
        }
    }

    /// Reads a chunk into `into`, which has its stored length. `is_right` says whether bytes are the chunk: the id does.
    pub fn read(&self, chunk: &ChunkId, into: &mut [u8], is_right: &dyn Fn(&[u8]) -> bool) -> Found {
        let found = if into.is_empty() { Found::Miss } else { self.ask(chunk, into).run(into, is_right) };
        add(match found {
            Found::Hit { .. } => &self.counters.hits,
            Found::Miss | Found::Corrupt => &self.counters.misses,
        });
        found
    }

    /// Sends all requests.
    fn ask<'a>(&'a self, chunk: &'a ChunkId, into: &mut [u8]) -> Reading<'a> {
        let code = self.options.code;
        let zone = self.zone.load();
        let now = self.network.now();
        let mut asked = Vec::with_capacity(code.shards());
        for (index, node) in zone.placement.of(chunk).enumerate() {
            let Some(pool) = zone.pools.get(node).and_then(Option::as_ref) else { continue };
            // An empty shard is whole without being asked for.
            if code.bytes_of(index, into.len()) == 0 {
                continue;
            }
            match pool.take() {
                Ok(Some(mut connection)) => {
                    let key = ShardKey { chunk: *chunk, code, index: index as u8 };
                    connection.begin(now, |out| self.write_head(out, "GET", &key, &pool.address, ""));
                    asked.push(Asked { index, pool: Arc::clone(pool), connection: Some(connection), is_whole: false });
                }
                Ok(None) => add(&self.counters.skipped_requests),
                Err(error) => {
                    pool.failed(&error);
                    add(&self.counters.failed_requests);
                }
            }
        }
        let mut parity = rooms::PARITY.take();
        parity.resize(code.shard_bytes(into.len()) * code.parity(), 0);
        Reading { client: self, chunk, asked, parity, missing: Vec::new() }
    }

    /// Writes shards of a chunk to their nodes: all, or those that `only` names. Each node has the client's `write_patience`; what it
    /// does not take is left out. Gives how many nodes have their shard now.
    pub fn write(&self, chunk: &ChunkId, bytes: &[u8], only: Option<&[u8]>) -> usize {
        let code = self.options.code;
        let zone = self.zone.load();
        let parity = code.parity_of(bytes);
        let shard_bytes = code.shard_bytes(bytes.len());
        let now = self.network.now();
        let mut written = 0;
        let mut sending: Vec<(Connection, Arc<Pool>)> = Vec::with_capacity(code.shards());
        for (index, node) in zone.placement.of(chunk).enumerate() {
            let Some(pool) = zone.pools.get(node).and_then(Option::as_ref) else { continue };
            let shard = match index.checked_sub(code.data()) {
                None => &bytes[code.range_of(index, bytes.len())],
                Some(index) => &parity[index * shard_bytes..(index + 1) * shard_bytes],
            };
            if shard.is_empty() || only.is_some_and(|only| !only.contains(&(index as u8))) {
                continue;
            }
            let Ok(Some(mut connection)) = pool.take() else { continue };
            let key = ShardKey { chunk: *chunk, code, index: index as u8 };
            let checksum = wire::checksum_text(checksum(&key, bytes.len() as u32, shard));
            let more = format!(
                "content-length: {}\r\n{}: {}\r\n{}: {checksum}\r\n",
                shard.len(),
                wire::CHUNK_BYTES,
                bytes.len(),
                wire::CHECKSUM,
            );
            connection.begin(now, |out| {
                self.write_head(out, "PUT", &key, &pool.address, &more);
                out.extend_from_slice(shard);
            });
            sending.push((connection, Arc::clone(pool)));
        }
        let deadline = now + self.options.write_patience;
        while !sending.is_empty() {
            sending = sending
                .into_iter()
                .filter_map(|(mut connection, pool)| match connection.advance(&mut []) {
                    Ok(Progress::Pending) => Some((connection, pool)),
                    Ok(Progress::Done(head)) => {
                        if matches!(head.status, 200 | 201) {
                            written += 1;
                        } else {
                            tracing::debug!(node = %pool.address, status = head.status, "a shard was not taken");
                        }
                        if head.keeps_open {
                            pool.give_back(connection);
                        }
                        None
                    }
                    Err(error) => {
                        pool.failed(&error);
                        None
                    }
                })
                .collect();
            let connections = sending.iter().map(|(connection, _)| connection);
            if sending.is_empty() || self.network.wait(connections, deadline).is_none() {
                break;
            }
        }
        written
    }

    fn write_head(&self, out: &mut Vec<u8>, method: &str, key: &ShardKey, host: &SocketAddr, more: &str) {
        // Writing to memory cannot fail.
        let _ = write!(out, "{method} {} HTTP/1.1\r\nhost: {host}\r\n{more}", wire::path_of(key));
        if let Some(token) = &self.options.token {
            let _ = write!(out, "authorization: Bearer {token}\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl Reading<'_> {
    fn run(mut self, into: &mut [u8], is_right: &dyn Fn(&[u8]) -> bool) -> Found {
        let code = self.client.options.code;
        let deadline = self.client.network.now() + self.client.options.patience;
        let empty = (0..code.data()).filter(|index| code.bytes_of(*index, into.len()) == 0).count();
        let mut was_wrong = false;
        for at in 0..self.asked.len() {
            self.advance(at, into);
        }
        let found = loop {
            let whole = empty + self.asked.iter().filter(|asked| asked.is_whole).count();
            if whole >= code.data() {
                match self.assemble(into, is_right) {
                    Some(rebuilt) => {
                        if rebuilt {
                            add(&self.client.counters.rebuilt);
                        }
                        break Found::Hit { missing: std::mem::take(&mut self.missing) };
                    }
                    None => was_wrong = true,
                }
            }
            let waiting = self.asked.iter().filter(|asked| asked.connection.is_some()).count();
            if waiting == 0 || (whole + waiting < code.data()) || !self.wait(deadline, into) {
                break if was_wrong { Found::Corrupt } else { Found::Miss };
            }
        };
        self.leave();
        found
    }

    /// Waits for any of the connections, and goes on with those; false when the time is up.
    fn wait(&mut self, deadline: Instant, into: &mut [u8]) -> bool {
        let connections = self.asked.iter().filter_map(|asked| asked.connection.as_ref());
        let Some(ready) = self.client.network.wait(connections, deadline) else { return false };
        let places: Vec<usize> = (0..self.asked.len()).filter(|at| self.asked[*at].connection.is_some()).collect();
        for at in ready {
            self.advance(places[at], into);
        }
        true
    }

    /// Goes on with one shard, as far as it comes without waiting.
    fn advance(&mut self, at: usize, into: &mut [u8]) {
        let code = self.client.options.code;
        let chunk_bytes = into.len();
        let asked = &mut self.asked[at];
        let Some(connection) = &mut asked.connection else { return };
        let shard = code.shard_bytes(chunk_bytes);
        let body = match asked.index.checked_sub(code.data()) {
            None => &mut into[code.range_of(asked.index, chunk_bytes)],
            Some(parity) => &mut self.parity[parity * shard..(parity + 1) * shard],
        };
        let counters = &self.client.counters;
        let head: Head = match connection.advance(body) {
            Ok(Progress::Pending) => return,
            Ok(Progress::Done(head)) => head,
            Err(error) => {
                asked.pool.failed(&error);
                let is_garbage = error.kind() == io::ErrorKind::InvalidData;
                add(if is_garbage { &counters.damaged_shards } else { &counters.failed_requests });
                asked.connection = None;
                return;
            }
        };
        let connection = asked.connection.take();
        if head.keeps_open
            && let Some(connection) = connection
        {
            asked.pool.give_back(connection);
        }
        match head.status {
            200 => {
                let key = ShardKey { chunk: *self.chunk, code, index: asked.index as u8 };
                asked.is_whole = head.chunk_bytes == Some(chunk_bytes as u32)
                    && head.checksum == Some(checksum(&key, chunk_bytes as u32, body));
                if !asked.is_whole {
                    tracing::debug!(node = %asked.pool.address, chunk = %self.chunk, "a shard is damaged");
                    add(&counters.damaged_shards);
                }
            }
            404 => self.missing.push(asked.index as u8),
            status => {
                tracing::debug!(node = %asked.pool.address, status, "a shard was refused");
                add(&counters.failed_requests);
            }
        }
    }

    /// Makes the chunk of what is there; whether parity was needed, `None` if it is not the right one. Then some node lies: each
    /// data shard is taken for the lie once, where there is parity to do without it.
    fn assemble(&self, into: &mut [u8], is_right: &dyn Fn(&[u8]) -> bool) -> Option<bool> {
        let code = self.client.options.code;
        let shard = code.shard_bytes(into.len());
        let whole = |index: usize| {
            code.bytes_of(index, into.len()) == 0
                || self.asked.iter().any(|asked| asked.index == index && asked.is_whole)
        };
        let missing: Vec<usize> = (0..code.data()).filter(|index| !whole(*index)).collect();
        let parity: Vec<(usize, &[u8])> = (0..code.parity())
            .filter(|index| whole(code.data() + index))
            .map(|index| (index, &self.parity[index * shard..(index + 1) * shard]))
            .collect();
        let chunk_bytes = into.len();
        let mut begun = Begun::new();
        for asked in self.asked.iter().filter(|asked| missing.contains(&asked.index)) {
            let start = code.range_of(asked.index, chunk_bytes).start;
            begun.save(start..start + asked.connection.as_ref().map_or(0, Connection::received), into);
        }
        code.rebuild(into, &missing, &parity).ok()?;
        if is_right(into) {
            return Some(!missing.is_empty());
        }
        if parity.len() > missing.len() {
            let pool = |index: usize| self.asked.iter().find(|asked| asked.index == index).map(|asked| &asked.pool);
            let mut suspects: Vec<usize> = (0..code.data()).filter(|index| !missing.contains(index)).collect();
            // Who has lied before does so again: each suspicion costs a hash of the chunk.
            suspects.sort_by_key(|index| Reverse(pool(*index).map_or(0, |pool| pool.lies.load(Ordering::Relaxed))));
            for suspect in suspects {
                let range = code.range_of(suspect, chunk_bytes);
                let before = into[range.clone()].to_vec();
                let without: Vec<usize> = missing.iter().copied().chain([suspect]).collect();
                if code.rebuild(into, &without, &parity).is_ok() && is_right(into) {
                    add(&self.client.counters.damaged_shards);
                    pool(suspect).inspect(|pool| add(&pool.lies));
                    return Some(true);
                }
                into[range].copy_from_slice(&before);
            }
        }
        begun.restore(into);
        None
    }

    /// Nobody waits for the others any more.
    fn leave(self) {
        rooms::PARITY.set(self.parity);
        for asked in self.asked {
            if let Some(connection) = asked.connection
                && !connection.is_sending()
            {
                asked.pool.give_back(connection);
            }
        }
    }
}
