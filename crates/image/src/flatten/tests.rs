//! The same tree gives the same image, from whatever it came; and what is in the image is what was in the layers.

#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use super::*;
use crate::sources::Compression;
use crate::testing::{Item, MemorySource, archive, flatten_with, image_digest};

/// Deterministic bytes that do not compress.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn layers() -> Vec<Vec<u8>> {
    let lower = [
        Item::directory("./"),
        Item::directory("bin").with_mode(0o755),
        Item::file("bin/tool", noise(1, 700_000)).with_mode(0o4755),
        Item::file("gone", noise(2, 5000)),
        Item::directory("lib"),
        Item::file("lib/a.py", noise(3, 9000)).with_pax("mtime", "-1.5"),
        Item::file("lib/a.pyc", noise(4, 7000)).with_pax("SCHILY.xattr.user.origin", "lower"),
        Item::symlink("lib64", "lib"),
    ];
    let upper = [
        Item::file(".wh.gone", ""),
        Item::file("lib64/b.py", noise(5, 12_345)).with_pax("uid", "4000000000"),
        Item::hard_link("bin/again", "bin/tool"),
        Item { device: (1, 3), ..Item::new(b'3', "dev/null") },
        Item::file("zeros", vec![0; 300_000]),
        Item::file("empty", ""),
    ];
    vec![archive(&lower), archive(&upper), archive(&[])]
}

fn digest_with(compression: Compression, threads: usize) -> String {
    let directory = tempfile::tempdir().unwrap();
    let source = MemorySource::new(&layers(), compression);
    let options = options(directory.path());
    let read = layers::read_with(&source, directory.path(), None, threads).unwrap();
    let (image, spools) = merge(&source, read).unwrap();
    image_digest(&plan(image, spools, ImageConfig::default(), None, &options).unwrap())
}

fn options(directory: &Path) -> FlattenOptions<'_> {
    FlattenOptions {
        free_bytes: 1 << 20,
        chunk_size: 512 << 10,
        spool_directory: directory,
        placement: PlacementKind::Aligned,
        progress: None,
    }
}

#[test]
fn image_does_not_depend_on_compression_or_threads() {
    let expected = digest_with(Compression::None, 1);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for threads in [1, 2, 8] {
            assert_eq!(digest_with(compression, threads), expected, "{compression:?}, {threads} threads");
        }
    }
}

/// Changing this changes every image that anyone has published: a decision, with a line in the changelog.
#[test]
fn golden_digest_of_an_image() {
    assert_eq!(digest_with(Compression::None, 2), "3d51f810ecd121a1a49c17ec24a59c50c5a418c793ad5fedbb929d5b85c84551");
}

#[test]
fn sparse_and_written_zeros_are_one_content() {
    let size = 1_000_000;
    let mut full = vec![0; size];
    full[500_000..500_003].copy_from_slice(b"abc");
    let sparse =
        Item::file("f", "abc").with_pax("GNU.sparse.map", "500000,3").with_pax("GNU.sparse.size", size.to_string());
    let digest = |item| image_digest(&flatten_with(&MemorySource::of(&[&[item]]), PlacementKind::Aligned).unwrap());
    assert_eq!(digest(sparse), digest(Item::file("f", full)));
}

#[test]
fn placement_changes_places_only() {
    let source = MemorySource::new(&layers(), Compression::None);
    for placement in [PlacementKind::Aligned, PlacementKind::Serial] {
        let image = flatten_with(&source, placement).unwrap();
        let file = write_image(&image);
        fsck(file.path());
        assert_eq!(debugfs(file.path(), "cat /lib/b.py"), noise(5, 12_345));
        assert_eq!(debugfs(file.path(), "cat /bin/again"), noise(1, 700_000));
        assert_eq!(debugfs(file.path(), "cat /zeros"), vec![0; 300_000]);
        assert!(String::from_utf8_lossy(&debugfs(file.path(), "ls /")).contains("lib64"));
        assert!(!String::from_utf8_lossy(&debugfs(file.path(), "ls /")).contains("gone"));
    }
}

