//! What commands share: configuration, store, keys, sandboxes.

use std::path::PathBuf;

use anyhow::Result;
use snowmelt_chunk::{KeyRing, LocalKeys};
use snowmelt_keys::Service;
use snowmelt_sandbox::StateDir;
use snowmelt_store::readback::{OpenedImage, Opening, open_image};
use snowmelt_store::{ImageName, SeenNames, Store, StoreOptions};

use crate::args::GlobalArgs;
use crate::config::Config;

pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) json: bool,
}

impl App {
    pub(crate) fn new(args: &GlobalArgs) -> Result<Self> {
        Ok(Self { config: Config::load(args)?, json: args.json })
    }

    pub(crate) fn store(&self) -> Result<Store> {
        self.open_store(&self.config.store, self.config.root.clone())
    }

    /// Another store, reached with the same settings; its active root.
    pub(crate) fn store_at(&self, url: &str) -> Result<Store> {
        self.open_store(url, None)
    }

    fn open_store(&self, url: &str, root: Option<String>) -> Result<Store> {
        let options = StoreOptions {
            allow_http: self.config.allow_http,
            root,
            s3: self.config.s3.clone(),
            ..StoreOptions::default()
        };
        Ok(Store::open(url, &options)?)
    }

    /// The tenants to work on: all that the store knows, or the one that is set.
    pub(crate) fn tenants(&self, store: &Store, all: bool) -> Result<Vec<String>> {
        Ok(if all { store.list_tenants()? } else { vec![self.config.tenant.clone()] })
    }

    pub(crate) fn local_keys(&self) -> LocalKeys {
        LocalKeys::new(&self.config.keys_dir)
    }

    /// A tenant's keys, as they are set up.
    pub(crate) fn keys(&self, tenant: &str) -> Result<KeyRing> {
        self.keys_of(&self.config.keys, &self.config.previous_keys, tenant)
    }

    /// A tenant's keys in these services.
    pub(crate) fn keys_of(&self, service: &Service, previous: &[Service], tenant: &str) -> Result<KeyRing> {
        let options =
            snowmelt_keys::Options { allow_http: self.config.allow_http, ..snowmelt_keys::Options::default() };
        Ok(snowmelt_keys::open(service, previous, tenant, &self.config.keys_dir, &options)?)
    }

    pub(crate) fn open_image(&self, store: &Store, name: &ImageName) -> Result<OpenedImage> {
        let keys = self.keys(&self.config.tenant)?;
        let seen = SeenNames::new(&self.config.cache_dir);
        let opening = Opening { tenant: &self.config.tenant, keys: &keys, seen: Some(&seen) };
        Ok(open_image(store, name, &opening)?)
    }

    /// The records of sandboxes.
    pub(crate) fn state(&self) -> Result<StateDir> {
        Ok(StateDir::new(&self.config.state_dir)?)
    }

    /// Removes what killed processes left, for the commands that do not do so themselves. It must not keep them from their
    /// work, and takes root.
    pub(crate) fn clean_up(&self) {
        if !rustix::process::geteuid().is_root() || !self.config.state_dir.is_dir() {
            return;
        }
        if let Err(error) = StateDir::new(&self.config.state_dir).and_then(|state| state.cleanup_stale()) {
            tracing::warn!("{error}");
        }
    }

    /// Where the figures of an image's last run are kept.
    pub(crate) fn last_run_path(&self, image: &ImageName) -> PathBuf {
        // '+' is in no name, so no two names have one file.
        let file = format!("{}.json", image.to_string().replace('/', "+"));
        self.config.state_dir.join("last-runs").join(&self.config.tenant).join(file)
    }

    /// How many chunks are read or written at once: both cores, and enough more to keep a disk or a network busy.
    pub(crate) fn threads(store: &Store) -> usize {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        if store.is_local() { cores + 2 } else { cores.max(8) }
    }
}
