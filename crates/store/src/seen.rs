//! What this machine has seen names stand for, so that it notices when somebody puts an old record back.
//!
//! A record and the manifest that it names vouch for each other, but both together may be old. Nothing in a store can tell: only who
//! has seen a newer one.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, ImageName, NameRecord, Store};

#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Seen {
    generation: u64,
    published_at: u64,
    /// When the record was published with which the count of generations was seen to begin again. Whatever is older is from before.
    #[serde(default)]
    began_at: u64,
}

/// A folder with a small file for each name.
#[derive(Clone, Debug)]
pub struct SeenNames {
    folder: PathBuf,
}

impl SeenNames {
    /// What is remembered below a cache's folder.
    pub fn new(cache: &Path) -> Self {
        Self { folder: cache.join("seen") }
    }

    fn file(&self, store: &Store, tenant: &str, name: &ImageName) -> PathBuf {
        let words = format!("{}\0{tenant}\0{name}", store.url());
        let hash = snowmelt_chunk::ManifestId::of(words.as_bytes()).to_string();
        self.folder.join(&hash[..32])
    }

    /// Remembers what a name stands for.
    ///
    /// # Errors
    /// [`Error::RolledBack`] where it stood for something newer before: a generation that is not lower and was not published earlier.
    /// Names whose records were lost begin again with generation 1, but later; what they stood for before that is old too. What
    /// cannot be remembered is only logged.
    pub fn check(&self, store: &Store, tenant: &str, name: &ImageName, record: &NameRecord) -> Result<(), Error> {
        let file = self.file(store, tenant, name);
        let mut now = Seen { generation: record.generation, published_at: record.published_at, began_at: 0 };
        let before: Option<Seen> = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(before) = &before {
            now.began_at = before.began_at;
            if *before == now {
                return Ok(());
            }
            let is_older = now.generation <= before.generation && now.published_at <= before.published_at;
            if is_older || now.published_at < before.began_at {
                return Err(Error::RolledBack {
                    subject: format!("image {name} of tenant {tenant:?}"),
                    seen: before.generation,
                    found: now.generation,
                    file,
                });
            }
            if now.generation < before.generation {
                now.began_at = now.published_at;
            }
        }
        if let Err(error) = self.remember(&file, &now) {
            tracing::info!(file = %file.display(), %error, "it is not remembered which generation was seen");
        }
        Ok(())
    }

    fn remember(&self, file: &Path, seen: &Seen) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(seen)?;
        let mut draft = match tempfile::NamedTempFile::new_in(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.folder)?;
                tempfile::NamedTempFile::new_in(&self.folder)?
            }
            draft => draft?,
        };
        draft.write_all(&bytes)?;
        draft.persist(file)?;
        Ok(())
    }
}