#[test]
fn a_directory_gives_the_image_that_layers_give() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    std::fs::create_dir(path("d")).unwrap();
    std::fs::write(path("d/f"), noise(1, 9000)).unwrap();
    std::fs::hard_link(path("d/f"), path("again")).unwrap();
    // In a directory, this is a name like any other.
    std::fs::write(path("d/.wh.name"), "x").unwrap();
    symlink("/d/../f", path("s")).unwrap();
    let sparse = std::fs::File::create(path("sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    sparse.write_all_at(b"far", (4 << 30) + 7).unwrap();
    rustix::fs::setxattr(path("d"), "user.test", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    let set =
        Command::new("find").arg(root.path()).args(["-exec", "touch", "-h", "-d", "@1234567890.5", "{}", "+"]).status();
    assert!(set.unwrap().success());

    let spools = tempfile::tempdir().unwrap();
    let image = flatten_directory(root.path(), ImageConfig::default(), &options(spools.path())).unwrap();
    let file = write_image(&image);
    fsck(file.path());
    assert_eq!(debugfs(file.path(), "cat /again"), noise(1, 9000));
    assert_eq!(debugfs(file.path(), "cat /d/.wh.name"), b"x");
    assert!(image.content_bytes() < 8 << 20);

    // The name that a layer can't say is renamed to one that it can.
    std::fs::rename(path("d/.wh.name"), path("d/name")).unwrap();
    let touched = Command::new("touch").args(["-d", "@1234567890.5"]).arg(path("d")).status();
    assert!(touched.unwrap().success());
    // GNU tar finds the holes by itself.
    let tar = Command::new("tar")
        .args(["--format=pax", "--sparse", "--xattrs", "--numeric-owner", "-cf", "-", "-C"])
        .arg(root.path())
        .arg(".")
        .output()
        .unwrap();
    let layered = flatten_with(&MemorySource::new(&[tar.stdout], Compression::Gzip), PlacementKind::Aligned).unwrap();
    let image = flatten_directory(root.path(), ImageConfig::default(), &options(spools.path())).unwrap();
    assert_eq!(image_digest(&image), image_digest(&layered));
}

#[test]
fn huge_sparse_files_and_directories() {
    let mut items: Vec<Item> = (0..100_000).map(|index| Item::file(format!("many/file-{index:06}"), "")).collect();
    items.push(
        Item::file("huge", "end")
            .with_pax("GNU.sparse.map", "1099511627776,3")
            .with_pax("GNU.sparse.size", (1u64 << 42).to_string()),
    );
    let image = flatten_with(&MemorySource::of(&[&items]), PlacementKind::Aligned).unwrap();
    let file = write_image(&image);
    fsck(file.path());
    assert!(image.content_bytes() < 64 << 20, "{} bytes", image.content_bytes());
    let listing = debugfs(file.path(), "stat /huge");
    assert!(String::from_utf8_lossy(&listing).contains(&(1u64 << 42).to_string()));
    assert!(!debugfs(file.path(), "stat /many/file-099999").is_empty());
}

#[test]
fn an_image_without_layers_is_an_empty_file_system() {
    let image = flatten_with(&MemorySource::of(&[]), PlacementKind::Aligned).unwrap();
    fsck(write_image(&image).path());
}

#[test]
fn files_may_be_read_in_any_pieces_from_any_thread() {
    let image = flatten_with(&MemorySource::new(&layers(), Compression::Gzip), PlacementKind::Aligned).unwrap();
    let size = image.size_bytes() as usize;
    let mut whole = vec![0; size];
    image.read_at(0, &mut whole).unwrap();
    std::thread::scope(|scope| {
        for step in [4096, 5000, 131_072] {
            let (image, whole) = (&image, &whole);
            scope.spawn(move || {
                for start in (0..size).step_by(step) {
                    let end = size.min(start + step);
                    let mut part = vec![0xff; end - start];
                    image.read_at(start as u64, &mut part).unwrap();
                    assert!(part == whole[start..end], "{start}..{end}");
                }
            });
        }
    });
}

#[test]
fn nothing_is_left_in_the_spool_directory() {
    let directory = tempfile::tempdir().unwrap();
    let image = flatten(&MemorySource::new(&layers(), Compression::None), &options(directory.path())).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    image.read_at(0, &mut [0; 4096]).unwrap();
}

#[test]
fn unusable_options_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = MemorySource::of(&[]);
    for chunk_size in [0, 1, 2048, 500_000] {
        let options = FlattenOptions { chunk_size, ..options(directory.path()) };
        assert!(matches!(flatten(&source, &options), Err(Error::Invalid { .. })), "{chunk_size}");
    }
    let missing = FlattenOptions { spool_directory: Path::new("/nonexistent/spool"), ..options(directory.path()) };
    let source = MemorySource::new(&layers(), Compression::None);
    assert!(matches!(flatten(&source, &missing), Err(Error::Io { .. })));
}

/// Sizes are whatever a manifest says: their sum once overflowed.
#[test]
fn absurd_sizes_are_refused() {
    let mut source = MemorySource::of(&[&[], &[], &[]]);
    for layer in source.layers_mut() {
        layer.size = i64::MAX as u64;
    }
    let error = flatten_with(&source, PlacementKind::Aligned).err().unwrap().to_string();
    assert!(error.starts_with("layer 2 (sha256:") && error.contains("is more than 2^64"), "{error}");
}

/// GNU tar and star write access control lists as text. The image has what the kernel gives for the same tree.
#[test]
fn access_control_lists_of_gnu_tar() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    std::fs::create_dir(path("d")).unwrap();
    std::fs::write(path("f"), "x").unwrap();
    std::fs::write(path("plain"), "x").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(root.path()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    // Ids that have no name here, so that tar writes the numbers.
    run("setfacl", &["-m", "u:54321:rwx,u:54320:r,g:54322:r", "f"]);
    run("setfacl", &["-m", "d:u:54321:rx,u:54323:x", "d"]);
    let tar = run("tar", &["--format=pax", "--acls", "--numeric-owner", "-cf", "-", "."]);
    assert!(tar.windows(17).any(|bytes| bytes == b"SCHILY.acl.access"));
    let spools = tempfile::tempdir().unwrap();
    let image = flatten_directory(root.path(), ImageConfig::default(), &options(spools.path())).unwrap();
    let layered = flatten_with(&MemorySource::new(&[tar], Compression::None), PlacementKind::Aligned).unwrap();
    assert_eq!(image_digest(&image), image_digest(&layered));
    let file = write_image(&layered);
    fsck(file.path());
    let listing = String::from_utf8_lossy(&debugfs(file.path(), "ea_list /d")).into_owned();
    assert!(listing.contains("posix_acl_access") && listing.contains("posix_acl_default"), "{listing}");
}

/// A directory is one file system, as `tar --one-file-system` has it.
#[test]
fn mounts_in_a_directory_stay_empty() {
    let root = tempfile::tempdir().unwrap();
    let mount_point = root.path().join("mnt");
    std::fs::create_dir(&mount_point).unwrap();
    std::fs::write(root.path().join("outside"), "x").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        assert!(Command::new(program).args(arguments).arg(&mount_point).status().unwrap().success(), "{program}");
    };
    run("mount", &["-t", "tmpfs", "-o", "mode=0711", "tmpfs"]);
    std::fs::write(mount_point.join("inside"), "y").unwrap();
    let spools = tempfile::tempdir().unwrap();
    let image = flatten_directory(root.path(), ImageConfig::default(), &options(spools.path()));
    run("umount", &[]);
    let file = write_image(&image.unwrap());
    assert_eq!(debugfs(file.path(), "cat /outside"), b"x");
    assert!(String::from_utf8_lossy(&debugfs(file.path(), "stat /mnt")).contains("Mode:  0711"));
    assert!(!String::from_utf8_lossy(&debugfs(file.path(), "ls /mnt")).contains("inside"));
}

