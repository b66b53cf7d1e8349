//! `docker-archive:` — what `docker save` and `skopeo copy … docker-archive:` write: a tar file with `manifest.json`,
//! which names a configuration and layers by their paths in the archive. Newer writers add an OCI layout to it; a tar
//! file that has the layout alone is taken too.

use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use crate::config::{ConfigDocument, MAX_CONFIG_BYTES};
use crate::digest::Digest;
use crate::layer_reader::detect;
use crate::sources::archive::Archive;
use crate::sources::documents::MAX_MANIFEST_BYTES;
use crate::sources::local::{Blobs, LayerFile, LocalSource};
use crate::sources::resolve::{Image, check_diff_ids, check_platform};
use crate::sources::verified::wrong_digest;
use crate::sources::{Compression, LayerDescriptor, Source, oci_layout};
use crate::{Error, Platform, SourceRef};

/// An image in `manifest.json` (docker's image/tarexport).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Opens an archive.
pub(crate) fn open(
    reference: &SourceRef,
    path: &Path,
    name: Option<&str>,
    platform: &Platform,
) -> Result<Box<dyn Source>, Error> {
    let subject = reference.to_string();
    let archive = Archive::open(path)?;
    let blobs = Blobs::Archive(archive);
    if !blobs.has("manifest.json") {
        if blobs.has("index.json") {
            return oci_layout::open_blobs(subject, blobs, name, platform);
        }
        let reason = "it has neither a manifest.json nor an index.json: it is no archive of docker save";
        return Err(Error::invalid(subject, reason));
    }
    let manifest_subject = format!("{subject}, manifest.json");
    let bytes = blobs.read("manifest.json", &manifest_subject, MAX_MANIFEST_BYTES + 1)?;
    let entry = choose(&subject, decode(&bytes, &manifest_subject)?, name)?;

    let config_subject = format!("{subject}, {}", entry.config);
    let bytes = blobs.read(&entry.config, &config_subject, MAX_CONFIG_BYTES + 1)?;
    if let Some(expected) = digest_in_name(&entry.config)
        && !expected.matches(&bytes)
    {
        let mut hasher = crate::digest::Hasher::new(expected.algorithm());
        hasher.update(&bytes);
        return Err(wrong_digest(&config_subject, &hasher.finish(), &expected));
    }
    let ConfigDocument { config, diff_ids } = ConfigDocument::decode(&bytes, &config_subject)?;
    check_platform(&subject, &config, platform)?;
    let names = entry.layers.unwrap_or_default();
    if diff_ids.is_empty() && !names.is_empty() {
        return Err(Error::corrupt(config_subject, "it has no diff ids, so the layers cannot be verified"));
    }
    check_diff_ids(&config_subject, &diff_ids, names.len())?;
    let mut layers = Vec::new();
    let mut files = Vec::new();
    for (name, diff_id) in names.into_iter().zip(diff_ids) {
        let (layer, file) = layer(&subject, &blobs, name, diff_id)?;
        layers.push(layer);
        files.push(file);
    }
    let image = Image { config, manifest_digest: None, layers };
    Ok(Box::new(LocalSource { subject, image, blobs, files }))
}

/// The first name that the archive gives its image; `None` where it has several images or none, or gives no name.
pub(crate) fn suggested_name(reference: &SourceRef, path: &Path) -> Result<Option<String>, Error> {
    let blobs = Blobs::Archive(Archive::open(path)?);
    if !blobs.has("manifest.json") {
        return Ok(None);
    }
    let subject = format!("{reference}, manifest.json");
    let entries = decode(&blobs.read("manifest.json", &subject, MAX_MANIFEST_BYTES + 1)?, &subject)?;
    match <[Entry; 1]>::try_from(entries) {
        Ok([entry]) => Ok(entry.repo_tags.and_then(|names| names.into_iter().next())),
        Err(_) => Ok(None),
    }
}

fn decode(bytes: &[u8], subject: &str) -> Result<Vec<Entry>, Error> {
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(Error::invalid(subject, format!("it is larger than {MAX_MANIFEST_BYTES} bytes")));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Error::corrupt(subject, format!("not what docker save writes: {error}")))
}

fn choose(subject: &str, mut entries: Vec<Entry>, name: Option<&str>) -> Result<Entry, Error> {
    let names: Vec<&str> =
        entries.iter().flat_map(|entry| entry.repo_tags.iter().flatten()).map(String::as_str).take(24).collect();
    let index = match name {
        None => match entries.len() {
            0 => return Err(Error::not_found(subject, "the archive has no image")),
            1 => 0,
            _ => {
                let reason = format!("the archive has the images {}: add one of them behind a colon", names.join(", "));
                return Err(Error::not_found(subject, reason));
            }
        },
        Some(name) => {
            let wanted = complete(name);
            let found = entries
                .iter()
                .position(|entry| entry.repo_tags.iter().flatten().any(|tag| tag == name || complete(tag) == wanted));
            found.ok_or_else(|| {
                let reason = if names.is_empty() {
                    "the archive's images have no names: leave the name out".to_owned()
                } else {
                    format!("the archive has {}", names.join(", "))
                };
                Error::not_found(subject, reason)
            })?
        }
    };
    Ok(entries.swap_remove(index))
}

/// The name with registry and tag, so that `debian` and `docker.io/library/debian:latest` are the same.
fn complete(name: &str) -> String {
    SourceRef::from_str(&format!("docker://{name}")).map_or_else(|_| name.to_owned(), |name| name.to_string())
}

fn layer(subject: &str, blobs: &Blobs, name: String, diff_id: String) -> Result<(LayerDescriptor, LayerFile), Error> {
    let layer_subject = format!("{subject}, layer {diff_id}");
    let Blobs::Archive(archive) = blobs else { return Err(Error::invalid(layer_subject, "it is in no archive")) };
    let Some(size) = archive.size(&name) else {
        let reason = format!("there is no file {name} in the archive: it is incomplete, save the image again");
        return Err(Error::not_found(layer_subject, reason));
    };
    let mut start = Vec::new();
    blobs
        .open(&name, &layer_subject)?
        .take(6)
        .read_to_end(&mut start)
        .map_err(|error| Error::from_read(&layer_subject, error))?;
    // What isn't taken is refused by name when it is read.
    let compression = detect(&start).unwrap_or(Compression::None);
    let digest = match compression {
        Compression::None => Digest::parse(&diff_id).ok(),
        // In a layout a file's name is its digest; elsewhere it is anything, and the diff id alone must do.
        _ => digest_in_name(&name).filter(|_| name.starts_with("blobs/")),
    };
    let layer = LayerDescriptor {
        digest: digest.as_ref().map_or_else(|| diff_id.clone(), Digest::to_string),
        size,
        media_type: String::new(),
        compression,
        diff_id: Some(diff_id),
    };
    Ok((layer, LayerFile { name, digest }))
}

/// The digest in `blobs/sha256/<hex>` and `<hex>.json`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let hex = name.strip_prefix("blobs/sha256/").or_else(|| name.strip_suffix(".json"))?;
    Digest::parse(&format!("sha256:{hex}")).ok()
}

/// Reads a `manifest.json`, for fuzzing.
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(entries) = decode(bytes, "fuzz") {
        let _ = choose("fuzz", entries, None);
    }
}
