//! Container images in: opens a source, reads its layers, merges them into one tree and lays it out as a file system.

mod config;
mod digest;
mod directory;
mod dropped;
mod entry_path;
mod error;
mod flatten;
pub mod fuzz;
mod layer_reader;
mod layers;
mod layout;
mod merge;
mod read_ahead;
mod reference;
mod sources;
mod spool;
mod tar_entries;
#[cfg(test)]
mod testing;
mod tree_digest;

pub use config::ImageConfig;
pub use error::Error;
pub use flatten::{FileContent, FlatImage, FlattenOptions, Progress, flatten, flatten_directory};
pub use layer_reader::{decompress, open_layer_tar};
pub use layout::PlacementKind;
pub use reference::{Platform, SourceRef};
pub use sources::{Compression, LayerDescriptor, OpenOptions, Source, add_layers, open, suggested_name};
