//! What can be said on the command line.

mod cache;
mod functions;
mod service;
mod upkeep;
mod worker;

use std::path::PathBuf;

use clap::builder::{FalseyValueParser, PossibleValuesParser, TypedValueParser as _};
use clap::{ArgAction, Parser, Subcommand};
use snowmelt_chunk::Suite;
use snowmelt_image::{Platform, SourceRef};
use snowmelt_keys::Service;
use snowmelt_sandbox::{LoadMode, Network, Volume};
use snowmelt_store::ImageName;

pub(crate) use self::cache::{CacheNodeArgs, ZoneArgs};
pub(crate) use self::functions::*;
pub(crate) use self::service::ServiceArgs;
pub(crate) use self::upkeep::*;
pub(crate) use self::worker::{ServeArgs, WorkerAction, WorkerArgs};
use crate::units::{Age, Size, parse_cpus, parse_memory};

const AFTER_HELP: &str = "\
Settings come from the configuration file (~/.config/snowmelt/config.toml), the
environment and flags, in rising order; docs/configuration.md has them all.

Examples:
  snowmelt publish docker://localhost:5000/python:3.12
  snowmelt run python:3.12 -it -- python3
  snowmelt images";

/// Starts any container image in milliseconds without pulling it.
#[derive(Parser, Debug)]
#[command(name = "snowmelt", version, after_help = AFTER_HELP, max_term_width = 110, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(clap::Args, Debug)]
pub(crate) struct GlobalArgs {
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "SNOWMELT_CONFIG", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Where images are stored: a folder, s3://bucket/prefix, gs://…, az://…, or an https:// URL to read from.
    #[arg(long, global = true, value_name = "URL", env = "SNOWMELT_STORE", help_heading = "Global options")]
    pub(crate) store: Option<String>,
    /// Whose images and keys.
    #[arg(long, global = true, value_name = "NAME", env = "SNOWMELT_TENANT", help_heading = "Global options")]
    pub(crate) tenant: Option<String>,
    /// Where running sandboxes are recorded.
    #[arg(long, global = true, value_name = "DIR", env = "SNOWMELT_STATE_DIR", help_heading = "Global options")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where fetched chunks are kept.
    #[arg(long, global = true, value_name = "DIR", env = "SNOWMELT_CACHE_DIR", help_heading = "Global options")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Where keys are kept; they are made on first use.
    #[arg(long, global = true, value_name = "DIR", env = "SNOWMELT_KEYS_DIR", help_heading = "Global options")]
    pub(crate) keys_dir: Option<PathBuf>,
    /// Where tenants' keys are: local, awskms:KEY, vault:MOUNT/KEY; {tenant} stands for the tenant.
    #[arg(
        long,
        global = true,
        value_name = "SERVICE",
        env = "SNOWMELT_KEYS",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) keys: Option<Service>,
    /// Where they were before: images that were sealed there still open.
    #[arg(
        long,
        global = true,
        value_name = "SERVICE,…",
        env = "SNOWMELT_PREVIOUS_KEYS",
        value_delimiter = ',',
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) previous_keys: Option<Vec<Service>>,
    /// Allow a store and key services that are reached by plain HTTP.
    #[arg(long, global = true, env = "SNOWMELT_ALLOW_HTTP", value_parser = FalseyValueParser::new(),
          help_heading = "Global options")]
    pub(crate) allow_http: bool,
    /// Where an S3-compatible server is, such as `https://minio.example.com:9000`; AWS where it is not set.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "SNOWMELT_S3_ENDPOINT",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) s3_endpoint: Option<String>,
    /// The region of the bucket; from the AWS configuration where it is not set.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "SNOWMELT_S3_REGION",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) s3_region: Option<String>,
    /// Whether the bucket is part of the path rather than of the host's name; so by default where an endpoint is set.
    #[arg(
        long,
        global = true,
        value_name = "true|false",
        env = "SNOWMELT_S3_PATH_STYLE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) s3_path_style: Option<bool>,
    /// How long the lease on an image in use lives, such as 1h; it is renewed three times as often.
    #[arg(
        long,
        global = true,
        value_name = "AGE",
        env = "SNOWMELT_LEASE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) lease: Option<Age>,
    /// The root to publish to; the store's active one where it is not set.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "SNOWMELT_ROOT",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) root: Option<String>,
    /// How much the cache of chunks may hold.
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        env = "SNOWMELT_CACHE_SIZE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) cache_size: Option<Size>,
    #[command(flatten)]
    pub(crate) zone: ZoneArgs,
    /// Whether sandboxes are started by this machine's worker: where one runs, always, or never.
    #[arg(long, global = true, env = "SNOWMELT_USE_WORKER", hide_short_help = true, value_name = "auto|always|never",
          value_parser = PossibleValuesParser::new(["auto", "always", "never"]), help_heading = "Global options")]
    pub(crate) use_worker: Option<String>,
    /// What a read does when the store does not answer: wait until the deadline, or fail.
    #[arg(long, global = true, env = "SNOWMELT_ON_UNAVAILABLE", hide_short_help = true, value_name = "block|fail",
          value_parser = PossibleValuesParser::new(["block", "fail"]), help_heading = "Global options")]
    pub(crate) on_unavailable: Option<String>,
    /// How long a read waits for a chunk, in milliseconds.
    #[arg(
        long,
        global = true,
        value_name = "MS",
        env = "SNOWMELT_DEADLINE_MS",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) deadline_ms: Option<u64>,
    /// What of an image is loaded when: what is read (on-demand); ahead of that what earlier starts of the command read
    /// (prefetch); then the rest, while nothing waits (background); or all before the start (all).
    #[arg(long, global = true, env = "SNOWMELT_LOAD", hide_short_help = true, value_name = "MODE",
          value_parser = load_modes(), help_heading = "Global options")]
    pub(crate) load: Option<LoadMode>,
    /// For how long a start's reads are recorded for the next one, such as 30s; 0s records nothing.
    #[arg(
        long,
        global = true,
        value_name = "AGE",
        env = "SNOWMELT_RECORD_FOR",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) record_for: Option<Age>,
    /// Where what sandboxes write is kept until they end, encrypted.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SNOWMELT_OVERLAY_DIR",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) overlay_dir: Option<PathBuf>,
    /// How much one sandbox may write.
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        env = "SNOWMELT_OVERLAY_SIZE",
        hide_short_help = true,
        help_heading = "Global options"
    )]
    pub(crate) overlay_size: Option<Size>,
    /// Print JSON for scripts.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    Publish(PublishArgs),
    Run(RunArgs),
    Mount(MountArgs),
    #[command(alias = "umount")]
    Unmount(UnmountArgs),
    #[command(alias = "ls")]
    Images(ImagesArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
    Export(ExportArgs),
    Rm(RmArgs),
    Du(DuArgs),
    Cp(CpArgs),
    Gc(GcArgs),
    Salt(SaltArgs),
    Keys(KeysArgs),
    Scrub(ScrubArgs),
    Worker(WorkerArgs),
    CacheNode(CacheNodeArgs),
    Completions(CompletionsArgs),
    Serve(ServiceArgs),
    #[command(name = "fn")]
    Functions(FunctionsArgs),
    Top(TopArgs),
    /// Runs one function's sandbox. Started by serve.
    #[command(hide = true)]
    FunctionHost,
    /// Serves one sandbox, or opens its image for who serves it. Started by run, mount and worker.
    #[command(hide = true)]
    Agent {
        #[arg(long)]
        open: bool,
    },
}

