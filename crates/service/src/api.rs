//! The control API's outside: which action a request asks for, and how errors look.

mod error;
pub(crate) mod event_stream;
mod routes;

pub use error::ApiError;
pub(crate) use routes::{decode, find, query_values};
