//! Images whose blobs lie on this machine, in a directory or in an archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::digest::Digest;
use crate::sources::archive::Archive;
use crate::sources::resolve::Image;
use crate::sources::verified::VerifiedReader;
use crate::sources::{LayerDescriptor, Source};
use crate::{Error, ImageConfig};

/// Files by their names.
pub(crate) enum Blobs {
    Directory(PathBuf),
    Archive(Archive),
}

impl Blobs {
    /// The file's bytes; `subject` names it in errors.
    pub(crate) fn open(&self, name: &str, subject: &str) -> Result<Box<dyn Read + Send>, Error> {
        let missing =
            || Error::not_found(subject, format!("there is no file {name}: the copy is incomplete, make it again"));
        match self {
            Blobs::Directory(directory) => {
                let path = directory.join(name);
                let file = File::open(&path).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => Error::io("open", &path, error),
                })?;
                Ok(Box::new(file))
            }
            Blobs::Archive(archive) => archive.open_file(name).ok_or_else(missing),
        }
    }

    /// At most `limit` bytes of a file.
    pub(crate) fn read(&self, name: &str, subject: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let input = self.open(name, subject)?;
        input.take(limit).read_to_end(&mut bytes).map_err(|error| Error::from_read(subject, error))?;
        Ok(bytes)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Blobs::Directory(directory) => directory.join(name).is_file(),
            Blobs::Archive(archive) => archive.size(name).is_some(),
        }
    }
}

/// The path of a blob in a layout (image-spec, image-layout.md).
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm_name(), digest.hex())
}

/// Where a layer's bytes are.
pub(crate) struct LayerFile {
    pub(crate) name: String,
    /// The digest of the bytes as stored, where it is known.
    pub(crate) digest: Option<Digest>,
}

/// An opened image on this machine.
pub(crate) struct LocalSource {
    /// The source's name, for errors.
    pub(crate) subject: String,
    pub(crate) image: Image,
    pub(crate) blobs: Blobs,
    /// One for each of the image's layers.
    pub(crate) files: Vec<LayerFile>,
}

impl Source for LocalSource {
    fn config(&self) -> &ImageConfig {
        &self.image.config
    }

    fn manifest_digest(&self) -> Option<&str> {
        self.image.manifest_digest.as_deref()
    }

    fn layers(&self) -> &[LayerDescriptor] {
        &self.image.layers
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, Error> {
        let (Some(layer), Some(file)) = (self.image.layers.get(index), self.files.get(index)) else {
            let count = self.image.layers.len();
            return Err(Error::invalid(
                format!("{}, layer {index}", self.subject),
                format!("the image has {count} layers"),
            ));
        };
        let subject = format!("{}, layer {}", self.subject, layer.digest);
        let input = self.blobs.open(&file.name, &subject)?;
        match &file.digest {
            Some(digest) => Ok(Box::new(VerifiedReader::new(input, subject, digest.clone(), layer.size)?)),
            None => Ok(input),
        }
    }
}

#[cfg(test)]
mod tests;
