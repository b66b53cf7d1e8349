//! Settings of a zone's cache: how readers reach it, and what a node of it is.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use snowmelt_zone::{EtcdAddress, Node, TlsFiles, ZoneOptions};

use super::{ConfigFile, absolute};
use crate::args::{CacheNodeArgs, GlobalArgs};
use crate::units::Size;

/// Less would be all overhead.
const LEAST: u64 = 16 << 20;

/// `[cache_node]` of the configuration file.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheNodeFile {
    listen: Option<String>,
    memory: Option<Size>,
    disk: Option<PathBuf>,
    disk_size: Option<Size>,
    admin: Option<String>,
    token_file: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    name: Option<String>,
    domain: Option<String>,
    register: Option<String>,
    advertise: Option<String>,
}

/// What a node is to be.
#[derive(Debug)]
pub(crate) struct CacheNode {
    pub(crate) listen: String,
    pub(crate) memory_bytes: u64,
    pub(crate) disk: Option<(PathBuf, u64)>,
    pub(crate) admin: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) name: Option<String>,
    pub(crate) domain: Option<String>,
    pub(crate) register: Option<EtcdAddress>,
    pub(crate) advertise: Option<String>,
}

impl CacheNode {
    /// By flags and variables before the file.
    pub(super) fn new(args: &CacheNodeArgs, file: &CacheNodeFile) -> Result<Self> {
        let path = |arg: &Option<PathBuf>, file: &Option<PathBuf>| {
            arg.as_ref().or(file.as_ref()).map(|path| absolute(path)).transpose()
        };
        let text = |arg: &Option<String>, file: &Option<String>| arg.clone().or_else(|| file.clone());
        let Some(listen) = text(&args.listen, &file.listen) else {
            bail!("where readers reach the node is missing: --listen HOST:PORT, or `listen` in [cache_node]");
        };
        let Some(memory) = args.memory.or(file.memory) else {
            bail!("how much memory it may take is missing: --memory SIZE, or `memory` in [cache_node]");
        };
        if memory.0 < LEAST {
            bail!("{memory} of memory: a node takes at least {}", Size(LEAST));
        }
        let disk = match (path(&args.disk, &file.disk)?, args.disk_size.or(file.disk_size)) {
            (None, None) => None,
            (Some(_), Some(size)) if size.0 < LEAST => bail!("{size} of disk: a node takes at least {}", Size(LEAST)),
            (Some(folder), Some(size)) => Some((folder, size.0)),
            (Some(_), None) => bail!("a disk takes --disk-size SIZE too"),
            (None, Some(_)) => bail!("--disk-size is of no use without --disk DIR"),
        };
        let register = text(&args.register, &file.register).map(|text| text.parse::<EtcdAddress>()).transpose();
        let register = register.context("--register")?;
        let name = text(&args.name, &file.name);
        let domain = text(&args.domain, &file.domain);
        let advertise = text(&args.advertise, &file.advertise);
        if register.is_none() && (name.is_some() || domain.is_some() || advertise.is_some()) {
            bail!("--name, --domain and --advertise are for --register: without it, readers' lists have them");
        }
        let tls = TlsFiles::of(
            path(&args.tls_ca, &file.tls_ca)?.as_deref(),
            path(&args.tls_cert, &file.tls_cert)?.as_deref(),
            path(&args.tls_key, &file.tls_key)?.as_deref(),
        )
        .context("--tls-ca, --tls-cert, --tls-key")?;
        let (admin, token_file) = (text(&args.admin, &file.admin), path(&args.token_file, &file.token_file)?);
        Ok(Self { listen, memory_bytes: memory.0, disk, admin, token_file, tls, name, domain, register, advertise })
    }

