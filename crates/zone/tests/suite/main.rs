//! Readers, nodes, and what tells them of each other.
#![allow(clippy::unwrap_used)]

mod authority;
mod cluster;
mod etcd;
mod etcd_server;
mod members;
mod nodes;
mod slow;
mod tls;
