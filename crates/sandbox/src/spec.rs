//! What a caller asks for: the options of `run`, and how their texts are read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Everything about one run that is not in the image.
// Each is a flag of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
#[derive(Clone, Debug, Default)]
pub struct RunSpec {
    /// `NAME[:TAG]` of a published image.
    pub image: String,
    /// Replaces the image's command; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's entrypoint (and drops its command); an empty list clears it.
    pub entrypoint: Option<Vec<String>>,
    /// Environment variables over those of the image, in order; see [`RunSpec::parse_env`].
    pub env: Vec<(String, String)>,
    /// A variable that says the command's first word, the image's or the one that replaces it: the entrypoint is not the command.
    pub command_variable: Option<String>,
    /// Directories and files of the host inside the container.
    pub volumes: Vec<Volume>,
    /// `USER[:GROUP]`, names or numbers, over the image's.
    pub user: Option<String>,
    /// Working directory over the image's; created if missing.
    pub workdir: Option<String>,
    /// Mount the root file system read-only.
    pub read_only: bool,
    /// Directories that stay writable where the root file system is read-only: such as `/tmp`.
    pub writable: Vec<String>,
    /// The container's network.
    pub network: Network,
    /// A network namespace that is there already, to be joined in place of a new one: only with [`Network::None`].
    pub network_namespace: Option<PathBuf>,
    /// More names of the container itself, for its `/etc/hosts`.
    pub own_names: Vec<String>,
    /// Addresses of name servers, for its `/etc/resolv.conf`: only with [`Network::None`].
    pub name_servers: Vec<String>,
    /// Capabilities that the command does not have, of those that it would: `CAP_NET_RAW`.
    pub without_capabilities: Vec<String>,
    /// A program that starts the command, for images that need one.
    pub first_process: Option<FirstProcess>,
    /// Memory limit in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time limit in cores.
    pub cpus: Option<f64>,
    /// Pass standard input on; without it the command reads an empty one.
    pub interactive: bool,
    /// Give the command a terminal.
    pub tty: bool,
    /// Host name; by default the host's with [`Network::Host`] and the sandbox's id otherwise.
    pub hostname: Option<String>,
    /// If the runtime is runc, it ends once the command runs, which then has this process's standard output and error itself: nothing carries what it
    /// writes, and nothing of the runtime stays in memory. Not with `interactive`, `tty` or `stats`. This process then adopts what its
    /// descendants leave.
    pub detach_runtime: bool,
    /// Measure the time to the first output: standard output then passes through this process.
    pub stats: bool,
}

/// A program that is the container's first process in the command's place, and starts that, where an image has something in a directory.
#[derive(Clone, Debug)]
pub struct FirstProcess {
    /// The program's bytes: it must need nothing of the image.
    pub program: &'static [u8],
    /// An absolute path in the image: the program is used where this is a directory that is not empty.
    pub where_in_use: String,
    /// Its arguments, before the words of the command.
    pub arguments: Vec<String>,
}

/// The network a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's own.
    #[default]
    Host,
    /// A loopback interface and nothing else.
    None,
}

impl std::str::FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            _ => Err(Error::invalid(format!("network `{text}`"), "use `host` or `none`")),
        }
    }
}

/// A directory or file of the host that is visible in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Absolute path on the host.
    pub host: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// Not writable in the container.
    pub read_only: bool,
}

impl Volume {
    /// Reads `HOST:DIR[:ro|:rw]`. A relative HOST counts from the working directory.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another shape, a relative DIR, or `/`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |reason: &str| Error::invalid(format!("volume `{text}`"), reason);
        let mut parts = text.split(':');
        let (Some(host), Some(target)) = (parts.next(), parts.next()) else {
            return Err(invalid("expected HOST:DIR or HOST:DIR:ro"));
        };
        let read_only = match (parts.next(), parts.next()) {
            (None | Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(invalid("expected HOST:DIR or HOST:DIR:ro")),
        };
        if host.is_empty() {
            return Err(invalid("the path on the host is empty"));
        }
        if !target.starts_with('/') || target.split('/').all(|part| part.is_empty() || part == ".") {
            return Err(invalid("the path in the container must be absolute and not `/`"));
        }
        let host = std::path::absolute(host).map_err(|source| Error::io("resolve", host, source))?;
        Ok(Self { host, target: target.to_owned(), read_only })
    }
}

