//! The tiers as processes of the binary that is measured: cache nodes of a zone, and workers.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Bench;

/// A process that said what it is once it was ready, in a line of JSON; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    ready: Value,
}

impl Process {
    /// Starts it and waits until it is ready. What it complains of goes to `log`, and into the error where it does not get ready.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let messages = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(messages).spawn();
        let child = child.with_context(|| format!("starting {command:?}"))?;
        // Made before it is looked at what it says, so that it is killed where that is wrong.
        let mut process = Self::from(child);
        let mut line = String::new();
        BufReader::new(process.child.stdout.take().context("standard output is piped")?).read_line(&mut line)?;
        let complaints = || std::fs::read_to_string(log).unwrap_or_default();
        process.ready =
            serde_json::from_str(&line).with_context(|| format!("{command:?} printed {line:?}; {}", complaints()))?;
        Ok(process)
    }

    pub(crate) fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Something that it said when it was ready.
    pub(crate) fn said(&self, name: &str) -> Result<&str> {
        self.ready[name].as_str().with_context(|| format!("no `{name}` in {}", self.ready))
    }

    fn address(&self, name: &str) -> Result<SocketAddr> {
        let text = self.said(name)?;
        text.parse().with_context(|| format!("`{text}` is no address"))
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self { child, ready: Value::Null }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.kill();
    }
}

/// A node of a zone's cache, in memory alone, with nothing in it. Gives its address too.
pub(crate) fn cache_node(bench: &Bench, memory_bytes: u64) -> Result<(Process, SocketAddr)> {
    let mut command = Command::new(&bench.binary);
    // The settings of whoever measures are not its own.
    command.env("SNOWMELT_CONFIG", "/dev/null");
    command.args(["--json", "cache-node", "--listen", "127.0.0.1:0", "--memory", &memory_bytes.to_string()]);
    let node = Process::start(&mut command, &bench.path("cache-nodes.log"))?;
    let address = node.address("listen")?;
    Ok((node, address))
}

/// Nodes of a zone, and the list of them that readers get.
pub(crate) struct Zone {
    _nodes: Vec<Process>,
    pub(crate) list: String,
}

impl Zone {
    /// So many nodes with nothing in them.
    pub(crate) fn start(bench: &Bench, nodes: usize, memory_bytes: u64) -> Result<Self> {
        let nodes: Vec<_> = (0..nodes).map(|_| cache_node(bench, memory_bytes)).collect::<Result<_>>()?;
        let entry = |(at, (_, address)): (usize, &(Process, SocketAddr))| format!("node-{at}={address}");
        let list: Vec<_> = nodes.iter().enumerate().map(entry).collect();
        Ok(Self { list: list.join(","), _nodes: nodes.into_iter().map(|(node, _)| node).collect() })
    }
}

/// A machine with a worker: a cache and a state directory of its own. Both are removed when it is dropped.
pub(crate) struct Machine<'a> {
    bench: &'a Bench,
    place: PathBuf,
    /// Its folder, which says where its state is too.
    pub(crate) cache: PathBuf,
    zone: Option<String>,
    worker: Option<Process>,
}

impl<'a> Machine<'a> {
    /// Starts a worker with nothing in its cache, over the keys and (unless told otherwise) the store of `place`.
    pub(crate) fn start(
        bench: &'a Bench,
        place: &Path,
        name: &str,
        zone: Option<&Zone>,
        options: &[&str],
    ) -> Result<Self> {
        let cache = bench.path(name);
        let zone = zone.map(|zone| zone.list.clone());
        let mut machine = Self { bench, place: place.to_owned(), cache, zone, worker: None };
        machine.remove();
        std::fs::create_dir_all(&machine.cache)?;
        let mut command = machine.snowmelt();
        command.args(["--json", "worker", "--admin", "127.0.0.1:0"]).args(options);
        machine.worker = Some(Process::start(&mut command, &bench.path("workers.log"))?);
        Ok(machine)
    }

    fn remove(&self) {
        for folder in [&self.cache, &self.bench.state(&self.cache)] {
            let _ = std::fs::remove_dir_all(folder);
        }
    }

    /// The binary on this machine.
    pub(crate) fn snowmelt(&self) -> Command {
        let mut command = self.bench.snowmelt(&self.place, &self.cache);
        if let Some(zone) = &self.zone {
            command.env("SNOWMELT_CACHE_NODES", zone);
        }
        command
    }

    pub(crate) fn worker(&self) -> Result<&Process> {
        self.worker.as_ref().context("the worker runs")
    }

    /// What `worker status` says.
    pub(crate) fn status(&self) -> Result<Value> {
        let output = self.snowmelt().args(["--json", "worker", "status"]).output()?;
        ensure!(output.status.success(), "worker status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// A counter of the worker, summed over those of its labels that follow `name`.
    pub(crate) fn metric(&self, name: &str) -> Result<u64> {
        let address = self.worker()?.address("admin")?;
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let value = |line: &str| line.strip_prefix(name)?.split(' ').next_back()?.parse::<u64>().ok();
        Ok(text.lines().filter_map(value).sum())
    }

    /// The processes that serve its sandboxes.
    pub(crate) fn agents(&self) -> Result<Vec<i32>> {
        let state = std::fs::read_dir(self.bench.state(&self.cache))?.flatten();
        let records = state.filter_map(|entry| std::fs::read(entry.path().join("record.json")).ok());
        let agent = |record: Vec<u8>| {
            let record: Value = serde_json::from_slice(&record)?;
            let agent = record["agent"]["pid"].as_i64().with_context(|| format!("no agent in {record}"))?;
            Ok(i32::try_from(agent)?)
        };
        records.map(agent).collect()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take()
            && kill(Pid::from_raw(worker.id()), Signal::SIGTERM).is_ok()
        {
            let _ = worker.child.wait();
        }
        self.remove();
    }
}
