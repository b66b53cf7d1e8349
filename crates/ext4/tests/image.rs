//! Images of every kind of node, judged by e2fsck and by the kernel.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};

use common::{Image, content_byte, directory, file, node, options, run};
use snowmelt_ext4::{Error, Kind, NodeId, Options, Placement, Plan, Segment, Timestamp, Tree};

/// One of everything.
fn everything() -> Tree {
    let acl = {
        // Version 2: owner rw-, user 1000 r--, group r--, mask r--, other ---.
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in
            [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(perm.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        acl
    };
    let mut nodes = vec![directory([
        ("bin", 1),
        ("empty", 2),
        ("sub", 3),
        ("short", 4),
        ("long", 5),
        ("null", 6),
        ("wide", 7),
        ("pipe", 8),
        ("socket", 9),
        ("hard", 1),
        ("old", 10),
        ("new", 11),
        ("attributes", 12),
        ("sparse", 13),
        ("disk", 14),
    ])];
    let mut bin = file(10_000);
    bin.mode = 0o4755;
    bin.uid = 4_000_000_000;
    bin.gid = 70_000;
    bin.xattrs =
        vec![(b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
    nodes.push(bin);
    nodes.push(file(0));
    let mut sub = directory([(b"\xff\xfe name".to_vec(), 1_u32), (vec![b'n'; 255], 15)]);
    sub.mode = 0o1777;
    nodes.push(sub);
    nodes.push(node(Kind::Symlink { target: vec![b's'; 59] }, 0o777));
    nodes.push(node(Kind::Symlink { target: vec![b'l'; 4095] }, 0o777));
    nodes.push(node(Kind::CharDevice { major: 1, minor: 3 }, 0o666));
    nodes.push(node(Kind::CharDevice { major: 4095, minor: (1 << 20) - 1 }, 0o666));
    nodes.push(node(Kind::Fifo, 0o600));
    nodes.push(node(Kind::Socket, 0o600));
    for seconds in [-1_000_000_000, 5_000_000_000] {
        let mut old = file(1);
        old.mtime = Timestamp { seconds, nanoseconds: 999_999_999 };
        nodes.push(old);
    }
    let mut attributes = file(4096);
    attributes.xattrs = vec![
        (b"security.selinux".to_vec(), b"system_u:object_r:bin_t:s0\0".to_vec()),
        (b"system.posix_acl_access".to_vec(), acl),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.empty".to_vec(), vec![]),
        (b"user.large".to_vec(), (0..3000).map(|i| (i % 251) as u8).collect()),
    ];
    nodes.push(attributes);
    nodes.push(node(
        Kind::File {
            size: 5 << 30,
            segments: vec![
                Segment { first_block: 1, blocks: 2 },
                Segment { first_block: 10, blocks: 1 },
                Segment { first_block: 100, blocks: 1 },
                Segment { first_block: 1000, blocks: 1 },
                Segment { first_block: (5 << 18) - 1, blocks: 1 },
            ],
        },
        0o600,
    ));
    nodes.push(node(Kind::BlockDevice { major: 8, minor: 300 }, 0o660));
    nodes.push(file(1));
    Tree { nodes }
}

#[test]
fn the_kernel_reads_everything_back() {
    let image = Image::write(&everything(), &options());
    image.check();
    let mount = image.mount("ro");
    let root = mount.path();
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();

    let bin = stat("bin");
    assert_eq!(
        (bin.mode() & 0o7777, bin.uid(), bin.gid(), bin.nlink(), bin.size()),
        (0o4755, 4_000_000_000, 70_000, 3, 10_000)
    );
    assert_eq!((bin.mtime(), bin.mtime_nsec()), (1_600_000_000, 123_456_789));
    assert_eq!(bin.ino(), stat("hard").ino());
    assert_eq!(bin.ino(), fs::metadata(root.join("sub").join(OsStr::from_bytes(b"\xff\xfe name"))).unwrap().ino());
    assert!(
        fs::read(root.join("bin"))
            .unwrap()
            .iter()
            .enumerate()
            .all(|(at, byte)| *byte == content_byte(NodeId(1), at as u64))
    );
    assert_eq!(stat("empty").size(), 0);
    assert_eq!((stat("sub").mode() & 0o7777, stat("sub").nlink()), (0o1777, 2));
    assert!(root.join("sub").join("n".repeat(255)).exists());
    assert_eq!(fs::read_link(root.join("short")).unwrap().as_os_str().len(), 59);
    assert_eq!(fs::read_link(root.join("long")).unwrap().as_os_str().len(), 4095);
    assert_eq!(stat("null").rdev(), nix::sys::stat::makedev(1, 3));
    assert_eq!(stat("wide").rdev(), nix::sys::stat::makedev(4095, (1 << 20) - 1));
    assert_eq!(stat("disk").rdev(), nix::sys::stat::makedev(8, 300));
    assert!(stat("disk").file_type().is_block_device() && stat("wide").file_type().is_char_device());
    assert!(stat("pipe").file_type().is_fifo() && stat("socket").file_type().is_socket());
    assert_eq!((stat("old").mtime(), stat("old").mtime_nsec()), (-1_000_000_000, 999_999_999));
    assert_eq!(stat("new").mtime(), 5_000_000_000);

    let attributes = get_attributes(&root.join("attributes"));
    assert_eq!(attributes["user.large"].len(), 2 * 3000);
    assert_eq!(attributes["user.empty"], "");
    assert_eq!(attributes["trusted.overlay.opaque"], "79");
    let expected = common::hex(&everything().nodes[12].xattrs[1].1);
    assert_eq!(attributes["system.posix_acl_access"], expected);
    assert_eq!(get_attributes(&root.join("bin"))["security.capability"].len(), 40);

    let sparse = File::open(root.join("sparse")).unwrap();
    assert_eq!(sparse.metadata().unwrap().size(), 5 << 30);
    for (block, present) in
        [(0, false), (1, true), (2, true), (3, false), (10, true), (1000, true), (1001, false), ((5 << 18) - 1, true)]
    {
        let mut bytes = [1; 4096];
        sparse.read_exact_at(&mut bytes, block * 4096).unwrap();
        let expected = |at: usize| if present { content_byte(NodeId(13), block * 4096 + at as u64) } else { 0 };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)), "block {block}");
    }
}

/// All attributes in hexadecimal, as getfattr prints them.
fn get_attributes(path: &std::path::Path) -> BTreeMap<String, String> {
    let out = std::process::Command::new("getfattr")
        .args(["-d", "-m", "-", "-e", "hex", "--absolute-names"])
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_string(), value.trim_start_matches("0x").to_string()))
        .collect()
}

