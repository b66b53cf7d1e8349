//! Manifests that were read before, kept on this machine as they are stored: sealed, so that a start asks a store only what an image's name
//! stands for. Where the store is a directory of this machine there is nothing to keep.
//!
//! ```text
//! <cache>/manifests/<manifest id>.manifest     what its id names, or nothing
//! ```
//!
//! Everything here can be lost. What is damaged is read again.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use snowmelt_chunk::{Manifest, ManifestId};

/// A longer one is not kept: 16 MiB is the manifest of an image of some 80 GB.
const LONGEST_BYTES: u64 = 16 << 20;
/// Those that are kept; the longest unread go.
const MOST: usize = 256;

/// The manifests of one machine.
#[derive(Debug)]
pub(super) struct Manifests(PathBuf);

impl Manifests {
    pub(super) fn new(cache: &Path) -> Self {
        Self(cache.join("manifests"))
    }

    fn path(&self, id: &ManifestId) -> PathBuf {
        self.0.join(format!("{id}.manifest"))
    }

    /// One that is there, and is what its id names.
    pub(super) fn read(&self, tenant: &str, id: &ManifestId) -> Option<Manifest> {
        let path = self.path(id);
        if std::fs::metadata(&path).ok()?.len() > LONGEST_BYTES {
            return None;
        }
        let bytes = std::fs::read(&path).ok()?;
        if ManifestId::of(&bytes) != *id {
            return None;
        }
        let manifest = Manifest::decode(&bytes).ok().filter(|manifest| manifest.tenant() == tenant)?;
        // By this it is known what is in use.
        let _ = std::fs::File::options().write(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(manifest)
    }

    /// Keeps one. A machine that takes none reads it again.
    pub(super) fn keep(&self, id: &ManifestId, manifest: &Manifest) {
        let bytes = manifest.as_bytes();
        if bytes.len() as u64 > LONGEST_BYTES {
            return;
        }
        let path = self.path(id);
        let draft = path.with_extension(std::process::id().to_string());
        let kept = std::fs::create_dir_all(&self.0)
            .and_then(|()| std::fs::write(&draft, bytes))
            .and_then(|()| std::fs::rename(&draft, &path));
        if let Err(error) = kept {
            let _ = std::fs::remove_file(&draft);
            tracing::info!(path = %path.display(), %error, "the manifest is not kept");
        }
        super::start_logs::prune(&self.0, MOST);
    }
}
