//! A zone's cache: the options of its readers, and the command that serves a part of it.

use std::path::PathBuf;

use crate::units::Size;

/// How the cache of this machine's zone is reached.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_field_names, reason = "they are called as their flags are")]
pub(crate) struct ZoneArgs {
    /// The nodes of the zone's cache: NAME=HOST:PORT@DOMAIN,…, file:/PATH, dns:HOST:PORT or etcd://HOST:PORT/PREFIX.
    #[arg(
        long,
        global = true,
        value_name = "NODES",
        env = "SNOWMELT_CACHE_NODES",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_nodes: Option<String>,
    /// How chunks are cut for the zone's cache: data and parity shards, such as 4+1.
    #[arg(
        long,
        global = true,
        value_name = "CODE",
        env = "SNOWMELT_CACHE_CODE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_code: Option<String>,
    /// A file with what nodes of the zone's cache want to see.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SNOWMELT_CACHE_TOKEN_FILE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_token_file: Option<PathBuf>,
    /// Certificates of the authorities whose nodes are believed (PEM); with it, nodes are asked by TLS alone.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SNOWMELT_CACHE_TLS_CA",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_tls_ca: Option<PathBuf>,
    /// The certificate that nodes are shown (PEM).
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SNOWMELT_CACHE_TLS_CERT",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SNOWMELT_CACHE_TLS_KEY",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_tls_key: Option<PathBuf>,
}

/// Serve a part of a zone's cache: chunks that readers put there, in memory over disk.
#[derive(clap::Args, Debug, Default)]
#[command(after_help = "\
It prints a line when it is ready, and ends at SIGTERM or SIGINT: it is taken out of
the zone, answers what it has begun, and writes what waits for its disk. A second
signal ends it at once. Every option may be in [cache_node] of the configuration
file. docs/operations.md says how to size and watch a zone.

Examples:
  snowmelt cache-node --listen 10.0.0.1:7070 --memory 4GiB
  snowmelt cache-node --listen 10.0.0.1:7070 --memory 4GiB --disk /var/cache/snowmelt-node \\
      --disk-size 100GiB --admin 127.0.0.1:7071
  snowmelt cache-node --listen 0.0.0.0:7070 --advertise node-1.example:7070 --name node-1 --domain rack-1 \\
      --memory 4GiB --register etcd://10.0.0.9:2379/zone-a --tls-ca ca.pem --tls-cert node.pem --tls-key node.key")]
pub(crate) struct CacheNodeArgs {
    /// Where readers reach it.
    #[arg(long, value_name = "HOST:PORT", env = "SNOWMELT_NODE_LISTEN")]
    pub(crate) listen: Option<String>,
    /// How much memory shards may take.
    #[arg(long, value_name = "SIZE", env = "SNOWMELT_NODE_MEMORY")]
    pub(crate) memory: Option<Size>,
    /// A folder for shards, of this node alone; what is in it from before is used again.
    #[arg(long, value_name = "DIR", env = "SNOWMELT_NODE_DISK")]
    pub(crate) disk: Option<PathBuf>,
    /// How much of the disk shards may take.
    #[arg(long, value_name = "SIZE", env = "SNOWMELT_NODE_DISK_SIZE")]
    pub(crate) disk_size: Option<Size>,
    /// Where operators reach it: /metrics, /healthz and /readyz, for everybody who gets there.
    #[arg(long, value_name = "HOST:PORT", env = "SNOWMELT_NODE_ADMIN")]
    pub(crate) admin: Option<String>,
    /// A file with what readers must show.
    #[arg(long, value_name = "FILE", env = "SNOWMELT_NODE_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates of the authorities whose readers are answered (PEM); with it, nobody is answered without TLS.
    #[arg(long, value_name = "FILE", env = "SNOWMELT_NODE_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The node's certificate, for the host that readers know it by (PEM).
    #[arg(long, value_name = "FILE", env = "SNOWMELT_NODE_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", env = "SNOWMELT_NODE_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// What it is called in the zone, which says what it keeps; its address by default.
    #[arg(long, value_name = "NAME", env = "SNOWMELT_NODE_NAME")]
    pub(crate) name: Option<String>,
    /// What fails together with it, such as its rack: shards of a chunk are kept apart.
    #[arg(long, value_name = "NAME", env = "SNOWMELT_NODE_DOMAIN")]
    pub(crate) domain: Option<String>,
    /// Where it registers itself for readers: etcd://HOST:PORT,HOST:PORT/PREFIX.
    #[arg(long, value_name = "URL", env = "SNOWMELT_NODE_REGISTER")]
    pub(crate) register: Option<String>,
    /// The address that it registers, where that is not the one that it listens on.
    #[arg(long, value_name = "HOST:PORT", env = "SNOWMELT_NODE_ADVERTISE")]
    pub(crate) advertise: Option<String>,
}
