//! `snowmelt cache-node`: one node of a zone's cache, from its start to its end.

mod signals;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use snowmelt_zone::node::{Access, Limits, Server, Shards, serve_admin};
use snowmelt_zone::{ClientTls, Node, ServerTls, keep_registered, read_token};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::signals::Signals;
use crate::args::{CacheNodeArgs, GlobalArgs};
use crate::config::{self, CacheNode};
use crate::output;
use crate::units::Size;

/// Files besides connections: segments, listeners, the runtime's own.
const OTHER_FILES: u64 = 256;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// How long the end waits until etcd knows it.
const UNREGISTER: Duration = Duration::from_secs(3);

pub(crate) fn cache_node(global: &GlobalArgs, args: &CacheNodeArgs) -> Result<ExitCode> {
    let node = config::cache_node(global, args)?;
    // Before there is any thread.
    let signals = Signals::block()?;
    let access = Access {
        token: node.token_file.as_deref().map(read_token).transpose()?,
        tls: node.tls.as_ref().map(|files| ServerTls::load(files).map(Arc::new)).transpose()?,
    };
    let limits = limits();
    let shards = Arc::new(open_shards(&node)?);
    let server = Server::new(Arc::clone(&shards), access, limits);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
    let result = runtime.block_on(serve(&node, &server, &shards, signals, global.json));
    // A disk that hangs keeps nobody from ending; what it took is written.
    runtime.shutdown_timeout(Duration::from_secs(1));
    std::mem::forget(shards);
    result
}

async fn serve(
    node: &CacheNode,
    server: &Server,
    shards: &Shards,
    mut signals: Signals,
    json: bool,
) -> Result<ExitCode> {
    let listener = listen(&node.listen)?;
    let address = listener.local_addr().context("finding the own address")?;
    let admin = node.admin.as_deref().map(listen).transpose()?;
    let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose().context("finding the own address")?;
    let registering = node.register.as_ref().map(|_| node.node(address)).transpose()?;
    let found = Found { node, address, admin: admin_address, registered: registering.as_ref(), shards };

    let (end, ended) = oneshot::channel::<()>();
    let serving = server.clone();
    let mut served = tokio::spawn(async move { serving.serve(listener, async { drop(ended.await) }).await });
    if let Some(admin) = admin {
        tokio::spawn(serve_admin(server.clone(), admin, std::future::pending()));
    }
    let registration = registering.clone().map(|registering| Registration::begin(node, registering)).transpose()?;
    found.say(json)?;

    let Some(signal) = signals.next().await else { return Ok(ExitCode::FAILURE) };
    tracing::info!(signal, connections = server.open_connections(), "the node ends");
    let draining = async {
        // Readers hear of it before they are refused.
        server.drain();
        if let Some(registration) = registration {
            registration.end().await;
        }
        drop(end);
        // An error is a panic of it, which was printed.
        let _ = (&mut served).await;
    };
    tokio::select! {
        () = draining => Ok(ExitCode::SUCCESS),
        again = signals.next() => {
            tracing::warn!("the node ends at once");
            Ok(ExitCode::from(128 + again.unwrap_or(signal)))
        }
    }
}

/// What the node says when it is ready.
struct Found<'a> {
    node: &'a CacheNode,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    registered: Option<&'a Node>,
    shards: &'a Shards,
}

