//! The configuration: file, environment and flags, in rising order.

mod cache;
mod worker;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Deserializer};
use snowmelt_chunk::check_tenant;
use snowmelt_keys::Service;
use snowmelt_sandbox::{AgentConfig, LoadMode, OnUnavailable, UseWorker};
use snowmelt_store::S3Options;
use snowmelt_store::collect::Policy;
use snowmelt_zone::ZoneOptions;

pub(crate) use self::cache::CacheNode;
use crate::args::{CacheNodeArgs, GlobalArgs, PublishArgs, Share, parse_class};
use crate::units::{Age, Size};

/// The configuration file. docs/configuration.md describes every field.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    store: Option<String>,
    root: Option<String>,
    tenant: Option<String>,
    state_dir: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    cache_size: Option<Size>,
    keys_dir: Option<PathBuf>,
    allow_http: Option<bool>,
    deadline_ms: Option<u64>,
    on_unavailable: Option<OnUnavailable>,
    load: Option<LoadMode>,
    record_for: Option<Age>,
    overlay_dir: Option<PathBuf>,
    overlay_size: Option<Size>,
    s3_endpoint: Option<String>,
    s3_region: Option<String>,
    s3_path_style: Option<bool>,
    lease: Option<Age>,
    #[serde(default, deserialize_with = "parsed")]
    keys: Option<Service>,
    #[serde(default, deserialize_with = "parsed_list")]
    previous_keys: Vec<Service>,
    #[serde(default, deserialize_with = "parsed")]
    salt_key: Option<Service>,
    #[serde(default, deserialize_with = "parsed")]
    share: Option<Share>,
    zone: Option<String>,
    gc: Option<PolicyFile>,
    cache_nodes: Option<String>,
    cache_code: Option<String>,
    cache_token_file: Option<PathBuf>,
    cache_tls_ca: Option<PathBuf>,
    cache_tls_cert: Option<PathBuf>,
    cache_tls_key: Option<PathBuf>,
    cache_node: Option<cache::CacheNodeFile>,
    use_worker: Option<UseWorker>,
    worker: Option<worker::WorkerFile>,
}

/// When collection does what: `[gc]` of the configuration file, or a file of its own.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    rotate_every: Option<Every>,
    retire_for: Option<Age>,
    expire_for: Option<Age>,
    salt_every: Option<Every>,
}

/// An age, or `never`.
#[derive(Clone, Copy, Debug)]
enum Every {
    Never,
    Age(Age),
}

impl std::str::FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            _ => text.parse().map(Self::Age).map_err(|error| format!("{error}; or never")),
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl PolicyFile {
    /// What is not set is as it is by default.
    fn policy(&self) -> Policy {
        let default = Policy::default();
        let every = |given: Option<Every>, default: Option<Duration>| match given {
            None => default,
            Some(Every::Never) => None,
            Some(Every::Age(age)) => Some(age.0),
        };
        Policy {
            rotate_every: every(self.rotate_every, default.rotate_every),
            retire_for: self.retire_for.map_or(default.retire_for, |age| age.0),
            expire_for: self.expire_for.map_or(default.expire_for, |age| age.0),
            salt_every: every(self.salt_every, default.salt_every),
        }
    }
}

/// A text that stands for something.
fn parsed<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// Texts that each stand for something.
fn parsed_list<'de, D: Deserializer<'de>, T: std::str::FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

/// What all commands work with.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) store: String,
    pub(crate) root: Option<String>,
    pub(crate) s3: S3Options,
    lease: Duration,
    pub(crate) tenant: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) cache_dir: PathBuf,
    pub(crate) cache_bytes: u64,
    /// The cache of the zone, where there is one.
    pub(crate) cache_nodes: Option<ZoneOptions>,
    use_worker: UseWorker,
    worker_file: worker::WorkerFile,
    pub(crate) keys_dir: PathBuf,
    pub(crate) keys: Service,
    pub(crate) previous_keys: Vec<Service>,
    salt_key: Option<Service>,
    share: Option<Share>,
    zone: String,
    gc: PolicyFile,
    pub(crate) allow_http: bool,
    deadline: Duration,
    on_unavailable: OnUnavailable,
    load: LoadMode,
    record_for: Duration,
    overlay_dir: PathBuf,
    overlay_bytes: u64,
}