/// Flatten an image, encrypt its chunks and store those that are not there yet.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Sources:
  docker://[REGISTRY/]NAME[:TAG]   a registry, with the credentials of ~/.docker/config.json
  oci:DIR[:TAG]                    an OCI image layout
  docker-archive:FILE[:NAME:TAG]   what `docker save` writes
  dir:PATH                         a directory that becomes the root file system

Examples:
  snowmelt publish docker://localhost:5000/python:3.12
  snowmelt publish oci:./layout:latest tools/python:3.12
  snowmelt publish docker-archive:image.tar --platform linux/arm64
  snowmelt publish dir:/srv/rootfs sandbox --free 4GiB
  snowmelt publish dir:/srv/private tools --share tenant")]
pub(crate) struct PublishArgs {
    /// Where the image comes from.
    pub(crate) source: SourceRef,
    /// What it is called here; taken from the source where it is left out.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) name: Option<ImageName>,
    /// Which image of an index, such as linux/arm64; this machine's by default.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<Platform>,
    /// Free space in the image for what a container writes. It takes no room in the store.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) free: Size,
    /// How chunks are encrypted.
    #[arg(long, default_value = "blake3-gcm", value_parser = suites())]
    pub(crate) suite: Suite,
    /// Read chunks back that are in the store already, and replace damaged ones.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Who may share its chunks: everyone, tenant (this one alone), or layer:NAME.
    #[arg(long, value_name = "WHO", env = "SNOWMELT_SHARE")]
    pub(crate) share: Option<Share>,
    /// Share chunks only with images of this class, such as popular.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = parse_class)]
    pub(crate) class: String,
    /// Store every chunk, there or not, so that neither time nor output tells what others have published.
    #[arg(long, conflicts_with = "repair")]
    pub(crate) hide_existing: bool,
    /// Where the salt secret is: local (salt.secret in the keys' folder), or in the store, wrapped by a key service.
    #[arg(long, value_name = "SERVICE", env = "SNOWMELT_SALT_KEY", hide_short_help = true)]
    pub(crate) salt_key: Option<Service>,
    /// Share chunks only with images for this zone.
    #[arg(long, value_name = "NAME", env = "SNOWMELT_ZONE", hide_short_help = true, value_parser = parse_class)]
    pub(crate) zone: Option<String>,
    /// Allow plain HTTP to a registry on another machine.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Put a layer over the image: an archive of tar, which may be compressed. May be given several times, lowest first.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) add_layer: Vec<PathBuf>,
}

