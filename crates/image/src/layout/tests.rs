//! Images that hold the same packages must share the chunks of these packages, and small changes must stay small.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;

use super::*;
use crate::testing::{Item, MemorySource, flatten_with};

const CHUNK: usize = 512 << 10;

/// Files of a made-up package: mostly small, some large, as wheels are. The same name gives the same package.
fn package(name: &str, files: u64) -> Vec<Item> {
    let mut items = Vec::new();
    for index in 0..files {
        let mut bytes = [0; 8];
        let mut output = blake3::Hasher::new().update(name.as_bytes()).update(&index.to_le_bytes()).finalize_xof();
        output.fill(&mut bytes);
        let random = u64::from_le_bytes(bytes);
        let size = match random % 50 {
            0 => 400_000 + random % 2_000_000,
            1..=5 => 40_000 + random % 100_000,
            _ => 500 + random % 20_000,
        };
        let mut body = vec![0; usize::try_from(size).unwrap()];
        output.fill(&mut body);
        let root = format!("usr/lib/python3/site-packages/{name}/part{}", index % 7);
        let path = match random % 3 {
            0 => format!("{root}/module{index}.py"),
            1 => format!("{root}/__pycache__/module{index}.pyc"),
            _ if size > 300_000 => format!("{root}/native{index}.so"),
            _ => format!("{root}/data{index}.dat"),
        };
        items.push(Item::file(path, body));
    }
    items
}

fn packages(names: &[&str]) -> Vec<Item> {
    let files = |name: &str| name.len() as u64 * 40;
    names.iter().flat_map(|name| package(name, files(name))).collect()
}

/// Digests and stored bytes.
type Units = BTreeSet<([u8; 32], u64)>;

/// The data chunks of an image, and its files.
fn chunks(items: &[Item], placement: PlacementKind) -> (Units, Units) {
    let image = flatten_with(&MemorySource::of(&[items]), placement).unwrap();
    let mut chunks = BTreeSet::new();
    let mut buffer = vec![0; CHUNK];
    for start in (image.data_start_bytes()..image.size_bytes()).step_by(CHUNK) {
        let buffer = &mut buffer[..CHUNK.min((image.size_bytes() - start) as usize)];
        image.read_at(start, buffer).unwrap();
        let stored =
            buffer.chunks(4096).rposition(|page| page.iter().any(|&byte| byte != 0)).map_or(0, |page| page + 1);
        if stored > 0 {
            chunks.insert((*blake3::hash(buffer).as_bytes(), stored as u64 * 4096));
        }
    }
    let files = image.contents().map(|content| (content.digest, content.stored_bytes.next_multiple_of(4096))).collect();
    (chunks, files)
}

fn bytes(set: &Units) -> u64 {
    set.iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn images_with_overlapping_packages_share_chunks() {
    let images = [
        packages(&["numpy", "pandas", "six"]),
        packages(&["boto3", "numpy", "scipy"]),
        packages(&["numpy", "pandas", "pillow", "scipy", "zz"]),
        packages(&["boto3", "six", "pillow"]),
    ];
    let unique = |placement| {
        let (mut all_chunks, mut all_files) = (BTreeSet::new(), BTreeSet::new());
        for image in &images {
            let (chunks, files) = chunks(image, placement);
            all_chunks.extend(chunks);
            all_files.extend(files);
        }
        bytes(&all_chunks) as f64 / bytes(&all_files) as f64
    };
    let (aligned, serial) = (unique(PlacementKind::Aligned), unique(PlacementKind::Serial));
    assert!(aligned <= 1.08, "aligned placement stores {aligned:.3} times what whole files would");
    assert!(serial > 1.3, "serial placement stores {serial:.3} times what whole files would");
}

#[test]
fn a_new_file_changes_few_chunks() {
    let mut items = packages(&["numpy", "pandas", "scipy"]);
    let (before, _) = chunks(&items, PlacementKind::Aligned);
    items.push(Item::file("usr/lib/python3/site-packages/pandas/part3/a_new_one.py", [b'x'; 5000]));
    let (after, _) = chunks(&items, PlacementKind::Aligned);
    let new = after.difference(&before).count();
    assert!(new <= 3, "{new} of {} chunks are new", after.len());
    assert!(before.len() > 30);
}

#[test]
fn files_lie_where_the_rules_say() {
    let items = packages(&["numpy", "pandas"]);
    let directory = tempfile::tempdir().unwrap();
    let mut tree = crate::merge::MergedTree::new();
    for layer in crate::layers::read_all(&MemorySource::of(&[&items]), directory.path(), None).unwrap() {
        for entry in layer.entries {
            tree.apply(entry).unwrap();
        }
    }
    let image = tree.finish().unwrap();
    let placement = place(&image, PlacementKind::Aligned, CHUNK as u32);
    let chunk_blocks = CHUNK as u64 / BLOCK_SIZE;
    let mut used = vec![false; placement.blocks as usize];
    for (start, content) in placement.starts.iter().zip(&image.contents) {
        let blocks = content.as_ref().map_or(0, crate::spool::Content::allocated_blocks);
        assert_eq!(start.is_some(), blocks > 0);
        let Some(start) = *start else { continue };
        if blocks >= chunk_blocks {
            assert_eq!(start % chunk_blocks, 0, "large files start at a chunk boundary");
        } else {
            assert_eq!(start / chunk_blocks, (start + blocks - 1) / chunk_blocks, "small files cross no boundary");
        }
        for block in start..start + blocks {
            assert!(!std::mem::replace(&mut used[block as usize], true), "two files at block {block}");
        }
    }
    // The price of alignment: chunks that are not full.
    let full = bytes(&chunks(&items, PlacementKind::Serial).0).div_ceil(CHUNK as u64);
    let chunks = placement.blocks.div_ceil(chunk_blocks);
    assert!(chunks * 10 < full * 25, "{chunks} chunks for what fits in {full}");
    let serial = place(&image, PlacementKind::Serial, CHUNK as u32);
    assert_eq!(serial.blocks, used.iter().filter(|&&used| used).count() as u64);
}

#[test]
fn bins_are_cut_by_content() {
    let file = |index: u64| groups::File {
        node: snowmelt_ext4::NodeId(index as u32),
        blocks: 1 + index % 5,
        digest: *blake3::hash(&index.to_le_bytes()).as_bytes(),
    };
    let files: Vec<_> = (0..2000).map(file).collect();
    let bins = bins::pack(&files, 128);
    assert_eq!(bins.concat(), files, "every file is in one bin, in order");
    for bin in &bins {
        assert!(bin.iter().map(|file| file.blocks).sum::<u64>() <= 128);
    }
    let mut changed = files.clone();
    changed.insert(700, file(5000));
    changed.remove(300);
    let changed_bins = bins::pack(&changed, 128);
    let same = changed_bins.iter().filter(|bin| bins.contains(bin)).count();
    assert!(same + 6 >= bins.len(), "{same} of {} bins are the same", bins.len());
}
