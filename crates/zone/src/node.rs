//! A cache node: shards in memory over a disk, answered for over HTTP.

mod admin;
pub(crate) mod disk;
mod memory;
mod metrics;
mod patient;
mod server;
mod shards;

pub use admin::{Operated, serve_admin};
pub use server::{Access, Limits, Server};
pub use shards::{Shards, ShardsStats};