/// Run a command in a container of an image, loading what it touches.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The exit code is the command's; 125 where snowmelt failed, 126 where the command
cannot be executed, 127 where it does not exist, 128 + n where signal n ended it.
What the container writes is encrypted, and discarded at its end.

Examples:
  snowmelt run python -- python3 -c 'print(\"hello\")'
  snowmelt run -it python bash
  snowmelt run tools/build:v2 -v .:/work -w /work --memory 2g --cpus 1.5 -- make
  snowmelt run python --read-only --net none --user nobody --stats -- python3")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own on the command line")]
pub(crate) struct RunArgs {
    /// Which image.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: ImageName,
    /// Pass standard input on.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; without a value, to that of this process.
    #[arg(short, long, value_name = "NAME[=VALUE]", action = ArgAction::Append)]
    pub(crate) env: Vec<String>,
    /// Show a file or directory of this machine in the container.
    #[arg(short, long, value_name = "HOST:DIR[:ro]", action = ArgAction::Append, value_parser = Volume::parse)]
    pub(crate) volume: Vec<Volume>,
    /// Run as this user, by name or number.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Start in this directory; it is made where it is missing.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Mount the root file system read-only.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// The container's network: host or none.
    #[arg(long, value_name = "host|none", default_value = "host", value_parser = networks())]
    pub(crate) net: Network,
    /// Memory limit, such as 512m.
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Processor limit in cores, such as 1.5.
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(crate) cpus: Option<f64>,
    /// Replace the image's entrypoint.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// The container's host name.
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Show what the run loaded and how long each step took, on standard error.
    #[arg(long)]
    pub(crate) stats: bool,
    /// Replaces the image's command. Options after its first word are the command's; `--` ends ours before it.
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Mount an image on a directory, loading what is read.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  snowmelt mount python /mnt
  snowmelt mount python /mnt --rw    what is written is discarded at unmount")]
pub(crate) struct MountArgs {
    /// Which image.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: ImageName,
    /// Where.
    pub(crate) dir: PathBuf,
    /// Allow writes; they are discarded at unmount.
    #[arg(long)]
    pub(crate) rw: bool,
}

/// Unmount what `mount` mounted.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  snowmelt unmount /mnt")]
pub(crate) struct UnmountArgs {
    /// Where it is mounted.
    pub(crate) dir: PathBuf,
}

/// List the published images.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  snowmelt images\n  snowmelt images --json | jq -r '.[].name'")]
pub(crate) struct ImagesArgs {}

/// Show an image: how it runs, its chunks, and what its last run on this machine loaded.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
With --access: what is known of its starts, and a map of its chunks. Commands go by a
hash of their words, which are kept nowhere.

Examples:
  snowmelt inspect python
  snowmelt inspect python --json | jq .config.env
  snowmelt inspect python --access
  snowmelt inspect python --picture python.svg --command python3 -c 'print(\"hello\")'")]
pub(crate) struct InspectArgs {
    /// Which image.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: ImageName,
    /// Show which chunks its starts read, in what order, and which were loaded ahead in vain.
    #[arg(long)]
    pub(crate) access: bool,
    /// Write the map of its chunks to a file that ends in .svg.
    #[arg(long, value_name = "FILE")]
    pub(crate) picture: Option<PathBuf>,
    /// Only the starts of this command, as it was given to `run`; it comes last.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    pub(crate) command: Option<Vec<String>>,
}

/// Read every chunk of an image from the store and check it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  snowmelt verify python      exits with 1 where anything is missing or damaged")]
pub(crate) struct VerifyArgs {
    /// Which image.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: ImageName,
}

/// Write the raw ext4 image to a file.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  snowmelt export python python.ext4 && mount -o loop python.ext4 /mnt")]
pub(crate) struct ExportArgs {
    /// Which image.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) image: ImageName,
    /// The file to make; it must not exist.
    pub(crate) file: PathBuf,
}

/// Remove images' names.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Running sandboxes of an image go on. The name leaves a tombstone, so that nobody who
read it before can bring it back. Its manifest and chunks stay, where others may share
them: their space comes back when their root is collected (`snowmelt gc`).

Example:
  snowmelt rm python:3.11 python:3.10")]
pub(crate) struct RmArgs {
    /// Which images.
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub(crate) images: Vec<ImageName>,
}

/// Show what images take in the store, and the cache on this machine.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Sizes are of chunks: SHARED are those that another image has too, UNIQUE those that
none has, among the images that are counted. With images: how much removing them all
together would free, once their root is collected.

Examples:
  snowmelt du
  snowmelt du --all-tenants
  snowmelt du python:3.11 python:3.10 --all-tenants
  snowmelt du --json | jq .cache")]
pub(crate) struct DuArgs {
    /// Images that one thinks of removing.
    #[arg(value_name = "NAME[:TAG]")]
    pub(crate) images: Vec<ImageName>,
    /// Those of every tenant; without it, chunks that only other tenants have too count as unique.
    #[arg(long)]
    pub(crate) all_tenants: bool,
}

/// Print completions for a shell.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  snowmelt completions bash > /etc/bash_completion.d/snowmelt")]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    pub(crate) shell: clap_complete::Shell,
}

