//! Nodes in this process, and what tests ask of them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_chunk::ChunkId;
use snowmelt_zone::node::{Access, Limits, Server, Shards};
use snowmelt_zone::{Client, ClientOptions, Found, Node, Placement};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

pub(crate) const CHUNK: usize = 512 << 10;

/// A node in this process, on a free port.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) shards: Arc<Shards>,
    pub(crate) server: Server,
    end: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(runtime: &Runtime, disk: Option<&Path>, access: impl Into<Access>) -> Self {
        Self::start_with(runtime, disk, access, Limits::default())
    }

    pub(crate) fn start_with(
        runtime: &Runtime,
        disk: Option<&Path>,
        access: impl Into<Access>,
        limits: Limits,
    ) -> Self {
        let shards = Arc::new(Shards::open(64 << 20, disk.map(|folder| (folder, 64 << 20))).unwrap());
        let server = Server::new(Arc::clone(&shards), access, limits);
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let serving = server.clone();
        let served = runtime.spawn(async move { serving.serve(listener, async { drop(ended.await) }).await });
        Self { address, shards, server, end: Some(end), served: Some(served) }
    }

    pub(crate) fn stop(&mut self, runtime: &Runtime) {
        drop(self.end.take());
        if let Some(served) = self.served.take() {
            runtime.block_on(served).unwrap();
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) runtime: Runtime,
    pub(crate) nodes: Vec<Running>,
}

impl Cluster {
    pub(crate) fn start(count: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let nodes = (0..count).map(|_| Running::start(&runtime, None, None)).collect();
        Self { runtime, nodes }
    }

    pub(crate) fn client(&self, options: ClientOptions) -> Client {
        let client = Client::new(options);
        self.tell(&client);
        client
    }

    /// Tells a client where all nodes are.
    pub(crate) fn tell(&self, client: &Client) {
        let addresses: Vec<SocketAddr> = self.nodes.iter().map(|node| node.address).collect();
        tell(client, &addresses);
    }
}

pub(crate) fn tell(client: &Client, addresses: &[SocketAddr]) {
    let nodes = addresses.iter().enumerate().map(|(number, address)| Node {
        name: format!("node-{number}"),
        address: address.to_string(),
        domain: None,
    });
    let placement = Placement::new(nodes.collect(), client.code().shards());
    let at: Vec<_> = placement.nodes().iter().map(|node| Some(node.address.parse().unwrap())).collect();
    client.set_nodes(placement, &at);
}

pub(crate) fn chunk(seed: u64, bytes: usize) -> (ChunkId, Vec<u8>) {
    let mut content = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(seed).fill(&mut content[..]);
    (ChunkId(*blake3::hash(&content).as_bytes()), content)
}

pub(crate) fn read(client: &Client, id: &ChunkId, bytes: usize) -> (Found, Vec<u8>) {
    let mut into = vec![0xee; bytes];
    let found = client.read(id, &mut into, &|bytes| blake3::hash(bytes).as_bytes() == &id.0);
    (found, into)
}

pub(crate) fn assert_hit(client: &Client, id: &ChunkId, expected: &[u8]) {
    let (found, bytes) = read(client, id, expected.len());
    assert!(matches!(found, Found::Hit { .. }), "{found:?}");
    assert_eq!(bytes, expected);
}

/// Waits for what must come sooner or later.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_mins(1), "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