#[test]
fn a_guest_can_write_and_fill_it() {
    let image = Image::write(&everything(), &options());
    {
        let mount = image.mount("rw");
        fs::write(mount.path().join("fresh"), vec![7; 5 << 20]).unwrap();
        fs::remove_file(mount.path().join("bin")).unwrap();
        fs::create_dir(mount.path().join("sub/deeper")).unwrap();
        for number in 0..3000 {
            fs::write(mount.path().join(format!("sub/deeper/{number}")), b"x").unwrap();
        }
        // Until nothing is free: every block that the bitmaps promise can be used.
        let filled = std::io::copy(&mut std::io::repeat(3), &mut File::create(mount.path().join("fill")).unwrap());
        assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }
    image.check();
    let mount = image.mount("ro");
    assert_eq!(fs::read(mount.path().join("fresh")).unwrap(), vec![7; 5 << 20]);
    assert_eq!(fs::read_dir(mount.path().join("sub/deeper")).unwrap().count(), 3000);
}

#[test]
fn a_directory_of_100_000_entries_is_found_by_hash() {
    let entries =
        (0..100_000_u32).map(|number| (format!("entry-{number:x}-{}", "y".repeat((number % 40) as usize)), number + 1));
    let mut nodes = vec![directory(entries.clone())];
    nodes.extend((0..100_000).map(|_| file(0)));
    let image = Image::write(&Tree { nodes }, &options());
    image.check();
    let mount = image.mount("rw");
    for (name, id) in entries.step_by(997) {
        assert_eq!(fs::metadata(mount.path().join(name)).unwrap().ino(), u64::from(10 + id));
    }
    assert!(!mount.path().join("entry-none").exists());
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 100_000);
    fs::write(mount.path().join("one more"), b"1").unwrap();
    assert!(mount.path().join("one more").exists());
}

