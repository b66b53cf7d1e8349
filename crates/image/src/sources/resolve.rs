//! From the document behind a name to one image: the platform's manifest, its configuration, its layers.

use crate::config::{ConfigDocument, ImageConfig, MAX_CONFIG_BYTES};
use crate::digest::Digest;
use crate::sources::LayerDescriptor;
use crate::sources::documents::{Descriptor, Document, MAX_MANIFEST_BYTES};
use crate::sources::verified::{too_long, truncated, wrong_digest};
use crate::{Error, Platform};

/// Indexes within indexes that are followed.
const MAX_INDEX_DEPTH: usize = 4;
/// Platforms that an error lists.
const LISTED_PLATFORMS: usize = 24;

/// Where documents are read: a registry, or a layout.
pub(crate) trait Documents {
    /// The image, for errors.
    fn subject(&self) -> &str;

    /// The bytes of a manifest or index, at most `descriptor.size` and one more, not verified.
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error>;

    /// The bytes of a blob, likewise.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error>;
}

/// An image, found.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) config: ImageConfig,
    pub(crate) manifest_digest: Option<String>,
    pub(crate) layers: Vec<LayerDescriptor>,
}

/// Follows `document`, whose digest is given, down to the image for `platform`.
pub(crate) fn resolve(
    documents: &dyn Documents,
    mut document: Document,
    mut digest: Option<Digest>,
    platform: &Platform,
) -> Result<Image, Error> {
    let image = documents.subject();
    let mut depth = 0;
    loop {
        match document {
            Document::Manifest { config, layers } => {
                return load(documents, &config, &layers, digest.map(|digest| digest.to_string()), platform);
            }
            Document::Index(entries) => {
                if depth == MAX_INDEX_DEPTH {
                    let reason = format!("its indexes are nested more than {MAX_INDEX_DEPTH} deep");
                    return Err(Error::invalid(image, reason));
                }
                depth += 1;
                let entry = choose(image, &entries, platform)?;
                let subject = format!("{image}, manifest {}", entry.digest);
                check_size(&subject, entry, MAX_MANIFEST_BYTES)?;
                let bytes = documents.manifest(entry)?;
                check(&subject, &bytes, entry)?;
                document = Document::decode(&bytes, &subject)?;
                digest = Some(entry.digest.clone());
            }
        }
    }
}

/// The entry that suits `platform` best; the first of equals. Entries that name no platform come last: what they are
/// for is in their configuration.
pub(crate) fn choose<'a>(image: &str, entries: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor, Error> {
    let images = || entries.iter().filter(|entry| entry.may_be_image());
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in images() {
        let fit = entry.platform.as_ref().and_then(|offered| platform.fit(offered));
        if let Some(fit) = fit
            && best.is_none_or(|(best, _)| fit > best)
        {
            best = Some((fit, entry));
        }
    }
    if let Some(entry) = best.map(|(_, entry)| entry).or_else(|| images().find(|entry| entry.platform.is_none())) {
        return Ok(entry);
    }
    // Attestations are filed under a platform `unknown/unknown`.
    let mut offered: Vec<String> = images()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|p| p.os() != "unknown")
        .map(Platform::to_string)
        .collect();
    offered.dedup();
    let reason = match offered.len() {
        0 => "its index has no image".to_owned(),
        count => {
            offered.truncate(LISTED_PLATFORMS);
            let more = if count > LISTED_PLATFORMS { ", …" } else { "" };
            format!("the image is for {}{more}: choose with --platform", offered.join(", "))
        }
    };
    Err(Error::not_found(format!("{image} for {platform}"), reason))
}

fn load(
    documents: &dyn Documents,
    config: &Descriptor,
    layers: &[Descriptor],
    manifest_digest: Option<String>,
    platform: &Platform,
) -> Result<Image, Error> {
    let image = documents.subject();
    let subject = format!("{image}, configuration {}", config.digest);
    check_size(&subject, config, MAX_CONFIG_BYTES)?;
    let bytes = documents.blob(config)?;
    check(&subject, &bytes, config)?;
    let ConfigDocument { config, diff_ids } = ConfigDocument::decode(&bytes, &subject)?;
    check_platform(image, &config, platform)?;
    check_diff_ids(&subject, &diff_ids, layers.len())?;
    let layers = layers
        .iter()
        .enumerate()
        .map(|(index, layer)| layer.layer(image, diff_ids.get(index)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Image { config, manifest_digest, layers })
}

/// Each layer has its diff id, and each is a digest. Configurations without any are taken.
pub(crate) fn check_diff_ids(subject: &str, diff_ids: &[String], layers: usize) -> Result<(), Error> {
    if !diff_ids.is_empty() && diff_ids.len() != layers {
        let reason = format!("it has {} diff ids for {layers} layers: build and push the image again", diff_ids.len());
        return Err(Error::corrupt(subject, reason));
    }
    for diff_id in diff_ids {
        Digest::parse(diff_id).map_err(|reason| Error::corrupt(subject, reason))?;
    }
    Ok(())
}

/// An image of one platform only is not chosen from an index, so its configuration tells.
pub(crate) fn check_platform(image: &str, config: &ImageConfig, wanted: &Platform) -> Result<(), Error> {
    if config.os.is_empty() || config.architecture.is_empty() {
        return Ok(());
    }
    let actual = Platform::new(&config.os, &config.architecture, None);
    if (actual.os(), actual.architecture()) == (wanted.os(), wanted.architecture()) {
        return Ok(());
    }
    let (os, architecture) = (actual.os(), actual.architecture());
    let reason =
        format!("the image is for {os}/{architecture} alone: if that is meant, say --platform {os}/{architecture}");
    Err(Error::not_found(format!("{image} for {wanted}"), reason))
}

fn check_size(subject: &str, descriptor: &Descriptor, limit: u64) -> Result<(), Error> {
    if descriptor.size <= limit {
        return Ok(());
    }
    Err(Error::invalid(
        subject,
        format!("it is to have {} bytes, more than the {limit} that are read", descriptor.size),
    ))
}

fn check(subject: &str, bytes: &[u8], descriptor: &Descriptor) -> Result<(), Error> {
    let length = bytes.len() as u64;
    if length < descriptor.size {
        return Err(truncated(subject, length, descriptor.size));
    }
    if length > descriptor.size {
        return Err(too_long(subject, descriptor.size));
    }
    let mut hasher = crate::digest::Hasher::new(descriptor.digest.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == descriptor.digest { Ok(()) } else { Err(wrong_digest(subject, &actual, &descriptor.digest)) }
}

#[cfg(test)]
mod tests;
