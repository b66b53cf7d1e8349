//! Connections to one node: idle, or behind with what nobody waits for.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;

use super::connection::Connection;
use super::network::Network;
use crate::tls::ClientTls;

/// Connections to one node that are kept while they have nothing to do.
const MOST_IDLE: usize = 64;
/// Connections to one node that are behind. With as many a node is not asked.
const MOST_BEHIND: usize = 32;
/// Connections that are looked at by a read, of those that are behind. The oldest should be the first that are done, and a node that
/// does not answer must not cost a read as many calls as it has them.
const LOOKS_AT_BEHIND: usize = 2;
/// A connection that was used so lately is taken for open: no node ends one that soon, but when it ends itself. If it is not, its shard is had from the others, as those of any node that
/// has just gone; asking the kernel first would cost every read as many calls as it has shards.
const FRESH: Duration = Duration::from_millis(50);
/// A response that is so late is not waited for any more: its connection is closed.
const LATEST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) address: SocketAddr,
    /// With TLS: what the node's certificate must be for.
    pub(super) host: Option<ServerName<'static>>,
    tls: Option<Arc<ClientTls>>,
    network: Network,
    connections: Mutex<Connections>,
    /// Shards of its that were whole by their checksums and yet not the chunk's.
    pub(super) lies: AtomicU64,
    /// Whether it was said that one side does not believe the other.
    complained: AtomicBool,
}

#[derive(Debug, Default)]
struct Connections {
    /// The last is the one that was used last, so that the others grow old.
    idle: Vec<Connection>,
    /// Those whose answers nobody waits for any more, oldest first.
    behind: VecDeque<Connection>,
}

impl Connections {
    /// One that has nothing to do. What comes on those that are behind is thrown away by and by.
    fn take(&mut self, now: Instant) -> Option<Connection> {
        let is_open = |connection: &mut Connection| {
            now.saturating_duration_since(connection.since) < FRESH || !connection.is_stale()
        };
        let mut at = 0;
        for _ in 0..LOOKS_AT_BEHIND {
            let Some(connection) = self.behind.get_mut(at) else { break };
            let is_done = match connection.drain() {
                Ok(false) if now.saturating_duration_since(connection.since) < LATEST => {
                    at += 1;
                    continue;
                }
                result => matches!(result, Ok(true)),
            };
            let mut connection = self.behind.remove(at);
            if is_done && connection.as_mut().is_some_and(is_open) {
                return connection;
            }
        }
        while let Some(mut connection) = self.idle.pop() {
            if is_open(&mut connection) {
                return Some(connection);
            }
        }
        None
    }
}

impl Pool {
    pub(super) fn new(
        address: SocketAddr,
        host: Option<ServerName<'static>>,
        tls: Option<Arc<ClientTls>>,
        network: Network,
    ) -> Self {
        Self {
            address,
            host,
            tls,
            network,
            connections: Mutex::default(),
            lies: AtomicU64::new(0),
            complained: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that has nothing to do. `None` where the node is too far behind.
    pub(super) fn take(&self) -> io::Result<Option<Connection>> {
        let now = self.network.now();
        let mut connections = self.lock();
        let free = connections.take(now);
        if free.is_some() || connections.behind.len() >= MOST_BEHIND {
            return Ok(free);
        }
        drop(connections);
        let tls = match &self.tls {
            None => None,
            Some(tls) => {
                let host =
                    self.host.clone().ok_or_else(|| io::Error::other("its host is no name for a certificate"))?;
                Some((tls.config(), host))
            }
        };
        Ok(Some(Connection::new(self.network.open(&self.address, tls)?, now)))
    }

    /// Says once that certificates do not fit, which every read of this node would say otherwise.
    pub(super) fn failed(&self, error: &io::Error) {
        tracing::debug!(node = %self.address, %error, "a request failed");
        if error.kind() == io::ErrorKind::PermissionDenied && !self.complained.swap(true, Ordering::Relaxed) {
            tracing::warn!(node = %self.address, %error, "no TLS with a cache node");
        }
    }

    pub(super) fn give_back(&self, connection: Connection) {
        let mut connections = self.lock();
        if !connection.is_idle() {
            if connections.behind.len() < MOST_BEHIND {
                connections.behind.push_back(connection);
            }
        } else if connections.idle.len() < MOST_IDLE {
            connections.idle.push(connection);
        }
    }
}