#[test]
fn more_subdirectories_than_links_can_count() {
    let count = 66_000;
    let mut nodes = vec![directory((1..=count).map(|number| (format!("{number}"), number)))];
    nodes.extend((0..count).map(|_| directory(Vec::<(Vec<u8>, u32)>::new())));
    let image = Image::write(&Tree { nodes }, &Options::default());
    image.check();
    let mount = image.mount("ro");
    assert_eq!(fs::metadata(mount.path()).unwrap().nlink(), 1);
    assert_eq!(fs::metadata(mount.path().join("500")).unwrap().nlink(), 2);
}

#[test]
fn a_file_in_many_pieces_has_an_extent_tree() {
    let pieces = 5000;
    let segments = (0..pieces).map(|piece| Segment { first_block: piece * 3, blocks: 1 }).collect();
    let tree =
        Tree { nodes: vec![directory([("pieces", 1)]), node(Kind::File { size: pieces * 3 * 4096, segments }, 0o600)] };
    let image = Image::write(&tree, &options());
    image.check();
    let mount = image.mount("ro");
    let bytes = fs::read(mount.path().join("pieces")).unwrap();
    for (at, byte) in bytes.iter().enumerate().step_by(1000) {
        let expected = if (at / 4096) % 3 == 0 { content_byte(NodeId(1), at as u64) } else { 0 };
        assert_eq!(*byte, expected, "{at}");
    }
}

