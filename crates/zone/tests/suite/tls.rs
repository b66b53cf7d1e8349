//! Mutual TLS: who is answered, who is believed, and that a mistake is a fast miss.

use std::sync::Arc;
use std::time::{Duration, Instant};

use snowmelt_zone::node::Access;
use snowmelt_zone::{Client, ClientOptions, ClientTls, Found, ServerTls, TlsFiles};
use tokio::runtime::Runtime;

use crate::authority::{Authority, replace};
use crate::nodes::{CHUNK, Running, assert_hit, chunk, read, tell};

fn node(runtime: &Runtime, files: &TlsFiles) -> Running {
    let tls = Some(Arc::new(ServerTls::load(files).unwrap()));
    Running::start(runtime, None, Access { token: None, tls })
}

/// A client that would wait for long, so that what is quick is not quick by patience.
fn client(files: Option<&TlsFiles>, node: &Running) -> Client {
    let tls = files.map(|files| Arc::new(ClientTls::load(files).unwrap()));
    let patience = Duration::from_mins(1);
    let client = Client::new(ClientOptions { tls, patience, write_patience: patience, ..ClientOptions::default() });
    tell(&client, &[node.address]);
    client
}

fn assert_fast_miss(client: &Client) {
    let start = Instant::now();
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 0);
    assert_eq!(read(client, &id, CHUNK).0, Found::Miss);
    assert!(start.elapsed() < Duration::from_secs(30), "it took {:?}", start.elapsed());
    let stats = client.stats();
    assert!(stats.failed_requests + stats.damaged_shards > 0, "{stats:?}");
}

#[test]
fn who_has_a_certificate_is_answered() {
    let (runtime, authority) = (Runtime::new().unwrap(), Authority::new());
    let node = node(&runtime, &authority.sign("node", &["127.0.0.1"]));
    let client = client(Some(&authority.sign("reader", &["reader"])), &node);
    for (seed, size) in [1, 5, 4096, 100_000, CHUNK - 1, CHUNK].into_iter().enumerate() {
        let (id, content) = chunk(seed as u64, size);
        assert_eq!(read(&client, &id, size).0, Found::Miss);
        assert!(client.write(&id, &content, None) > 0);
        assert_hit(&client, &id, &content);
        assert_hit(&client, &id, &content);
    }
    assert_eq!((client.stats().damaged_shards, client.stats().failed_requests), (0, 0));
}

#[test]
fn many_readers_share_connections() {
    let (runtime, authority) = (Runtime::new().unwrap(), Authority::new());
    let node = node(&runtime, &authority.sign("node", &["127.0.0.1"]));
    let client = client(Some(&authority.sign("reader", &["reader"])), &node);
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| assert_hit(&client, &id, &content)));
        }
    });
    assert_eq!((client.stats().damaged_shards, client.stats().failed_requests), (0, 0));
}

#[test]
fn who_has_none_or_a_wrong_one_is_refused() {
    let (runtime, authority, other) = (Runtime::new().unwrap(), Authority::new(), Authority::new());
    let node = node(&runtime, &authority.sign("node", &["127.0.0.1"]));
    assert_fast_miss(&client(None, &node));
    let mut of_another = other.sign("reader", &["reader"]);
    // It believes the node; the node does not believe it.
    of_another.ca = authority.sign("reader", &["reader"]).ca;
    assert_fast_miss(&client(Some(&of_another), &node));
    assert_fast_miss(&client(Some(&expired(&authority, "reader")), &node));
    let text = node.server.metrics();
    assert!(text.contains("snowmelt_node_lost_connections_total{reason=\"tls\"}"), "{text}");
    assert_eq!(node.shards.stats().stored, 0);
}

#[test]
fn a_node_that_is_not_what_it_should_be_is_not_believed() {
    let (runtime, authority, other) = (Runtime::new().unwrap(), Authority::new(), Authority::new());
    let reader = authority.sign("reader", &["reader"]);
    // Another host, another authority, one that has expired, no certificate at all.
    assert_fast_miss(&client(Some(&reader), &node(&runtime, &authority.sign("node", &["10.0.0.1"]))));
    let mut of_another = other.sign("node", &["127.0.0.1"]);
    of_another.ca.clone_from(&reader.ca);
    assert_fast_miss(&client(Some(&reader), &node(&runtime, &of_another)));
    assert_fast_miss(&client(Some(&reader), &node(&runtime, &expired(&authority, "127.0.0.1"))));
    assert_fast_miss(&client(Some(&reader), &Running::start(&runtime, None, None)));
}

/// A reader that is told of a node again and again believes it once its certificate was renewed, and not before.
#[test]
fn a_certificate_that_has_expired_is_renewed_without_a_restart() {
    let (runtime, authority) = (Runtime::new().unwrap(), Authority::new());
    let node = node(&runtime, &expired(&authority, "127.0.0.1"));
    let client = client(Some(&authority.sign("reader", &["reader"])), &node);
    assert_fast_miss(&client);
    authority.sign("expired", &["127.0.0.1"]);
    let (id, content) = chunk(2, CHUNK);
    let start = Instant::now();
    while client.write(&id, &content, None) < 5 {
        assert!(start.elapsed() < Duration::from_mins(1), "the new certificate is never used");
        std::thread::yield_now();
    }
    assert_hit(&client, &id, &content);
}

/// A certificate whose time is over.
fn expired(authority: &Authority, host: &str) -> TlsFiles {
    authority.sign_with("expired", &[host], |params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    })
}

#[test]
fn certificates_are_replaced_without_a_restart() {
    let (runtime, authority) = (Runtime::new().unwrap(), Authority::new());
    let files = authority.sign("node", &["10.0.0.1"]);
    let node = node(&runtime, &files);
    let client = client(Some(&authority.sign("reader", &["reader"])), &node);
    assert_fast_miss(&client);
    // What cannot be used changes nothing, and what can be is used by those that connect after a second.
    replace(&files.certificate, "no certificate\n");
    authority.sign("node", &["127.0.0.1"]);
    let (id, content) = chunk(2, CHUNK);
    let start = Instant::now();
    while client.write(&id, &content, None) < 5 {
        assert!(start.elapsed() < Duration::from_mins(1), "the new certificate is never used");
        std::thread::yield_now();
    }
    assert_hit(&client, &id, &content);
}

#[test]
fn files_that_are_none_are_refused_with_their_names() {
    let authority = Authority::new();
    let good = authority.sign("node", &["127.0.0.1"]);
    let missing = TlsFiles { ca: "/nowhere/ca.pem".into(), ..good.clone() };
    assert!(ServerTls::load(&missing).unwrap_err().to_string().contains("/nowhere/ca.pem"));
    let swapped = TlsFiles { certificate: good.key.clone(), key: good.certificate.clone(), ..good.clone() };
    let error = ClientTls::load(&swapped).unwrap_err().to_string();
    assert!(error.contains("node."), "{error}");
    let of_another = TlsFiles { key: authority.sign("other", &["x"]).key, ..good };
    let error = ServerTls::load(&of_another).unwrap_err().to_string();
    assert!(error.contains("node.pem") && error.contains("cannot be used"), "{error}");
}
