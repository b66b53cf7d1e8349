//! The image of an agent: from its name to a mounted root file system, and back.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use snowmelt_cache::{DiskCache, Tiers};
use snowmelt_chunk::{ManifestId, OpenedManifest};
use snowmelt_device::fuse::{self, FuseExport};
use snowmelt_device::{Device, DeviceHandover, DeviceOptions};
use snowmelt_image::ImageConfig;
use snowmelt_store::readback::open_with_key;
use snowmelt_store::{ImageLease, ImageName, NameRecord, Store, StoreOptions};
use snowmelt_zone::ZoneOptions;
use zeroize::Zeroizing;

use super::lease::LeaseKeeper;
use super::link::Link;
use super::mounter::{MountOrder, Mounter};
use super::opener;
use super::opening::{Found, Opening, find, image_error};
use super::protocol::{AgentConfig, LoadMode, OnUnavailable};
use super::recorder::Recorder;
use super::start_logs::{Expected, StartLogs};
use crate::identity::ProcessId;
use crate::state::{Kind, Record};
use crate::stats::TierLoads;
use crate::worker::HandedOver;
use crate::{Cause, Error, Stats};

/// How an agent comes by its image, and who keeps leases and logs.
pub(super) enum Way {
    /// It opens the image, and reads tiers and store itself.
    Own,
    /// It asks the worker. The image is opened by another process, which writes to this pipe.
    Worker(Link, OwnedFd),
}

/// Where chunks come from.
enum Source {
    Store(Store),
    Worker(Link),
}

/// An image whose manifest and keys are here, and whose chunks are loaded when they are read.
pub(super) struct Opened {
    config: ImageConfig,
    record: NameRecord,
    device: Arc<Device>,
    /// Seals what a successor goes on with.
    handover_key: Zeroizing<[u8; 32]>,
    tiers: Arc<Tiers>,
    lease: Option<LeaseKeeper>,
    starts: StartLogs,
    expected: Expected,
    load: LoadMode,
    record_for: Duration,
    image_chunks: u64,
    chunk_size: u32,
}

/// An image that is mounted.
pub(super) struct Mounted {
    opened: Opened,
    mounter: Mutex<Mounter>,
    recorder: Recorder,
    export: FuseExport,
}

/// How long the requests of a device that have begun may take, before a successor answers them.
const LET_GO_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is said how much is loaded.
const BETWEEN_REPORTS: Duration = Duration::from_millis(100);

impl Opened {
    /// Resolves the record's image and opens its manifest. Nothing of its content is read.
    pub(super) fn open(
        config: &AgentConfig,
        record: &Record,
        command: Option<&[String]>,
        way: Way,
    ) -> Result<Self, Error> {
        let (found, source, starts) = match way {
            Way::Own => {
                let Opening { found, store, starts, expected } = find(config, &record.image, command, None)?;
                (found, Source::Store(store), (starts, expected))
            }
            Way::Worker(link, opener) => {
                let (found, expected) = opener::receive(File::from(opener))?;
                let starts = StartLogs::of_worker(link.clone(), command);
                (found, Source::Worker(link), (starts, expected))
            }
        };
        let opened = Self::with(config, record, found, source, starts, None)?;
        // What is on this machine is opened when its pages are read ahead; what is not is asked for at once.
        let device = &opened.device;
        if opened.load != LoadMode::All {
            let expected: Vec<u64> = opened.expected.log.indices().collect();
            let near = device.are_near(&expected);
            device.prefetch(expected.iter().zip(near).filter(|(_, is_near)| !is_near).map(|(chunk, _)| *chunk));
        }
        Ok(opened)
    }

