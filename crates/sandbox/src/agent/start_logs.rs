//! Where the logs of starts are kept: by image, and for each image by what was run. They lie beside the manifest, so that every
//! machine with that store has them. Where the store is no directory they lie in this machine's cache as well, so that its own
//! starts need not ask for them, and only there where the store takes none.
//!
//! ```text
//! <root of the store>/starts/<tenant>/   and   <cache>/starts/
//!   <manifest id>/<16 hex>      what starts of a command read, merged: named by a hash of its words
//!                 common        what all commands so far have in common, once there were two
//!                 first         the log of the first command, to compare with the second
//! ```
//!
//! What a program reads at its start depends on the program, not on the image: a command gets its own log, and one that was
//! never seen gets what the others have in common. Everything here is advice; what cannot be read or written is left out.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use snowmelt_chunk::ManifestId;
use snowmelt_device::StartLog;
use snowmelt_store::Store;

use super::link::Link;
use crate::worker::{FromAgent, StartRead};

/// Hexadecimal digits of a log's name.
const NAME_LENGTH: usize = 16;
/// A log longer than this is not read.
const LONGEST_BYTES: u64 = 8 << 20;
/// Logs that are kept of one image, and images of which logs are kept; the longest unused go. 4 KiB to 100 KiB a log.
const MOST_LOGS: usize = 64;
const MOST_IMAGES: usize = 256;
/// A longer one is not put into object storage, from where it would not be read.
const LONGEST_REMOTE_BYTES: usize = 1 << 20;
/// A log whose chunks are the same is put into object storage once in so many starts, so that other machines get older too.
const SHARED_EVERY: u64 = 16;
/// How long the end of a sandbox waits for object storage to take its log, or anything else that can do without.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The logs of one image for one command.
#[derive(Clone, Debug)]
pub(crate) struct StartLogs {
    all: PathBuf,
    image: PathBuf,
    /// `None` for a mount, of which nobody knows what will be read.
    command: Option<String>,
    /// Whether the folder is the cache's, which has logs of images of all stores, and must be bounded.
    is_cache: bool,
    /// Where others find the logs too, if that is no directory.
    remote: Option<Remote>,
    /// The worker, where it is who keeps them.
    keeper: Option<Link>,
}

/// The logs of an image in a store that is asked by requests.
#[derive(Clone, Debug)]
struct Remote {
    store: Store,
    tenant: String,
    manifest: ManifestId,
}

/// What the log of a command is called.
fn name_of(words: &[String]) -> String {
    let hash = blake3::hash(words.join("\0").as_bytes()).to_hex();
    hash[..NAME_LENGTH].to_owned()
}

/// What is known about the start to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub(super) log: StartLog,
    /// Whether the very same command was started before, on this machine or one that shares its store.
    pub(super) same_command: bool,
}

impl Expected {
    /// The chunks whose pages are replayed. Of the command's own some are not, to see whether they are still needed.
    pub(super) fn replayed(&self) -> HashSet<u64> {
        let examined = self.examined();
        self.log.indices().filter(|index| !examined.contains(index)).collect()
    }

    /// The log as it is replayed.
    pub(super) fn to_replay(&self) -> StartLog {
        self.log.without_pages_of(&self.examined())
    }

    fn examined(&self) -> HashSet<u64> {
        if self.same_command { self.log.examined() } else { HashSet::new() }
    }
}

/// A start that was kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    start: StartLog,
    replayed: HashSet<u64>,
    merged: StartLog,
    /// Whether it is the first of its command here.
    is_new: bool,
    /// Whether others may want to know.
    is_news: bool,
}

impl StartLogs {
    /// `command` is what was asked for: the image's own words for it are the image's, so they need not be here.
    pub(crate) fn new(
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
        let command = command.map(name_of);
        let remote = is_cache.then(|| Remote { store: store.clone(), tenant: tenant.into(), manifest: *manifest });
        Self { all, image, command, is_cache, remote, keeper: None }
    }

    /// Those that the worker keeps, since this process may not. It knows the image.
    pub(super) fn of_worker(link: Link, command: Option<&[String]>) -> Self {
        let nowhere = PathBuf::new;
        let command = command.map(name_of);
        Self { all: nowhere(), image: nowhere(), command, is_cache: false, remote: None, keeper: Some(link) }
    }

    /// Whether it is known what is started; only then is anything kept.
    pub(super) fn has_command(&self) -> bool {
        self.command.is_some()
    }

