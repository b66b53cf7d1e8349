//! `oci:` — an OCI image layout in a directory (image-spec, image-layout.md); the same in a tar file.

use std::path::Path;

use crate::digest::Digest;
use crate::sources::Source;
use crate::sources::documents::{Descriptor, Document, MAX_MANIFEST_BYTES};
use crate::sources::local::{Blobs, LayerFile, LocalSource, blob_path};
use crate::sources::resolve::{Documents, resolve};
use crate::{Error, Platform, SourceRef};

/// Names that an error lists.
const LISTED_NAMES: usize = 24;

/// Opens the layout in a directory.
pub(crate) fn open(
    reference: &SourceRef,
    path: &Path,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Box<dyn Source>, Error> {
    let subject = reference.to_string();
    if path.is_file() {
        return Err(Error::invalid(subject, "it is a file and not a directory: perhaps docker-archive: is meant"));
    }
    let blobs = Blobs::Directory(path.to_owned());
    if !blobs.has("index.json") {
        let reason = if path.is_dir() {
            "the directory has no index.json, so it is no OCI layout: perhaps dir: is meant"
        } else {
            "there is no such directory"
        };
        return Err(Error::not_found(subject, reason));
    }
    open_blobs(subject, blobs, tag, platform)
}

/// Opens a layout whose files are in `blobs`.
pub(crate) fn open_blobs(
    subject: String,
    blobs: Blobs,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Box<dyn Source>, Error> {
    let index_subject = format!("{subject}, index.json");
    let bytes = blobs.read("index.json", &index_subject, MAX_MANIFEST_BYTES + 1)?;
    let Document::Index(entries) = Document::decode(&bytes, &index_subject)? else {
        return Err(Error::corrupt(index_subject, "it is not an index"));
    };
    let named = named(&subject, entries, tag)?;
    let layout = Layout { subject: &subject, blobs: &blobs };
    let image = resolve(&layout, Document::Index(named), None, platform)?;
    let files = image
        .layers
        .iter()
        .map(|layer| {
            let digest = Digest::parse(&layer.digest).map_err(|reason| Error::corrupt(&subject, reason))?;
            Ok(LayerFile { name: blob_path(&digest), digest: Some(digest) })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(Box::new(LocalSource { subject, image, blobs, files }))
}

/// The entries that `tag` means: several are one image for several platforms.
fn named(subject: &str, entries: Vec<Descriptor>, tag: Option<&str>) -> Result<Vec<Descriptor>, Error> {
    let mut names: Vec<&str> = entries.iter().filter_map(|entry| entry.ref_name.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    let list = |names: &[&str]| {
        let more = if names.len() > LISTED_NAMES { ", …" } else { "" };
        format!("{}{more}", names[..names.len().min(LISTED_NAMES)].join(", "))
    };
    match tag {
        None if names.len() > 1 => {
            let reason = format!("the layout has the images {}: add one of them behind a colon", list(&names));
            Err(Error::not_found(subject, reason))
        }
        None if entries.is_empty() => Err(Error::not_found(subject, "the layout has no image")),
        None => Ok(entries),
        Some(tag) if names.contains(&tag) => {
            Ok(entries.into_iter().filter(|entry| entry.ref_name.as_deref() == Some(tag)).collect())
        }
        Some(_) if names.is_empty() => {
            Err(Error::not_found(subject, "the layout's images have no names: leave the tag out"))
        }
        Some(_) => Err(Error::not_found(subject, format!("the layout has {}", list(&names)))),
    }
}

struct Layout<'a> {
    subject: &'a str,
    blobs: &'a Blobs,
}

impl Documents for Layout<'_> {
    fn subject(&self) -> &str {
        self.subject
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        self.blob(descriptor)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let subject = format!("{}, blob {}", self.subject, descriptor.digest);
        self.blobs.read(&blob_path(&descriptor.digest), &subject, descriptor.size.saturating_add(1))
    }
}