    /// Goes on with the device of an agent that is gone. `held` are its descriptors: that of the FUSE connection first.
    pub(super) fn resume(
        config: &AgentConfig,
        record: &Record,
        link: Link,
        opener: OwnedFd,
        handed_over: HandedOver,
        held: Vec<OwnedFd>,
        mounter: Mounter,
    ) -> Result<Mounted, Error> {
        let (found, expected) = opener::receive(File::from(opener))?;
        // What is read from here on is no start.
        let starts = StartLogs::of_worker(link.clone(), None);
        let mut held = held.into_iter();
        let connection = held.next().into_iter().collect();
        let device = DeviceHandover { descriptors: held.collect(), state: handed_over.device };
        let opened = Self::with(config, record, found, Source::Worker(link), (starts, expected), Some(device))?;
        let session = fuse::Handover { descriptors: connection, state: handed_over.session };
        let export = fuse::resume(Arc::clone(&opened.device), session).map_err(|error| device_error(&error))?;
        if opened.load == LoadMode::Background {
            opened.device.fetch_in_background(opened.all_chunks());
        }
        let recorder = Recorder::start(&opened.device, &opened.starts, &opened.expected, Duration::ZERO);
        Ok(Mounted { opened, mounter: Mutex::new(mounter), recorder, export })
    }

    fn with(
        config: &AgentConfig,
        record: &Record,
        found: Found,
        source: Source,
        (starts, expected): (StartLogs, Expected),
        resumed: Option<DeviceHandover>,
    ) -> Result<Self, Error> {
        let failed = || image_error("open image", &record.image);
        let name: ImageName = record.image.parse().map_err(failed())?;
        let Found { record: found, manifest, data_key, opened } = found;
        let (manifest, metadata) = match opened {
            Some(opened) => opened,
            None => open_with_key(&name, &found, &manifest, &data_key).map_err(failed())?,
        };
        drop(data_key);
        let load = match &source {
            Source::Store(_) => check_room(config, &manifest, &name)?,
            // The worker keeps what it finds worth its room.
            Source::Worker(_) => config.load,
        };
        let (tiers, lease) = match source {
            Source::Store(store) => own_tiers(config, record, store, manifest.id())?,
            Source::Worker(link) => {
                link.opened(&found)?;
                (Arc::new(Tiers::of_worker(link.chunks(StoreOptions::default().request_timeout)?)), None)
            }
        };
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
            record_for: config.record_for,
            read_ahead_chunks: match config.load {
                LoadMode::OnDemand => 0,
                _ => DeviceOptions::default().read_ahead_chunks,
            },
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
        let handover_key = manifest.handover_key();
        let device = match resumed {
            None => Device::new(manifest, Arc::clone(&tiers), options),
            Some(handover) => Device::resume(manifest, Arc::clone(&tiers), options, handover, &handover_key),
        };
        let device = Arc::new(device.map_err(|error| device_error(&error))?);
        Ok(Self {
            config: metadata.config,
            record: found,
            device,
            handover_key,
            tiers,
            lease,
            starts,
            expected,
            load,
            record_for: config.record_for,
            image_chunks,
            chunk_size,
        })
    }

    /// Loads the whole image, if that is what is wanted before the command starts.
    pub(super) fn load_all(&self, progress: &dyn Fn(u64, u64)) -> Result<(), Error> {
        if self.load != LoadMode::All {
            return Ok(());
        }
        let mut told: Option<Instant> = None;
        let mut tell = |bytes, total| {
            if bytes == total || told.is_none_or(|told| told.elapsed() >= BETWEEN_REPORTS) {
                told = Some(Instant::now());
                progress(bytes, total);
            }
        };
        self.device.fetch_all(self.all_chunks(), &mut tell).map_err(|error| device_error(&error))
    }

    /// Every chunk of the image: what the start is expected to read, and then the others as they lie.
    fn all_chunks(&self) -> impl Iterator<Item = u64> + '_ {
        let slots = self.device.size_bytes().div_ceil(u64::from(self.chunk_size));
        self.expected.log.indices().chain(0..slots)
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
            expected: self.expected.to_replay().encode(),
        };
        mounter.mount(export.mount_point(), order).map_err(|error| self.explained(error))?;
        if self.load == LoadMode::Background {
            self.device.fetch_in_background(self.all_chunks());
        }
        let recorder = Recorder::start(&self.device, &self.starts, &self.expected, self.record_for);
        Ok(Mounted { opened: self, mounter: Mutex::new(mounter), recorder, export })
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

