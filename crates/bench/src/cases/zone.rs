//! Chunks from a zone's cache: five nodes on loopback, all in memory, healthy and with one that is not.

mod processes;
mod reading;

use std::time::Duration;

use anyhow::{Result, ensure};
use snowmelt_chunk::{ChunkId, Suite};
use snowmelt_zone::{Client, Code};

use self::processes::Server;
use self::reading::{Addresses, How, Reads, client, connect, placement};
use crate::Bench;
use crate::network::{Conditions, Proxy};
use crate::report::{Section, bytes, ratio};

pub(crate) const CHUNK_BYTES: usize = 512 << 10;
const CHUNKS: usize = 64;
const NODES: usize = 5;
/// Readers at once.
const READERS: [usize; 3] = [1, 8, 32];
/// Readers at once beside a node that is not well: what is looked at is its share of the time, not that of the cores.
const READERS_OF_FAULTS: usize = 2;
/// Each way is read from for so long, and then the next, several times over.
const TURN: Duration = Duration::from_millis(500);
/// Where nothing is wrong, nothing should be given up.
const PATIENCE: Duration = Duration::from_secs(10);
const SLOWED_BY: Duration = Duration::from_millis(50);

/// A chunk that is in the zone.
pub(crate) struct Chunk {
    id: ChunkId,
    bytes: Vec<u8>,
}

/// Incompressible bytes, and others for each number.
fn chunk_of(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn chunks() -> Vec<Chunk> {
    let chunk = |number| {
        let bytes = chunk_of(number);
        Chunk { id: Suite::Blake3Gcm.id_of(&bytes), bytes }
    };
    (0..CHUNKS as u64).map(chunk).collect()
}

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let chunks = chunks();
    let nodes: Vec<Server> = (0..NODES).map(|_| Server::node(bench)).collect::<Result<_>>()?;
    let addresses: Addresses =
        nodes.iter().enumerate().map(|(at, node)| (format!("node-{at}"), node.address)).collect();
    let nginx = Server::nginx(bench, &chunks)?;
    let mut sections = healthy(bench, &chunks, &nodes, &addresses, &nginx)?;
    drop(nginx);
    sections.push(with_faults(bench, &chunks, nodes, addresses)?);
    Ok(sections)
}

fn write_all(client: &Client, chunks: &[Chunk]) -> Result<()> {
    for chunk in chunks {
        let written = client.write(&chunk.id, &chunk.bytes, None);
        ensure!(written == client.code().shards(), "{written} nodes took their shards of {}", chunk.id);
    }
    Ok(())
}

fn healthy(
    bench: &Bench,
    chunks: &[Chunk],
    nodes: &[Server],
    addresses: &Addresses,
    nginx: &Server,
) -> Result<Vec<Section>> {
    let whole = Code::new(1, 0)?;
    let one = addresses[..1].to_vec();
    let reader = |code, nodes: &Addresses| client(code, nodes, Some(PATIENCE));
    let ways = [
        ("plain GET from one node", reader(whole, &one)),
        ("plain GET from nginx", reader(whole, &vec![("nginx".to_owned(), nginx.address)])),
        ("4+1", reader(Code::new(4, 1)?, addresses)),
        ("4 of 4", reader(Code::new(4, 0)?, addresses)),
        ("a whole copy on one of five", reader(whole, addresses)),
    ];
    for (at, (_, client)) in ways.iter().enumerate() {
        // nginx has them already.
        if at != 1 {
            write_all(client, chunks)?;
        }
    }
    let mut section = Section::new(
        "Chunks from the zone",
        format!(
            "Chunks of {} KiB from {NODES} cache nodes, processes of their own on loopback, from memory. The plain GET has the \
             whole chunk as one body, from one of them and from nginx (files in memory, sendfile), by the same client. 4+1 asks \
             all five nodes and takes the first four answers; 4 of 4 has no parity. Ways take turns of {} ms; chunks are checked \
             by their checksums, not hashed. Nodes, nginx and readers share the cores.",
            CHUNK_BYTES >> 10,
            TURN.as_millis()
        ),
        &["readers", "way", "p50", "against the plain GET", "p99", "p99.9", "speed"],
    );
    let mut load = Section::new(
        "Speed of a cache node",
        "The plain GETs of the table above: bytes for each second of processor time that the node, or nginx, took, the kernel's \
         for it included. With many readers on two cores they have what the readers leave of them.",
        &["readers", "server", "speed", "processor", "bytes per second of a core"],
    );
    for readers in READERS {
        let mut all: Vec<Reads> = ways.iter().map(|_| Reads::new()).collect::<Result<_>>()?;
        let mut processor = [Duration::ZERO; 2];
        for turn in 0..bench.few() {
            for (at, ((_, client), reads)) in ways.iter().zip(&mut all).enumerate() {
                let server = [&nodes[0], nginx].get(at).copied();
                let before = server.map(Server::processor_time).transpose()?;
                reads.read(client, chunks, How { readers, first: turn * 23, time: TURN, verifies: false })?;
                if let (Some(server), Some(before)) = (server, before) {
                    processor[at] += server.processor_time()?.saturating_sub(before);
                }
            }
        }
        let plain = all[0].quantile(0.5);
        for ((name, _), reads) in ways.iter().zip(&all) {
            ensure!(reads.hits == reads.times.len(), "{name}: only {:.2} % were found", reads.hit_percent());
            section.row([
                readers.to_string(),
                (*name).to_owned(),
                duration(reads.quantile(0.5)),
                ratio(reads.quantile(0.5), plain),
                duration(reads.quantile(0.99)),
                duration(reads.quantile(0.999)),
                format!("{}/s", bytes(reads.bytes_per_second())),
            ]);
        }
        for ((reads, time), name) in all.iter().zip(processor).zip(["cache node", "nginx"]) {
            load.row([
                readers.to_string(),
                name.to_owned(),
                format!("{}/s", bytes(reads.bytes_per_second())),
                format!("{:.0} % of a core", 100.0 * time.as_secs_f64() / reads.seconds),
                format!("{}/s", bytes(reads.bytes() / time.as_secs_f64())),
            ]);
        }
    }
    Ok(vec![section, load])
}

