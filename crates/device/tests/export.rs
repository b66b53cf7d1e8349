//! End to end: ext4 images made by mkfs.ext4, served through FUSE and loop, mounted, compared. Needs root, /dev/fuse and loop
//! devices.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rand::{RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_device::loop_device::LoopDevice;
use snowmelt_device::{Device, DeviceOptions, Fault, MemoryChunks, fuse, loop_device, mount};

const CHUNK: u32 = 512 << 10;

/// A tree with small, large and sparse files, directories and symlinks.
fn make_tree(root: &Path) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for number in 0..100_usize {
        let folder = root.join(format!("folder-{}", number % 7));
        fs::create_dir_all(&folder).unwrap();
        let mut content = vec![0; number * 977 % 30_000];
        random.fill_bytes(&mut content);
        fs::write(folder.join(format!("file-{number}")), content).unwrap();
    }
    let mut large = vec![0; 9 << 20];
    random.fill_bytes(&mut large);
    large[3 << 20..5 << 20].fill(0);
    fs::write(root.join("large"), large).unwrap();
    std::os::unix::fs::symlink("large", root.join("link")).unwrap();
}

fn make_image(tree: &Path) -> Vec<u8> {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-b", "4096", "-O", "^has_journal", "-d"])
        .args([tree, image.path()])
        .status()
        .unwrap();
    assert!(made.success());
    fs::read(image.path()).unwrap()
}

/// Path, mode, size and content of everything.
fn read_tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            if name == Path::new("lost+found") {
                continue;
            }
            let content = if metadata.is_dir() {
                folders.push(path);
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            found.insert(name, (metadata.mode(), content));
        }
    }
    found
}

struct Served {
    folder: tempfile::TempDir,
    chunks: Arc<MemoryChunks>,
    device: Arc<Device>,
    export: fuse::FuseExport,
}

fn serve(image: Vec<u8>, writable: bool) -> Served {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("mnt")).unwrap();
    let chunks = Arc::new(MemoryChunks::new(image, CHUNK));
    let options =
        DeviceOptions { writable, overlay_directory: folder.path().to_path_buf(), ..DeviceOptions::default() };
    let device = Arc::new(Device::with_reader(Arc::clone(&chunks) as _, options).unwrap());
    let export = fuse::serve(Arc::clone(&device), &folder.path().join("device")).unwrap();
    Served { folder, chunks, device, export }
}

impl Served {
    fn mnt(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn attach(&self) -> LoopDevice {
        loop_device::attach(self.export.file(), !self.device.is_writable(), self.device.size_bytes()).unwrap()
    }
}

#[test]
fn the_file_is_the_device() {
    let mut image = vec![0; 3 << 20];
    ChaCha8Rng::seed_from_u64(2).fill_bytes(&mut image[..2_000_000]);
    let served = serve(image.clone(), false);
    assert!(served.export.file().metadata().unwrap().is_file(), "the mount's root is the file");
    let mut read = Vec::new();
    fs::File::open(served.export.file()).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == image);
    served.export.unmount().unwrap();
}

#[test]
fn a_read_only_mount_has_the_content() {
    let tree = tempfile::tempdir().unwrap();
    make_tree(tree.path());
    let served = serve(make_image(tree.path()), false);
    let device = served.attach();
    mount::mount_ext4(&device, &served.mnt(), true).unwrap();
    assert!(read_tree(tree.path()) == read_tree(&served.mnt()));
    assert!(fs::write(served.mnt().join("new"), "x").is_err());
    let direct_io = fs::read_to_string(sysfs(&device, "loop/dio")).unwrap();
    assert_eq!(direct_io.trim(), "1", "pages are not cached twice");
    mount::unmount(&served.mnt()).unwrap();
    let backing = sysfs(&device, "loop/backing_file");
    drop(device);
    assert!(!backing.exists(), "it detached itself");
    served.export.unmount().unwrap();
}

fn sysfs(device: &LoopDevice, name: &str) -> PathBuf {
    Path::new("/sys/block").join(device.path().file_name().unwrap()).join(name)
}

#[test]
fn writes_survive_a_remount_of_the_same_device() {
    let tree = tempfile::tempdir().unwrap();
    make_tree(tree.path());
    let served = serve(make_image(tree.path()), true);
    let device = served.attach();
    mount::mount_ext4(&device, &served.mnt(), false).unwrap();
    let mnt = served.mnt();
    for root in [tree.path(), mnt.as_path()] {
        fs::write(root.join("new"), vec![5; 300_000]).unwrap();
        fs::remove_file(root.join("folder-1/file-1")).unwrap();
        fs::create_dir(root.join("made")).unwrap();
        fs::rename(root.join("folder-2"), root.join("made/moved")).unwrap();
        let file = fs::OpenOptions::new().append(true).open(root.join("large")).unwrap();
        std::io::Write::write_all(&mut &file, b"and more").unwrap();
        file.sync_all().unwrap();
    }
    mount::unmount(&mnt).unwrap();
    drop(device);
    assert!(served.device.stats().overlay_bytes > 300_000);

    let device = served.attach();
    mount::mount_ext4(&device, &mnt, false).unwrap();
    assert!(read_tree(tree.path()) == read_tree(&mnt));
    mount::unmount(&mnt).unwrap();
    let checked = Command::new("e2fsck").arg("-fn").arg(device.path()).stdout(Stdio::null()).status().unwrap();
    assert!(checked.success(), "e2fsck finds nothing");
    drop(device);
    served.export.unmount().unwrap();
}