impl RunSpec {
    /// Reads `KEY=VALUE`, or `KEY` for the value that this process has; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the key is empty.
    pub fn parse_env(text: &str) -> Result<Option<(String, String)>, Error> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, std::env::var(text).ok()),
        };
        if key.is_empty() || text.contains('\0') {
            return Err(Error::invalid(format!("environment variable `{text}`"), "expected KEY=VALUE or KEY"));
        }
        Ok(value.map(|value| (key.to_owned(), value)))
    }

    /// Reads a memory limit: bytes, or a number with `b`, `k`, `m` or `g` (powers of 1024).
    ///
    /// # Errors
    /// [`Error::Invalid`] for another shape, and below the 6 MiB that a container needs to start.
    pub fn parse_memory(text: &str) -> Result<u64, Error> {
        const LEAST: u64 = 6 << 20;
        let invalid = |reason: &str| Error::invalid(format!("memory limit `{text}`"), reason);
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &lower[digits.len()..] {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(invalid("expected a number with b, k, m or g, such as 512m")),
        };
        let number: u64 = digits.parse().map_err(|_| invalid("expected a number with b, k, m or g, such as 512m"))?;
        let bytes = number.checked_mul(1 << shift).filter(|bytes| i64::try_from(*bytes).is_ok());
        let bytes = bytes.ok_or_else(|| invalid("is too large"))?;
        if bytes < LEAST { Err(invalid("is below 6m, the least a container starts with")) } else { Ok(bytes) }
    }

    /// Reads a number of cores such as `1.5`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no number, and outside 0.01 to 65536.
    pub fn parse_cpus(text: &str) -> Result<f64, Error> {
        let cpus = text.parse().ok().filter(|cpus| (0.01..=65536.0).contains(cpus));
        cpus.ok_or_else(|| {
            Error::invalid(format!("cpu limit `{text}`"), "expected a number of cores of at least 0.01, such as 1.5")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn volumes() {
        let volume = Volume::parse("/a/b:/c:ro").unwrap();
        assert_eq!(volume, Volume { host: "/a/b".into(), target: "/c".into(), read_only: true });
        assert!(!Volume::parse("/a:/c:rw").unwrap().read_only);
        assert!(Volume::parse("rel:/c").unwrap().host.is_absolute());
        for bad in ["", "/a", "/a:", ":/c", "/a:c", "/a:/", "/a:/./", "/a:/c:x", "/a:/c:ro:rw"] {
            assert!(matches!(Volume::parse(bad), Err(Error::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn environment() {
        assert_eq!(RunSpec::parse_env("A=b=c").unwrap(), Some(("A".into(), "b=c".into())));
        assert_eq!(RunSpec::parse_env("A=").unwrap(), Some(("A".into(), String::new())));
        assert_eq!(RunSpec::parse_env("PATH").unwrap().unwrap().1, std::env::var("PATH").unwrap());
        assert_eq!(RunSpec::parse_env("SNOWMELT_SURELY_UNSET").unwrap(), None);
        assert!(RunSpec::parse_env("=x").is_err());
        assert!(RunSpec::parse_env("").is_err());
    }

    #[test]
    fn limits() {
        assert_eq!(RunSpec::parse_memory("512m").unwrap(), 512 << 20);
        assert_eq!(RunSpec::parse_memory("2GiB").unwrap(), 2 << 30);
        assert_eq!(RunSpec::parse_memory("8388608").unwrap(), 8 << 20);
        for bad in ["", "m", "1x", "-1m", "1m", "99999999999g", "1.5g", "µ", "5µ"] {
            assert!(RunSpec::parse_memory(bad).is_err(), "{bad}");
        }
        assert!((RunSpec::parse_cpus("1.5").unwrap() - 1.5).abs() < f64::EPSILON);
        for bad in ["", "0", "-1", "NaN", "inf", "x"] {
            assert!(RunSpec::parse_cpus(bad).is_err(), "{bad}");
        }
    }
}
