//! What a node is asked when nothing is wrong.

use nix::sys::signal::Signal;
use snowmelt_zone::ZoneOptions;

use crate::authority::Authority;
use crate::etcd_server::EtcdServer;
use crate::node::{CHUNK, Process, Zone, chunk, command, is_hit, until};

#[test]
fn five_nodes_keep_chunks_and_tell_operators() {
    let zone = Zone::start(5);
    let (client, _follower) = zone.client();
    for seed in 0..20 {
        let (id, content) = chunk(seed, CHUNK);
        assert!(!is_hit(&client, &id, &content));
        assert_eq!(client.write(&id, &content, None), 5);
        assert!(is_hit(&client, &id, &content));
    }
    for node in &zone.nodes {
        assert_eq!(node.ask("/healthz"), (200, "alive\n".into()));
        assert_eq!(node.ask("/readyz").0, 200);
        assert_eq!(node.ask("/other").0, 404);
        assert_eq!(node.metric("snowmelt_node_memory_budget_bytes"), 64 << 20);
        assert_eq!(node.metric("snowmelt_node_disk_budget_bytes"), 256 << 20);
        assert_eq!(node.metric("snowmelt_node_stored_shards_total"), 20);
        assert_eq!(node.metric("snowmelt_node_memory_shards"), 20);
        assert_eq!(node.metric("snowmelt_node_disk_writable"), 1);
        assert_eq!(node.metric("snowmelt_node_requests_total{method=\"PUT\",status=\"201\"}"), 20);
        assert_eq!(node.metric("snowmelt_node_received_bytes_total"), 20 * CHUNK as u64 / 4);
        let text = node.ask("/metrics").1;
        assert!(text.contains("snowmelt_node_request_seconds_bucket{le=\"0.00005\",method=\"GET\"}"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
    let sent: u64 = zone.nodes.iter().map(|node| node.metric("snowmelt_node_sent_bytes_total")).sum();
    assert!(sent >= 20 * CHUNK as u64, "{sent}");
}

#[test]
fn a_node_says_what_it_is_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command()
        .args(["--listen", "127.0.0.1:0", "--memory", "64MiB", "--disk"])
        .arg(folder.path())
        .args(["--disk-size", "1GiB"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    for part in [
        "cache node on 127.0.0.1:",
        "64.0 MiB of memory",
        "1.0 GiB of disk",
        "0 shards from before",
        "open to everybody",
    ] {
        assert!(line.contains(part), "no {part:?} in {line:?}");
    }
}

#[test]
fn tls_and_a_token_are_asked_for() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let token = folder.path().join("token");
    std::fs::write(&token, "open-sesame\n").unwrap();
    let files = authority.sign("node", &["127.0.0.1"]);
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let node = Process::start(
        "127.0.0.1:0",
        &[
            "--tls-ca",
            &text(&files.ca),
            "--tls-cert",
            &text(&files.certificate),
            "--tls-key",
            &text(&files.key),
            "--token-file",
            &text(&token),
        ],
    );
    assert!(node.log().contains("others may read the token"), "{}", node.log());
    let reader = authority.sign("reader", &["reader"]);
    let all = ZoneOptions {
        nodes: node.listen.to_string(),
        code: None,
        token_file: Some(token),
        tls_ca: Some(reader.ca),
        tls_cert: Some(reader.certificate),
        tls_key: Some(reader.key),
    };
    let (id, content) = chunk(1, CHUNK);
    let without_token = ZoneOptions { token_file: None, ..all.clone() };
    let without_tls = ZoneOptions { tls_ca: None, tls_cert: None, tls_key: None, ..all.clone() };
    for (options, written) in [(without_token, 0), (without_tls, 0), (all, 5)] {
        let (client, _follower) = options.connect().unwrap();
        assert_eq!(client.write(&id, &content, None), written);
    }
    assert_eq!(node.metric("snowmelt_node_requests_total{method=\"PUT\",status=\"401\"}"), 5);
    assert_eq!(node.metric("snowmelt_node_stored_shards_total"), 5);
}

#[test]
fn nodes_are_in_etcd_while_they_serve() {
    let etcd = EtcdServer::start();
    let start =
        |name: &str| Process::start("127.0.0.1:0", &["--register", &etcd.url(), "--name", name, "--domain", "rack-1"]);
    let (mut first, mut second) = (start("one"), start("two"));
    let options = ZoneOptions { nodes: etcd.url(), ..ZoneOptions::default() };
    let (client, _follower) = options.connect().unwrap();
    let names = || client.nodes().into_iter().map(|node| node.name).collect::<Vec<_>>();
    until("both are there", || names() == ["one", "two"]);
    assert_eq!(client.nodes()[0].address, first.listen.to_string());
    first.signal(Signal::SIGTERM);
    until("the first is gone", || names() == ["two"]);
    assert!(first.wait().success());
    second.kill();
    until("the second is gone with its lease", || names().is_empty());
}