    /// What is known about the start to come; nothing is an empty log. A store that is no directory is asked where this machine
    /// knows nothing: two requests, beside those for the manifest.
    pub(super) fn expected(&self) -> Expected {
        if let Some(log) = self.command.as_deref().and_then(|name| self.read(name)) {
            return Expected { log, same_command: true };
        }
        Expected { log: self.read("common").unwrap_or_default(), same_command: false }
    }

    /// What is known here, or else elsewhere.
    fn read(&self, name: &str) -> Option<StartLog> {
        read(&self.image.join(name)).or_else(|| self.remote.as_ref()?.read(name))
    }

    /// Merges what a start read into what is kept of its command; gives what others may want to know. Other sandboxes may do so
    /// at the same time: then one of the starts is lost, which is as if it had not been.
    pub(super) fn keep(&self, start: StartLog, expected: &Expected) -> Option<Kept> {
        let name = self.command.as_deref().filter(|_| !start.is_empty())?;
        if let Some(link) = &self.keeper {
            let (start, log) = (start.encode(), expected.log.encode());
            let read = StartRead { start, expected: log, same_command: expected.same_command };
            link.tell(&FromAgent::Read(Box::new(read)));
            return None;
        }
        let own = read(&self.image.join(name)).or_else(|| expected.same_command.then(|| expected.log.clone()));
        let replayed = expected.replayed();
        let merged = own.as_ref().map_or_else(|| start.clone(), |own| own.merged(&start, &replayed));
        if let Err(error) = self.write(name, &merged, own.is_none()) {
            // A store may well be for others to write.
            tracing::info!(path = %self.image.display(), %error, "what this start read is not kept");
        }
        let is_news =
            own.as_ref().is_none_or(|own| !own.has_chunks_of(&merged)) || merged.starts.is_multiple_of(SHARED_EVERY);
        Some(Kept { start, replayed, merged, is_new: own.is_none(), is_news })
    }

    /// Keeps and shares what an agent says that a start read, which may be anything.
    pub(crate) fn keep_text(&self, start: &str, expected: &str, same_command: bool) {
        let (Some(start), Some(log)) = (StartLog::decode(start), StartLog::decode(expected)) else { return };
        let expected = Expected { log, same_command };
        if let Some(kept) = self.keep(start, &expected) {
            self.share(&kept);
        }
    }

    /// The same in object storage, for other machines; what asks a server is for the very end.
    pub(super) fn share(&self, kept: &Kept) {
        let (Some(name), Some(remote)) = (&self.command, self.remote.clone()) else { return };
        if !kept.is_news || !remote.store.is_object_storage() {
            return;
        }
        let (name, kept) = (name.clone(), kept.clone());
        // Nobody waits for a server that does not answer: the thread ends with the process.
        let (done, waited) = mpsc::channel();
        let put = move || done.send(remote.put(&name, &kept));
        let started = std::thread::Builder::new().name("put-start-log".into()).spawn(put);
        match started.map(|_| waited.recv_timeout(PATIENCE)) {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::info!(%error, "what this start read is kept on this machine only"),
            _ => tracing::info!("what this start read is kept on this machine only: the store does not answer"),
        }
    }

