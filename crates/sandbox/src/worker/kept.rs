//! What is written down of a sandbox, for a worker that is started after this one.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::agent::protocol::Request;
use crate::{Error, StateDir};

const FILE: &str = "worker.json";

/// What a worker that is started again has to know of a sandbox: [`FILE`] in its directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) request: Request,
    pub(super) user: u32,
    /// The process that mounts, as the first agent said before it was confined.
    pub(super) mounter: Option<i32>,
    /// Where its image was copied to, if it was: its agent does not know that.
    #[serde(default)]
    pub(super) root: Option<String>,
}

impl Kept {
    /// Writes it down.
    ///
    /// # Errors
    /// [`Error::Io`]; what was there before is then there still.
    pub(super) fn write(&self, state: &StateDir) -> Result<(), Error> {
        let path = state.directory(&self.request.record.id).join(FILE);
        let draft = path.with_extension("draft");
        let io = |source| Error::io("write", path.display(), source);
        let text = serde_json::to_vec(self).map_err(|source| io(source.into()))?;
        std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, &path)).map_err(io)
    }

    /// What was written down of a sandbox.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read or understood.
    pub(super) fn read(state: &StateDir, id: &str) -> Result<Self, Error> {
        let path = state.directory(id).join(FILE);
        let text = std::fs::read(&path).map_err(|source| Error::io("read", path.display(), source))?;
        serde_json::from_slice(&text).map_err(|source| Error::io("understand", path.display(), source))
    }
}

/// The users of agents that may still run: what workers before wrote down of sandboxes that are there.
pub(super) fn users(state: &StateDir) -> HashSet<u32> {
    let entries = std::fs::read_dir(state.path()).into_iter().flatten().flatten();
    let kept = entries.filter_map(|entry| std::fs::read(entry.path().join(FILE)).ok());
    kept.filter_map(|text| serde_json::from_slice::<Kept>(&text).ok()).map(|kept| kept.user).collect()
}
