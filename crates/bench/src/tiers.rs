//! The tiers as processes of the binary that is measured: cache nodes of a zone.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Bench;

/// A process that said what it is once it was ready, in a line of JSON; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    ready: Value,
}

impl Process {
    /// Starts it and waits until it is ready. What it complains of goes to `log`, and into the error where it does not get ready.
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
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
    fn address(&self, name: &str) -> Result<SocketAddr> {
        let text = self.ready[name].as_str().with_context(|| format!("no `{name}` in {}", self.ready))?;
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
