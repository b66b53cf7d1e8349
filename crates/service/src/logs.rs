//! What functions write, kept for each in files of its own.
//!
//! ```text
//! <folder>/<tenant>/<function>/log         the newest
//!                              log.1       what was before
//!                              log.times   when what of the newest was written: u64 milliseconds since 1970, u64 offset, little endian
//!                              log.1.times
//! ```
//!
//! Lines have no times of their own, as in Lambda: the second file has one for each second that something was written in.

mod follow;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

pub(crate) use self::follow::{Follower, From};

/// A file that has become so long is put aside, in place of the one that was before, and so is one with so many times.
const MOST_BYTES: u64 = 64 << 20;
const MOST_TIMES: u64 = 1 << 18;
/// Between two times.
const STEP_MS: u64 = 1000;
/// One time, and where what was written then begins.
const TIME_BYTES: u64 = 16;
/// Logs that are kept open.
const MOST_OPEN: usize = 128;

pub(crate) struct Logs {
    folder: PathBuf,
    open: Mutex<HashMap<PathBuf, Open>>,
}

/// A log that is being written.
struct Open {
    file: File,
    bytes: u64,
    times: File,
    time_count: u64,
    /// In milliseconds.
    last_time: u64,
}

impl Open {
    fn at(path: &Path) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let (file, times) = (append(path)?, append(&times_of(path))?);
        let bytes = file.metadata()?.len();
        let whole = times.metadata()?.len() / TIME_BYTES;
        // One that was cut off would shift all that follow.
        times.set_len(whole * TIME_BYTES)?;
        Ok(Self { file, bytes, times, time_count: whole, last_time: 0 })
    }

    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // A clock that was set back must not stop it.
        if now.abs_diff(self.last_time) >= STEP_MS {
            self.times.write_all(&[now.to_le_bytes(), self.bytes.to_le_bytes()].concat())?;
            self.time_count += 1;
            self.last_time = now;
        }
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes > MOST_BYTES || self.time_count >= MOST_TIMES
    }
}

/// Where the times of a log are.
fn times_of(log: &Path) -> PathBuf {
    let mut name = log.file_name().unwrap_or_default().to_owned();
    name.push(".times");
    log.with_file_name(name)
}

/// Where what was before it is.
fn before(log: &Path) -> PathBuf {
    log.with_extension("1")
}

impl Logs {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::default() }
    }

    /// Where a function's log is.
    pub(crate) fn path(&self, tenant: &str, function: &str) -> PathBuf {
        self.folder.join(tenant).join(function).join("log")
    }

    /// Adds to a function's log. What cannot be written is lost, which is said.
    pub(crate) fn add(&self, tenant: &str, function: &str, bytes: &[u8]) {
        let path = self.path(tenant, function);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let written = (|| {
            if !open.contains_key(&path) {
                if open.len() >= MOST_OPEN {
                    open.clear();
                }
                open.insert(path.clone(), Open::at(&path)?);
            }
            let Some(log) = open.get_mut(&path) else { return Ok(()) };
            log.add(bytes)?;
            if log.is_full() {
                open.remove(&path);
                std::fs::rename(times_of(&path), times_of(&before(&path)))?;
                std::fs::rename(&path, before(&path))?;
            }
            std::io::Result::Ok(())
        })();
        if let Err(error) = written {
            open.remove(&path);
            tracing::warn!(path = %path.display(), %error, "a function's log is not written");
        }
    }

    /// Reads a function's log.
    pub(crate) fn follow(&self, tenant: &str, function: &str, from: From) -> Follower {
        Follower::new(self.path(tenant, function), from)
    }

    /// Removes a function's logs.
    pub(crate) fn remove(&self, tenant: &str, function: &str) {
        let path = self.path(tenant, function);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
        if let Some(folder) = path.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}
