//! What a name resolves to, and changes.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use snowmelt_zone::ZoneOptions;

use crate::node::{CHUNK, Process, chunk, is_hit, until};

/// Gives this thread, and those that it starts, an /etc/hosts of its own.
fn with_own_hosts(hosts: &Path) {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some(hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
}

#[test]
fn nodes_are_those_that_a_name_resolves_to_now() {
    let first = Process::start("127.0.0.2:0", &[]);
    let second = Process::start(&format!("127.0.0.3:{}", first.listen.port()), &[]);
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    // In place: it is this very file that is seen there.
    let resolves_to = |node: &Process| std::fs::write(&hosts, format!("{} zone.test\n", node.listen.ip())).unwrap();
    resolves_to(&first);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            with_own_hosts(&hosts);
            let nodes = format!("dns:zone.test:{}", first.listen.port());
            let (client, _follower) = ZoneOptions { nodes, ..ZoneOptions::default() }.connect().unwrap();
            let known = || client.nodes().iter().map(|node| node.address.clone()).collect::<Vec<_>>();
            assert_eq!(known(), [first.listen.to_string()]);
            let (id, content) = chunk(1, CHUNK);
            until("the first has it", || client.write(&id, &content, None) == 5 && is_hit(&client, &id, &content));
            assert_eq!(second.metric("snowmelt_node_memory_shards"), 0);
            resolves_to(&second);
            until("the other is known", || known() == [second.listen.to_string()]);
            assert!(!is_hit(&client, &id, &content), "it has nothing yet");
            until("the second has it", || client.write(&id, &content, None) == 5 && is_hit(&client, &id, &content));
            assert_eq!(second.metric("snowmelt_node_memory_shards"), 5);
        });
    });
}
