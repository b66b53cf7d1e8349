//! What memory the container takes, as its cgroup says.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The names of a figure, with cgroups of version 1 and 2.
const PEAK: [&str; 2] = ["memory.max_usage_in_bytes", "memory.peak"];
const NOW: [&str; 2] = ["memory.usage_in_bytes", "memory.current"];

/// The most memory that the container's processes had, in MB; 0 where that cannot be told.
pub(super) fn memory_used_mb() -> u64 {
    // A host has one container. To find its cgroup takes longer than many an invocation, and so does opening its file.
    static FILE: OnceLock<File> = OnceLock::new();
    let file = FILE.get().or_else(|| {
        let found = File::open(file_of_container(PEAK)?).ok()?;
        Some(FILE.get_or_init(|| found))
    });
    let used = file.and_then(|file| {
        let mut text = [0; 32];
        let count = file.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..count]).ok()?.trim().parse::<u64>().ok()
    });
    used.unwrap_or(0) / (1 << 20)
}

/// The file that says what they have at the moment.
pub(super) fn memory_file() -> Option<PathBuf> {
    file_of_container(NOW)
}

fn file_of_container(names: [&str; 2]) -> Option<PathBuf> {
    let children = |pid: &str| {
        let file = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = file.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let file = |pid: &str| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mut groups = groups.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            if controllers.split(',').any(|name| name == "memory") {
                Some(format!("/sys/fs/cgroup/memory{path}/{}", names[0]))
            } else {
                controllers.is_empty().then(|| format!("/sys/fs/cgroup{path}/{}", names[1]))
            }
        });
        groups.find(|file| Path::new(file).exists())
    };
    // The container's first process, in a group of its own: this one's child, or the runtime's until that has left it.
    let own = file("self");
    let mut below = children("self");
    below.extend(below.clone().iter().flat_map(|child| children(child)));
    below.iter().filter_map(|pid| file(pid)).find(|found| own.as_ref() != Some(found)).map(PathBuf::from)
}
