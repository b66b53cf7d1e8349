//! Names of sources and platforms, as a user writes them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;
use crate::digest::Digest;
use crate::sources::NO_PIPE;

mod platform;
pub use platform::Platform;

/// Longest repository name with its registry, in bytes (distribution-spec, "Pulling manifests").
const MAX_NAME_BYTES: usize = 255;
/// Longest tag in bytes, from the same place.
const MAX_TAG_BYTES: usize = 128;
/// Where a name without a registry is looked for, as by Docker.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Where an image comes from. The text form is that of `skopeo` and its relatives (containers-transports(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceRef {
    /// `docker://[registry/]repository[:tag][@digest]`
    Registry {
        /// Host and port where given, such as `docker.io` or `localhost:5000`.
        registry: String,
        /// Repository, such as `library/debian`.
        repository: String,
        /// The tag; `latest` where neither a tag nor a digest was given.
        tag: Option<String>,
        /// The manifest's digest, which goes before the tag.
        digest: Option<String>,
    },
    /// `oci:DIR[:tag]`: an OCI image layout. The tag begins behind the first colon.
    OciLayout {
        /// The directory with `index.json`.
        path: PathBuf,
        /// The annotation `org.opencontainers.image.ref.name`; not needed where the layout has one image.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:name:tag]`: what `docker save` writes, also compressed. The name begins behind the first colon.
    DockerArchive {
        /// The tar file.
        path: PathBuf,
        /// Which of the archive's images; not needed where it has one.
        name: Option<String>,
    },
    /// `dir:PATH`: a directory that becomes the root as it is, without what is mounted in it.
    Directory {
        /// The directory.
        path: PathBuf,
    },
}

impl FromStr for SourceRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<SourceRef, Error> {
        let invalid = |reason: String| Error::invalid(format!("the source {text:?}"), reason);
        if let Some(name) = text.strip_prefix("docker://") {
            return parse_registry(name).map_err(invalid);
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(invalid(format!("it names no kind of source; {}", suggestion(text))));
        };
        let (path, name) = match rest.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (rest, None),
        };
        if matches!(scheme, "oci" | "docker-archive" | "dir") && path.is_empty() {
            return Err(invalid(format!("there is no path behind {scheme}:")));
        }
        if matches!(scheme, "oci" | "docker-archive") && name == Some("") {
            return Err(invalid("there is nothing behind its last colon: add a tag, or leave the colon out".into()));
        }
        match scheme {
            "docker-archive" if path == "-" => Err(invalid(NO_PIPE.into())),
            "oci-archive" => {
                let reason = "oci-archive is not supported: make it a layout with";
                Err(invalid(format!("{reason} skopeo copy oci-archive:{rest} oci:DIR, then publish oci:DIR")))
            }
            "oci" => Ok(SourceRef::OciLayout { path: path.into(), tag: name.map(str::to_owned) }),
            "docker-archive" => Ok(SourceRef::DockerArchive { path: path.into(), name: name.map(str::to_owned) }),
            "dir" => Ok(SourceRef::Directory { path: rest.into() }),
            "docker" => Err(invalid(format!("it lacks the slashes: docker://{rest}"))),
            _ => Err(invalid(format!("it names no kind of source; {}", suggestion(text)))),
        }
    }
}

/// What someone who left the kind out may have meant.
fn suggestion(text: &str) -> String {
    let kinds = "sources are docker://NAME[:TAG], oci:DIR[:TAG], docker-archive:FILE and dir:PATH";
    if let Ok(metadata) = std::fs::metadata(text) {
        let kind = match metadata.is_dir() {
            true if Path::new(text).join("index.json").is_file() => "oci",
            true => "dir",
            false => "docker-archive",
        };
        format!("{kinds}: perhaps {kind}:{text}")
    } else if text.starts_with(['/', '.', '~']) {
        format!("{kinds}: perhaps dir:{text} or oci:{text}")
    } else if parse_registry(text).is_ok() {
        format!("{kinds}: perhaps docker://{text}")
    } else {
        kinds.to_owned()
    }
}

fn parse_registry(text: &str) -> Result<SourceRef, String> {
    let (text, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(Digest::parse(digest)?.to_string())),
        None => (text, None),
    };
    let (registry, rest) = match text.split_once('/') {
        Some((host, rest)) if host == "localhost" || host.contains(['.', ':', '[']) => (host, rest),
        _ => (DEFAULT_REGISTRY, text),
    };
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if repository.is_empty() {
        return Err("it has no image name: docker://registry/name:tag".into());
    }
    check_registry(registry)?;
    // Docker's own registry has two names, and keeps its official images under `library/`.
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > MAX_NAME_BYTES {
        return Err(format!("the name is longer than {MAX_NAME_BYTES} bytes"));
    }
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(SourceRef::Registry { registry: registry.to_owned(), repository, tag, digest })
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = split_port(registry).ok_or_else(|| format!("the registry {registry:?} is not HOST[:PORT]"))?;
    if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
        return Err(format!("the port of the registry {registry:?} is not a number from 1 to 65535"));
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    if good { Ok(()) } else { Err(format!("{host:?} is not the name or address of a registry")) }
}

/// Host (with the brackets of an IPv6 address) and port.
fn split_port(registry: &str) -> Option<(&str, Option<&str>)> {
    let host_end =
        if registry.starts_with('[') { registry.find(']')? + 1 } else { registry.find(':').unwrap_or(registry.len()) };
    let (host, rest) = registry.split_at(host_end);
    match rest.strip_prefix(':') {
        Some(port) => Some((host, Some(port))),
        None if rest.is_empty() => Some((host, None)),
        None => None,
    }
}

/// The grammar of distribution-spec: components of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn check_repository(repository: &str) -> Result<(), String> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    for component in repository.split('/') {
        let mut separators =
            component.split(|c: char| c.is_ascii() && alphanumeric(c as u8)).filter(|run| !run.is_empty());
        let ends_well =
            component.bytes().next().is_some_and(alphanumeric) && component.bytes().last().is_some_and(alphanumeric);
        if !ends_well || !separators.all(|run| matches!(run, "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
        {
            let upper = repository.bytes().any(|byte| byte.is_ascii_uppercase());
            let hint = if upper { ": repository names are lower-case" } else { "" };
            return Err(format!("{component:?} in {repository:?} is not part of a repository name{hint}"));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let good = tag.bytes().next().is_some_and(word)
        && tag.len() <= MAX_TAG_BYTES
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if good {
        Ok(())
    } else {
        Err(format!(
            "{tag:?} is not a tag: up to {MAX_TAG_BYTES} letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
        ))
    }
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |mark: char, part: &Option<String>, f: &mut fmt::Formatter<'_>| match part {
            Some(part) => write!(f, "{mark}{part}"),
            None => Ok(()),
        };
        match self {
            SourceRef::Registry { registry, repository, tag, digest } => {
                write!(f, "docker://{registry}/{repository}")?;
                part(':', tag, f)?;
                part('@', digest, f)
            }
            SourceRef::OciLayout { path, tag } => {
                write!(f, "oci:{}", path.display())?;
                part(':', tag, f)
            }
            SourceRef::DockerArchive { path, name } => {
                write!(f, "docker-archive:{}", path.display())?;
                part(':', name, f)
            }
            SourceRef::Directory { path } => write!(f, "dir:{}", path.display()),
        }
    }
}

/// Whether the registry is this machine, so that plain HTTP to it crosses no network.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host of `registry`, without its port.
pub(crate) fn host_of(registry: &str) -> &str {
    split_port(registry).map_or(registry, |(host, _)| host)
}

#[cfg(test)]
mod tests;
