//! Runs and mounts published images, each served by a process of its own.
//!
//! [`run`] starts a container on an image, with the options of [`RunSpec`], and gives its exit status; [`mount`] and
//! [`unmount`] put an image on a directory and take it away again. Either starts an *agent*, which is this same program
//! run again as `snowmelt agent` ([`agent_main`]): it alone holds the image's keys, serves the demand-loaded device and
//! mounts it. A [`StateDir`] records every sandbox, so that whatever a killed process leaves is removed by the next
//! command ([`StateDir::cleanup_stale`]).
//!
//! ```no_run
//! use snowmelt_sandbox::{AgentConfig, RunSpec, StateDir, run};
//! # fn configuration() -> AgentConfig { unimplemented!() }
//!
//! let spec = RunSpec { image: "debian:12".into(), command: vec!["uname".into(), "-a".into()], ..RunSpec::default() };
//! match run(&spec, &configuration(), &StateDir::new("/run/snowmelt")?, &|_| Ok(())) {
//!     Ok(outcome) => std::process::exit(outcome.exit_code.into()),
//!     Err(error) => {
//!         eprintln!("snowmelt: {error}");
//!         std::process::exit(error.exit_code().into());
//!     }
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), snowmelt_sandbox::Error>(())
//! ```

mod agent;
mod agent_process;
mod cgroups;
mod channel;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod identity;
mod mounts;
mod oci;
mod root;
mod run;
mod runtime;
mod spec;
mod state;
mod stats;
mod users;
mod worker;

pub use agent::protocol::{AgentConfig, LoadMode, OnUnavailable, UseWorker};
pub use agent::start_logs::{CommandLog, command_logs};
pub use agent::{agent_main, opener_main};
pub use error::{Cause, Error};
pub use identity::ProcessId;
pub use mounts::{log_path, mount, stats, unmount};
pub use run::{Progress, RunOutcome, Step, run};
pub use spec::{FirstProcess, Network, RunSpec, Volume};
pub use state::{Kind, Record, StateDir};
pub use stats::{Stats, TierLoads, Timings};
pub use worker::{AdmissionOptions, Worker, WorkerControl, WorkerOptions, WorkerStatus};
