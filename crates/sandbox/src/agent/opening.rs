//! From an image's name to its manifest and what opens it. Needs whatever reaches the store and the key service.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use snowmelt_chunk::{DataKey, KeyRing, Manifest, ManifestId, OpenedManifest};
use snowmelt_store::readback::open_with_key;
use snowmelt_store::{ImageMetadata, ImageName, NameRecord, SeenNames, Store, StoreOptions};

use super::image::chain;
use super::manifests::Manifests;
use super::protocol::{AgentConfig, LoadMode, OnUnavailable};
use super::start_logs::{Expected, StartLogs};
use crate::{Cause, Error};

/// An image that was found, and the key of its sealed part.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) record: NameRecord,
    pub(super) manifest: Manifest,
    pub(super) data_key: DataKey,
    /// What that opens, where it was opened in this process already: once is enough on the way of a start.
    pub(super) opened: Option<(OpenedManifest, ImageMetadata)>,
}

/// What there is when it was found.
pub(super) struct Opening {
    pub(super) found: Found,
    /// At the root that its chunks are in.
    pub(super) store: Store,
    pub(super) starts: StartLogs,
    /// What the start to come will read.
    pub(super) expected: Expected,
}

/// What is known about the start to come, asked for while the manifest is read. All of it is advice.
struct StartsWanted {
    starts: StartLogs,
    expected: Option<Receiver<Expected>>,
}

/// How long a start waits for that once its manifest is here.
const ADVICE_PATIENCE: Duration = Duration::from_secs(1);

impl StartsWanted {
    fn ask(config: &AgentConfig, store: &Store, manifest: &ManifestId, command: Option<&[String]>) -> Self {
        let starts = StartLogs::new(store, &config.tenant, &config.cache_dir, manifest, command);
        let expected = (config.load != LoadMode::OnDemand).then(|| {
            let (answer, expected) = channel();
            let starts = starts.clone();
            let work = move || answer.send(starts.expected());
            // Without a thread there is no answer.
            let _ = std::thread::Builder::new().name("start-log".into()).spawn(work);
            expected
        });
        Self { starts, expected }
    }

    fn answer(self) -> (StartLogs, Expected) {
        let expected = self.expected.and_then(|expected| expected.recv_timeout(ADVICE_PATIENCE).ok());
        (self.starts, expected.unwrap_or_default())
    }
}

/// Finds an image and gets the key of its manifest. Nothing of its content is read. `record` is what its name stood for when a sandbox
/// began that is to go on: the name may stand for another image by now.
pub(super) fn find(
    config: &AgentConfig,
    image: &str,
    command: Option<&[String]>,
    record: Option<NameRecord>,
) -> Result<Opening, Error> {
    let name: ImageName = image.parse().map_err(image_error("find image", image))?;
    let (store, keys) = open_store_and_keys(config, image)?;
    let find = || {
        let tenant = &config.tenant;
        let is_new = record.is_none();
        let record = record.map_or_else(|| store.read_name(tenant, &name), Ok)?;
        let (at_root, id) = (store.at_root(&record.root)?, record.manifest_id()?);
        let starts = StartsWanted::ask(config, &at_root, &id, command.filter(|_| is_new));
        let manifest = read_manifest(config, &store, &record.root, &id)?;
        let data_key = manifest.data_key(&keys, &name.to_string())?;
        let opened = Some(open_with_key(&name, &record, &manifest, &data_key)?);
        if is_new {
            SeenNames::new(&config.cache_dir).check(&store, tenant, &name, &record)?;
        }
        let (starts, expected) = starts.answer();
        Ok(Opening { found: Found { record, manifest, data_key, opened }, store: at_root, starts, expected })
    };
    find().map_err(image_error("open image", image))
}

/// A manifest, from this machine where it was read here before.
fn read_manifest(
    config: &AgentConfig,
    store: &Store,
    root: &str,
    id: &ManifestId,
) -> Result<Manifest, snowmelt_store::Error> {
    let tenant = &config.tenant;
    if store.starts_folder(tenant).is_some() {
        return store.read_manifest(root, tenant, id);
    }
    let kept = Manifests::new(&config.cache_dir);
    if let Some(manifest) = kept.read(tenant, id) {
        return Ok(manifest);
    }
    let manifest = store.read_manifest(root, tenant, id)?;
    kept.keep(id, &manifest);
    Ok(manifest)
}

fn open_store_and_keys(config: &AgentConfig, image: &str) -> Result<(Store, KeyRing), Error> {
    let failed = |operation| image_error(operation, image);
    let fails_at_once = config.on_unavailable == OnUnavailable::Fail;
    let options = StoreOptions {
        allow_http: config.allow_http,
        root: None,
        s3: config.s3.clone(),
        request_timeout: StoreOptions::default().request_timeout.min(config.deadline),
        // Opening an image keeps to what holds for reading it.
        patience: if fails_at_once { Duration::ZERO } else { config.deadline },
    };
    let store = Store::open(&config.store, &options).map_err(failed("open the store for image"))?;
    let keys = open_keys(config).map_err(|error| failed("open the keys of image")(error.into()))?;
    Ok((store, keys))
}

pub(super) fn image_error(operation: &'static str, image: &str) -> impl Fn(snowmelt_store::Error) -> Error {
    let image = image.to_owned();
    move |error| Error::Image { cause: store_cause(&error), message: format!("{operation} {image}: {}", chain(&error)) }
}

/// The tenant's keys, as whoever started the agent has them set up.
fn open_keys(config: &AgentConfig) -> Result<KeyRing, snowmelt_chunk::Error> {
    let options = snowmelt_keys::Options {
        allow_http: config.allow_http,
        patience: snowmelt_keys::Options::default().patience.min(config.deadline),
    };
    let previous = config.previous_keys.iter().map(|service| service.parse()).collect::<Result<Vec<_>, _>>()?;
    snowmelt_keys::open(&config.keys.parse()?, &previous, &config.tenant, &config.keys_dir, &options)
}

fn store_cause(error: &snowmelt_store::Error) -> Cause {
    match error {
        snowmelt_store::Error::NotFound { .. } => Cause::NotFound,
        snowmelt_store::Error::Corrupt { .. } => Cause::Corrupt,
        error if error.is_unavailable() => Cause::Unavailable,
        _ => Cause::Other,
    }
}