const DEFAULT_CACHE: Size = Size(10 << 30);
/// Long enough for an origin that restarts, short enough that a stuck program is noticed.
const DEFAULT_DEADLINE: Duration = Duration::from_mins(1);
/// Who wants errors at once still waits for an origin that is merely slow.
const DEFAULT_DEADLINE_OF_FAIL: Duration = Duration::from_secs(2);
/// Renewed every 20 minutes: three requests an hour and sandbox.
const DEFAULT_LEASE: Duration = Duration::from_hours(1);
/// A start that takes longer waits for something else than its image.
const DEFAULT_RECORD_FOR: Duration = Duration::from_secs(30);
/// What comes later is no start, and a log of it would load ahead half of the image.
const MOST_RECORD_FOR: Duration = Duration::from_hours(1);
/// More than the free space of an image by default, so that the file system is full first and says so.
const DEFAULT_OVERLAY: Size = Size(8 << 30);

impl Config {
    /// How another process of this program reaches the same store and keys: variables, as it reads them.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let path = |path: &Path| path.display().to_string();
        let previous: Vec<String> = self.previous_keys.iter().map(ToString::to_string).collect();
        let some = [
            ("ROOT", self.root.clone()),
            ("S3_ENDPOINT", self.s3.endpoint.clone()),
            ("S3_REGION", self.s3.region.clone()),
            ("S3_PATH_STYLE", self.s3.path_style.map(|is_so| is_so.to_string())),
            ("SALT_KEY", self.salt_key.as_ref().map(ToString::to_string)),
            ("PREVIOUS_KEYS", (!previous.is_empty()).then(|| previous.join(","))),
        ];
        let always = [
            ("STORE", self.store.clone()),
            ("STATE_DIR", path(&self.state_dir)),
            ("CACHE_DIR", path(&self.cache_dir)),
            ("KEYS_DIR", path(&self.keys_dir)),
            ("KEYS", self.keys.to_string()),
            ("ALLOW_HTTP", self.allow_http.to_string()),
        ];
        let some = some.into_iter().filter_map(|(name, value)| Some((name, value?)));
        always.into_iter().chain(some).map(|(name, value)| (format!("SNOWMELT_{name}"), value)).collect()
    }

    /// Reads the file and puts flags (which clap fills from the environment) over it.
    pub(crate) fn load(args: &GlobalArgs) -> Result<Self> {
        let file = ConfigFile::load(args)?;
        let cache_nodes = cache::zone(args, &file)?;
        let data = home_folder("XDG_DATA_HOME", ".local/share").map(|home| home.join("snowmelt"));
        let cache = home_folder("XDG_CACHE_HOME", ".cache").map(|home| home.join("snowmelt"));
        let default = |home: &Option<PathBuf>, name: &str, flag: &str| {
            home.as_ref()
                .map(|home| home.join(name))
                .with_context(|| format!("neither HOME nor {flag} is set: say where things are kept with {flag}"))
        };
        let store = match args.store.clone().or(file.store) {
            Some(store) => store,
            None => default(&data, "store", "--store")?.display().to_string(),
        };
        let or_default = |given: Option<PathBuf>, home: &Option<PathBuf>, name: &str, flag: &str| {
            given.map_or_else(|| default(home, name, flag), Ok)
        };
        let cache_dir = absolute(&or_default(args.cache_dir.clone().or(file.cache_dir), &cache, "", "--cache-dir")?)?;
        let on_unavailable = match args.on_unavailable.as_deref() {
            Some("fail") => OnUnavailable::Fail,
            Some(_) => OnUnavailable::Block,
            None => file.on_unavailable.unwrap_or_default(),
        };
        let default_deadline = match on_unavailable {
            OnUnavailable::Block => DEFAULT_DEADLINE,
            OnUnavailable::Fail => DEFAULT_DEADLINE_OF_FAIL,
        };
        let tenant = args.tenant.clone().or(file.tenant).unwrap_or_else(|| "default".into());
        check_tenant(&tenant)?;
        let previous_keys = match &args.previous_keys {
            Some(services) => services.clone(),
            None => file.previous_keys,
        };
        let zone = file.zone.unwrap_or_default();
        parse_class(&zone).map_err(|error| anyhow::anyhow!("the field `zone` of the configuration: {error}"))?;
        Ok(Self {
            store,
            root: args.root.clone().or(file.root),
            s3: S3Options {
                endpoint: args.s3_endpoint.clone().or(file.s3_endpoint),
                region: args.s3_region.clone().or(file.s3_region),
                path_style: args.s3_path_style.or(file.s3_path_style),
            },
            lease: check_lease(args.lease.or(file.lease).map_or(DEFAULT_LEASE, |age| age.0))?,
            tenant,
            state_dir: absolute(&or_default(
                args.state_dir.clone().or(file.state_dir),
                &state_home(),
                "snowmelt",
                "--state-dir",
            )?)?,
            cache_bytes: args.cache_size.or(file.cache_size).unwrap_or(DEFAULT_CACHE).0,
            cache_nodes,
            use_worker: match args.use_worker.as_deref() {
                Some("always") => UseWorker::Always,
                Some("never") => UseWorker::Never,
                Some(_) => UseWorker::Auto,
                None => file.use_worker.unwrap_or_default(),
            },
            worker_file: file.worker.unwrap_or_default(),
            keys_dir: absolute(&or_default(args.keys_dir.clone().or(file.keys_dir), &data, "keys", "--keys-dir")?)?,
            keys: args.keys.clone().or(file.keys).unwrap_or(Service::Local),
            previous_keys,
            salt_key: file.salt_key,
            share: file.share,
            zone,
            gc: file.gc.unwrap_or_default(),
            allow_http: args.allow_http || file.allow_http.unwrap_or(false),
            deadline: args.deadline_ms.or(file.deadline_ms).map_or(default_deadline, Duration::from_millis),
            on_unavailable,
            load: args.load.or(file.load).unwrap_or_default(),
            record_for: check_record_for(args.record_for.or(file.record_for).map_or(DEFAULT_RECORD_FOR, |age| age.0))?,
            overlay_dir: match args.overlay_dir.clone().or(file.overlay_dir) {
                Some(folder) => absolute(&folder)?,
                None => cache_dir.clone(),
            },
            overlay_bytes: args.overlay_size.or(file.overlay_size).unwrap_or(DEFAULT_OVERLAY).0,
            cache_dir,
        })
    }

    /// When collection does what, by a file of its own or by `[gc]`.
    pub(crate) fn policy(&self, file: Option<&Path>) -> Result<Policy> {
        let (policy, from) = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("reading the policy file {}", path.display()))?;
                let file: PolicyFile = toml::from_str(&text)
                    .map_err(|error| anyhow::anyhow!("the policy file {} has a mistake:\n{error}", path.display()))?;
                (file.policy(), path.display().to_string())
            }
            None => (self.gc.policy(), "[gc] of the configuration file".into()),
        };
        policy.check().with_context(|| format!("`expire_for` of {from}"))?;
        Ok(policy)
    }

    /// With whom a publish shares.
    pub(crate) fn share(&self, args: &PublishArgs) -> Share {
        args.share.clone().or_else(|| self.share.clone()).unwrap_or_default()
    }

    /// For which zone a publish is.
    pub(crate) fn zone(&self, args: &PublishArgs) -> String {
        args.zone.clone().unwrap_or_else(|| self.zone.clone())
    }

    /// What keeps the salt secret.
    pub(crate) fn salt_key(&self, args: &PublishArgs) -> Result<Service> {
        let service = args.salt_key.clone().or_else(|| self.salt_key.clone()).unwrap_or(Service::Local);
        if service.for_tenant("a")? != service.for_tenant("b")? {
            bail!("the salt secret is one for all tenants: `salt_key` names no {{tenant}}, but it is {service}");
        }
        Ok(service)
    }

    /// What agents are given.
    pub(crate) fn agent(&self) -> Result<AgentConfig> {
        Ok(AgentConfig {
            store: self.store.clone(),
            s3: self.s3.clone(),
            lease: self.lease,
            allow_http: self.allow_http,
            tenant: self.tenant.clone(),
            keys_dir: self.keys_dir.clone(),
            keys: self.keys.to_string(),
            previous_keys: self.previous_keys.iter().map(ToString::to_string).collect(),
            cache_dir: self.cache_dir.clone(),
            cache_bytes: self.cache_bytes,
            deadline: self.deadline,
            on_unavailable: self.on_unavailable,
            load: self.load,
            record_for: self.record_for,
            overlay_dir: self.overlay_dir.clone(),
            overlay_bytes: self.overlay_bytes,
            worker: self.use_worker,
            zone: self.cache_nodes.clone(),
            agent_command: std::env::current_exe().context("finding this program's own file")?,
        })
    }
}

