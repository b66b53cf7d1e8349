//! The command that serves a machine's sandboxes.

use std::path::PathBuf;

use crate::units::{Age, Size};

/// Serve this machine's sandboxes: their chunks from one cache, an agent for each.
#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
With a worker, `run` and `mount` on this machine have it start what serves their image.
Each chunk is then fetched once, however many sandboxes want it; agents run confined, and
one that is killed or replaced is missed for a moment only. It prints a line when it is
ready, and ends at SIGTERM or SIGINT; sandboxes go on, and wait for the next worker. Every
option may be in [worker] of the configuration file. docs/operations.md says more.

Examples:
  snowmelt worker --memory 2GiB --disk-size 100GiB
  snowmelt worker status
  snowmelt worker replace-agents"
)]
pub(crate) struct WorkerArgs {
    #[command(subcommand)]
    pub(crate) action: Option<WorkerAction>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
}

/// What to do with the worker that runs.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum WorkerAction {
    /// Show how the worker of this machine is doing.
    Status,
    /// Replace every agent by one of the worker's version, while its sandbox goes on.
    ReplaceAgents,
}

/// How a worker serves.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct ServeArgs {
    /// How much memory chunks may take [default: 1GiB].
    #[arg(long, value_name = "SIZE", env = "SNOWMELT_WORKER_MEMORY")]
    pub(crate) memory: Option<Size>,
    /// A folder for chunks, of this worker alone [default: worker in the cache folder].
    #[arg(long, value_name = "DIR", env = "SNOWMELT_WORKER_DISK")]
    pub(crate) disk: Option<PathBuf>,
    /// How much of the disk chunks may take; 0 for none [default: that of the cache].
    #[arg(long, value_name = "SIZE", env = "SNOWMELT_WORKER_DISK_SIZE")]
    pub(crate) disk_size: Option<Size>,
    /// How much memory of its own one agent may take [default: 1GiB].
    #[arg(long, value_name = "SIZE", env = "SNOWMELT_WORKER_AGENT_MEMORY")]
    pub(crate) agent_memory: Option<Size>,
    /// How many chunks are read from the store at once [default: 64].
    #[arg(long, value_name = "COUNT", env = "SNOWMELT_WORKER_ORIGIN_READS")]
    pub(crate) origin_reads: Option<usize>,
    /// How many sandboxes may always start at once [default: 2].
    #[arg(long, value_name = "COUNT", env = "SNOWMELT_WORKER_LEAST_STARTS")]
    pub(crate) least_starts: Option<usize>,
    /// How many may start at once while chunks come fast [default: 256].
    #[arg(long, value_name = "COUNT", env = "SNOWMELT_WORKER_MOST_STARTS")]
    pub(crate) most_starts: Option<usize>,
    /// How long a start waits for its turn; 0s refuses it at once [default: 30s].
    #[arg(long, value_name = "AGE", env = "SNOWMELT_WORKER_START_WAIT")]
    pub(crate) start_wait: Option<Age>,
    /// Where operators reach it: /metrics, /healthz and /readyz, for everybody who gets there.
    #[arg(long, value_name = "HOST:PORT", env = "SNOWMELT_WORKER_ADMIN")]
    pub(crate) admin: Option<String>,
}