/// A time in microseconds up to ten milliseconds, so that ratios can be read from the page.
fn duration(seconds: f64) -> String {
    if seconds < 0.01 { format!("{:.0} us", seconds * 1e6) } else { format!("{:.0} ms", seconds * 1e3) }
}

/// What may be wrong with the first node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Slowed,
    Stopped,
    Garbage,
    Killed,
}

impl Fault {
    fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Slowed => format!("slowed by {} ms", SLOWED_BY.as_millis()),
            Self::Stopped => "stopped (SIGSTOP)".to_owned(),
            Self::Garbage => "returns garbage".to_owned(),
            Self::Killed => "killed".to_owned(),
        }
    }
}

fn with_faults(bench: &Bench, chunks: &[Chunk], mut nodes: Vec<Server>, mut addresses: Addresses) -> Result<Section> {
    let codes = [("4+1", Code::new(4, 1)?), ("4 of 4", Code::new(4, 0)?), ("a whole copy", Code::new(1, 0)?)];
    let ways = codes.map(|(name, code)| (name, client(code, &addresses, None)));
    let mut section = Section::new(
        "Chunks from the zone with one node unwell",
        format!(
            "The same nodes, one of them slowed by a proxy, stopped, started anew with other bytes under every name and right \
             checksums, or killed. {READERS_OF_FAULTS} readers, who hash each chunk and wait {} ms for it at most, as is the \
             default; the times are of all reads, also of those that found nothing. A whole copy lies on one of the five nodes.",
            snowmelt_zone::ClientOptions::default().patience.as_millis()
        ),
        &["the node is", "way", "hits", "p50", "p99", "p99.9", "p99 against healthy"],
    );
    let mut healthy_p99 = [0.0; 3];
    for fault in [Fault::None, Fault::Slowed, Fault::Stopped, Fault::Garbage, Fault::Killed] {
        let direct = addresses.clone();
        let mut proxy = None;
        match fault {
            Fault::None => {}
            Fault::Slowed => {
                let conditions = Conditions { name: "slowed", latency: SLOWED_BY, bytes_per_second: None };
                addresses[0].1 = proxy.insert(Proxy::start(nodes[0].address, conditions)?).address();
            }
            Fault::Stopped => nodes[0].stop()?,
            Fault::Garbage => {
                nodes[0] = Server::node(bench)?;
                addresses[0].1 = nodes[0].address;
            }
            Fault::Killed => nodes[0].kill()?,
        }
        for (_, client) in &ways {
            connect(client, &addresses);
        }
        if fault == Fault::Garbage {
            ways.iter().try_for_each(|(_, client)| write_garbage(client, chunks, &addresses))?;
        }
        let mut all: Vec<Reads> = ways.iter().map(|_| Reads::new()).collect::<Result<_>>()?;
        for turn in 0..bench.few() {
            for ((_, client), reads) in ways.iter().zip(&mut all) {
                reads.read(
                    client,
                    chunks,
                    How { readers: READERS_OF_FAULTS, first: turn * 23, time: TURN, verifies: true },
                )?;
            }
        }
        for (((name, _), reads), healthy) in ways.iter().zip(&all).zip(&mut healthy_p99) {
            if fault == Fault::None {
                *healthy = reads.quantile(0.99);
            }
            section.row([
                fault.name(),
                (*name).to_owned(),
                format!("{:.1} %", reads.hit_percent()),
                duration(reads.quantile(0.5)),
                duration(reads.quantile(0.99)),
                duration(reads.quantile(0.999)),
                ratio(reads.quantile(0.99), *healthy),
            ]);
        }
        match fault {
            Fault::Slowed => addresses = direct,
            Fault::Stopped => nodes[0].go_on()?,
            Fault::None | Fault::Garbage | Fault::Killed => {}
        }
    }
    Ok(section)
}

/// Puts bytes that are no chunk's under the names of all shards of the first node, which has none yet.
fn write_garbage(client: &Client, chunks: &[Chunk], addresses: &Addresses) -> Result<()> {
    let placement = placement(client.code(), addresses);
    let (name, _) = &addresses[0];
    let garbage = chunk_of(u64::MAX);
    for chunk in chunks {
        let index = placement.of(&chunk.id).position(|node| placement.nodes()[node].name == *name);
        if let Some(index) = index {
            let written = client.write(&chunk.id, &garbage, Some(&[index as u8]));
            ensure!(written == 1, "the new node did not take a shard of {}", chunk.id);
        }
    }
    Ok(())
}
