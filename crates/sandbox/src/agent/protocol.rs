//! What agents and the commands that start them say to each other: JSON, one message a line.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use snowmelt_image::ImageConfig;
use snowmelt_store::S3Options;
use snowmelt_zone::ZoneOptions;

use crate::identity::ProcessId;
use crate::state::Record;
use crate::worker::Place;
use crate::{Cause, Error, Stats};

/// A line longer than this is not ours: image configurations are the longest, and end at 8 MiB.
const LINE_LIMIT: usize = 32 << 20;

/// What a device does when a chunk cannot be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnavailable {
    /// Wait for it until the deadline.
    #[default]
    Block,
    /// Give an I/O error at once.
    Fail,
}

/// Whether sandboxes are started by the machine's worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UseWorker {
    /// Where one runs.
    #[default]
    Auto,
    /// Only so.
    Always,
    /// Not even then.
    Never,
}

/// What of an image is loaded when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadMode {
    /// What is read, when it is read, and nothing else.
    OnDemand,
    /// And ahead of that what earlier starts of the command read, and what follows sequential reads.
    #[default]
    Prefetch,
    /// And then the rest of the image, while nothing else is to be loaded.
    Background,
    /// All of the image, before the command starts.
    All,
}

impl LoadMode {
    /// All of them, by the names that settings have for them.
    pub const NAMES: [(&str, Self); 4] = [
        ("on-demand", Self::OnDemand),
        ("prefetch", Self::Prefetch),
        ("background", Self::Background),
        ("all", Self::All),
    ];
}

impl std::fmt::Display for LoadMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::NAMES.iter().find(|(_, mode)| mode == self).map_or("?", |(name, _)| name);
        f.write_str(name)
    }
}

impl std::str::FromStr for LoadMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        let reason = "use `on-demand`, `prefetch`, `background` or `all`";
        found.map(|(_, mode)| *mode).ok_or_else(|| Error::invalid(format!("load `{text}`"), reason))
    }
}

/// Where an agent finds images and how it serves them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentConfig {
    /// URL of the store.
    pub store: String,
    /// How S3 is reached.
    pub s3: S3Options,
    /// How long a lease on an image in use lives; a sandbox that lives longer than a moment renews it.
    pub lease: Duration,
    /// Accept plain HTTP from other hosts than this one.
    pub allow_http: bool,
    /// Whose images.
    pub tenant: String,
    /// The key service that manifests are sealed with, as a setting names it: `local`, `vault:transit/images`.
    pub keys: String,
    /// Those that older manifests were sealed with.
    pub previous_keys: Vec<String>,
    /// Directory of the keys of the service `local`.
    pub keys_dir: PathBuf,
    /// Directory of the chunk cache that all sandboxes share.
    pub cache_dir: PathBuf,
    /// The cache's budget in bytes.
    pub cache_bytes: u64,
    /// How long a read waits for a chunk.
    pub deadline: Duration,
    /// What happens when a chunk cannot be had.
    pub on_unavailable: OnUnavailable,
    /// What is loaded when.
    pub load: LoadMode,
    /// For how long it is recorded what a start reads; zero records nothing.
    pub record_for: Duration,
    /// Directory of the files that hold what sandboxes write, encrypted and without a name. It needs room, so no directory in
    /// memory.
    pub overlay_dir: PathBuf,
    /// How much a sandbox may write, in bytes.
    pub overlay_bytes: u64,
    /// Whether the machine's worker starts it.
    pub worker: UseWorker,
    /// The zone's cache, for an agent that reads chunks itself.
    pub zone: Option<ZoneOptions>,
    /// The program that runs [`crate::agent_main`] when it is given the argument `agent`, and [`crate::opener_main`] for `agent --open`.
    pub agent_command: PathBuf,
}

impl AgentConfig {
    /// What an agent needs that opens nothing itself: not how store, keys and zone are reached.
    pub(crate) fn without_access(&self) -> Self {
        Self {
            store: String::new(),
            s3: S3Options::default(),
            keys: String::new(),
            previous_keys: Vec::new(),
            zone: None,
            ..self.clone()
        }
    }
}

/// The first line that an agent reads: everything it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) config: AgentConfig,
    pub(crate) state: PathBuf,
    pub(crate) record: Record,
    /// What will be run, as it was asked for; `None` if it is not known.
    pub(crate) command: Option<Vec<String>>,
    /// The worker that starts the agent, if one does.
    pub(crate) worker: Option<Place>,
}

/// Later lines. The end of the input without [`Control::Stop`] or [`Control::Detach`] means that the maker is dead.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Control {
    /// The runtime's process, to be killed should the maker die.
    Runtime(ProcessId),
    /// Live on without the maker.
    Detach,
    /// The container has ended: unmount and end.
    Stop,
}

/// What an agent reports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The manifest is open.
    Opened(Box<ImageConfig>),
    /// So many bytes of the image are here, before it is mounted.
    Loading { bytes: u64, total: u64 },
    /// The root file system is mounted.
    Mounted,
    /// It is not, and will not be.
    Failed { cause: Cause, message: String },
    /// It was unmounted; nothing follows.
    Finished(Box<Stats>),
}

/// What is asked on an agent's socket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Query {
    Stats,
    Unmount,
}

/// What is answered there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Stats(Box<Stats>),
    Unmounted(Box<Stats>),
    Busy,
    Failed(String),
}

/// Writes one message.
pub(crate) fn send(mut to: impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads messages from a descriptor, so that waiting for it and reading from it fit together: a message that was read
/// along with an earlier one is given before the descriptor is touched again.
pub(crate) struct Lines {
    from: OwnedFd,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(from: OwnedFd) -> Self {
        Self { from, buffer: Vec::new() }
    }

    /// Waits for a message; `None` at the end.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// A message that was read already.
    pub(crate) fn buffered<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|source| Error::io("understand", "a message of an agent", source))
    }

    /// Reads once; false at the end.
    pub(crate) fn fill(&mut self) -> Result<bool, Error> {
        let mut bytes = [0; 16 << 10];
        let io = |source: std::io::Error| Error::io("read", "a message of an agent", source);
        if self.buffer.len() > LINE_LIMIT {
            return Err(io(std::io::Error::other("it is too long")));
        }
        loop {
            match rustix::io::read(&self.from, &mut bytes) {
                Err(rustix::io::Errno::INTR) => {}
                Err(source) => return Err(io(source.into())),
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.buffer.extend_from_slice(&bytes[..length]);
                    return Ok(true);
                }
            }
        }
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_that_come_together_and_in_pieces() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut lines = Lines::new(reader.into());
        send(&mut writer, &Control::Detach).unwrap();
        send(&mut writer, &Control::Stop).unwrap();
        writer.write_all(b"\"de").unwrap();
        assert!(matches!(lines.next().unwrap(), Some(Control::Detach)));
        assert!(matches!(lines.buffered().unwrap(), Some(Control::Stop)));
        assert!(lines.buffered::<Control>().unwrap().is_none());
        writer.write_all(b"tach\"\nnoise\n").unwrap();
        assert!(matches!(lines.next().unwrap(), Some(Control::Detach)));
        assert!(lines.next::<Control>().is_err());
        drop(writer);
        assert!(lines.next::<Control>().unwrap().is_none());
    }
}
