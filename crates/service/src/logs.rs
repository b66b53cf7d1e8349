//! What functions write, kept for each in files of its own.
//!
//! ```text
//! <folder>/<tenant>/<function>/log       the newest
//!                              log.1     what was before
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A file that has become so long is put aside, in place of the one that was before.
const MOST_BYTES: u64 = 64 << 20;
/// Files that are kept open.
const MOST_OPEN: usize = 128;

pub(crate) struct Logs {
    folder: PathBuf,
    open: Mutex<HashMap<PathBuf, (File, u64)>>,
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
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                let file = OpenOptions::new().create(true).append(true).open(&path)?;
                let length = file.metadata()?.len();
                open.insert(path.clone(), (file, length));
            }
            let Some((file, length)) = open.get_mut(&path) else { return Ok(()) };
            file.write_all(bytes)?;
            *length += bytes.len() as u64;
            if *length > MOST_BYTES {
                open.remove(&path);
                std::fs::rename(&path, path.with_extension("1"))?;
            }
            std::io::Result::Ok(())
        })();
        if let Err(error) = written {
            open.remove(&path);
            tracing::warn!(path = %path.display(), %error, "a function's log is not written");
        }
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