/// With whom an image's chunks are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Share {
    /// With every tenant.
    #[default]
    Everyone,
    /// Within the tenant.
    Tenant,
    /// Within a layer of a stack of snapshots.
    Layer(String),
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "everyone" => Ok(Self::Everyone),
            "tenant" => Ok(Self::Tenant),
            _ => match text.strip_prefix("layer:") {
                Some(layer) if !layer.is_empty() => parse_class(layer).map(Self::Layer),
                _ => Err(format!("{text:?} says not who shares: everyone, tenant or layer:NAME")),
            },
        }
    }
}

/// Classes, zones and layers. A slash joins a zone and a class, so it is in neither.
pub(crate) fn parse_class(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.len() > 64 || !text.bytes().all(plain) {
        return Err(format!("{text:?} is no name: up to 64 letters, digits, '.', '_' or '-'"));
    }
    Ok(text.to_owned())
}

/// The suites by name, so that help and completions list them.
fn suites() -> impl clap::builder::TypedValueParser<Value = Suite> {
    PossibleValuesParser::new(["blake3-gcm", "sha256-ctr"]).try_map(|name| name.parse::<Suite>())
}

/// The modes by name, so that help and completions list them.
fn load_modes() -> impl clap::builder::TypedValueParser<Value = LoadMode> {
    PossibleValuesParser::new(LoadMode::NAMES.map(|(name, _)| name)).try_map(|name| name.parse::<LoadMode>())
}

/// The networks by name, so that help and completions list them.
fn networks() -> impl clap::builder::TypedValueParser<Value = Network> {
    PossibleValuesParser::new(["host", "none"]).try_map(|name| name.parse::<Network>())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }

    #[test]
    fn who_shares_reads() {
        use super::Share;
        for (text, share) in [
            ("everyone", Some(Share::Everyone)),
            ("tenant", Some(Share::Tenant)),
            ("layer:os", Some(Share::Layer("os".into()))),
            ("layer:", None),
            ("layer:a/b", None),
            ("", None),
            ("Everyone", None),
        ] {
            assert_eq!(text.parse::<Share>().ok(), share, "{text:?}");
        }
    }
}
