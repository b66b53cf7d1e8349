//! Lists that change while readers read.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use snowmelt_zone::{Client, Found, ZoneOptions};

use crate::nodes::{CHUNK, Cluster, Running, assert_hit, chunk, read, until};

fn write_list(path: &Path, nodes: &[&Running]) {
    let line = |node: &&Running| format!("node-{0} 127.0.0.1:{0}\n", node.address.port());
    let new = path.with_extension("new");
    std::fs::write(&new, nodes.iter().map(line).collect::<String>()).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Tells readers to end, also where a test fails: else it would wait for them for ever.
pub(crate) struct Ends<'a>(pub(crate) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads what is there and writes what is not, as readers do, until it is told to end. What is read is right, or a miss.
pub(crate) fn keep_reading(client: &Client, end: &AtomicBool, seed: u64) -> u64 {
    let chunks: Vec<_> = (0..8).map(|number| chunk(seed + number, CHUNK / 4)).collect();
    let mut hits = 0;
    for (id, content) in chunks.iter().cycle() {
        if end.load(Ordering::Relaxed) {
            break;
        }
        match read(client, id, content.len()) {
            (Found::Hit { missing }, bytes) => {
                assert_eq!(&bytes, content, "what is read is right");
                hits += 1;
                if !missing.is_empty() {
                    client.write(id, content, Some(&missing));
                }
            }
            (Found::Miss, _) => drop(client.write(id, content, None)),
            (Found::Corrupt, _) => panic!("nobody lies here"),
        }
    }
    hits
}

#[test]
fn a_file_is_followed_under_load() {
    let cluster = Cluster::start(7);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zone");
    let all: Vec<&Running> = cluster.nodes.iter().collect();
    write_list(&path, &all[..5]);
    let options = ZoneOptions { nodes: format!("file:{}", path.display()), ..ZoneOptions::default() };
    let (client, _follower) = options.connect().unwrap();
    assert_eq!(client.nodes().len(), 5);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Ends(&end);
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                let (client, end) = (&client, &end);
                scope.spawn(move || keep_reading(client, end, reader * 100))
            })
            .collect();
        for (from, to) in [(0, 7), (2, 7), (2, 3), (0, 6)] {
            write_list(&path, &all[from..to]);
            until("the list is followed", || client.nodes().len() == to - from);
        }
        // What is no list, and none at all, change nothing.
        std::fs::write(&path, "what is this\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(client.nodes().len(), 6);
        drop(ends);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    let (id, content) = chunk(999, CHUNK);
    assert_eq!(client.write(&id, &content, None), 5);
    assert_hit(&client, &id, &content);
}

#[test]
fn every_address_of_a_name_is_a_node() {
    let cluster = Cluster::start(1);
    let nodes = format!("dns:localhost:{}", cluster.nodes[0].address.port());
    let (client, _follower) = ZoneOptions { nodes, ..ZoneOptions::default() }.connect().unwrap();
    assert!(client.nodes().iter().any(|node| node.address == cluster.nodes[0].address.to_string()));
    let nodes = "dns:no-such-host.invalid:7070".into();
    let (client, _follower) = ZoneOptions { nodes, ..ZoneOptions::default() }.connect().unwrap();
    assert!(client.nodes().is_empty(), "a name that is not there yet is no mistake");
}