impl ConfigFile {
    /// The file that is named, or the one in its usual place if it is there.
    fn load(args: &GlobalArgs) -> Result<Self> {
        match &args.config {
            Some(path) => read_file(path),
            None => match config_home().map(|home| home.join("snowmelt/config.toml")) {
                Some(path) if path.exists() => read_file(&path),
                _ => Ok(Self::default()),
            },
        }
    }
}

/// What a node of the zone's cache is to be. It has no store, no keys and no home.
pub(crate) fn cache_node(global: &GlobalArgs, args: &CacheNodeArgs) -> Result<CacheNode> {
    CacheNode::new(args, &ConfigFile::load(global)?.cache_node.unwrap_or_default())
}

fn read_file(path: &Path) -> Result<ConfigFile> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading the configuration file {}", path.display()))?;
    match toml::from_str(&text) {
        Ok(file) => Ok(file),
        Err(error) => bail!("the configuration file {} has a mistake:\n{error}", path.display()),
    }
}

fn check_lease(lease: Duration) -> Result<Duration> {
    let (least, most) = (snowmelt_store::LEAST_LIFETIME, snowmelt_store::MOST_LIFETIME);
    if !(least..=most).contains(&lease) {
        bail!("a lease of {}: at least {}, at most {}", Age(lease), Age(least), Age(most));
    }
    Ok(lease)
}

