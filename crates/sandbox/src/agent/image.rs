//! The image of an agent: from its name to a mounted root file system, and back.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use snowmelt_cache::{DiskCache, Tiers};
use snowmelt_chunk::KeyRing;
use snowmelt_device::fuse::{self, FuseExport};
use snowmelt_device::{Device, DeviceOptions, StartLog};
use snowmelt_image::ImageConfig;
use snowmelt_store::readback::{OpenedImage, Opening, open_image_with};
use snowmelt_store::{ImageLease, ImageName, NameRecord, SeenNames, Store, StoreOptions};

use super::lease::LeaseKeeper;
use super::mounter::{MountOrder, Mounter};
use super::protocol::{AgentConfig, OnUnavailable};
use super::start_logs::{Expected, StartLogs};
use crate::state::{Kind, Record};
use crate::stats::TierLoads;
use crate::{Cause, Error, Stats};

/// An image whose manifest and keys are here, and whose chunks are loaded when they are read.
pub(super) struct Opened {
    config: ImageConfig,
    device: Arc<Device>,
    tiers: Arc<Tiers>,
    lease: Option<LeaseKeeper>,
    starts: StartLogs,
    expected: Expected,
    image_chunks: u64,
    chunk_size: u32,
}

/// An image that is mounted.
pub(super) struct Mounted {
    opened: Opened,
    mounter: Mutex<Mounter>,
    export: FuseExport,
}

/// What is known about the start to come, asked for while the manifest is read. All of it is advice.
struct StartsWanted {
    starts: StartLogs,
    expected: Option<Receiver<Expected>>,
}

/// How long a start waits for that once its manifest is here.
const ADVICE_PATIENCE: Duration = Duration::from_secs(1);

impl StartsWanted {
    fn ask(config: &AgentConfig, store: &Store, record: &NameRecord, command: Option<&[String]>) -> Option<Self> {
        let (store, manifest) = (store.at_root(&record.root).ok()?, record.manifest_id().ok()?);
        let starts = StartLogs::new(&store, &config.tenant, &config.cache_dir, &manifest, command);
        let expected = config.prefetch.then(|| {
            let (answer, expected) = channel();
            let starts = starts.clone();
            let work = move || answer.send(starts.expected());
            // Without a thread there is no answer.
            let _ = std::thread::Builder::new().name("start-log".into()).spawn(work);
            expected
        });
        Some(Self { starts, expected })
    }

    fn answer(self) -> (StartLogs, Expected) {
        let expected = self.expected.and_then(|expected| expected.recv_timeout(ADVICE_PATIENCE).ok());
        (self.starts, expected.unwrap_or_default())
    }
}

impl Opened {
    /// Resolves the record's image and opens its manifest. Nothing of its content is read.
    pub(super) fn open(config: &AgentConfig, record: &Record, command: Option<&[String]>) -> Result<Self, Error> {
        let failed = |operation: &'static str| {
            let image = record.image.clone();
            move |error: snowmelt_store::Error| Error::Image {
                cause: store_cause(&error),
                message: format!("{operation} {image}: {}", chain(&error)),
            }
        };
        let name: ImageName = record.image.parse().map_err(failed("find image"))?;
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
        let mut starts = None;
        let seen = SeenNames::new(&config.cache_dir);
        let opening = Opening { tenant: &config.tenant, keys: &keys, seen: Some(&seen) };
        let opened = open_image_with(&store, &name, &opening, |record| {
            starts = StartsWanted::ask(config, &store, record, command);
        });
        let OpenedImage { manifest, metadata, store, .. } = opened.map_err(failed("open image"))?;
        let starts =
            starts.ok_or_else(|| Error::invalid("agent", "opened an image that it did not find: this is a bug"))?;
        let (starts, expected) = starts.answer();
        let disk = if config.cache_bytes == 0 {
            None
        } else {
            let disk = DiskCache::open(&config.cache_dir, config.cache_bytes);
            Some(disk.map_err(|source| {
                Error::io("open the cache", config.cache_dir.display(), std::io::Error::other(source))
            })?)
        };
        let by = format!("sandbox {}", record.id);
        let lease = ImageLease::new(&store, &config.tenant, manifest.id(), config.lease, &by);
        let may_lease = store.is_object_storage();
        let tiers = Arc::new(Tiers::new(Arc::new(store), disk));
        // A web server that only gives takes no leases; whoever runs such a mirror keeps what is in use.
        let lease = may_lease.then(|| LeaseKeeper::start(lease, Arc::clone(&tiers))).flatten();
        let (image_chunks, chunk_size) = (manifest.records().len() as u64, manifest.geometry().chunk_size);
        let options = DeviceOptions {
            writable: record.writable,
            overlay_bytes: config.overlay_bytes,
            overlay_directory: config.overlay_dir.clone(),
            deadline: config.deadline,
            on_unavailable: match config.on_unavailable {
                OnUnavailable::Block => snowmelt_device::OnUnavailable::Block,
                OnUnavailable::Fail => snowmelt_device::OnUnavailable::Fail,
            },
            image_name: Some(name.to_string()),
            // Without prefetch nothing is loaded but what is touched.
            read_ahead_chunks: if config.prefetch { DeviceOptions::default().read_ahead_chunks } else { 0 },
            // Its pages are read ahead in the order of its chunks.
            reads_once: expected.same_command,
            // A known start is not sequential where its log does not say so; its work after that may be.
            read_ahead_after: match &expected {
                known if known.same_command => 32,
                known if !known.log.is_empty() => 8,
                _ => 1,
            },
            ..DeviceOptions::default()
        };
        if record.writable {
            std::fs::create_dir_all(&config.overlay_dir)
                .map_err(|source| Error::io("make the folder", config.overlay_dir.display(), source))?;
        }
        let device =
            Arc::new(Device::new(manifest, Arc::clone(&tiers), options).map_err(|error| device_error(&error))?);
        // What is on this machine is opened when its pages are read ahead; what is not is asked for at once.
        device.prefetch(expected.log.chunks.iter().copied().filter(|chunk| !device.is_near(*chunk)));
        Ok(Self { config: metadata.config, device, tiers, lease, starts, expected, image_chunks, chunk_size })
    }

    pub(super) fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Serves the device as a file in `directory` and has that mounted where the record says.
    pub(super) fn mount(self, directory: &Path, record: &Record, mut mounter: Mounter) -> Result<Mounted, Error> {
        let export =
            fuse::serve(Arc::clone(&self.device), &file_path(directory)).map_err(|error| device_error(&error))?;
        let order = MountOrder {
            file: export.file().strip_prefix(export.mount_point()).unwrap_or(Path::new("")).to_owned(),
            size_bytes: self.device.size_bytes(),
            read_only: !record.writable,
            directory: record.directory.clone(),
            for_all: record.kind == Kind::Mount,
            expected: self.expected.log.encode(),
        };
        mounter.mount(export.mount_point(), order).map_err(|error| self.explained(error))?;
        Ok(Mounted { opened: self, mounter: Mutex::new(mounter), export })
    }

    /// Says which chunk it was where the kernel says no more than that it could not read.
    fn explained(&self, error: Error) -> Error {
        match self.device.last_failure() {
            Some(failure) => {
                let cause = failure_cause(&failure);
                Error::Image { cause, message: format!("{error}: {}", failure.chain()) }
            }
            None => error,
        }
    }
}

