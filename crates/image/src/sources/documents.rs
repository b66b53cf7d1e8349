//! Indexes and manifests as registries and layouts hold them (OCI image-spec, and Docker's schema 2): bytes to values,
//! and nothing else. They come from strangers.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::sources::{Compression, LayerDescriptor};
use crate::{Error, Platform};

/// Largest index or manifest in bytes, as registries limit it (distribution-spec, "Pushing manifests").
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Layers of one image; runtimes take 127 at most, and overlayfs 500.
const MAX_LAYERS: usize = 4096;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A reference to a blob or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Empty where the document has none.
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    /// The annotation by which layouts name images.
    pub(crate) ref_name: Option<String>,
    /// Whether the bytes are to be had from elsewhere.
    foreign: bool,
}

/// What a registry may give for a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    // Of schema 1, to tell it.
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    urls: Option<Vec<String>>,
    platform: Option<RawPlatform>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Document {
    /// Reads an index or a manifest; `subject` names it in errors.
    pub(crate) fn decode(bytes: &[u8], subject: &str) -> Result<Document, Error> {
        let corrupt = |reason: String| Error::corrupt(subject, reason);
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(Error::invalid(
                subject,
                format!("it has {} bytes, and {MAX_MANIFEST_BYTES} is the most a manifest may have", bytes.len()),
            ));
        }
        let raw: RawDocument = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(format!("not an image manifest or index: {error}")))?;
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
            return Err(Error::invalid(
                subject,
                "it is a Docker schema 1 manifest, a format retired in 2019: pull and push the image again with a current tool",
            ));
        }
        let media_type = raw.media_type.as_deref();
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) => {
                if matches!(media_type, Some(OCI_MANIFEST | DOCKER_MANIFEST)) {
                    return Err(corrupt("it says it is a manifest and is an index".into()));
                }
                let manifests = manifests.into_iter().map(|raw| raw.check(subject)).collect::<Result<_, _>>()?;
                Ok(Document::Index(manifests))
            }
            (None, Some(config), layers) => {
                if matches!(media_type, Some(OCI_INDEX | DOCKER_LIST)) {
                    return Err(corrupt("it says it is an index and is a manifest".into()));
                }
                let config = config.check(subject)?;
                if !matches!(config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
                    let kind = raw.artifact_type.unwrap_or(config.media_type);
                    return Err(Error::invalid(subject, format!("it is not a container image, but {kind:?}")));
                }
                let layers = layers.unwrap_or_default();
                if layers.len() > MAX_LAYERS {
                    return Err(Error::invalid(
                        subject,
                        format!("it has {} layers, more than {MAX_LAYERS}", layers.len()),
                    ));
                }
                let layers = layers.into_iter().map(|raw| raw.check(subject)).collect::<Result<_, _>>()?;
                Ok(Document::Manifest { config, layers })
            }
            // A document that is both was once a way to show two images under one digest (CVE-2021-41190).
            (Some(_), _, _) => Err(corrupt("it is an index and a manifest at once".into())),
            (None, None, _) => Err(corrupt("it is neither an index nor a manifest of an image".into())),
        }
    }
}

impl RawDescriptor {
    fn check(self, subject: &str) -> Result<Descriptor, Error> {
        let digest = Digest::parse(&self.digest).map_err(|reason| Error::corrupt(subject, reason))?;
        if i64::try_from(self.size).is_err() {
            return Err(Error::corrupt(subject, format!("the size of {digest} is {} bytes", self.size)));
        }
        let platform = self.platform.and_then(|platform| {
            let (os, architecture) = (platform.os?, platform.architecture?);
            (!os.is_empty() && !architecture.is_empty())
                .then(|| Platform::new(&os, &architecture, platform.variant.as_deref()))
        });
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest,
            size: self.size,
            platform,
            ref_name: self.annotations.and_then(|mut all| all.remove("org.opencontainers.image.ref.name")),
            foreign: self.urls.is_some_and(|urls| !urls.is_empty()),
        })
    }
}

impl Descriptor {
    /// Whether an index may mean an image by this entry, and not a signature or another artefact.
    pub(crate) fn may_be_image(&self) -> bool {
        matches!(self.media_type.as_str(), "" | OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST)
    }

    /// As a layer; `image` names the image in errors.
    pub(crate) fn layer(&self, image: &str, diff_id: Option<&String>) -> Result<LayerDescriptor, Error> {
        let refuse = |reason: &str| Err(Error::invalid(format!("{image}, layer {}", self.digest), reason));
        let media_type = self.media_type.as_str();
        if self.foreign || media_type.contains(".foreign.") || media_type.contains(".nondistributable.") {
            return refuse(
                "its bytes are kept outside the registry (a foreign layer), and such are not fetched: \
                 push the image with --allow-nondistributable-artifacts, or use one without them",
            );
        }
        if media_type.ends_with("+encrypted") {
            return refuse("it is encrypted: decrypt the image first");
        }
        let compression = match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" | "" => {
                Compression::None
            }
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Compression::Gzip
            }
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.diff.tar+zstd" => Compression::Zstd,
            other => return refuse(&format!("{other:?} is not a kind of layer that can be unpacked")),
        };
        Ok(LayerDescriptor {
            digest: self.digest.to_string(),
            size: self.size,
            media_type: self.media_type.clone(),
            compression,
            diff_id: diff_id.cloned(),
        })
    }
}

#[cfg(test)]
mod tests;
