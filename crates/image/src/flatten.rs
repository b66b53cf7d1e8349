//! From a source to the bytes of a file system image: reads the layers, merges them, places the contents and plans the
//! image. The result gives bytes at any offset, from any thread, without ever holding the image.

#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::path::Path;

use snowmelt_ext4::{BLOCK_SIZE, NodeId, Options, Plan};

use crate::config::ImageConfig;
use crate::directory;
use crate::dropped::Dropped;
use crate::error::Error;
use crate::layers::{self, ReadLayer};
use crate::layout::{self, PlacementKind};
use crate::merge::{ImageTree, MergedTree, Misfit};
use crate::sources::Source;
use crate::spool::{Content, Spool};
use crate::tree_digest;

/// How to flatten.
#[derive(Clone, Copy)]
pub struct FlattenOptions<'a> {
    /// Bytes of free space in the image, for what a container writes. They cost nothing: free space is a hole.
    pub free_bytes: u64,
    /// Bytes of a chunk, a power of two of at least 4096; contents are aligned to it.
    pub chunk_size: u32,
    /// Where contents wait, in files that are unlinked from the start: as many bytes as all layers have unpacked.
    pub spool_directory: &'a Path,
    /// Where contents go in the image.
    pub placement: PlacementKind,
    /// Told what happens, from several threads.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
}

/// What flattening reports while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Reading begins: so many compressed bytes in all layers.
    LayersTotal {
        /// Sum over all layers.
        compressed_bytes: u64,
    },
    /// So many more compressed bytes were read.
    LayerBytes {
        /// Bytes since the last report.
        read: u64,
    },
    /// So many bytes of a directory source's files were read since the last report.
    FileBytes {
        /// Bytes since the last report.
        read: u64,
    },
    /// All was read and planned.
    Planned {
        /// Files, directories and other nodes.
        nodes: u64,
        /// Size of the image in bytes, holes included.
        size_bytes: u64,
    },
}

/// A flattened image: a plan and the contents it places.
pub struct FlatImage {
    plan: Plan,
    contents: Vec<Option<Content>>,
    spools: Vec<Spool>,
    chunk_size: u32,
    config: ImageConfig,
    source_digest: Option<String>,
}

/// A file's content, for comparing images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// BLAKE3 of the content with its holes: equal for equal contents.
    pub digest: [u8; 32],
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// Bytes that are not holes.
    pub stored_bytes: u64,
}

/// Flattens a source's layers to one file system image.
///
/// The image depends on the merged tree and on `free_bytes`, `chunk_size` and `placement`, and on nothing else.
///
/// # Errors
/// [`Error::Corrupt`] and [`Error::Invalid`] name layer and entry; reading a layer may fail with any error of the source;
/// [`Error::Io`] is a failure of the spool directory.
pub fn flatten(source: &dyn Source, options: &FlattenOptions<'_>) -> Result<FlatImage, Error> {
    check(options)?;
    let compressed_bytes = compressed_bytes(source)?;
    report(options, Progress::LayersTotal { compressed_bytes });
    let layers = layers::read_all(source, options.spool_directory, options.progress)?;
    warn_of_dropped(source, &layers);
    let (image, spools) = merge(source, layers)?;
    let digest = source.manifest_digest().map(str::to_owned);
    plan(image, spools, source.config().clone(), digest, options)
}

/// Flattens the directory `path` of this machine as it is, owners and times and attributes included. It is one file system:
/// directories on which others are mounted stay empty.
/// File contents are copied to the spool directory first, so the image is of one moment for each file.
///
/// # Errors
/// [`Error::Io`] names the file that could not be read, [`Error::Invalid`] one that changed while it was read.
pub fn flatten_directory(path: &Path, config: ImageConfig, options: &FlattenOptions<'_>) -> Result<FlatImage, Error> {
    check(options)?;
    let (image, spool) = directory::read(path, options.spool_directory, options.progress)?;
    plan(image, vec![spool], config, None, options)
}

/// Sizes come from the manifest, which may say anything.
fn compressed_bytes(source: &dyn Source) -> Result<u64, Error> {
    let mut sum = 0_u64;
    for (index, layer) in source.layers().iter().enumerate() {
        sum = sum.checked_add(layer.size).ok_or_else(|| {
            let reason = format!("it has {} bytes, which with the layers below is more than 2^64", layer.size);
            Error::invalid(layers::layer_subject(source, index), reason)
        })?;
    }
    Ok(sum)
}

