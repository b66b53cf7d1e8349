//! What is written down of a sandbox, for a worker that is started after this one.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};

use crate::agent::protocol::Request;
use crate::identity::ProcessId;
use crate::state::Kind;
use crate::{Error, StateDir};

const FILE: &str = "worker.json";

/// What a worker that is started again has to know of a sandbox: [`FILE`] in its directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) request: Request,
    pub(super) user: u32,
    /// The mount namespace that the sandbox is in: device and inode number.
    pub(super) namespace: (u64, u64),
    /// The process that mounts, as the first agent said before it was confined.
    pub(super) mounter: Option<i32>,
}

impl Kept {
    /// Whether a process that an agent names may be the sandbox's runtime: it is in the namespace of the command that started it, where no
    /// process of another sandbox is.
    pub(super) fn is_runtime(&self, process: &ProcessId) -> bool {
        self.request.record.kind == Kind::Run && is_in(process, self.namespace)
    }

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

fn is_in(process: &ProcessId, namespace: (u64, u64)) -> bool {
    let found = std::fs::metadata(format!("/proc/{}/ns/mnt", process.pid));
    process.is_alive() && found.is_ok_and(|found| (found.dev(), found.ino()) == namespace)
}

/// Names a mount namespace: its device and inode number.
pub(super) fn namespace(file: &impl AsFd) -> Result<(u64, u64), Error> {
    let found = rustix::fs::fstat(file).map_err(|error| Error::io("look at", "a mount namespace", error))?;
    Ok((found.st_dev, found.st_ino))
}

/// The users of agents that may still run: what workers before wrote down of sandboxes that are there.
pub(super) fn users(state: &StateDir) -> HashSet<u32> {
    let entries = std::fs::read_dir(state.path()).into_iter().flatten().flatten();
    let kept = entries.filter_map(|entry| std::fs::read(entry.path().join(FILE)).ok());
    kept.filter_map(|text| serde_json::from_slice::<Kept>(&text).ok()).map(|kept| kept.user).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_in_the_sandboxs_namespace_is_killed_for_its_agent() {
        let own = ProcessId::own().unwrap();
        let here = namespace(&std::fs::File::open("/proc/self/ns/mnt").unwrap()).unwrap();
        assert!(is_in(&own, here));
        assert!(!is_in(&own, (here.0, here.1 + 1)));
        assert!(!is_in(&ProcessId { start_ticks: own.start_ticks + 1, ..own }, here));
    }
}
