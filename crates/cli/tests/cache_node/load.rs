//! Many clients, slow clients, and an end under load.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::Signal;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::node::{CHUNK, Process, Zone, chunk, client, is_hit, until};

#[test]
fn thousands_of_idle_connections_keep_nobody_from_reading() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.map_or(20_000, |most| most.min(20_000)));
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let node = Process::start("127.0.0.1:0", &[]);
    let (client, _follower) = client(&[&node]);
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    // A node takes 10,000; some are the client's own.
    let idle: Vec<TcpStream> = (0..9_900).map(|_| TcpStream::connect(node.listen).unwrap()).collect();
    until("all are open", || node.metric("snowmelt_node_open_connections") >= 9_900);
    for _ in 0..100 {
        assert!(is_hit(&client, &id, &content));
    }
    // Beyond the limit others wait, and nothing fails.
    let more: Vec<TcpStream> = (0..500).map(|_| TcpStream::connect(node.listen).unwrap()).collect();
    assert!(is_hit(&client, &id, &content));
    assert_eq!(node.ask("/readyz").0, 200);
    drop((idle, more));
    until("they are gone", || node.metric("snowmelt_node_open_connections") < 100);
    assert!(is_hit(&client, &id, &content));
}

#[test]
fn slow_clients_keep_nobody_from_reading() {
    let zone = Zone::start(5);
    let (client, _follower) = zone.client();
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    let put = format!(
        "PUT /v1/shards/4+1/{id}/0 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nsnowmelt-chunk-bytes: {CHUNK}\r\nsnowmelt-crc32c: 00000000\r\n\r\nx",
        CHUNK / 4
    );
    let get = format!("GET /v1/shards/4+1/{id}/0 HTTP/1.1\r\nhost: x\r\n\r\n").repeat(50);
    let mut slow = Vec::new();
    for node in &zone.nodes {
        for bytes in ["GET /v1/sha", &put, &get].into_iter().cycle().take(150) {
            let mut stream = TcpStream::connect(node.listen).unwrap();
            stream.write_all(bytes.as_bytes()).unwrap();
            slow.push(stream);
        }
    }
    for _ in 0..200 {
        assert!(is_hit(&client, &id, &content));
    }
    // Bodies that trickle have used up the places of those that come; they are refused, and nothing else is.
    let (other, content) = chunk(2, CHUNK);
    assert_eq!(client.write(&other, &content, None), 0);
    assert!(zone.nodes[0].metric("snowmelt_node_requests_total{method=\"PUT\",status=\"503\"}") > 0);
}

#[test]
fn an_end_under_load_fails_no_read() {
    let mut zone = Zone::start(5);
    let (client, _follower) = zone.client();
    for seed in 0..16 {
        let (id, content) = chunk(seed, CHUNK);
        assert_eq!(client.write(&id, &content, None), 5);
    }
    for at in 0..5 {
        let (end, reads) = (AtomicBool::new(false), AtomicU64::new(0));
        let misses: u64 = std::thread::scope(|scope| {
            let reading: Vec<_> = (0..3)
                .map(|reader| {
                    let (client, end, reads) = (&client, &end, &reads);
                    scope.spawn(move || {
                        let mut misses = 0;
                        for seed in (0..16).cycle().skip(reader) {
                            if end.load(Ordering::Relaxed) {
                                return misses;
                            }
                            let (id, content) = chunk(seed, CHUNK);
                            misses += u64::from(!is_hit(client, &id, &content));
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                        misses
                    })
                })
                .collect();
            until("reading has begun", || reads.load(Ordering::Relaxed) > 50);
            zone.nodes[at].signal(Signal::SIGTERM);
            assert!(zone.nodes[at].wait().success());
            let before = reads.load(Ordering::Relaxed);
            until("reading goes on", || reads.load(Ordering::Relaxed) > before + 50);
            end.store(true, Ordering::Relaxed);
            reading.into_iter().map(|reader| reader.join().unwrap()).sum()
        });
        assert_eq!(misses, 0, "while node {at} ends");
        // What it had is on its disk: the end waits for that.
        zone.start_again(at);
        assert_eq!(zone.nodes[at].ready["disk_shards_found"], 16);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut node = Process::start("127.0.0.1:0", &[]);
    let (id, _) = chunk(1, CHUNK);
    let head = format!(
        "PUT /v1/shards/4+1/{id}/0 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nsnowmelt-chunk-bytes: {CHUNK}\r\nsnowmelt-crc32c: 00000000\r\n\r\nx",
        CHUNK / 4
    );
    let mut slow = TcpStream::connect(node.listen).unwrap();
    slow.write_all(head.as_bytes()).unwrap();
    // It is answered after the head was read.
    until("the request has begun", || node.metric("snowmelt_node_open_connections") == 1);
    node.signal(Signal::SIGTERM);
    until("it is not ready any more", || node.ask("/readyz").0 == 503);
    node.signal(Signal::SIGTERM);
    let status = node.wait();
    // Where the first signal found nothing begun, it has ended well already.
    assert!(status.code() == Some(128 + 15) || status.success(), "{status}");
}
