//! Functions: the Lambda API over images that load on demand.
//!
//! ```text
//! client -> server (who asks, and what) -> control: functions, versions, aliases
//!                                       -> invoke -> assignment (which sandbox) -> placement (where a new one goes) -> host
//! ```
//!
//! [`Service`] knows the functions and their sandboxes. Each sandbox has a *host* ([`host_main`]), a process of its own that runs the
//! container and is the Runtime API for what is in it. Hosts come to the service over a socket.

pub mod api;
mod assignment;
mod control;
mod events;
pub mod fuzz;
mod host;
mod hosts;
mod invoke;
mod journal;
mod link;
mod logs;
mod measures;
mod model;
mod name;
mod own;
mod package;
mod placement;
mod policy;
mod provisioning;
mod publishing;
mod registry;
mod server;
mod service;
pub mod sigv4;
mod status;
mod url;

pub use host::{OUTGOING_PROGRAMS, OutgoingNetwork, host_main};
pub use name::{FunctionName, Place, Qualifier};
pub use server::serve;
pub use service::{AccessKey, Service, ServiceOptions};
pub use url::UrlBase;
