//! Readers and real nodes over loopback, with nodes that are gone, silent, slow or lying.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use snowmelt_zone::{Client, ClientOptions, Code, Found, ShardKey, checksum};
use tokio::runtime::Runtime;

use crate::nodes::{CHUNK, Cluster, Running, assert_hit, chunk, read, tell, until};

#[test]
fn what_was_written_is_read_whatever_its_size() {
    let cluster = Cluster::start(5);
    let client = cluster.client(ClientOptions::default());
    for (seed, size) in [1, 2, 3, 4, 5, 7, 4096, 100_000, CHUNK - 1, CHUNK].into_iter().enumerate() {
        let (id, content) = chunk(seed as u64, size);
        assert_eq!(read(&client, &id, size).0, Found::Miss);
        client.write(&id, &content, None);
        assert_hit(&client, &id, &content);
    }
    assert_eq!(client.stats().damaged_shards, 0);
}

#[test]
fn any_one_node_may_be_gone_and_two_are_too_many() {
    let mut cluster = Cluster::start(5);
    let client = cluster.client(ClientOptions::default());
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    for gone in 0..5 {
        cluster.nodes[gone].stop(&cluster.runtime);
        assert_hit(&client, &id, &content);
        cluster.nodes[gone] = Running::start(&cluster.runtime, None, None);
        cluster.tell(&client);
        // What a new node does not have is said, and can be written again.
        let mut missing = Vec::new();
        while missing.is_empty() {
            let (found, _) = read(&client, &id, CHUNK);
            let Found::Hit { missing: said } = found else { panic!("{found:?}") };
            missing = said;
        }
        assert_eq!(client.write(&id, &content, Some(&missing)), 1);
    }
    cluster.nodes[0].stop(&cluster.runtime);
    cluster.nodes[1].stop(&cluster.runtime);
    assert_eq!(read(&client, &id, CHUNK).0, Found::Miss);
}

/// A listener that accepts, and does what it is told with each request.
fn odd_node(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            std::thread::spawn(move || {
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    request.extend_from_slice(&buffer[..count]);
                    let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&request[..end]).into_owned();
                    request.drain(..end + 4);
                    match answer(&head) {
                        Some(bytes) => drop(stream.write_all(&bytes)),
                        None => std::thread::park(),
                    }
                }
            });
        }
    });
    address
}

fn with_odd_node(cluster: &Cluster, place: usize, odd: SocketAddr, options: ClientOptions) -> Client {
    let client = Client::new(options);
    let mut addresses: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.address).collect();
    addresses[place] = odd;
    tell(&client, &addresses);
    client
}

#[test]
fn a_silent_node_keeps_nobody_waiting() {
    let cluster = Cluster::start(5);
    let honest = cluster.client(ClientOptions::default());
    let options = ClientOptions { patience: Duration::from_mins(1), ..ClientOptions::default() };
    let client = with_odd_node(&cluster, 2, odd_node(|_| None), options);
    for seed in 0..100 {
        let (id, content) = chunk(seed, 64 << 10);
        honest.write(&id, &content, None);
        let start = Instant::now();
        assert_hit(&client, &id, &content);
        assert!(start.elapsed() < Duration::from_secs(30), "nobody waits for the silent one");
    }
    // It is asked until it is too far behind, and then no more.
    assert!(client.stats().skipped_requests > 0);
}

#[test]
fn nodes_that_are_all_silent_are_a_miss_in_time() {
    let client = Client::new(ClientOptions { patience: Duration::from_millis(50), ..ClientOptions::default() });
    let silent: Vec<SocketAddr> = (0..5).map(|_| odd_node(|_| None)).collect();
    tell(&client, &silent);
    let start = Instant::now();
    assert_eq!(read(&client, &chunk(1, CHUNK).0, CHUNK).0, Found::Miss);
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// A response with a shard in it.
fn response(checksum: u32, chunk_bytes: usize, bytes: &[u8]) -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nsnowmelt-chunk-bytes: {chunk_bytes}\r\nsnowmelt-crc32c: {checksum:08x}\r\n\r\n",
        bytes.len()
    )
    .into_bytes();
    response.extend_from_slice(bytes);
    response
}