#[test]
fn a_damaged_chunk_is_an_io_error_and_its_healing_is_noticed() {
    let tree = tempfile::tempdir().unwrap();
    make_tree(tree.path());
    let served = serve(make_image(tree.path()), false);
    let device = served.attach();
    mount::mount_ext4(&device, &served.mnt(), true).unwrap();
    let last = served.device.size_bytes() / u64::from(CHUNK);
    for index in 0..=last {
        served.chunks.set_fault(index, Some(Fault::Corrupt));
    }
    let error = fs::read(served.mnt().join("large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    for index in 0..=last {
        served.chunks.set_fault(index, None);
    }
    assert!(fs::read(served.mnt().join("large")).unwrap() == fs::read(tree.path().join("large")).unwrap());
    mount::unmount(&served.mnt()).unwrap();
    drop(device);
    served.export.unmount().unwrap();
}

#[test]
fn devices_are_attached_side_by_side() {
    let served: Vec<_> = (0..4).map(|number| serve(vec![number + 1; 1 << 20], false)).collect();
    std::thread::scope(|scope| {
        for one in &served {
            scope.spawn(|| {
                for _ in 0..5 {
                    let device = one.attach();
                    let mut byte = [0];
                    fs::File::open(device.path()).unwrap().read_exact(&mut byte).unwrap();
                    let mut expected = [0];
                    one.device.read_at(0, &mut expected).unwrap();
                    assert_eq!(byte, expected);
                }
            });
        }
    });
}

/// A process that serves is killed while its image is mounted. What it leaves must be able to be taken away, and readers
/// must get an error, not wait for ever.
#[test]
fn a_killed_server_leaves_nothing_that_cannot_be_cleaned() {
    if let Ok(folder) = std::env::var("SNOWMELT_TEST_SERVE") {
        return serve_until_killed(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tree")).unwrap();
    make_tree(&folder.path().join("tree"));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_server_leaves_nothing_that_cannot_be_cleaned", "--nocapture"])
        .env("SNOWMELT_TEST_SERVE", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let loop_path = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.split_once("serving on ").map(|(_, path)| PathBuf::from(path)))
        .unwrap();
    let mnt = folder.path().join("mnt");
    assert!(mnt.join("folder-1").exists());
    child.kill().unwrap();
    child.wait().unwrap();

    assert!(fs::read(mnt.join("large")).is_err(), "not in the page cache, so an error");
    mount::unmount(&mnt).unwrap();
    fuse::unmount_stale(&folder.path().join("device")).unwrap();
    let backing = Path::new("/sys/block").join(loop_path.file_name().unwrap()).join("loop/backing_file");
    let still = fs::read_to_string(backing).unwrap_or_default();
    assert!(!still.contains(folder.path().to_str().unwrap()), "the loop device is free again: {still}");
    assert!(fuse::unmount_stale(&folder.path().join("device")).is_err(), "nothing is left");
}

fn serve_until_killed(folder: &Path) {
    let chunks = MemoryChunks::new(make_image(&folder.join("tree")), CHUNK);
    let device = Arc::new(Device::with_reader(Arc::new(chunks), DeviceOptions::default()).unwrap());
    let export = fuse::serve(Arc::clone(&device), &folder.join("device")).unwrap();
    let attached = loop_device::attach(export.file(), true, device.size_bytes()).unwrap();
    fs::create_dir(folder.join("mnt")).unwrap();
    mount::mount_ext4(&attached, &folder.join("mnt"), true).unwrap();
    println!("serving on {}", attached.path().display());
    loop {
        std::thread::park();
    }
}

/// A thread that reads requests when the mount goes may be told that the connection was aborted; `unmount` once took that for a
/// failure, about once in some hundred times.
#[test]
fn unmounting_is_no_failure_whoever_reads_at_that_moment() {
    let folder = tempfile::tempdir().unwrap();
    let chunks: Arc<dyn snowmelt_device::ChunkReader> = Arc::new(MemoryChunks::new(vec![7; 1 << 20], 64 << 10));
    for round in 0..300 {
        let device = Arc::new(Device::with_reader(Arc::clone(&chunks), DeviceOptions::default()).unwrap());
        let export = fuse::serve(device, &folder.path().join("device")).unwrap();
        if round % 3 == 0 {
            assert_eq!(std::fs::read(export.file()).unwrap(), vec![7; 1 << 20]);
        }
        export.unmount().unwrap();
    }
}