    /// The node as readers will know it, by the address that it listens on.
    pub(crate) fn node(&self, listens: std::net::SocketAddr) -> Result<Node> {
        let address = match &self.advertise {
            Some(address) => address.clone(),
            None if listens.ip().is_unspecified() => {
                bail!("readers cannot reach {listens}: say with --advertise HOST:PORT where they can");
            }
            None => listens.to_string(),
        };
        let name = self.name.clone().unwrap_or_else(|| address.clone());
        Node::new(&name, &address, self.domain.as_deref()).context("--name, --advertise, --domain")
    }
}

/// The zone that readers use, where one is set.
pub(super) fn zone(args: &GlobalArgs, file: &ConfigFile) -> Result<Option<ZoneOptions>> {
    let path = |arg: &Option<PathBuf>, file: &Option<PathBuf>| {
        arg.as_deref().or(file.as_deref()).map(|path: &Path| absolute(path)).transpose()
    };
    let code = args.zone.cache_code.clone().or_else(|| file.cache_code.clone());
    let token_file = path(&args.zone.cache_token_file, &file.cache_token_file)?;
    let tls_ca = path(&args.zone.cache_tls_ca, &file.cache_tls_ca)?;
    let tls_cert = path(&args.zone.cache_tls_cert, &file.cache_tls_cert)?;
    let tls_key = path(&args.zone.cache_tls_key, &file.cache_tls_key)?;
    let Some(nodes) =
        args.zone.cache_nodes.clone().or_else(|| file.cache_nodes.clone()).filter(|nodes| !nodes.is_empty())
    else {
        return Ok(None);
    };
    let zone = ZoneOptions { nodes, code, token_file, tls_ca, tls_cert, tls_key };
    zone.check().context("cache_nodes, cache_code, cache_tls_*")?;
    Ok(Some(zone))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn node(text: &str) -> Result<CacheNode> {
        CacheNode::new(&CacheNodeArgs::default(), &toml::from_str(text).unwrap())
    }

    #[test]
    fn nonsense_is_refused_with_what_is_missing() {
        let good = "listen = '127.0.0.1:7070'\nmemory = '64MiB'\n";
        let read = node(good).unwrap();
        assert_eq!((read.memory_bytes, read.disk), (64 << 20, None));
        for (more, part) in [
            ("disk_size = '1GiB'", "without --disk"),
            ("disk = '/x'", "--disk-size"),
            ("disk = '/x'\ndisk_size = '1MiB'", "at least 16.0 MiB"),
            ("tls_ca = '/x'", "three files"),
            ("name = 'a'", "--register"),
            ("register = 'etcd://x'", "PREFIX"),
        ] {
            let error = format!("{:#}", node(&format!("{good}{more}")).unwrap_err());
            assert!(error.contains(part), "{more}: {error}");
        }
        for (text, part) in [
            ("memory = '1GiB'", "--listen"),
            ("listen = 'a:1'", "--memory"),
            ("listen = 'a:1'\nmemory = 0", "at least 16.0 MiB"),
        ] {
            let error = format!("{:#}", node(text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn flags_come_before_the_file() {
        let file: CacheNodeFile = toml::from_str("listen = 'a:1'\nmemory = '64MiB'").unwrap();
        let args = CacheNodeArgs { listen: Some("b:2".into()), ..CacheNodeArgs::default() };
        let read = CacheNode::new(&args, &file).unwrap();
        assert_eq!((&*read.listen, read.memory_bytes), ("b:2", 64 << 20));
    }

    #[test]
    fn a_registered_node_has_an_address_that_readers_reach() {
        let text = "listen = '0.0.0.0:7070'\nmemory = '64MiB'\nregister = 'etcd://127.0.0.1:2379/z'\n";
        let listens = "0.0.0.0:7070".parse().unwrap();
        let error = node(text).unwrap().node(listens).unwrap_err().to_string();
        assert!(error.contains("--advertise"), "{error}");
        let found =
            node(&format!("{text}advertise = 'n1.example:7070'\ndomain = 'r1'")).unwrap().node(listens).unwrap();
        assert_eq!(
            (&*found.name, &*found.address, found.domain.as_deref()),
            ("n1.example:7070", "n1.example:7070", Some("r1"))
        );
    }
}