#[test]
fn a_file_over_4_gib_crosses_groups_and_extents() {
    // Most of it is never written: only the plan's runs are looked at, and the end of the file.
    let size = (6 << 30) + 5;
    let tree = Tree { nodes: vec![directory([("large", 1)]), file(size)] };
    let plan = Plan::new(&tree, &common::place(&tree), &options()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let out = File::create_new(&path).unwrap();
    out.set_len(plan.size_bytes()).unwrap();
    let end = plan.data_start_bytes();
    let mut metadata = vec![0; end as usize];
    plan.read_at(0, &mut metadata, &common::content).unwrap();
    out.write_all_at(&metadata, 0).unwrap();
    let mut tail = vec![0; 4096];
    plan.read_at(end + (6 << 30), &mut tail, &common::content).unwrap();
    out.write_all_at(&tail, end + (6 << 30)).unwrap();
    run(std::process::Command::new("e2fsck").arg("-fn").arg(&path));
    let mounted = tempfile::tempdir().unwrap();
    run(std::process::Command::new("mount").args(["-o", "loop,ro"]).arg(&path).arg(mounted.path()));
    let large = File::open(mounted.path().join("large")).unwrap();
    let mut bytes = [0; 5];
    let read = large.read_exact_at(&mut bytes, 6 << 30);
    let length = large.metadata().unwrap().len();
    drop(large);
    run(std::process::Command::new("umount").arg(mounted.path()));
    read.unwrap();
    assert_eq!(length, size);
    assert_eq!(bytes, std::array::from_fn(|at| content_byte(NodeId(1), (6 << 30) + at as u64)));
}

#[test]
fn free_space_costs_nothing() {
    let tree = Tree { nodes: vec![directory([("a", 1)]), file(100_000)] };
    for free_gib in [0, 1, 100, 4000] {
        let options = Options { free_bytes: free_gib << 30, ..options() };
        let plan = Plan::new(&tree, &common::place(&tree), &options).unwrap();
        assert!(plan.size_bytes() >= free_gib << 30);
        let stored: u64 = plan.runs(0..plan.size_bytes()).map(|run| run.length).sum();
        assert!(stored < 300_000 + free_gib * 1024, "{free_gib} GiB free: {stored} bytes stored");
        if free_gib <= 100 {
            Image::write(&tree, &options).check();
        }
    }
}

/// Changing one of these digests changes the format: images published before would no longer share chunks with new ones.
#[test]
fn images_are_the_same_everywhere_and_always() {
    let image = Image::write(&everything(), &options());
    assert_eq!(image.digest(), Image::write(&everything(), &options()).digest());
    assert_eq!(image.digest(), GOLDEN_EVERYTHING);
    let empty = Tree { nodes: vec![directory(Vec::<(Vec<u8>, u32)>::new())] };
    let empty = Image::write(&empty, &Options::default());
    empty.check();
    assert_eq!(empty.digest(), GOLDEN_EMPTY);
}

const GOLDEN_EVERYTHING: &str = "4a6e40573b417fd8acb0d534884fa5581ab7ad0dde6f72a0886d5f8dfc9ac2ec";
const GOLDEN_EMPTY: &str = "f061e4ef469c02355f7a249a007bbcd63912767ec46f2de57220c126c9fd346d";

#[test]
fn trees_that_ext4_cannot_hold_are_refused_by_path() {
    let plan = |nodes| {
        let tree = Tree { nodes };
        Plan::new(&tree, &common::place(&tree), &options()).map(|_| ()).unwrap_err().to_string()
    };
    let with = |kind| plan(vec![directory([("sub", 1)]), directory([("x", 2)]), node(kind, 0o644)]);
    assert_eq!(
        with(Kind::Symlink { target: vec![] }),
        "/sub/x: a link target of 0 bytes: 1 to 4095, none of them zero"
    );
    assert!(with(Kind::Symlink { target: vec![b'a'; 4096] }).starts_with("/sub/x: a link target of 4096 bytes"));
    assert!(with(Kind::CharDevice { major: 4096, minor: 0 }).contains("device number 4096:0"));
    assert!(with(Kind::File { size: 1 << 44, segments: vec![] }).contains("less than 16 TiB"));
    for name in ["", ".", "..", "a/b", "a\0b", &"n".repeat(256)] {
        assert!(plan(vec![directory([(name, 1)]), file(1)]).contains("name"), "{name:?}");
    }
    assert!(plan(vec![directory([("a", 1), ("a", 1)]), file(1)]).contains("a name stands twice"));
    assert!(plan(vec![directory([("a", 7)])]).contains("node 7, which does not exist"));
    assert!(
        plan(vec![directory([("a", 1), ("b", 1)]), directory(Vec::<(Vec<u8>, u32)>::new())])
            .contains("more than one name")
    );
    assert!(plan(vec![directory([("a", 0)])]).contains("more than one name"));
    assert!(plan(vec![directory(Vec::<(Vec<u8>, u32)>::new()), file(1)]).contains("not reachable"));
    assert!(plan(vec![]).contains("no root"));
    assert!(plan(vec![file(1)]).contains("no root"));
    let mut attributes = file(1);
    attributes.xattrs = vec![(b"user.a".to_vec(), vec![0; 5000])];
    assert!(plan(vec![directory([("x", 1)]), attributes.clone()]).starts_with("/x: its extended attributes"));
    attributes.xattrs = vec![(b"other.a".to_vec(), vec![])];
    assert!(plan(vec![directory([("x", 1)]), attributes]).contains("no namespace"));
}

#[test]
fn placements_that_do_not_fit_are_refused() {
    let tree = Tree { nodes: vec![directory([("a", 1), ("b", 2)]), file(8192), file(4096)] };
    let plan = |starts: [Option<u64>; 3], blocks| {
        Plan::new(&tree, &Placement { starts: starts.to_vec(), blocks }, &options()).map(|_| ())
    };
    assert!(plan([None, Some(1), Some(0)], 3).is_ok());
    assert!(plan([None, Some(0), Some(1)], 3).unwrap_err().to_string().contains("over each other"));
    for (starts, blocks) in [
        ([None, Some(2), Some(0)], 3),
        ([None, None, Some(0)], 3),
        ([Some(2), Some(0), Some(2)], 3),
        ([None, Some(u64::MAX), Some(0)], 3),
    ] {
        assert!(matches!(plan(starts, blocks), Err(Error::BadNode { .. })), "{starts:?}");
    }
    assert!(matches!(plan([None, Some(0), Some(2)], 1 << 40), Err(Error::BadImage(_))));
}
