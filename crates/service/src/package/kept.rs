//! Packages as they came, each under the hash of its bytes.
//!
//! ```text
//! <folder>/<tenant>/<function>/<sha256>.zip
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) struct Packages {
    folder: PathBuf,
    /// Held from when a package is put until its function says that it needs it, and while those that nobody needs are removed.
    changing: Mutex<()>,
}

/// A turn at changing what is kept.
pub(crate) struct Turn<'a> {
    packages: &'a Packages,
    _held: MutexGuard<'a, ()>,
}

impl Packages {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), changing: Mutex::default() }
    }

    fn of(&self, tenant: &str, function: &str) -> PathBuf {
        self.folder.join(tenant).join(function)
    }

    /// Where one is.
    pub(crate) fn path(&self, tenant: &str, function: &str, sha256: &str) -> PathBuf {
        self.of(tenant, function).join(format!("{sha256}.zip"))
    }

    /// Of which tenants and functions there are packages.
    pub(crate) fn owners(&self) -> Vec<(String, String)> {
        let names = |folder: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        let of_tenant = |tenant: String| {
            let functions = names(&self.folder.join(&tenant));
            functions.into_iter().map(move |function| (tenant.clone(), function))
        };
        names(&self.folder).into_iter().flat_map(of_tenant).collect()
    }

    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn { packages: self, _held: self.changing.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Turn<'_> {
    /// Keeps a package by its SHA-256, as hexadecimal digits.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn put(&self, tenant: &str, function: &str, sha256: &str, package: &[u8]) -> io::Result<()> {
        let path = self.packages.path(tenant, function, sha256);
        if !path.exists() {
            let folder = self.packages.of(tenant, function);
            std::fs::create_dir_all(&folder)?;
            let draft = path.with_extension("draft");
            let mut file = File::create(&draft)?;
            file.write_all(package)?;
            file.sync_all()?;
            std::fs::rename(draft, path)?;
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// Removes those of a function that are not among these. One that stays costs room and nothing else.
    pub(crate) fn keep_only(&self, tenant: &str, function: &str, needed: &BTreeSet<String>) {
        let folder = self.packages.of(tenant, function);
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            // A draft is of a service before this one: here nobody writes any.
            let is_needed = path.extension().is_some_and(|extension| extension == "zip")
                && path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| needed.contains(stem));
            if !is_needed && let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a package was not removed");
            }
        }
        // Fails while there are others.
        let _ = std::fs::remove_dir(folder);
    }
}