impl Found<'_> {
    fn say(&self, json: bool) -> Result<()> {
        let stats = self.shards.stats();
        let (node, tls, token) = (self.node, self.node.tls.is_some(), self.node.token_file.is_some());
        if json {
            let found = serde_json::json!({
                "listen": self.address,
                "admin": self.admin,
                "memory_bytes": node.memory_bytes,
                "disk_bytes": stats.disk_budget_bytes,
                "disk_shards_found": stats.disk_shards,
                "tls": tls,
                "token": token,
                "registered_as": self.registered.map(|node| &node.name),
            });
            return output::print(&format!("{found}\n"));
        }
        let disk = match &node.disk {
            Some((folder, bytes)) if stats.disk_budget_bytes > 0 => {
                let found = output::count(stats.disk_shards, "shard");
                format!(", {} of disk at {} with {found} from before", Size(*bytes), folder.display())
            }
            Some(_) => ", no disk (it is full)".into(),
            None => String::new(),
        };
        let admin = self.admin.map(|admin| format!("; operators on {admin}")).unwrap_or_default();
        let access = match (tls, token) {
            (true, true) => "TLS and a token",
            (true, false) => "TLS",
            (false, true) => "a token",
            (false, false) => "open to everybody",
        };
        let registered = self.registered.map(|node| format!("; registers as {}", node.name)).unwrap_or_default();
        let memory = Size(node.memory_bytes);
        output::print(&format!(
            "cache node on {}: {memory} of memory{disk}{admin}; {access}{registered}\n",
            self.address
        ))
    }
}

struct Registration {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Registration {
    fn begin(node: &CacheNode, registering: Node) -> Result<Self> {
        let Some(etcd) = node.register.clone() else { anyhow::bail!("nowhere to register") };
        let tls = node.tls.as_ref().map(|files| ClientTls::load(files).map(Arc::new)).transpose()?;
        let (end, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let kept = keep_registered(&etcd, tls.as_ref(), &registering, async { drop(ended.await) }).await;
            if let Err(error) = kept {
                tracing::error!(%error, "the node is not registered");
            }
        });
        Ok(Self { end, task })
    }

    async fn end(self) {
        drop(self.end);
        if tokio::time::timeout(UNREGISTER, self.task).await.is_err() {
            tracing::warn!("etcd does not answer: the node stays registered until its lease ends");
        }
    }
}

fn listen(address: &str) -> Result<TcpListener> {
    let found = address.to_socket_addrs().ok().and_then(|mut found| found.next());
    let found =
        found.with_context(|| format!("{address}: expected HOST:PORT of this machine, such as 127.0.0.1:7070"))?;
    let bind = || {
        let socket = if found.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A node that is started again must not wait for its old connections to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(found)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("listening on {address}"))
}

/// As many connections as there may be open files for.
fn limits() -> Limits {
    let mut limits = Limits::default();
    let wanted = limits.connections as u64 + OTHER_FILES;
    let allowed = getrlimit(Resource::Nofile);
    if allowed.current.is_some_and(|current| current < wanted) {
        let current = allowed.maximum.map_or(wanted, |most| most.min(wanted));
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum: allowed.maximum });
        let files = if raised.is_ok() { current } else { allowed.current.unwrap_or(current) };
        if files < wanted {
            limits.connections = files.saturating_sub(OTHER_FILES).max(16) as usize;
            let connections = limits.connections;
            tracing::warn!(
                connections,
                "this process may open {files} files, so it takes fewer connections (ulimit -n)"
            );
        }
    }
    limits
}

/// What was there before, or memory alone where the disk is full.
fn open_shards(node: &CacheNode) -> Result<Shards> {
    let Some((folder, bytes)) = &node.disk else { return Ok(Shards::open(node.memory_bytes, None)?) };
    match Shards::open(node.memory_bytes, Some((folder, *bytes))) {
        Ok(shards) => {
            warn_of_small_disk(folder, *bytes, shards.stats().disk_bytes);
            Ok(shards)
        }
        Err(snowmelt_zone::Error::Io { operation, path, source })
            if source.kind() == std::io::ErrorKind::StorageFull =>
        {
            tracing::warn!(error = %source, "shards are kept in memory only: {operation} {}", path.display());
            Ok(Shards::open(node.memory_bytes, None)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn warn_of_small_disk(folder: &Path, bytes: u64, used: u64) {
    let Ok(disk) = rustix::fs::statvfs(folder) else { return };
    let room = disk.f_bavail * disk.f_frsize + used;
    if room < bytes {
        tracing::warn!(
            "{} has room for {}, less than the {} that shards may take",
            folder.display(),
            Size(room),
            Size(bytes)
        );
    }
}
