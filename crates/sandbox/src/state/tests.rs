#![allow(clippy::unwrap_used)]
use super::*;

fn dead() -> ProcessId {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    child.wait().unwrap();
    ProcessId { pid, start_ticks: 1 }
}

#[test]
fn records_come_back_as_they_went() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path().join("a/b")).unwrap();
    let mut record = state.create(Kind::Run, "image:tag", true, None, None).unwrap();
    assert_eq!(record.directory, state.path().join(&record.id).join("root"));
    assert_eq!(state.list().unwrap(), [record.clone()]);
    record.agent = ProcessId::own();
    record.runtime = Some(Runtime { program: "/r".into(), state: "/s".into() });
    state.update(&record).unwrap();
    assert_eq!(state.list().unwrap(), [record]);
    assert_eq!(state.cleanup_stale().unwrap(), Vec::<String>::new());
}

#[test]
fn what_no_process_owns_is_removed_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path()).unwrap();
    let alive = state.create(Kind::Run, "alive", true, None, None).unwrap();
    let mut stale = state.create(Kind::Run, "stale", true, None, None).unwrap();
    stale.owner = dead();
    stale.agent = Some(dead());
    state.update(&stale).unwrap();
    // A mount outlives its maker as long as its agent runs.
    let mut mount = state.create(Kind::Mount, "mount", false, Some(Path::new("/nowhere")), None).unwrap();
    mount.owner = dead();
    mount.agent = ProcessId::own();
    state.update(&mount).unwrap();
    // A mount whose agent died is stale even if its maker (a long-lived process) is alive.
    let mut orphan = state.create(Kind::Mount, "orphan", false, Some(Path::new("/nowhere")), None).unwrap();
    orphan.agent = Some(dead());
    state.update(&orphan).unwrap();
    std::fs::create_dir(directory.path().join("stranger")).unwrap();
    std::fs::write(directory.path().join("stranger/record.json"), "{").unwrap();

    let mut removed = state.cleanup_stale().unwrap();
    removed.sort();
    let mut expected = [stale.id, orphan.id];
    expected.sort();
    assert_eq!(removed, expected);
    let mut left: Vec<String> = state.list().unwrap().into_iter().map(|record| record.id).collect();
    left.sort();
    let mut expected = [alive.id, mount.id];
    expected.sort();
    assert_eq!(left, expected);
    assert!(directory.path().join("stranger").is_dir());
}

#[test]
fn mounts_below_a_stale_sandbox_are_unmounted() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::new(directory.path()).unwrap();
    let mut stale = state.create(Kind::Run, "stale", true, None, None).unwrap();
    stale.owner = dead();
    state.update(&stale).unwrap();
    let root = state.directory(&stale.id).join("root");
    std::fs::create_dir(&root).unwrap();
    rustix::mount::mount("tmpfs", &root, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let inner = root.join("with space");
    std::fs::create_dir(&inner).unwrap();
    rustix::mount::mount("tmpfs", &inner, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    assert_eq!(state.cleanup_stale().unwrap(), [stale.id]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.path().to_str().unwrap()));
}
