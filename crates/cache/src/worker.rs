//! The socket between sandboxes and their worker: who asks for a chunk gets a descriptor to read it from.

mod client;
pub(crate) mod protocol;
mod server;

pub use client::WorkerClient;
pub use server::ChunkServer;

#[cfg(test)]
mod tests;