/// The tiers of an agent that reads them itself, and its lease on the image.
fn own_tiers(
    config: &AgentConfig,
    record: &Record,
    store: Store,
    manifest: ManifestId,
) -> Result<(Arc<Tiers>, Option<LeaseKeeper>), Error> {
    let disk =
        if config.cache_bytes == 0 {
            None
        } else {
            let disk = DiskCache::open(&config.cache_dir, config.cache_bytes);
            Some(disk.map_err(|source| {
                Error::io("open the cache", config.cache_dir.display(), std::io::Error::other(source))
            })?)
        };
    let zone = config.zone.as_ref().map(ZoneOptions::connect).transpose();
    let zone = zone.map_err(|error| Error::invalid("the zone's cache", error.to_string()))?;
    let by = format!("sandbox {}", record.id);
    let lease = ImageLease::new(&store, &config.tenant, manifest, config.lease, &by);
    let may_lease = store.is_object_storage();
    let tiers = Arc::new(Tiers::new(Arc::new(store), disk, zone));
    let moving = Arc::clone(&tiers);
    // A web server that only gives takes no leases; whoever runs such a mirror keeps what is in use.
    let lease = may_lease.then(|| LeaseKeeper::start(lease, move |store| moving.set_store(Arc::new(store)))).flatten();
    Ok((tiers, lease))
}

impl Mounted {
    /// Whether a successor can go on with the device.
    pub(super) fn can_be_taken_over(&self) -> bool {
        self.export.can_be_taken_over()
    }

    /// What a successor needs, and its descriptors: of the mounter, of the FUSE connection, of the overlay.
    pub(super) fn hand_over(
        &self,
        runtime: Option<ProcessId>,
        detached: bool,
    ) -> Result<(HandedOver, Vec<OwnedFd>), Error> {
        let failed = |error: snowmelt_device::Error| device_error(&error);
        let fuse::Handover { descriptors: connection, state: session } = self.export.handover().map_err(failed)?;
        let device = self.opened.device.handover(&self.opened.handover_key).map_err(failed)?;
        let (mounter, sockets) = self.mounter.lock().unwrap_or_else(PoisonError::into_inner).to_hand_over()?;
        let record = self.opened.record.clone();
        let held = sockets.into_iter().chain(connection).chain(device.descriptors).collect();
        Ok((HandedOver { record, device: device.state, session, mounter, runtime, detached }, held))
    }

    /// Leaves everything to a successor.
    pub(super) fn let_go(self) {
        let Self { opened, mounter, recorder, export } = self;
        // What was read so far is the start, if it is not over yet.
        recorder.finish();
        match export.let_go(LET_GO_PATIENCE) {
            Ok(left) => tracing::debug!(left, "let go of the device"),
            Err(error) => tracing::warn!(%error, "the device was not let go of in order"),
        }
        mounter.into_inner().unwrap_or_else(PoisonError::into_inner).leave();
        drop(opened);
    }

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
            in_vain: stats.in_vain,
            in_background: stats.in_background,
            load: self.opened.load,
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
        let Self { opened, mounter, recorder, export } = self;
        let kept = recorder.finish();
        // It ends with the last thing that waits for the device; only then may nobody serve it any more.
        drop(mounter);
        drop(export);
        opened.tiers.flush();
        // What asks a server comes last: nothing that others may wait for is held any more.
        if let Some(kept) = kept {
            opened.starts.share(&kept);
        }
        drop(opened.lease);
    }
}

/// How the image can be loaded: the whole of it only where the cache has room for it.
fn check_room(config: &AgentConfig, manifest: &OpenedManifest, image: &ImageName) -> Result<LoadMode, Error> {
    let bytes: u64 = manifest.records().iter().map(|record| u64::from(record.stored_length)).sum();
    if bytes <= config.cache_bytes {
        return Ok(config.load);
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let reason = format!(
        "{image} has {} MiB of chunks, and the cache holds {} MiB: set a larger cache_size, or another mode",
        mib(bytes),
        mib(config.cache_bytes)
    );
    match config.load {
        LoadMode::All => Err(Error::invalid("load `all`", reason)),
        LoadMode::Background => {
            tracing::warn!("load `background` is `prefetch` here: {reason}");
            Ok(LoadMode::Prefetch)
        }
        mode => Ok(mode),
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
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
