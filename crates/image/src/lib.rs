//! Container images in: opens a source, reads its layers, merges them into one tree and lays it out as a file system.

mod config;
mod digest;
mod error;
mod reference;
mod sources;

pub use config::ImageConfig;
pub use error::Error;
pub use reference::{Platform, SourceRef};
pub use sources::{Compression, LayerDescriptor, OpenOptions, Source, open};