    fn write(&self, name: &str, log: &StartLog, is_new: bool) -> io::Result<()> {
        std::fs::create_dir_all(&self.image)?;
        write(&self.image.join(name), log)?;
        if is_new {
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

    /// The names of the logs that are there.
    fn names(&self) -> Vec<String> {
        let here = std::fs::read_dir(&self.image).into_iter().flatten().flatten();
        let mut names: Vec<String> = here.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        if let Some(remote) = &self.remote {
            names.extend(remote.store.list_start_logs(&remote.tenant, &remote.manifest).unwrap_or_default());
        }
        names.retain(|name| name.len() == NAME_LENGTH && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        names.sort();
        names.dedup();
        names
    }
}

/// What is known of the starts of one command of an image.
#[derive(Clone, Debug)]
pub struct CommandLog {
    /// A hash of the command's words; the words themselves are kept nowhere, since they may be secret.
    pub name: String,
    /// What its starts read.
    pub log: StartLog,
}

/// What is known of the starts of an image: of all its commands, or of the one with these words and entrypoint, as they are given
/// to a run. The longest log comes first. What cannot be read is left out.
pub fn command_logs(
    store: &Store,
    tenant: &str,
    cache: &Path,
    manifest: &ManifestId,
    command: Option<&[String]>,
) -> Vec<CommandLog> {
    let logs = StartLogs::new(store, tenant, cache, manifest, command);
    let names = logs.command.clone().map_or_else(|| logs.names(), |name| vec![name]);
    let log = |name: String| logs.read(&name).map(|log| CommandLog { name, log });
    let mut found: Vec<CommandLog> = names.into_iter().filter_map(log).collect();
    found.sort_by_key(|found| std::cmp::Reverse((found.log.starts, found.log.chunks.len())));
    found
}

impl Remote {
    fn read(&self, name: &str) -> Option<StartLog> {
        let bytes = self.store.read_start_log(&self.tenant, &self.manifest, name).ok()?;
        StartLog::decode(std::str::from_utf8(&bytes).ok()?)
    }

    /// Puts a log, and what it has in common with the others where its command is new. As many as there may be stay as they are:
    /// other commands have what is common.
    fn put(&self, name: &str, kept: &Kept) -> Result<(), snowmelt_store::Error> {
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
        if !kept.is_new {
            return put(name, &kept.merged);
        }
        // Another machine may have put the same command's log meanwhile, or long ago if nobody asked for it.
        if is_there(name)
            && let Some(before) = self.read(name)
        {
            return put(name, &before.merged(&kept.start, &kept.replayed));
        }
        let before = ["common", "first"].into_iter().filter(|name| is_there(name)).find_map(|name| self.read(name));
        match before {
            Some(before) => {
                let common = before.common(&kept.merged);
                if common != before || !is_there("common") {
                    put("common", &common)?;
                }
            }
            None => put("first", &kept.merged)?,
        }
        put(name, &kept.merged)
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
pub(super) fn prune(folder: &Path, most: usize) {
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
    use snowmelt_device::LoggedChunk;

    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(folder.join("store").to_str().unwrap(), &snowmelt_store::StoreOptions::default()).unwrap()
    }

    fn log(chunks: &[u64]) -> StartLog {
        let chunk = |index: &u64| LoggedChunk { index: *index, weight: 2, ..LoggedChunk::default() };
        StartLog { starts: 1, chunks: chunks.iter().map(chunk).collect(), vain: Vec::new() }
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
            logs.keep(log(chunks), &expected);
            (expected.log.indices().collect::<Vec<_>>(), expected.same_command)
        };
        assert_eq!(start(&["a"], &[1, 2, 3]), (vec![], false));
        // One start says nothing about what others will have in common with it.
        assert_eq!(start(&["b"], &[2, 3, 4]), (vec![], false));
        assert_eq!(start(&["c"], &[2, 9]), (vec![2, 3], false));
        assert_eq!(start(&["d"], &[2]), (vec![2], false));
        assert_eq!(start(&["a"], &[1, 2, 5]), (vec![1, 2, 3], true));
        // 3 was replayed, so nobody knows whether it was needed; 5 has yet to be needed again.
        assert_eq!(start(&["a"], &[]), (vec![1, 2, 5, 3], true));
        assert_eq!(start(&["a"], &[1, 2]), (vec![1, 2, 5, 3], true));
        assert_eq!(start(&["a"], &[1, 2]), (vec![1, 2, 3], true));
        // Words are words, wherever the spaces are.
        assert_eq!(start(&["a b"], &[8]), (vec![2], false));
        assert_eq!(start(&["a", "b"], &[2]), (vec![], false));

        // A mount keeps nothing.
        let mount = StartLogs::new(&store, "t", cache.path(), &manifest, None);
        let before = std::fs::read_dir(&mount.image).unwrap().count();
        assert!(mount.keep(log(&[1]), &mount.expected()).is_none());
        assert_eq!(std::fs::read_dir(&mount.image).unwrap().count(), before);
    }

    #[test]
    fn logs_are_bounded_and_damage_is_none() {
        let cache = tempfile::tempdir().unwrap();
        let manifest: ManifestId = "22".repeat(32).parse().unwrap();
        let store = store(cache.path());
        for number in 0..MOST_LOGS + 10 {
            let logs = StartLogs::new(&store, "t", cache.path(), &manifest, Some(&[number.to_string()]));
            logs.keep(log(&[1]), &Expected::default());
        }
        let logs = StartLogs::new(&store, "t", cache.path(), &manifest, Some(&["again".to_owned()]));
        assert_eq!(std::fs::read_dir(&logs.image).unwrap().count(), MOST_LOGS);
        logs.keep(log(&[1]), &Expected::default());
        std::fs::write(logs.image.join(logs.command.as_ref().unwrap()), b"snowmelt start log 2\nchunk x\n").unwrap();
        assert!(!logs.expected().same_command);
    }
}
