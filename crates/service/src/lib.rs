//! Functions: the Lambda API over images that load on demand.

pub mod api;
mod name;
pub mod sigv4;

pub use name::{FunctionName, Place, Qualifier};
