//! What reads need of the world: connections, waiting for them, and the time. The other world is `simulation`, for tests.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, Timespec, poll};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use snowmelt_threads::Threads;

use super::connection::Connection;
use super::transport::Transport;

#[derive(Clone, Debug)]
pub(super) enum Network {
    Real,
    #[cfg(any(test, feature = "simulation"))]
    Simulated(Arc<super::simulation::World>),
}

impl Network {
    pub(super) fn now(&self) -> Instant {
        match self {
            Self::Real => Instant::now(),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(world) => world.now(),
        }
    }

    pub(super) fn threads(&self) -> Threads {
        match self {
            Self::Real => Threads::Real,
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(world) => Threads::Simulated(world.simulation().clone()),
        }
    }

    /// Begins to connect, with TLS where that is given.
    pub(super) fn open(
        &self,
        address: &SocketAddr,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> io::Result<Transport> {
        match self {
            Self::Real => Transport::open(address, tls),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(world) => Ok(world.open(address)),
        }
    }

    /// Which of the connections can go on, by their order; none yet, if the wait was interrupted. `None` when the time is up.
    pub(super) fn wait<'a>(
        &self,
        connections: impl Iterator<Item = &'a Connection>,
        deadline: Instant,
    ) -> Option<Vec<usize>> {
        let left = deadline.saturating_duration_since(self.now());
        if left.is_zero() {
            return None;
        }
        #[cfg(any(test, feature = "simulation"))]
        if let Self::Simulated(world) = self {
            return world.wait(connections, deadline);
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut events: Vec<PollFd<'_>> =
            connections.map(|connection| PollFd::new(connection, connection.awaits())).collect();
        match poll(&mut events, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "waiting for cache nodes");
                return None;
            }
        }
        let ready = events.iter().enumerate().filter(|(_, event)| !event.revents().is_empty());
        Some(ready.map(|(at, _)| at).collect())
    }
}
