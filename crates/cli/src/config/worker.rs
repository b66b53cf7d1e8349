//! Settings of a machine's worker.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use snowmelt_cache::{FetchLimits, L1Options};
use snowmelt_sandbox::{AdmissionOptions, WorkerOptions};

use super::{Config, absolute};
use crate::args::ServeArgs;
use crate::units::{Age, Size};

const DEFAULT_MEMORY: Size = Size(1 << 30);
const DEFAULT_AGENT_MEMORY: Size = Size(1 << 30);
/// An agent keeps a few decrypted chunks and its manifest; with less it would not even start.
const LEAST_AGENT_MEMORY: Size = Size(64 << 20);

/// `[worker]` of the configuration file.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkerFile {
    memory: Option<Size>,
    disk: Option<PathBuf>,
    disk_size: Option<Size>,
    agent_memory: Option<Size>,
    origin_reads: Option<usize>,
    least_starts: Option<usize>,
    most_starts: Option<usize>,
    start_wait: Option<Age>,
    admin: Option<String>,
}

/// How the worker is to be, and where operators reach it.
#[derive(Debug)]
pub(crate) struct WorkerConfig {
    pub(crate) options: WorkerOptions,
    pub(crate) admin: Option<String>,
}

impl Config {
    /// By flags and variables before the file.
    pub(crate) fn worker(&self, args: &ServeArgs) -> Result<WorkerConfig> {
        let file = &self.worker_file;
        let folder = match args.disk.as_ref().or(file.disk.as_ref()) {
            Some(folder) => absolute(folder)?,
            None => self.cache_dir.join("worker"),
        };
        let disk_bytes = args.disk_size.or(file.disk_size).map_or(self.cache_bytes, |size| size.0);
        let memory = args.memory.or(file.memory).unwrap_or(DEFAULT_MEMORY);
        let agent_memory = args.agent_memory.or(file.agent_memory).unwrap_or(DEFAULT_AGENT_MEMORY);
        if agent_memory.0 < LEAST_AGENT_MEMORY.0 {
            bail!("{agent_memory} of memory for an agent: it takes at least {LEAST_AGENT_MEMORY}");
        }
        let (fetch, starts) = (FetchLimits::default(), AdmissionOptions::default());
        let origin_reads = args.origin_reads.or(file.origin_reads).unwrap_or(fetch.origin_reads);
        if !(1..=1024).contains(&origin_reads) {
            bail!("{origin_reads} chunks read from the store at once: expected 1 to 1024");
        }
        let least = args.least_starts.or(file.least_starts).unwrap_or(starts.least);
        let most = args.most_starts.or(file.most_starts).unwrap_or(starts.most.max(least));
        if least == 0 || most < least {
            bail!("{least} to {most} starts at once: expected at least 1, and the most not less than the least");
        }
        let patience = args.start_wait.or(file.start_wait).map_or(starts.patience, |age| age.0);
        if patience > Duration::from_hours(1) {
            bail!("a start that waits for {}: expected an hour at most", Age(patience));
        }
        let options = WorkerOptions {
            l1: L1Options { memory_bytes: memory.0, disk: (disk_bytes > 0).then_some((folder, disk_bytes)) },
            fetch: FetchLimits { origin_reads, ..fetch },
            admission: AdmissionOptions { least, most, patience, ..starts },
            agent_memory_bytes: agent_memory.0,
            agent_command: std::env::current_exe().context("finding this program's own file")?,
        };
        Ok(WorkerConfig { options, admin: args.admin.clone().or_else(|| file.admin.clone()) })
    }
}