#[test]
fn a_node_that_returns_garbage_costs_no_hit() {
    let cluster = Cluster::start(5);
    let honest = cluster.client(ClientOptions::default());
    let garbage: [fn(&str) -> Vec<u8>; 6] = [
        |_| response(7, CHUNK, &vec![1; CHUNK / 4]),
        |_| response(7, CHUNK, &[1; 10]),
        |_| b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        |_| vec![0xff; 10_000],
        |_| b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\nand more".to_vec(),
        // With a checksum that fits, as only one that means harm has it.
        |head| {
            let mut parts = head.split(' ').nth(1).unwrap().rsplit('/');
            let index = parts.next().unwrap().parse().unwrap();
            let chunk = parts.next().unwrap().parse().unwrap();
            let bytes = vec![1; CHUNK / 4];
            let key = ShardKey { chunk, code: Code::default(), index };
            response(checksum(&key, CHUNK as u32, &bytes), CHUNK, &bytes)
        },
    ];
    for (number, garbage) in garbage.into_iter().enumerate() {
        let odd = odd_node(move |head| Some(garbage(head)));
        for place in 0..5 {
            let options = ClientOptions { patience: Duration::from_secs(20), ..ClientOptions::default() };
            let client = with_odd_node(&cluster, place, odd, options);
            for seed in 0..5 {
                let (id, content) = chunk(seed, CHUNK);
                honest.write(&id, &content, None);
                let (found, bytes) = read(&client, &id, CHUNK);
                assert!(matches!(found, Found::Hit { .. }), "garbage {number} at {place}: {found:?}");
                assert_eq!(bytes, content);
            }
        }
    }
}

#[test]
fn few_nodes_are_enough_and_none_are_a_miss() {
    for count in 1..5 {
        let cluster = Cluster::start(count);
        let client = cluster.client(ClientOptions::default());
        let (id, content) = chunk(count as u64, CHUNK);
        assert_eq!(client.write(&id, &content, None), 5);
        assert_hit(&client, &id, &content);
    }
    let client = Client::new(ClientOptions::default());
    let (id, content) = chunk(9, CHUNK);
    assert_eq!(client.write(&id, &content, None), 0);
    assert_eq!(read(&client, &id, CHUNK).0, Found::Miss);
}

#[test]
fn a_node_starts_warm_from_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut node = Running::start(&runtime, Some(folder.path()), None);
    let client = Client::new(ClientOptions::default());
    tell(&client, &[node.address]);
    let (id, content) = chunk(3, CHUNK);
    client.write(&id, &content, None);
    node.stop(&runtime);
    drop(node);
    assert_eq!(read(&client, &id, CHUNK).0, Found::Miss);
    let node = Running::start(&runtime, Some(folder.path()), None);
    tell(&client, &[node.address]);
    assert_hit(&client, &id, &content);
    // Four are enough for a read; the fifth may still be on its way.
    until("all were read", || node.shards.stats().disk_hits == 5);
    assert_hit(&client, &id, &content);
    assert_eq!(node.shards.stats().disk_hits, 5, "memory has them now");
}

#[test]
fn only_those_with_the_token_are_answered() {
    let runtime = Runtime::new().unwrap();
    let node = Running::start(&runtime, None, Some("open sesame".to_owned()));
    let (id, content) = chunk(4, CHUNK);
    for (token, is_allowed) in [(None, false), (Some("open"), false), (Some("open sesame"), true)] {
        let client = Client::new(ClientOptions { token: token.map(str::to_owned), ..ClientOptions::default() });
        tell(&client, &[node.address]);
        assert_eq!(client.write(&id, &content, None), if is_allowed { 5 } else { 0 });
        assert_eq!(read(&client, &id, CHUNK).0 != Found::Miss, is_allowed);
    }
}

#[test]
fn many_readers_at_once_get_what_they_asked_for() {
    let cluster = Cluster::start(7);
    let client = cluster.client(ClientOptions { patience: Duration::from_secs(20), ..ClientOptions::default() });
    let chunks: Vec<_> = (0..16).map(|seed| chunk(seed, CHUNK)).collect();
    for (id, content) in &chunks {
        assert_eq!(client.write(id, content, None), 5);
    }
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (client, chunks) = (&client, &chunks);
            scope.spawn(move || {
                for round in 0..20 {
                    let (id, content) = &chunks[(reader * 3 + round) % chunks.len()];
                    assert_hit(client, id, content);
                }
            });
        }
    });
    assert_eq!(client.stats().damaged_shards, 0);
}
