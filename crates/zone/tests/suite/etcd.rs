//! Nodes that come and go in a real etcd.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use snowmelt_zone::{Client, ClientOptions, EtcdAddress, Follower, Members, Node, ZoneOptions, keep_registered};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::etcd_server::EtcdServer;
use crate::members::{Ends, keep_reading};
use crate::nodes::{CHUNK, Cluster, Running, assert_hit, chunk, until};

struct Registered {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn register(runtime: &Runtime, etcd: &EtcdServer, node: &Running) -> Registered {
    let address: EtcdAddress = etcd.url().parse().unwrap();
    let node = Node::new(&format!("node-{}", node.address.port()), &node.address.to_string(), Some("rack")).unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let task = runtime.spawn(async move {
        keep_registered(&address, None, &node, async { drop(ended.await) }).await.unwrap();
    });
    Registered { end, task }
}

fn reader(etcd: &EtcdServer) -> (Arc<Client>, Follower) {
    ZoneOptions { nodes: etcd.url(), ..ZoneOptions::default() }.connect().unwrap()
}

#[test]
fn nodes_come_and_go_under_load() {
    let etcd = EtcdServer::start();
    let cluster = Cluster::start(6);
    let (client, _follower) = reader(&etcd);
    assert!(client.nodes().is_empty());
    let mut registered: Vec<_> =
        cluster.nodes.iter().take(5).map(|node| register(&cluster.runtime, &etcd, node)).collect();
    until("all are there", || client.nodes().len() == 5);
    assert_eq!(client.nodes()[0].domain.as_deref(), Some("rack"));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Ends(&end);
        let reading = scope.spawn(|| keep_reading(&client, &end, 0));
        registered.push(register(&cluster.runtime, &etcd, &cluster.nodes[5]));
        until("the new one is there", || client.nodes().len() == 6);
        // One that ends says so; one that is killed is gone with its lease.
        let ended = registered.remove(0);
        drop(ended.end);
        cluster.runtime.block_on(ended.task).unwrap();
        until("the one that ended is gone", || client.nodes().len() == 5);
        let start = Instant::now();
        registered.remove(0).task.abort();
        until("the one that was killed is gone", || client.nodes().len() == 4);
        assert!(start.elapsed() > Duration::from_secs(4), "its lease held it for a while");
        drop(ends);
        assert!(reading.join().unwrap() > 0);
    });
    // A reader that comes later finds them at once.
    assert_eq!(reader(&etcd).0.nodes().len(), 4);
}

#[test]
fn a_zone_is_not_lost_with_its_etcd() {
    let mut etcd = EtcdServer::start();
    let cluster = Cluster::start(6);
    let registered: Vec<_> = cluster.nodes.iter().take(5).map(|node| register(&cluster.runtime, &etcd, node)).collect();
    let (client, _follower) = reader(&etcd);
    until("all are there", || client.nodes().len() == 5);
    let (id, content) = chunk(1, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    etcd.kill();
    let start = Instant::now();
    let (late, _late_follower) = reader(&etcd);
    assert!(late.nodes().is_empty() && start.elapsed() < Duration::from_secs(10), "a start does not wait for it");
    assert_hit(&client, &id, &content);
    assert_eq!(client.nodes().len(), 5);
    etcd.start_again();
    let more = register(&cluster.runtime, &etcd, &cluster.nodes[5]);
    until("the new one is there, and those from before", || client.nodes().len() == 6 && late.nodes().len() == 6);
    assert!(registered.iter().all(|node| !node.task.is_finished()) && !more.task.is_finished());
}

#[test]
fn keys_that_are_no_nodes_are_passed_over() {
    let etcd = EtcdServer::start();
    etcd.put("snowmelt/zone-a/n1", "127.0.0.1:7070");
    etcd.put("snowmelt/zone-a/n2", "what is this, and why");
    etcd.put("snowmelt/zone-a/n3/deep", "127.0.0.1:7071");
    etcd.put("snowmelt/zone-b/n4", "127.0.0.1:7072");
    let (client, _follower) = reader(&etcd);
    let names: Vec<_> = client.nodes().into_iter().map(|node| node.name).collect();
    assert_eq!(names, ["n1"]);
    etcd.put("snowmelt/zone-a/n5", "127.0.0.1:7073 rack-5");
    until("the watch tells", || client.nodes().len() == 2);
}

#[test]
fn an_etcd_that_is_none_is_no_zone() {
    // It answers in HTTP, and is a cache node.
    let cluster = Cluster::start(1);
    let members: Members = format!("etcd://{}/zone", cluster.nodes[0].address).parse().unwrap();
    let client = Arc::new(Client::new(ClientOptions::default()));
    let start = Instant::now();
    let _follower = Follower::start(members, &client).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(client.nodes().is_empty());
}