fn check_record_for(time: Duration) -> Result<Duration> {
    if time > MOST_RECORD_FOR {
        bail!("record_for is {}: at most {}, or 0s to record nothing", Age(time), Age(MOST_RECORD_FOR));
    }
    Ok(time)
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

/// The folder that a variable of the XDG base directory specification names, or its default below HOME.
fn home_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set(variable).or_else(|| set("HOME").map(|home| home.join(below_home)))
}

fn config_home() -> Option<PathBuf> {
    home_folder("XDG_CONFIG_HOME", ".config")
}

/// Records of sandboxes are of no use after a restart of the machine.
fn state_home() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some("/run".into());
    }
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).or_else(|| home_folder("XDG_STATE_HOME", ".local/state"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn policy(text: &str) -> Result<Policy, toml::de::Error> {
        toml::from_str::<PolicyFile>(text).map(|file| file.policy())
    }

    #[test]
    fn policies_read() {
        assert_eq!(policy("").unwrap(), Policy::default());
        let read = policy("rotate_every = 'never'\nretire_for = '2h'\nexpire_for = '10m'\nsalt_every = '4w'").unwrap();
        let days = |days: u64| Duration::from_hours(24 * days);
        let minutes = Duration::from_mins(10);
        let wanted =
            Policy { rotate_every: None, retire_for: days(1) / 12, expire_for: minutes, salt_every: Some(days(28)) };
        assert_eq!(read, wanted);
        for bad in ["rotate = '1d'", "rotate_every = 'sometimes'", "retire_for = 'never'", "expire_for = 7"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn leases_have_bounds() {
        let seconds = |seconds| check_lease(Duration::from_secs(seconds));
        assert!(seconds(3).is_ok() && seconds(7 * 24 * 3600).is_ok());
        for bad in [0, 2, 7 * 24 * 3600 + 1] {
            assert!(seconds(bad).unwrap_err().to_string().contains("at least 3 s, at most 7 days"), "{bad}");
        }
    }

    #[test]
    fn starts_are_recorded_for_an_hour_at_most() {
        let seconds = |seconds| check_record_for(Duration::from_secs(seconds));
        assert!([0, 1, 30, 3600].into_iter().all(|time| seconds(time).is_ok()));
        let error = seconds(3601).unwrap_err().to_string();
        assert!(error.contains("record_for") && error.contains("60 min"), "{error}");
    }

    #[test]
    fn modes_read() {
        let load = |text: &str| toml::from_str::<ConfigFile>(&format!("load = '{text}'")).map(|file| file.load);
        for (name, mode) in LoadMode::NAMES {
            assert_eq!(load(name).unwrap(), Some(mode));
            assert_eq!((name.parse::<LoadMode>().unwrap(), mode.to_string()), (mode, name.to_owned()));
        }
        let error = load("everything").unwrap_err().to_string();
        assert!(LoadMode::NAMES.iter().all(|(name, _)| error.contains(name)), "{error}");
        assert!(toml::from_str::<ConfigFile>("prefetch = false").is_err(), "it is called load now");
    }

    #[test]
    fn key_services_and_scopes_read() {
        let text = "keys = 'vault:transit/{tenant}'\nprevious_keys = ['local']\nshare = 'layer:os'\nsalt_key = 'local'";
        let file: ConfigFile = toml::from_str(text).unwrap();
        assert_eq!(file.keys.unwrap().to_string(), "vault:transit/{tenant}");
        assert_eq!(file.share.unwrap(), Share::Layer("os".into()));
        for bad in ["keys = 'nowhere'", "share = 'nobody'", "[gc]\nx = 1"] {
            assert!(toml::from_str::<ConfigFile>(bad).is_err(), "{bad}");
        }
    }
}
