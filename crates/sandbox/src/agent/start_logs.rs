//! Where the logs of starts are kept: by image, and for each image by what was run. They lie beside the manifest, so that every
//! machine with that store has them. Where the store is no directory they lie in this machine's cache as well, so that its own
//! starts need not ask for them, and only there where the store takes none.
//!
//! ```text
//! <root of the store>/starts/<tenant>/   and   <cache>/starts/
//!   <manifest id>/<16 hex>      what a command read: named by a hash of its words
//!                 common        what all commands so far have in common, once there were two
//!                 first         the log of the first command, to compare with the second
//! ```
//!
//! What a program reads at its start depends on the program, not on the image: a command gets its own log, and one that was
//! never seen gets what the others have in common. Everything here is advice; what cannot be read or written is left out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use snowmelt_chunk::ManifestId;
use snowmelt_device::StartLog;
use snowmelt_store::Store;

/// A log longer than this is not read.
const LONGEST_BYTES: u64 = 8 << 20;
/// Logs that are kept of one image, and images of which logs are kept; the longest unused go. 4 KiB to 100 KiB a log.
const MOST_LOGS: usize = 64;
const MOST_IMAGES: usize = 256;
/// A longer one is not put into object storage, from where it would not be read.
const LONGEST_REMOTE_BYTES: usize = 1 << 20;
/// How long the end of a sandbox waits for object storage to take its log, or anything else that can do without.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The logs of one image for one command.
#[derive(Clone, Debug)]
pub(super) struct StartLogs {
    all: PathBuf,
    image: PathBuf,
    /// `None` for a mount, of which nobody knows what will be read.
    command: Option<String>,
    /// Whether the folder is the cache's, which has logs of images of all stores, and must be bounded.
    is_cache: bool,
    /// Where others find the logs too, if that is no directory.
    remote: Option<Remote>,
}

/// The logs of an image in a store that is asked by requests.
#[derive(Clone, Debug)]
struct Remote {
    store: Store,
    tenant: String,
    manifest: ManifestId,
}

/// What is known about the start to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub(super) log: StartLog,
    /// Whether the very same command was started before, on this machine or one that shares its store.
    pub(super) same_command: bool,
}

impl StartLogs {
    /// `command` is what was asked for: the image's own words for it are the image's, so they need not be here.
    pub(super) fn new(
        store: &Store,
        tenant: &str,
        cache: &Path,
        manifest: &ManifestId,
        command: Option<&[String]>,
    ) -> Self {
        let beside = store.starts_folder(tenant);
        let is_cache = beside.is_none();
        let all = beside.unwrap_or_else(|| cache.join("starts"));
        let image = all.join(manifest.to_string());
        let command = command.map(|words| {
            let hash = blake3::hash(words.join("\0").as_bytes()).to_hex();
            hash[..16].to_owned()
        });
        let remote = is_cache.then(|| Remote { store: store.clone(), tenant: tenant.into(), manifest: *manifest });
        Self { all, image, command, is_cache, remote }
    }

    /// What is known about the start to come; nothing is an empty log. A store that is no directory is asked where this machine
    /// knows nothing: two requests, beside those for the manifest.
    pub(super) fn expected(&self) -> Expected {
        let remote = |name: &str| self.remote.as_ref()?.read(name);
        let own = self.command.as_deref().and_then(|name| read(&self.image.join(name)).or_else(|| remote(name)));
        if let Some(log) = own {
            return Expected { log, same_command: true };
        }
        let common = read(&self.image.join("common")).or_else(|| remote("common"));
        Expected { log: common.unwrap_or_default(), same_command: false }
    }

    /// Keeps what a start read, once it is over. Other sandboxes may do so at the same time: the last one wins, and any of them is
    /// right.
    pub(super) fn keep(&self, log: &StartLog, expected: &Expected) {
        let Some(name) = self.command.as_ref().filter(|_| is_news(log, expected)) else { return };
        if let Err(error) = self.write(name, log, expected) {
            // A store may well be for others to write.
            tracing::info!(path = %self.image.display(), %error, "what this start read is not kept");
        }
    }

    /// The same in object storage, for other machines; what asks a server is for the very end.
    pub(super) fn share(&self, log: &StartLog, expected: &Expected) {
        let (Some(name), Some(remote)) = (&self.command, self.remote.clone()) else { return };
        if !is_news(log, expected) || !remote.store.is_object_storage() {
            return;
        }
        let (name, log, is_new) = (name.clone(), log.clone(), !expected.same_command);
        // Nobody waits for a server that does not answer: the thread ends with the process.
        let (done, waited) = mpsc::channel();
        let put = move || done.send(remote.put(&name, &log, is_new));
        let started = std::thread::Builder::new().name("put-start-log".into()).spawn(put);
        match started.map(|_| waited.recv_timeout(PATIENCE)) {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::info!(%error, "what this start read is kept on this machine only"),
            _ => tracing::info!("what this start read is kept on this machine only: the store does not answer"),
        }
    }

    fn write(&self, name: &str, log: &StartLog, expected: &Expected) -> io::Result<()> {
        std::fs::create_dir_all(&self.image)?;
        write(&self.image.join(name), log)?;
        if !expected.same_command {
            let (first, common) = (self.image.join("first"), self.image.join("common"));
            match read(&common).or_else(|| read(&first)) {
                Some(before) => write(&common, &before.common(log))?,
                None => write(&first, log)?,
            }
        }
        prune(&self.image, MOST_LOGS);
        if self.is_cache {
            prune(&self.all, MOST_IMAGES);
        }
        Ok(())
    }
}

