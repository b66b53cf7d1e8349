//! The state directory: one directory for each sandbox, with a record of whose it is, so that whatever a killed process
//! leaves is found and removed by the next command.
//!
//! ```text
//! <state>/<id>/record.json     who it belongs to: see Record
//!              root/           where the root file system of a run is mounted
//!              device          the FUSE file
//!              agent.sock      requests to the agent
//!              agent.log       messages of a detached agent
//!              bundle/         what the runtime reads
//! <state>/runtime/             the runtime's own state
//! <state>/lock                 held while stale sandboxes are removed
//! ```

mod cleanup;

pub(crate) use self::cleanup::Leftovers;

use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::identity::ProcessId;
use crate::runtime::Runtime;

/// A sandbox's directory before its record is in it begins with this.
const UNFINISHED: char = '.';
/// An unfinished directory of this age belongs to nobody.
const UNFINISHED_AGE: Duration = Duration::from_mins(1);

/// What a sandbox is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A container that runs while its command does.
    Run,
    /// A mounted image, until it is unmounted.
    Mount,
}

/// One sandbox, as recorded on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 12 hexadecimal digits.
    pub id: String,
    /// What it is for.
    pub kind: Kind,
    /// The image as the user named it.
    pub image: String,
    /// Where the image is mounted.
    pub directory: PathBuf,
    /// Whether writes are accepted (and discarded at the end).
    pub writable: bool,
    /// Seconds since 1970.
    pub created: u64,
    /// The process that made it.
    pub owner: ProcessId,
    /// The process that serves it.
    pub agent: Option<ProcessId>,
    /// The worker that has another go on when that is gone.
    #[serde(default)]
    pub(crate) worker: Option<ProcessId>,
    pub(crate) runtime: Option<Runtime>,
}

impl Record {
    /// Whether one of its processes still runs.
    pub fn is_alive(&self) -> bool {
        let is_served = || [self.agent, self.worker].into_iter().flatten().any(|process| process.is_alive());
        is_served() || self.owner_counts() && self.owner.is_alive()
    }

    /// The maker of a mount leaves it; what it started keeps it alive only until an agent is recorded.
    fn owner_counts(&self) -> bool {
        self.kind == Kind::Run || self.agent.is_none()
    }

    /// The name the container runtime knows it by.
    pub(crate) fn container(&self) -> String {
        format!("snowmelt-{}", self.id)
    }
}

/// A directory that holds the state of all sandboxes of one user.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Where images were mounted whose agents had been killed and that were unmounted through this or a clone of it.
    cleaned: Arc<Mutex<Vec<PathBuf>>>,
}

impl StateDir {
    /// Uses `path`, which is made if it does not exist, readable by its owner only.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).map_err(|source| refused("make the state directory", path, source))?;
        let path = path.canonicalize().map_err(|source| refused("resolve", path, source))?;
        Ok(Self { path, cleaned: Arc::default() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All sandboxes that have a running process, oldest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        let mut records = self.records()?;
        records.retain(Record::is_alive);
        records.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(records)
    }

    /// Whether a cleanup has unmounted an image here, so that it is no mistake to want it unmounted.
    pub(crate) fn has_cleaned(&self, directory: &Path) -> bool {
        self.cleaned.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|cleaned| cleaned == directory)
    }

    pub(crate) fn runtime_state(&self) -> PathBuf {
        self.path.join("runtime")
    }

    pub(crate) fn directory(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// Makes the directory of a new sandbox. It appears under its name with its record already in it, so a cleanup that
    /// runs at the same time never sees one without an owner. `directory` is the mount point; `None` for its own.
    pub(crate) fn create(
        &self,
        kind: Kind,
        image: &str,
        writable: bool,
        directory: Option<&Path>,
        runtime: Option<&Runtime>,
    ) -> Result<Record, Error> {
        let mut bytes = [0; 6];
        let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        random.map_err(|source| Error::io("read", "/dev/urandom", source))?;
        let id = format!("{:012x}", bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)));
        let owner = ProcessId::own()
            .ok_or_else(|| Error::io("read", "/proc/self/stat", std::io::Error::other("not as expected")))?;
        let record = Record {
            kind,
            image: image.to_owned(),
            directory: directory.map_or_else(|| self.directory(&id).join("root"), Path::to_owned),
            writable,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
            owner,
            agent: None,
            worker: None,
            runtime: runtime.cloned(),
            id,
        };
        let unfinished = self.path.join(format!("{UNFINISHED}{}", record.id));
        let io = |source| Error::io("make", unfinished.display(), source);
        DirBuilder::new().mode(0o700).create(&unfinished).map_err(io)?;
        write_json(&unfinished.join("record.json"), &record)?;
        std::fs::rename(&unfinished, self.directory(&record.id)).map_err(io)?;
        Ok(record)
    }

    /// Replaces a sandbox's record.
    pub(crate) fn update(&self, record: &Record) -> Result<(), Error> {
        let directory = self.directory(&record.id);
        let (next, path) = (directory.join("record.next"), directory.join("record.json"));
        write_json(&next, record)?;
        std::fs::rename(&next, &path).map_err(|source| Error::io("replace", path.display(), source))
    }

    /// Every record that can be read, in no order.
    fn records(&self) -> Result<Vec<Record>, Error> {
        let io = |source| refused("list", &self.path, source);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let Ok(text) = std::fs::read(path.join("record.json")) else { continue };
            // Hidden ones are being made; one that names another directory is not ours to act on.
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) if path.file_name().is_some_and(|name| name == record.id.as_str()) => records.push(record),
                _ => {}
            }
        }
        Ok(records)
    }
}

/// Sandboxes need root, and so the directory of their state may be root's: that is what a user has to be told then.
fn refused(operation: &'static str, path: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() {
        return Error::invalid(path.display().to_string(), "running and mounting images needs root: use sudo");
    }
    Error::io(operation, path.display(), source)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(value).map_err(|source| Error::io("write", path.display(), source))?;
    std::fs::write(path, text).map_err(|source| Error::io("write", path.display(), source))
}

#[cfg(test)]
mod tests;