#[test]
fn progress_counts_every_compressed_byte() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let directory = tempfile::tempdir().unwrap();
    let (total, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let sink = |progress| match progress {
        Progress::LayersTotal { compressed_bytes } => total.store(compressed_bytes, Ordering::Relaxed),
        Progress::LayerBytes { read: bytes } => {
            read.fetch_add(bytes, Ordering::Relaxed);
        }
        _ => {}
    };
    let options = FlattenOptions { progress: Some(&sink), ..options(directory.path()) };
    flatten(&MemorySource::new(&layers(), Compression::Zstd), &options).unwrap();
    assert!(total.load(Ordering::Relaxed) > 0);
    assert_eq!(read.into_inner(), total.into_inner());
}

fn write_image(image: &FlatImage) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(image.size_bytes()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < image.size_bytes() {
        let count = buffer.len().min((image.size_bytes() - offset) as usize);
        if !image.is_hole(offset..offset + count as u64) {
            image.read_at(offset, &mut buffer[..count]).unwrap();
            file.as_file().write_all_at(&buffer[..count], offset).unwrap();
        }
        offset += count as u64;
    }
    file
}

fn fsck(path: &Path) {
    let output = Command::new("e2fsck").arg("-fn").arg(path).output().expect("e2fsprogs is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn debugfs(path: &Path, request: &str) -> Vec<u8> {
    let output = Command::new("debugfs").args(["-R", request]).arg(path).output().expect("e2fsprogs is installed");
    output.stdout
}
