#![allow(clippy::unwrap_used)]
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;
use snowmelt_chunk::Suite;

use super::*;

const LENGTH: usize = 8192;

fn chunk(number: u32) -> (ChunkName, Bytes) {
    let mut bytes = vec![number as u8; LENGTH];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    let name = ChunkName { id: Suite::Blake3Gcm.id_of(&bytes), suite: Suite::Blake3Gcm, stored_length: LENGTH as u32 };
    (name, bytes.into())
}

fn read(file: &OwnedFd) -> Vec<u8> {
    let file = File::from(file.try_clone().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn open(folder: &std::path::Path, memory_bytes: u64, disk_bytes: u64) -> L1 {
    L1::open(L1Options { memory_bytes, disk: Some((folder.into(), disk_bytes)) }).unwrap()
}

#[test]
fn a_chunk_comes_from_memory_and_after_a_restart_from_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (name, bytes) = chunk(1);
    let l1 = open(folder.path(), 1 << 20, 1 << 20);
    assert!(l1.get(&name).is_none());
    assert_eq!(read(&l1.put(&name.id, &bytes).unwrap()), bytes);
    let (tier, file) = l1.get(&name).unwrap();
    assert_eq!((tier, read(&file)), (Tier::Memory, bytes.to_vec()));
    drop(l1);
    let l1 = open(folder.path(), 1 << 20, 1 << 20);
    let (tier, file) = l1.get(&name).unwrap();
    assert_eq!((tier, read(&file)), (Tier::Disk, bytes.to_vec()));
    let stats = l1.stats();
    assert_eq!((stats.disk_chunks, stats.disk_bytes, stats.disk_hits, stats.memory_chunks), (1, LENGTH as u64, 1, 0));
}

#[test]
fn nobody_can_change_a_chunk_in_memory() {
    let l1 = L1::open(L1Options { memory_bytes: 1 << 20, disk: None }).unwrap();
    let (name, bytes) = chunk(2);
    let file = l1.put(&name.id, &bytes).unwrap();
    let mut file = File::from(file.try_clone().unwrap());
    file.write_all(b"!").unwrap_err();
    file.set_len(1).unwrap_err();
}

#[test]
fn two_workers_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _l1 = open(folder.path(), 1 << 20, 1 << 20);
    let options = L1Options { memory_bytes: 1 << 20, disk: Some((folder.path().into(), 1 << 20)) };
    let error = L1::open(options).unwrap_err().to_string();
    assert!(error.contains("another worker uses"), "{error}");
}

#[test]
fn a_damaged_file_is_dropped_once_it_is_seen_to_be_and_a_good_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (name, bytes) = chunk(3);
    let l1 = open(folder.path(), 0, 1 << 20);
    l1.put(&name.id, &bytes).unwrap();
    l1.flush();
    l1.check(&name);
    assert_eq!(l1.get(&name).unwrap().0, Tier::Disk);
    let id = name.id.to_string();
    let path = folder.path().join("chunks").join(&id[..2]).join(&id);
    std::fs::write(&path, vec![9; LENGTH]).unwrap();
    assert!(l1.get(&name).is_some());
    l1.check(&name);
    assert!(l1.get(&name).is_none());
    // One that was cut short is not given to anybody.
    l1.put(&name.id, &bytes).unwrap();
    l1.flush();
    std::fs::write(&path, b"short").unwrap();
    assert!(l1.get(&name).is_none());
    assert!(!path.exists());
    assert_eq!(l1.stats().disk_bytes, 0);
}

#[test]
fn what_another_program_left_in_the_folder_stays() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("chunks/aa");
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("note"), b"mine").unwrap();
    std::fs::write(folder.path().join("draft"), b"half").unwrap();
    let l1 = open(folder.path(), 0, 1 << 20);
    assert_eq!(l1.stats().disk_chunks, 0);
    let (name, bytes) = chunk(4);
    l1.put(&name.id, &bytes).unwrap();
    l1.flush();
    assert!(l1.get(&name).is_some());
    assert!(other.join("note").exists());
}

fn disk_bytes(folder: &std::path::Path) -> u64 {
    let folders = std::fs::read_dir(folder.join("chunks")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Budgets hold, what is given is what was put, and a restart with any budget finds no more than fits.
    #[test]
    fn budgets_hold_through_any_use(
        steps in prop::collection::vec((0..30_u32, any::<bool>()), 1..120),
        memory in 0..12_u64,
        disk in 0..12_u64,
        smaller in 0..12_u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (memory_bytes, disk_budget) = (memory * 11_000, disk * LENGTH as u64);
        let l1 = open(folder.path(), memory_bytes, disk_budget);
        for (number, is_put) in steps {
            let (name, bytes) = chunk(number);
            if is_put && l1.get(&name).is_none() {
                prop_assert_eq!(read(&l1.put(&name.id, &bytes).unwrap()), bytes.clone());
                l1.flush();
            } else if let Some((_, file)) = l1.get(&name) {
                prop_assert_eq!(read(&file), bytes.to_vec());
            }
            let stats = l1.stats();
            prop_assert!(stats.memory_bytes <= memory_bytes);
            prop_assert!(stats.disk_bytes <= disk_budget);
            prop_assert_eq!(stats.disk_bytes, disk_bytes(folder.path()));
        }
        drop(l1);
        let smaller = smaller * LENGTH as u64;
        let l1 = open(folder.path(), memory_bytes, smaller);
        prop_assert!(disk_bytes(folder.path()) <= smaller);
        prop_assert_eq!(l1.stats().disk_bytes, disk_bytes(folder.path()));
    }
}