impl Mounted {
    /// Unmounts the root file system for good: what was written in it goes nowhere any more.
    pub(super) fn discard_root(&self) -> Result<(), Error> {
        self.opened.device.drop_writes();
        self.unmount_root(true)
    }

    /// Unmounts the root file system. One that is in use stays, unless it is to go `lazily`: then it goes with its last
    /// user.
    pub(super) fn unmount_root(&self, lazily: bool) -> Result<(), Error> {
        self.mounter.lock().unwrap_or_else(PoisonError::into_inner).unmount(lazily)
    }

    pub(super) fn stats(&self) -> Stats {
        let device = &self.opened.device;
        let stats = device.stats();
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let loads = stats.loads.iter().zip(&stats.loaded_bytes);
        Stats {
            image_bytes: device.size_bytes(),
            chunk_size: self.opened.chunk_size,
            image_chunks: self.opened.image_chunks,
            touched_chunks: stats.touched_chunks,
            reads: stats.reads,
            read_bytes: stats.read_bytes,
            writes: stats.writes,
            written_bytes: stats.written_bytes,
            overlay_bytes: stats.overlay_bytes,
            loads: loads
                .map(|((tier, chunks), (_, bytes))| TierLoads {
                    tier: tier.to_string(),
                    chunks: *chunks,
                    bytes: *bytes,
                })
                .collect(),
            prefetched: stats.prefetched,
            failures: stats.failures,
            retries: stats.retries,
            stalls: stats.stalls,
            serve_us: micros(stats.serve_time),
            queue_us: micros(stats.queue_time),
            fetch_us: micros(stats.fetch_time),
            verify_us: micros(stats.verify_time),
            decrypt_us: micros(stats.decrypt_time),
            copy_us: micros(stats.copy_time),
        }
    }

    /// Takes down what is below the root file system, and keeps what is worth keeping: the chunks that were fetched, and
    /// which were needed.
    pub(super) fn close(self) {
        let Self { opened, mounter, export } = self;
        let log = StartLog::record(&opened.device);
        opened.starts.keep(&log, &opened.expected);
        // It ends with the last thing that waits for the device; only then may nobody serve it any more.
        drop(mounter);
        drop(export);
        opened.tiers.flush();
        // What asks a server comes last: nothing that others may wait for is held any more.
        opened.starts.share(&log, &opened.expected);
        drop(opened.lease);
    }
}

/// Cuts the connection of the file that an agent serves: whatever waits for it, in the kernel too, gets an error.
pub(super) fn abort(directory: &Path) {
    let path = file_path(directory);
    let _ = unmount(&path, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW);
    let _ = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}

fn file_path(directory: &Path) -> PathBuf {
    directory.join("device")
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

pub(super) fn device_error(error: &snowmelt_device::Error) -> Error {
    Error::Image { cause: failure_cause(error), message: chain(error) }
}

fn failure_cause(error: &snowmelt_device::Error) -> Cause {
    match error {
        snowmelt_device::Error::NotFound { .. } => Cause::NotFound,
        snowmelt_device::Error::Corrupt { .. } => Cause::Corrupt,
        snowmelt_device::Error::Unavailable { .. } => Cause::Unavailable,
        _ => Cause::Other,
    }
}

/// An error with what caused it, as far as its own message does not say so already.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let message = source.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        next = source.source();
    }
    text
}
