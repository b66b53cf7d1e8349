//! The binary from end to end: real images, a real registry, real mounts and containers.
//!
//! Nothing is faked and nothing is skipped: without root, FUSE, loop devices or runc these tests fail and say so.
//! Images come from `scripts/test-images` (built from the machine's own package sources, and cached); every test has its
//! own cache, keys and state in a directory of its own, see [`world::World`], and its own store there or in a bucket, see
//! [`stores`].
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod access;
mod cluster;
mod collection;
mod commands;
mod copies;
mod damage;
mod flattened;
mod functions;
mod interruptions;
mod keys_and_salts;
mod machine;
mod mistakes;
mod object_storage;
mod proxy;
mod registry;
mod running;
mod secrets;
mod sources;
mod stores;
mod terminal;
mod tree;
mod worker;
mod worker_faults;
mod world;