fn warn_of_dropped(source: &dyn Source, layers: &[ReadLayer]) {
    let mut all = Dropped::default();
    for (index, layer) in layers.iter().enumerate() {
        all.add_part(&layers::layer_subject(source, index), layer.dropped.clone());
    }
    all.warn();
}

/// Applies layers in order. Entries are dropped as they are applied; contents stay in the spools.
fn merge(source: &dyn Source, layers: Vec<ReadLayer>) -> Result<(ImageTree, Vec<Spool>), Error> {
    let mut tree = MergedTree::new();
    let mut spools = Vec::with_capacity(layers.len());
    for (index, layer) in layers.into_iter().enumerate() {
        tree.begin_layer();
        for entry in layer.entries {
            let path = entry.entry.path.clone();
            tree.apply(entry).map_err(|reason| {
                Error::invalid(format!("{}, entry {path}", layers::layer_subject(source, index)), reason)
            })?;
        }
        spools.push(layer.spool);
    }
    let image = tree.finish().map_err(|Misfit { layer, path, reason }| {
        // Only what no layer wrote has none: the root, which fits.
        let layer = layers::layer_subject(source, layer.unwrap_or(0));
        Error::invalid(format!("{layer}, entry {path}"), reason)
    })?;
    Ok((image, spools))
}

fn plan(
    image: ImageTree,
    spools: Vec<Spool>,
    config: ImageConfig,
    source_digest: Option<String>,
    options: &FlattenOptions<'_>,
) -> Result<FlatImage, Error> {
    let placement = layout::place(&image, options.placement, options.chunk_size);
    let identity = tree_digest::identity(&image);
    let plan = Plan::new(
        &image.tree,
        &placement,
        &Options {
            free_bytes: options.free_bytes,
            data_alignment: u64::from(options.chunk_size),
            uuid: identity.uuid,
            hash_seed: identity.hash_seed,
        },
    )
    .map_err(|error| Error::invalid("the image's file tree", error.to_string()))?;
    let nodes = image.tree.nodes.len() as u64;
    report(options, Progress::Planned { nodes, size_bytes: plan.size_bytes() });
    Ok(FlatImage { plan, contents: image.contents, spools, chunk_size: options.chunk_size, config, source_digest })
}

fn check(options: &FlattenOptions<'_>) -> Result<(), Error> {
    let size = options.chunk_size;
    if size.is_power_of_two() && u64::from(size) >= BLOCK_SIZE {
        return Ok(());
    }
    Err(Error::invalid(format!("chunk size {size}"), format!("use a power of two of at least {BLOCK_SIZE}")))
}

fn report(options: &FlattenOptions<'_>, progress: Progress) {
    if let Some(sink) = options.progress {
        sink(progress);
    }
}

impl FlatImage {
    /// Size of the image in bytes, holes included.
    pub fn size_bytes(&self) -> u64 {
        self.plan.size_bytes()
    }

    /// The chunk size that it was laid out for, in bytes.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// How to run it.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Digest of the manifest it was made from; `None` for sources that have none.
    pub fn source_digest(&self) -> Option<&str> {
        self.source_digest.as_deref()
    }

    /// True if all bytes of `range` are known to be zero without reading them.
    pub fn is_hole(&self, range: Range<u64>) -> bool {
        self.plan.runs(range).next().is_none()
    }

    /// Bytes that are no holes, metadata of the file system included.
    pub fn content_bytes(&self) -> u64 {
        self.plan.runs(0..self.plan.size_bytes()).map(|run| run.length).sum()
    }

    /// Where the contents of files begin, in bytes; before it lie the file system's own structures.
    pub fn data_start_bytes(&self) -> u64 {
        self.plan.data_start_bytes()
    }

    /// The contents of all files that have any, hard links counted once.
    pub fn contents(&self) -> impl Iterator<Item = FileContent> + '_ {
        self.contents.iter().flatten().map(|content| FileContent {
            digest: content.digest,
            size_bytes: content.size,
            stored_bytes: content.stored_bytes(),
        })
    }

    /// Fills `buffer` with the image's bytes at `offset`. May be called from several threads at once.
    ///
    /// # Errors
    /// [`Error::Io`] if the spool can't be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let content = |node: NodeId, offset: u64, buffer: &mut [u8]| match &self.contents[node.0 as usize] {
            Some(content) => content.read_at(&self.spools, offset, buffer),
            None => Err(io::Error::other("the plan asked for the content of what is no file")),
        };
        self.plan
            .read_at(offset, buffer, &content)
            .map_err(|error| Error::io("read stored contents from", Path::new("the spool directory"), error))
    }
}
