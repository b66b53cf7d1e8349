//! Tells a client of changes.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::Members;
use super::etcd::Etcd;
use crate::Error;
use crate::client::Client;
use crate::placement::{Node, Placement};

/// How long a start waits for the first list. Reads would only be misses without it.
const FIRST: Duration = Duration::from_secs(1);
/// After etcd could not be asked.
const AGAIN: Duration = Duration::from_secs(1);
/// Registrations that come together, as when a zone starts, are told together.
const TOGETHER: Duration = Duration::from_millis(50);

/// Tells a client of the zone's nodes, now and whenever they change, until it is dropped.
#[derive(Debug)]
pub struct Follower {
    // Its thread ends with it, as soon as it has nothing to wait for: nobody waits for that.
    _end: oneshot::Sender<()>,
}

impl Follower {
    /// Begins to follow. Waits for the first list; without it, the client has no nodes until there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the list is wrong, so that a mistake is seen at once, and [`Error::Io`] where no thread can be made.
    pub fn start(members: Members, client: &Arc<Client>) -> Result<Self, Error> {
        let mut seen = Seen::default();
        match members.load() {
            Ok(_) if matches!(members, Members::Etcd(_)) => {}
            Ok(nodes) => seen.tell(client, nodes),
            Err(error @ Error::Invalid { .. }) => return Err(error),
            Err(error) => tracing::warn!(%members, %error, "the zone's nodes are not known yet"),
        }
        let etcd = match &members {
            Members::Etcd(address) => Some(Etcd::new(address.clone(), client.tls())?),
            _ => None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("start", "a thread"))?;
        let (end, ended) = oneshot::channel::<()>();
        let (known, first) = channel();
        let weak = Arc::downgrade(client);
        let is_etcd = etcd.is_some();
        let work = move || {
            runtime.block_on(async move {
                let following = async {
                    match etcd {
                        Some(etcd) => follow_etcd(&etcd, &mut seen, &weak, &known).await,
                        None => follow_others(&members, &mut seen, &weak).await,
                    }
                };
                tokio::select! {
                    () = following => {}
                    _ = ended => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("zone-members".into()).spawn(work);
        thread.map_err(Error::io("start", "a thread"))?;
        if is_etcd {
            // An error is a list that is late, which its thread goes on waiting for.
            let _ = first.recv_timeout(FIRST);
        }
        Ok(Self { _end: end })
    }
}

async fn follow_others(members: &Members, seen: &mut Seen, client: &Weak<Client>) {
    loop {
        sleep(members.every()).await;
        let Some(client) = Weak::upgrade(client) else { return };
        match members.load() {
            Ok(nodes) => seen.tell(&client, nodes),
            Err(error) => seen.complain(members, &error),
        }
    }
}

/// Says to `known` whenever the client knows the nodes.
async fn follow_etcd(etcd: &Etcd, seen: &mut Seen, client: &Weak<Client>, known: &Sender<()>) {
    loop {
        let listed = etcd.list().await;
        let Some(client) = Weak::upgrade(client) else { return };
        match listed {
            Ok((nodes, revision)) => {
                seen.tell(&client, nodes);
                // Only the first is waited for.
                let _ = known.send(());
                drop(client);
                // A watch that breaks, or says nothing for long, is begun again with a new list.
                match timeout(super::DNS_EVERY, etcd.await_change(revision)).await {
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "watching etcd");
                        sleep(AGAIN).await;
                    }
                    Ok(Ok(())) => sleep(TOGETHER).await,
                    Err(_) => {}
                }
            }
            Err(error) => {
                seen.complain(etcd.address(), &error);
                drop(client);
                sleep(AGAIN).await;
            }
        }
    }
}

/// What the client was told last.
#[derive(Default)]
struct Seen {
    nodes: Vec<Node>,
    addresses: Vec<Option<SocketAddr>>,
    is_failing: bool,
}

impl Seen {
    fn tell(&mut self, client: &Client, nodes: Vec<Node>) {
        self.is_failing = false;
        // Where a name does not resolve at the moment, its last address is as good as any.
        let last = |node: &Node| {
            let at = self.nodes.iter().position(|known| known.name == node.name && known.address == node.address)?;
            *self.addresses.get(at)?
        };
        let placement = Placement::new(nodes, client.code().shards());
        let resolve =
            |node: &Node| node.address.to_socket_addrs().ok().and_then(|mut found| found.next()).or_else(|| last(node));
        let addresses: Vec<_> = placement.nodes().iter().map(resolve).collect();
        if placement.nodes() == self.nodes && addresses == self.addresses {
            return;
        }
        tracing::info!(nodes = placement.nodes().len(), "the zone has other nodes");
        self.nodes = placement.nodes().to_vec();
        self.addresses.clone_from(&addresses);
        client.set_nodes(placement, &addresses);
    }

    fn complain(&mut self, members: &dyn std::fmt::Display, error: &Error) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(%members, %error, "the zone's nodes are as they were last");
        }
    }
}
