//! `docker://` — images in a registry, by the OCI distribution protocol.
//!
//! The client is our own and small, because layers are streamed, go on after a broken connection, and are bounded by
//! what the manifest says. An HTTP client runs in the background on two threads; callers block. Each layer that is being
//! read has a task there, which fetches and verifies a few buffers ahead of its reader.

mod auth;
mod background;
mod blob;
mod client;
mod credentials;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;
use crate::sources::documents::{Descriptor, Document, MAX_MANIFEST_BYTES};
use crate::sources::resolve::{Documents, Image, resolve};
use crate::sources::verified::wrong_digest;
use crate::sources::{LayerDescriptor, Source};
use crate::{Error, ImageConfig, Platform, SourceRef};
use background::Background;
use client::Client;

/// Opens an image with the credentials of the user's Docker configuration.
pub(crate) fn open(reference: &SourceRef, platform: &Platform, insecure_http: bool) -> Result<Box<dyn Source>, Error> {
    open_with(reference, platform, insecure_http, credentials::configuration_directory().as_deref())
}

/// As [`open`], with Docker's configuration from `docker_config`.
fn open_with(
    reference: &SourceRef,
    platform: &Platform,
    insecure_http: bool,
    docker_config: Option<&Path>,
) -> Result<Box<dyn Source>, Error> {
    let subject = reference.to_string();
    let SourceRef::Registry { registry, repository, tag, digest } = reference else {
        return Err(Error::invalid(subject, "it is in no registry"));
    };
    let credentials = credentials::find(registry, docker_config)?;
    let background = Arc::new(Background::start()?);
    let client = {
        let (registry, repository, subject) = (registry.clone(), repository.clone(), subject.clone());
        background.wait(async move {
            Client::connect(&registry, &repository, insecure_http, credentials, &subject).await
        })??
    };
    let client = Arc::new(client);

    let expected =
        digest.as_deref().map(Digest::parse).transpose().map_err(|reason| Error::invalid(&subject, reason))?;
    let name = digest.as_deref().or(tag.as_deref()).unwrap_or("latest").to_owned();
    let remote = Remote { subject: &subject, client: &client, background: &background };
    let (bytes, said) = remote.manifest_by_name(name)?;
    let actual = match expected.or(said) {
        Some(expected) => {
            check_digest(&subject, &bytes, &expected)?;
            expected
        }
        None => sha256(&bytes),
    };
    let document = Document::decode(&bytes, &format!("{subject}, manifest {actual}"))?;
    let image = resolve(&remote, document, Some(actual), platform)?;
    Ok(Box::new(RegistrySource { subject, image, client, background }))
}

fn check_digest(subject: &str, bytes: &[u8], expected: &Digest) -> Result<(), Error> {
    let mut hasher = crate::digest::Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected { Ok(()) } else { Err(wrong_digest(&format!("{subject}, manifest"), &actual, expected)) }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = crate::digest::Hasher::new(crate::digest::Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

/// Reads manifests and configurations, waiting for each.
struct Remote<'a> {
    subject: &'a str,
    client: &'a Arc<Client>,
    background: &'a Background,
}

impl Remote<'_> {
    /// The manifest behind a tag or digest, and the digest that the registry says it has.
    fn manifest_by_name(&self, name: String) -> Result<(Vec<u8>, Option<Digest>), Error> {
        let (client, subject) = (Arc::clone(self.client), self.subject.to_owned());
        self.background.wait(async move { client.manifest(&name, MAX_MANIFEST_BYTES, &subject).await })?
    }
}

impl Documents for Remote<'_> {
    fn subject(&self) -> &str {
        self.subject
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let (client, name, size) = (Arc::clone(self.client), descriptor.digest.to_string(), descriptor.size);
        let subject = format!("{}, manifest {name}", self.subject);
        self.background.wait(async move { client.manifest(&name, size, &subject).await })?.map(|(bytes, _)| bytes)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let subject = format!("{}, configuration {}", self.subject, descriptor.digest);
        let reader =
            blob::open(self.background, self.client, subject.clone(), descriptor.digest.clone(), descriptor.size);
        let mut bytes = Vec::new();
        blob::BlobReader::hold(reader, None)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::from_read(&subject, error))?;
        Ok(bytes)
    }
}

struct RegistrySource {
    subject: String,
    image: Image,
    client: Arc<Client>,
    background: Arc<Background>,
}

impl Source for RegistrySource {
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
        let Some(layer) = self.image.layers.get(index) else {
            let count = self.image.layers.len();
            return Err(Error::invalid(
                format!("{}, layer {index}", self.subject),
                format!("the image has {count} layers"),
            ));
        };
        let subject = format!("{}, layer {}", self.subject, layer.digest);
        let digest = Digest::parse(&layer.digest).map_err(|reason| Error::corrupt(&subject, reason))?;
        let reader = blob::open(&self.background, &self.client, subject, digest, layer.size);
        Ok(Box::new(blob::BlobReader::hold(reader, Some(Arc::clone(&self.background)))))
    }
}

#[cfg(test)]
mod tests;
