//! `snowmelt cache-node` as processes: killed, torn, full, crowded, and asked to end. Needs root, for a small file system.
#![allow(clippy::unwrap_used)]

#[path = "../../../zone/tests/suite/authority.rs"]
mod authority;
#[path = "../../../zone/tests/suite/etcd_server.rs"]
mod etcd_server;
mod faults;
mod load;
mod mistakes;
mod names;
mod node;
mod serving;
