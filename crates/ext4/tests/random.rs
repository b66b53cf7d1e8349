//! Random trees: e2fsck finds nothing, and every way of reading gives the same bytes.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;

use common::{Image, content, options, place};
use proptest::prelude::*;
use snowmelt_ext4::{Kind, Node, NodeId, Owned, Plan, RunSource, Segment, Timestamp, Tree};

fn kinds() -> impl Strategy<Value = Kind> {
    let segments = proptest::collection::vec((0_u64..4, 1_u64..5), 0..8);
    prop_oneof![
        3 => (segments, 0_u64..4096).prop_map(|(gaps, tail)| {
            let mut next = 0;
            let segments: Vec<_> = gaps.into_iter().map(|(gap, blocks)| {
                let segment = Segment { first_block: next + gap, blocks };
                next = segment.first_block + blocks;
                segment
            }).collect();
            Kind::File { size: (next * 4096).saturating_sub(tail), segments }
        }),
        2 => Just(Kind::Directory { entries: vec![] }),
        1 => proptest::collection::vec(1_u8.., 1..200).prop_map(|target| Kind::Symlink { target }),
        1 => (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => Just(Kind::Fifo),
    ]
}

fn nodes() -> impl Strategy<Value = Node> {
    let xattrs =
        proptest::collection::btree_map("user\\.[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..100), 0..5);
    (kinds(), 0_u16..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), 0_u32..1_000_000_000, xattrs).prop_map(
        |(kind, mode, uid, gid, seconds, nanoseconds, xattrs)| Node {
            kind,
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanoseconds },
            xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
        },
    )
}

/// Hangs each node under an earlier directory, and some under a second name.
fn trees() -> impl Strategy<Value = Tree> {
    let names =
        proptest::collection::vec(any::<u8>().prop_filter("no separators", |byte| !matches!(byte, 0 | b'/')), 1..255);
    let placed = (nodes(), names, any::<prop::sample::Index>(), proptest::option::of(any::<prop::sample::Index>()));
    proptest::collection::vec(placed, 0..150).prop_map(|placed| {
        let mut tree = Tree { nodes: vec![common::directory(Vec::<(Vec<u8>, u32)>::new())] };
        let mut directories = vec![0];
        for (node, mut name, parent, second) in placed {
            let id = NodeId(tree.nodes.len() as u32);
            name.truncate(245);
            name.extend(format!(".{}", id.0).into_bytes());
            let is_directory = matches!(node.kind, Kind::Directory { .. });
            tree.nodes.push(node);
            let mut link = |at: usize, name: Vec<u8>| {
                let Kind::Directory { entries } = &mut tree.nodes[at].kind else { panic!("a directory") };
                entries.push((name, id));
                entries.sort();
            };
            link(directories[parent.index(directories.len())], name.clone());
            if let (Some(second), false) = (second, is_directory) {
                name.push(b'+');
                link(directories[second.index(directories.len())], name);
            }
            if is_directory {
                directories.push(id.0 as usize);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn e2fsck_finds_nothing(tree in trees()) {
        Image::write(&tree, &options()).check();
    }

    #[test]
    fn every_way_of_reading_gives_the_same(tree in trees(), ranges in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..100_000), 10)) {
        let image = Image::write(&tree, &options());
        let written = fs::read(&image.path).unwrap();
        for (offset, length) in ranges {
            let offset = offset.index(written.len());
            let length = length.min(written.len() - offset);
            let mut read = vec![0xaa; length];
            image.plan.read_at(offset as u64, &mut read, &content).unwrap();
            prop_assert!(read == written[offset..offset + length], "{} {}", offset, length);
        }
        let mut last = 0;
        for run in image.plan.runs(0..image.plan.size_bytes()) {
            prop_assert!(run.offset >= last);
            prop_assert!(written[last as usize..run.offset as usize].iter().all(|byte| *byte == 0));
            prop_assert_eq!(run.source == RunSource::Metadata, run.offset < image.plan.data_start_bytes());
            last = run.offset + run.length;
        }
    }

    /// Where all of the device was read, every block of every file is found to be its, and nothing else is.
    #[test]
    fn blocks_are_found_to_be_their_files(tree in trees()) {
        let image = Image::write(&tree, &options());
        let device = std::fs::File::open(&image.path).unwrap();
        let mut read = |offset: u64, buf: &mut [u8]| std::os::unix::fs::FileExt::read_exact_at(&device, buf, offset).is_ok();
        let mut found = 0;
        let all = 0..image.plan.size_bytes();
        let mut at = 0;
        for owned in snowmelt_ext4::owners(std::slice::from_ref(&all), &mut read) {
            match owned {
                Owned::Other { range } => {
                    prop_assert_eq!(range.start, at);
                    at = range.end;
                }
                Owned::File { inode, range } => {
                    let node = NodeId(inode - 11 + 1);
                    let mut bytes = [0; 4096];
                    for offset in range.clone().step_by(4096) {
                        std::os::unix::fs::FileExt::read_exact_at(&device, &mut bytes, at).unwrap();
                        let Kind::File { size, .. } = tree.nodes[node.0 as usize].kind else { panic!("{node:?} is no file") };
                        let within = size.saturating_sub(offset).min(4096) as usize;
                        let mut expected = [0; 4096];
                        common::content(node, offset, &mut expected[..within]).unwrap();
                        prop_assert_eq!(&bytes[..], &expected[..]);
                        at += 4096;
                        found += 1;
                    }
                }
            }
        }
        prop_assert_eq!(at, all.end);
        prop_assert_eq!(found, place(&tree).blocks);
    }

    #[test]
    fn the_plan_does_not_depend_on_anything_but_the_tree(tree in trees()) {
        let image = |_| Image::write(&tree, &options()).digest();
        prop_assert_eq!(image(0), image(1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

    #[test]
    fn hostile_trees_give_errors(input in proptest::collection::vec(any::<u8>(), 0..600)) {
        snowmelt_ext4::fuzz::fuzz_plan(&input);
    }

    #[test]
    fn hostile_devices_have_owners(input in proptest::collection::vec(any::<u8>(), 0..3000)) {
        snowmelt_ext4::fuzz::fuzz_owners(&input);
    }
}

#[test]
fn a_plan_can_be_read_from_many_threads() {
    fn assert_sync<T: Sync + Send>(_: &T) {}
    let tree = Tree { nodes: vec![common::directory([("a", 1)]), common::file(9000)] };
    assert_sync(&Plan::new(&tree, &place(&tree), &options()).unwrap());
}
