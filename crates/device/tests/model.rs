//! A device against a plain vector of bytes, under random reads, writes and discards; and what its overlay leaves on disk.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::sync::Arc;

use proptest::prelude::*;
use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_device::{Device, DeviceOptions, Error, MemoryChunks};

const CHUNK: usize = 16 << 10;
const SIZE: usize = 5 * CHUNK + 8192;

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u64),
    Zero,
    Discard,
}

fn steps() -> impl Strategy<Value = Vec<(Step, usize, usize)>> {
    let step = prop_oneof![
        3 => Just(Step::Read),
        3 => any::<u64>().prop_map(Step::Write),
        1 => Just(Step::Zero),
        1 => Just(Step::Discard),
    ];
    // Ranges of any alignment, and ranges of whole pages, as file systems make them.
    let range = prop_oneof![
        (0..SIZE, 0..3 * CHUNK),
        (0..SIZE / 4096, 0..12_usize).prop_map(|(page, pages)| (page * 4096, pages * 4096)),
        (0..SIZE, 0..200_usize),
    ];
    proptest::collection::vec((step, range).prop_map(|(step, (at, length))| (step, at, length.min(SIZE - at))), 1..60)
}

/// Random bytes, with a hole, a chunk that ends in zeros, and one that begins with them.
fn image() -> Vec<u8> {
    let mut image = vec![0; SIZE];
    ChaCha8Rng::seed_from_u64(3).fill_bytes(&mut image);
    image[CHUNK..2 * CHUNK].fill(0);
    image[2 * CHUNK + 5000..3 * CHUNK + 5000].fill(0);
    image
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn a_device_reads_as_it_was_written(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let mut model = image();
        let options = DeviceOptions {
            writable: true,
            overlay_directory: folder.path().to_path_buf(),
            memory_bytes: 0,
            ..DeviceOptions::default()
        };
        let device = Device::with_reader(Arc::new(MemoryChunks::new(image(), CHUNK as u32)), options).unwrap();
        for (step, at, length) in steps {
            let range = at..at + length;
            match step {
                Step::Read => {
                    let mut read = vec![0xaa; length];
                    device.read_at(at as u64, &mut read).unwrap();
                    prop_assert!(read == model[range]);
                }
                Step::Write(seed) => {
                    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut model[range.clone()]);
                    device.write_at(at as u64, &model[range]).unwrap();
                }
                Step::Zero => {
                    model[range].fill(0);
                    device.write_zeroes(at as u64, length as u64).unwrap();
                }
                Step::Discard => {
                    model[range].fill(0);
                    device.discard(at as u64, length as u64).unwrap();
                }
            }
        }
        let mut whole = vec![0xaa; SIZE];
        device.read_at(0, &mut whole).unwrap();
        prop_assert!(whole == model);
    }
}

fn writable(folder: &std::path::Path, overlay_bytes: u64) -> Device {
    let options = DeviceOptions {
        writable: true,
        overlay_bytes,
        overlay_directory: folder.to_path_buf(),
        ..DeviceOptions::default()
    };
    Device::with_reader(Arc::new(MemoryChunks::new(image(), CHUNK as u32)), options).unwrap()
}

/// The overlay's file as the disk has it, found among this process's open files.
fn overlay_file(folder: &std::path::Path) -> Vec<u8> {
    let folder = folder.canonicalize().unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        fs::read_link(&path).ok()?.starts_with(&folder).then_some(path)
    });
    let mut contents: Vec<_> = open.map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(contents.len(), 1);
    contents.remove(0)
}

#[test]
fn the_overlay_leaves_no_name_and_no_plaintext() {
    let folder = tempfile::tempdir().unwrap();
    let device = writable(folder.path(), 1 << 20);
    let secret = b"nobody may find this sentence on a disk";
    let text: Vec<u8> = secret.iter().copied().cycle().take(3 * 4096).collect();
    device.write_at(4096, &text).unwrap();
    device.write_at(40_001, secret).unwrap();
    let stored = overlay_file(folder.path());
    assert!(stored.len() >= 4 * 4096);
    assert!(!stored.windows(8).any(|bytes| secret.windows(8).any(|part| part == bytes)));
    // Under one key no keystream may come twice: equal pages, and a page written again, differ in every way.
    device.write_at(8 * 4096, &[0; 4096]).unwrap();
    let first = overlay_file(folder.path())[8 * 4096..9 * 4096].to_vec();
    device.write_at(8 * 4096, &[0; 8192]).unwrap();
    let again = overlay_file(folder.path());
    let blocks = |bytes: &[u8]| bytes.chunks(16).map(<[u8]>::to_vec).collect::<Vec<_>>();
    // A page that is written again goes to its second slot, behind all first ones.
    let second = SIZE + 8 * 4096;
    let mut all = [blocks(&first), blocks(&again[second..second + 4096]), blocks(&again[9 * 4096..10 * 4096])].concat();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
}

#[test]
fn a_full_overlay_is_an_error_and_gives_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let device = writable(folder.path(), 3 * 4096);
    device.write_at(0, &[1; 2 * 4096]).unwrap();
    let error = device.write_at(16384, &[2; 2 * 4096]).unwrap_err();
    assert!(matches!(error, Error::NoSpace { budget_bytes: 12288, .. }), "{error}");
    assert_eq!(error.errno(), libc::ENOSPC);
    device.write_at(0, &[3; 2 * 4096]).unwrap();
    device.discard(0, 4096).unwrap();
    assert_eq!(device.stats().overlay_bytes, 4096);
    device.write_at(16384, &[2; 2 * 4096]).unwrap();
    let mut page = [9; 4096];
    device.read_at(0, &mut page).unwrap();
    assert_eq!(page, [0; 4096]);
}

#[test]
fn what_is_outside_or_read_only_is_refused() {
    let device =
        Device::with_reader(Arc::new(MemoryChunks::new(image(), CHUNK as u32)), DeviceOptions::default()).unwrap();
    for (offset, length) in [(SIZE as u64, 1), (u64::MAX, 1), (0, SIZE + 1), (SIZE as u64 - 1, 2)] {
        assert!(
            matches!(device.read_at(offset, &mut vec![0; length]), Err(Error::Invalid { .. })),
            "{offset} {length}"
        );
    }
    device.read_at(SIZE as u64, &mut []).unwrap();
    let error = device.write_at(0, &[0; 4096]).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    assert!(matches!(device.write_zeroes(0, 4096), Err(Error::Invalid { .. })));
}

#[test]
fn writes_side_by_side_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let device = writable(folder.path(), 1 << 20);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let device = &device;
            scope.spawn(move || {
                for round in 0..50_u8 {
                    for at in (thread * 1000..SIZE).step_by(4000) {
                        device.write_at(at as u64, &vec![thread as u8 * 50 + round; 1000.min(SIZE - at)]).unwrap();
                    }
                }
            });
        }
    });
    let mut whole = vec![0; SIZE];
    device.read_at(0, &mut whole).unwrap();
    assert!(whole.iter().enumerate().all(|(at, byte)| usize::from(*byte) == (at / 1000 % 4) * 50 + 49));
}
