//! The mounted image against what `umoci unpack` makes of the same layers, and against the file system's own checker.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::tree::{self, Entry};
use crate::world::{World, test_image, tool};

/// Compares a mounted image, entry by entry, with umoci's unpacking.
fn compare_with_umoci(world: &World, image: &str) {
    let source = test_image(image);
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    let bundle = world.text("bundle");
    tool("umoci", &["unpack", "--image", source.strip_prefix("oci:").unwrap(), &bundle]);
    world.snowmelt(["publish", &source, image]).success();
    let mounted = world.mount(image, &[]);

    let expected = tree::read(&PathBuf::from(&bundle).join("rootfs"));
    let actual = tree::read(&mounted);
    assert!(expected.len() > 100, "only {} entries", expected.len());
    let differences = tree::differences(&expected, &actual, |name, wanted, entry| {
        correct_umoci(name, wanted, entry, started);
    });
    let shown = differences.len().min(20);
    assert!(
        differences.is_empty(),
        "{} differences, the first:\n{}",
        differences.len(),
        differences[..shown].join("\n")
    );
    world.unmount(&mounted);
    world.assert_nothing_left();
}

/// What umoci 0.4.7 does differently from the layers, and we do not:
/// it leaves its own time on directories that no entry names or that it changes after it made them.
fn correct_umoci(_name: &[u8], wanted: &mut Entry, entry: &mut Entry, started: i64) {
    if wanted.kind == "directory" && wanted.mtime.0 >= started {
        entry.mtime = wanted.mtime;
    }
}

#[test]
fn every_odd_entry_is_as_umoci_unpacks_it() {
    compare_with_umoci(&World::new(), "small");
}

#[test]
fn a_debian_system_is_as_umoci_unpacks_it() {
    compare_with_umoci(&World::new(), "python");
}

#[test]
fn directories_keep_the_times_of_their_entries() {
    let world = World::with_small();
    let mounted = world.mount("small", &[]);
    let tree = tree::read(&mounted);
    // The layers give every directory one time; umoci's unpacking can't vouch for these, so the layers do.
    for name in ["odd", "odd/many", "srv/opaque", "home/ada", "data"] {
        assert_eq!(tree[name.as_bytes()].mtime, (1_700_000_000, 0), "{name}");
    }
    assert_eq!(tree[&b"odd/nanoseconds"[..]].mtime, (1_700_000_000, 500_000_000));
    assert_eq!(tree[&b"odd/before-1970"[..]].mtime, (-1_000_000_000, 0));
    assert_eq!(tree[&b"odd/after-2038"[..]].mtime, (6_000_000_000, 0));
    world.unmount(&mounted);
}

#[test]
fn the_exported_image_is_clean_ext4() {
    let world = World::with_small();
    let file = world.text("small.ext4");
    world.snowmelt(["export", "small", &file]).success();
    let report = tool("e2fsck", &["-fn", &file]);
    assert!(report.contains("files"), "{report}");
    // Debian's kernels and tools see what the layers say.
    let stat = tool("debugfs", &["-R", "stat /odd/capable", &file]);
    assert!(stat.contains("security.capability"), "{stat}");
}

#[test]
fn writes_to_a_writable_mount_stay_out_of_the_image() {
    let world = World::with_small();
    let mounted = world.mount("small", &["--rw"]);
    std::fs::write(mounted.join("srv/new"), vec![7; 3 << 20]).unwrap();
    std::fs::remove_file(mounted.join("etc/greeting")).unwrap();
    assert_eq!(std::fs::read(mounted.join("srv/new")).unwrap(), vec![7; 3 << 20]);
    world.unmount(&mounted);

    let again = world.mount("small", &[]);
    assert!(!again.join("srv/new").exists());
    assert_eq!(std::fs::read_to_string(again.join("etc/greeting")).unwrap(), "hello from snowmelt\n");
    let refused = std::fs::write(again.join("srv/new"), "x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    world.unmount(&again);
    world.snowmelt(["verify", "small"]).success();
}

#[test]
fn file_capabilities_work_for_unprivileged_users() {
    let world = World::new();
    let rootfs = world.path("rootfs");
    for directory in ["bin", "capable", "proc", "dev", "sys", "etc", "tmp"] {
        std::fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    std::fs::copy("/bin/busybox", rootfs.join("capable/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
    tool("setcap", &["cap_net_raw+ep", rootfs.join("capable/busybox").to_str().unwrap()]);
    world.snowmelt(["publish", &format!("dir:{}", rootfs.display()), "capable"]).success();
    let run = world
        .snowmelt(["run", "capable", "--user", "1000", "--", "/capable/busybox", "grep", "CapEff", "/proc/self/status"])
        .success();
    assert!(run.stdout().contains("0000000000002000"), "{}", run.stdout());
}
