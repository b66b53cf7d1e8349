//! Clients that take their time: a node ends them, and others notice nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use snowmelt_zone::node::{Access, Limits};
use snowmelt_zone::{Client, ClientOptions};
use tokio::runtime::Runtime;

use crate::nodes::{CHUNK, Running, assert_hit, chunk, tell, until};

fn impatient(runtime: &Runtime, access: impl Into<Access>) -> Running {
    Running::start_with(runtime, None, access, Limits { patience: Duration::from_millis(300), ..Limits::default() })
}

fn connect(node: &Running, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// What the node says before it closes.
fn last_words(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    // A reset ends it too.
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

fn put_head(node: &Running) -> String {
    let (id, _) = chunk(5, CHUNK);
    let length = CHUNK / 4;
    format!(
        "PUT /v1/shards/4+1/{id}/0 HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\nsnowmelt-chunk-bytes: {CHUNK}\r\nsnowmelt-crc32c: 00000000\r\n\r\n",
        node.address
    )
}

#[test]
fn heads_bodies_and_readers_that_do_not_go_on_are_ended() {
    let runtime = Runtime::new().unwrap();
    let node = impatient(&runtime, None);
    let client = Client::new(ClientOptions { patience: Duration::from_mins(1), ..ClientOptions::default() });
    tell(&client, &[node.address]);
    let (id, content) = chunk(1, 1 << 20);
    assert_eq!(client.write(&id, &content, None), 5);

    let slow_head = connect(&node, b"GET /v1/shards/4+1/");
    let slow_body = connect(&node, format!("{}only this", put_head(&node)).as_bytes());
    // More than sockets hold on the way.
    let get = format!("GET /v1/shards/4+1/{id}/0 HTTP/1.1\r\nhost: x\r\n\r\n").repeat(100);
    let no_reader = connect(&node, get.as_bytes());
    assert_hit(&client, &id, &content);
    let said = last_words(slow_head);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    assert!(last_words(slow_body).starts_with("HTTP/1.1 408"));
    until("the one that does not read is ended", || node.server.metrics().contains("{reason=\"slow\"}"));
    drop(no_reader);
    assert_hit(&client, &id, &content);
    until("idle connections are ended too", || node.server.open_connections() == 0);
    // The client's own were among them, and it notices: not one of its requests fails. On a slow machine some were ended before, perhaps
    // as they were used.
    let failed = client.stats().failed_requests;
    assert_hit(&client, &id, &content);
    assert_eq!(client.stats().failed_requests, failed);
}

#[test]
fn who_does_not_finish_a_handshake_is_ended() {
    let runtime = Runtime::new().unwrap();
    let authority = crate::authority::Authority::new();
    let files = authority.sign("node", &["127.0.0.1"]);
    let tls = Some(std::sync::Arc::new(snowmelt_zone::ServerTls::load(&files).unwrap()));
    let node = impatient(&runtime, Access { token: None, tls });
    assert_eq!(last_words(connect(&node, &[])), "");
    // A record that promises more.
    assert_eq!(last_words(connect(&node, &[22, 3, 1, 2, 0, 1])), "");
    until("nobody is left", || node.server.open_connections() == 0);
}
