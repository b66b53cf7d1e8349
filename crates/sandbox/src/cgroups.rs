//! Cgroups that a killed runtime leaves: it makes them before it writes down that it did, so that its own `delete` does
//! not know of them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;
use crate::identity::ProcessId;

/// How deep a container's cgroup can lie below the mount of its hierarchy: that of this process, and its own.
const DEEPEST: u32 = 12;
/// How long ended processes may take to leave a cgroup, and how often that is looked for.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
const LEAVE_INTERVAL: Duration = Duration::from_millis(5);
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Kills what is in the cgroups of this name, in every hierarchy, and removes them.
pub(crate) fn remove(name: &str) -> Result<(), Error> {
    remove_below(Path::new("/sys/fs/cgroup"), name, DEEPEST)
}

fn remove_below(directory: &Path, name: &str, depth: u32) -> Result<(), Error> {
    // Cgroups come and go at any time; one that cannot be listed any more has nothing of ours.
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if entry.file_name() == name {
            remove_one(&path)?;
        } else if depth > 0 {
            remove_below(&path, name, depth - 1)?;
        }
    }
    Ok(())
}

fn remove_one(cgroup: &Path) -> Result<(), Error> {
    let members = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for process in members.lines().filter_map(|line| line.parse().ok()).filter_map(ProcessId::of) {
        process.kill(KILL_PATIENCE);
    }
    let deadline = Instant::now() + LEAVE_PATIENCE;
    loop {
        match std::fs::remove_dir(cgroup) {
            // A process that has ended leaves its cgroup a moment later, and version 1 has no event for it.
            Err(source) if source.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(LEAVE_INTERVAL);
            }
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove the cgroup", cgroup.display(), source));
            }
            _ => return Ok(()),
        }
    }
}
