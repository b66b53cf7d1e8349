//! Nodes as processes, and what is asked of them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use snowmelt_chunk::ChunkId;
use snowmelt_zone::{Client, ClientOptions, Follower, Found, Members};

pub(crate) const CHUNK: usize = 256 << 10;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snowmelt"));
    command.arg("cache-node").env_remove("SNOWMELT_CONFIG").env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

/// A node that has said that it is ready.
pub(crate) struct Process {
    child: Child,
    pub(crate) ready: Value,
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    log: tempfile::NamedTempFile,
}

impl Process {
    pub(crate) fn start(listen: &str, more: &[&str]) -> Self {
        Self::spawn(command(), listen, more)
    }

    pub(crate) fn spawn(mut command: Command, listen: &str, more: &[&str]) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        command.args(["--json", "--listen", listen, "--admin", "127.0.0.1:0", "--memory", "64MiB"]).args(more);
        command.stdout(Stdio::piped()).stderr(log.reopen().unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = std::fs::read_to_string(log.path()).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}\n{said}"));
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        let (listen, admin) = (address("listen"), address("admin"));
        Self { child, ready, listen, admin, log }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the node does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Status and body of what operators ask.
    pub(crate) fn ask(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.ask("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes, each with a disk of its own.
pub(crate) struct Zone {
    folder: tempfile::TempDir,
    pub(crate) nodes: Vec<Process>,
}

impl Zone {
    pub(crate) fn start(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nodes = (0..count).map(|at| Self::node(folder.path(), at, "127.0.0.1:0")).collect();
        Self { folder, nodes }
    }

    fn node(folder: &Path, at: usize, listen: &str) -> Process {
        let disk = folder.join(at.to_string());
        Process::start(listen, &["--disk", disk.to_str().unwrap(), "--disk-size", "256MiB"])
    }

    pub(crate) fn disk(&self, at: usize) -> std::path::PathBuf {
        self.folder.path().join(at.to_string())
    }

    /// A node that has ended comes back, at its address and with its disk.
    pub(crate) fn start_again(&mut self, at: usize) {
        let listen = self.nodes[at].listen.to_string();
        self.nodes[at] = Self::node(self.folder.path(), at, &listen);
    }

    pub(crate) fn client(&self) -> (Arc<Client>, Follower) {
        client(&self.nodes.iter().collect::<Vec<_>>())
    }
}

/// A client that waits for long: what it misses is not there, rather than late.
pub(crate) fn client(nodes: &[&Process]) -> (Arc<Client>, Follower) {
    let list = nodes.iter().enumerate().map(|(at, node)| format!("node-{at}={}", node.listen));
    let members: Members = list.collect::<Vec<_>>().join(",").parse().unwrap();
    let options = ClientOptions { patience: PATIENCE, write_patience: PATIENCE, ..ClientOptions::default() };
    let client = Arc::new(Client::new(options));
    let follower = Follower::start(members, &client).unwrap();
    (client, follower)
}

/// A chunk that nobody can compress into something else.
pub(crate) fn chunk(seed: u64, bytes: usize) -> (ChunkId, Vec<u8>) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    (ChunkId(Sha256::digest(&content).into()), content)
}

/// Whether the chunk is found. What is found is right.
pub(crate) fn is_hit(client: &Client, id: &ChunkId, content: &[u8]) -> bool {
    let mut into = vec![0xee; content.len()];
    let found = client.read(id, &mut into, &|bytes| Sha256::digest(bytes)[..] == id.0);
    if matches!(found, Found::Hit { .. }) {
        assert_eq!(into, content);
    }
    matches!(found, Found::Hit { .. })
}

pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
