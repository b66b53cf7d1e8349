//! Where images come from: a registry, an OCI layout, an archive of `docker save`.
//!
//! A source finds the manifest and the configuration when it is opened, and gives each layer's bytes as they are stored.
//! It does not decompress them (see [`crate::open_layer_tar`]) and knows nothing of their entries.

mod added;
mod archive;
pub(crate) mod docker_archive;
pub(crate) mod documents;
#[cfg(test)]
mod fixtures;
mod local;
mod oci_layout;
mod registry;
pub(crate) mod resolve;
pub(crate) mod verified;

pub use added::add_layers;
pub(crate) use archive::NO_PIPE;

use std::io::Read;

use crate::{Error, ImageConfig, Platform, SourceRef};

/// An opened image: its configuration, and its layers to be read. All methods may be called from several threads at
/// once, and several layers may be read at the same time.
pub trait Source: Send + Sync {
    /// How to run the image.
    fn config(&self) -> &ImageConfig;

    /// Digest of the manifest that was used, where the source has one; of an index it is the chosen platform's manifest.
    fn manifest_digest(&self) -> Option<&str>;

    /// The layers, lowest first.
    fn layers(&self) -> &[LayerDescriptor];

    /// The layer's bytes as stored, usually compressed. Size and digest are checked at the end: the reader gives an error
    /// instead of the end of file where they differ, so what was read counts only after a read of 0 bytes. Errors of
    /// the reader carry an [`Error`].
    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, Error>;
}

/// A layer as the manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob as stored, such as `sha256:…`. Where a source has none (a compressed layer in an archive of
    /// `docker save`) it is the diff id, and only the decompressed bytes are checked.
    pub digest: String,
    /// Size of the blob as stored, in bytes.
    pub size: u64,
    /// Media type, as the manifest has it; empty where the source has none.
    pub media_type: String,
    /// Compression, as the media type has it. The bytes may be otherwise: readers look at the bytes.
    pub compression: Compression,
    /// Digest of the decompressed layer, from the configuration.
    pub diff_id: Option<String>,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

/// How to open a source.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Which of an index's images; this machine's where `None`.
    pub platform: Option<Platform>,
    /// Allow plain HTTP and unverified hosts' tokens to a registry that is not this machine.
    pub insecure_http: bool,
}

/// Opens an image: finds its manifest and configuration, and reads no layer yet. Blocks.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Denied`], [`Error::Unavailable`] as the registry or file system has it; [`Error::Corrupt`] for
/// documents that are not what their digest names; [`Error::Invalid`] for images of kinds that cannot be flattened, and
/// for [`SourceRef::Directory`], which has no layers.
pub fn open(reference: &SourceRef, options: &OpenOptions) -> Result<Box<dyn Source>, Error> {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    match reference {
        SourceRef::Registry { .. } => registry::open(reference, &platform, options.insecure_http),
        SourceRef::OciLayout { path, tag } => oci_layout::open(reference, path, tag.as_deref(), &platform),
        SourceRef::DockerArchive { path, name } => docker_archive::open(reference, path, name.as_deref(), &platform),
        SourceRef::Directory { .. } => {
            Err(Error::invalid(reference.to_string(), "a directory has no layers: it is flattened as a tree"))
        }
    }
}

/// The name that an image has within its source, such as `registry.example/name:1.0`: so far only archives of
/// `docker save` with one image. `None` where there is no such name. Reads a compressed archive to its end.
///
/// # Errors
/// As [`open`], where the archive cannot be read.
pub fn suggested_name(reference: &SourceRef) -> Result<Option<String>, Error> {
    match reference {
        SourceRef::DockerArchive { path, name: None } => docker_archive::suggested_name(reference, path),
        _ => Ok(None),
    }
}
