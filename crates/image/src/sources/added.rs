//! An image with more layers over its own: files of this machine, such as the code of a function.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Compression, LayerDescriptor, Source};
use crate::{Error, ImageConfig};

struct Added {
    below: Box<dyn Source>,
    layers: Vec<LayerDescriptor>,
    files: Vec<PathBuf>,
}

/// Puts layers over an image, lowest first: archives of tar, compressed or not. They may hide what is below them, as any layer may
/// (`.wh.` entries).
///
/// # Errors
/// [`Error::Io`] names the file that cannot be read.
pub fn add_layers(below: Box<dyn Source>, files: &[PathBuf]) -> Result<Box<dyn Source>, Error> {
    let mut layers = below.layers().to_vec();
    for file in files {
        let size = std::fs::metadata(file).map_err(|error| cannot_read(file, error))?.len();
        layers.push(LayerDescriptor {
            digest: file.display().to_string(),
            size,
            media_type: String::new(),
            compression: Compression::None,
            diff_id: None,
        });
    }
    Ok(Box::new(Added { below, layers, files: files.to_vec() }))
}

fn cannot_read(file: &Path, error: std::io::Error) -> Error {
    Error::io("read the layer", file, error)
}

impl Source for Added {
    fn config(&self) -> &ImageConfig {
        self.below.config()
    }

    /// Of no manifest: there is none of the whole.
    fn manifest_digest(&self) -> Option<&str> {
        if self.files.is_empty() { self.below.manifest_digest() } else { None }
    }

    fn layers(&self) -> &[LayerDescriptor] {
        &self.layers
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, Error> {
        let own = index.checked_sub(self.below.layers().len()).and_then(|index| self.files.get(index));
        match own {
            Some(file) => Ok(Box::new(File::open(file).map_err(|error| cannot_read(file, error))?)),
            None => self.below.open_layer(index),
        }
    }
}
