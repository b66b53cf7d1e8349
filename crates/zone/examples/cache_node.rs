//! A cache node without a disk, for measurements: `cache_node BYTES OF MEMORY` prints its address and serves until its standard
//! input ends.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;

use snowmelt_zone::node::{Limits, Server, Shards};

fn main() {
    let memory_bytes = std::env::args().nth(1).map(|text| text.parse().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let shards = Arc::new(Shards::open(memory_bytes, None).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
        Server::new(shards, None, Limits::default()).serve(listener, async { drop(ended.await) }).await;
    });
}
