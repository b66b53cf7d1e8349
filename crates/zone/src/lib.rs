//! The cache of a zone: chunks as erasure-coded shards on a cluster of nodes.
//!
//! A *node* ([`node`]) keeps shards in memory and on disk and answers for them over HTTP; it never asks anybody for anything. A
//! *reader* ([`Client`]) knows from the list of nodes alone which have the shards of a chunk ([`Placement`]), asks them all at once,
//! and puts the chunk together from the first that are enough ([`Code`]). What it had to get from the origin it writes to the nodes
//! behind the reader's back. docs/protocol.md has what goes over the wire.

mod client;
mod erasure;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod membership;
pub mod node;
mod options;
mod placement;
mod shard;
mod tls;
mod wire;

/// The network and its nodes in a simulation, for tests.
#[cfg(any(test, feature = "simulation"))]
pub mod simulation {
    pub use crate::client::simulation::{SimulatedNode, World};
}

pub use client::{Client, ClientOptions, ClientStats, Found};
pub use erasure::Code;
pub use error::Error;
pub use membership::{EtcdAddress, Follower, Members, keep_registered, parse_file};
pub use options::{ZoneOptions, read_token};
pub use placement::{Node, Placement, SLACK_PERCENT, SLOTS};
pub use shard::{Shard, ShardKey, checksum};
pub use tls::{ClientTls, ServerTls, TlsFiles};