/// Whether a log says something that was not known.
fn is_news(log: &StartLog, expected: &Expected) -> bool {
    !(log.is_empty() || expected.same_command && expected.log == *log)
}

impl Remote {
    fn read(&self, name: &str) -> Option<StartLog> {
        let bytes = self.store.read_start_log(&self.tenant, &self.manifest, name).ok()?;
        StartLog::decode(std::str::from_utf8(&bytes).ok()?)
    }

    /// Puts a log, and what it has in common with the others where its command is new. As many as there may be stay as they are:
    /// other commands have what is common.
    fn put(&self, name: &str, log: &StartLog, is_new: bool) -> Result<(), snowmelt_store::Error> {
        let there = self.store.list_start_logs(&self.tenant, &self.manifest)?;
        let is_there = |name: &str| there.iter().any(|log| log == name);
        let put = |name: &str, log: &StartLog| {
            let text = log.encode();
            // One that is new makes room for two more, `first` and `common`.
            if text.len() > LONGEST_REMOTE_BYTES || !is_there(name) && there.len() + 2 >= MOST_LOGS {
                return Ok(());
            }
            self.store.put_start_log(&self.tenant, &self.manifest, name, &text)
        };
        // Another machine may have put the same command's log meanwhile.
        if is_new && !is_there(name) {
            let before = ["common", "first"].into_iter().filter(|name| is_there(name)).find_map(|name| self.read(name));
            match before {
                Some(before) => {
                    let common = before.common(log);
                    if common != before || !is_there("common") {
                        put("common", &common)?;
                    }
                }
                None => put("first", log)?,
            }
        }
        put(name, log)
    }
}

fn read(path: &Path) -> Option<StartLog> {
    if std::fs::metadata(path).map_or(true, |metadata| metadata.len() > LONGEST_BYTES) {
        return None;
    }
    StartLog::decode(&std::fs::read_to_string(path).ok()?)
}

/// Replaces a log as a whole.
fn write(path: &Path, log: &StartLog) -> io::Result<()> {
    let next = path.with_extension(std::process::id().to_string());
    std::fs::write(&next, log.encode())?;
    std::fs::rename(&next, path)
}

/// Removes what was changed longest ago, but for `most` entries.
fn prune(folder: &Path, most: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .map(|entry| {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            (changed.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
        })
        .collect();
    entries.sort();
    let extra = entries.len().saturating_sub(most);
    for (_, path) in &entries[..extra] {
        let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(folder.join("store").to_str().unwrap(), &snowmelt_store::StoreOptions::default()).unwrap()
    }

    fn log(chunks: &[u64]) -> StartLog {
        StartLog { chunks: chunks.to_vec(), ..StartLog::default() }
    }

    #[test]
    fn a_command_gets_its_own_log_and_a_new_one_what_all_have_in_common() {
        let cache = tempfile::tempdir().unwrap();
        let manifest: ManifestId = "11".repeat(32).parse().unwrap();
        let store = store(cache.path());
        let logs = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            StartLogs::new(&store, "t", cache.path(), &manifest, Some(&words))
        };
        let start = |words: &[&str], chunks: &[u64]| {
            let logs = logs(words);
            let expected = logs.expected();
            logs.keep(&log(chunks), &expected);
            (expected.log.chunks, expected.same_command)
        };
        assert_eq!(start(&["a"], &[1, 2, 3]), (vec![], false));
        // One start says nothing about what others will have in common with it.
        assert_eq!(start(&["b"], &[2, 3, 4]), (vec![], false));
        assert_eq!(start(&["c"], &[2, 9]), (vec![2, 3], false));
        assert_eq!(start(&["d"], &[2]), (vec![2], false));
        assert_eq!(start(&["a"], &[1, 2, 5]), (vec![1, 2, 3], true));
        assert_eq!(start(&["a"], &[]), (vec![1, 2, 5], true));
        assert_eq!(start(&["a"], &[7]), (vec![1, 2, 5], true));
        // Words are words, wherever the spaces are.
        assert_eq!(start(&["a b"], &[8]), (vec![2], false));
        assert_eq!(start(&["a", "b"], &[2]), (vec![], false));

        // A mount keeps nothing.
        let mount = StartLogs::new(&store, "t", cache.path(), &manifest, None);
        let before = std::fs::read_dir(&mount.image).unwrap().count();
        mount.keep(&log(&[1]), &mount.expected());
        assert_eq!(std::fs::read_dir(&mount.image).unwrap().count(), before);
    }

    #[test]
    fn logs_are_bounded_and_damage_is_none() {
        let cache = tempfile::tempdir().unwrap();
        let manifest: ManifestId = "22".repeat(32).parse().unwrap();
        let store = store(cache.path());
        for number in 0..MOST_LOGS + 10 {
            let logs = StartLogs::new(&store, "t", cache.path(), &manifest, Some(&[number.to_string()]));
            logs.keep(&log(&[1]), &Expected::default());
        }
        let logs = StartLogs::new(&store, "t", cache.path(), &manifest, Some(&["again".to_owned()]));
        assert_eq!(std::fs::read_dir(&logs.image).unwrap().count(), MOST_LOGS);
        logs.keep(&log(&[1]), &Expected::default());
        std::fs::write(logs.image.join(logs.command.as_ref().unwrap()), b"snowmelt start log 1\nchunk x\n").unwrap();
        assert!(!logs.expected().same_command);
    }
}
