//! What `publish` stores, read by another implementation of docs/format.md: tests/read_image.py.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Runs a script of the source tree that must succeed; gives the last line it prints.
fn script(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(repository().join(name)).args(arguments).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name} failed: {shown}{}", String::from_utf8_lossy(&output.stderr));
    shown.lines().last().unwrap_or_default().to_owned()
}

/// `oci:` source of the test image `small`, which is built if it is not there yet.
fn small() -> String {
    script("scripts/test-images", &["small"]);
    let cache = std::env::var_os("SNOWMELT_TEST_CACHE").unwrap_or_else(|| "target/test-images".into());
    format!("oci:{}:small", repository().join(cache).join("oci").display())
}

fn read_image(arguments: &[&str]) -> Output {
    let python = script("scripts/python-env", &[]);
    Command::new(python).arg("-B").arg(repository().join("tests/read_image.py")).args(arguments).output().unwrap()
}

/// A store with the image `small`, published in one suite.
struct Published {
    directory: tempfile::TempDir,
}

impl Published {
    fn new(suite: &str) -> Self {
        let published = Self { directory: tempfile::Builder::new().prefix("snowmelt-test-").tempdir().unwrap() };
        std::fs::write(published.path("config.toml"), "").unwrap();
        published.snowmelt(&["publish", &small(), "tools/small:v1", "--free", "16MiB", "--suite", suite]);
        published
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn snowmelt(&self, arguments: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_snowmelt"))
            .args(arguments)
            .env("SNOWMELT_CONFIG", self.path("config.toml"))
            .env("SNOWMELT_STORE", self.path("store"))
            .env("SNOWMELT_KEYS_DIR", self.path("keys"))
            .env("SNOWMELT_STATE_DIR", self.path("state"))
            .env("SNOWMELT_CACHE_DIR", self.path("cache"))
            .env("SNOWMELT_TENANT", "acme")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has the other implementation write the image to a file of that name.
    fn read(&self, output: &str) -> Output {
        let (store, keys, output) = (self.text("store"), self.text("keys"), self.text(output));
        read_image(&["--store", &store, "--keys", &keys, "--tenant", "acme", "tools/small:v1", &output])
    }

    /// The other implementation must refuse the image with a message that has all of `words`, and leave no file.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let output = self.read("refused.ext4");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(!message.contains("Traceback"), "{message}");
        for word in words {
            assert!(message.contains(word), "no `{word}` in: {message}");
        }
        assert!(!self.path("refused.ext4").exists());
    }

    fn name_record(&self) -> PathBuf {
        self.path("store/names/acme/tools+small/v1")
    }

    fn manifest(&self) -> PathBuf {
        let record: Value = serde_json::from_slice(&std::fs::read(self.name_record()).unwrap()).unwrap();
        self.path("store/roots/main/manifests/acme").join(record["manifest"].as_str().unwrap())
    }

    fn any_chunk(&self) -> PathBuf {
        let shard = std::fs::read_dir(self.path("store/roots/main/chunks")).unwrap().next().unwrap().unwrap().path();
        std::fs::read_dir(shard).unwrap().next().unwrap().unwrap().path()
    }
}

/// Flips one bit of the byte at that place; doing it twice undoes it.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).unwrap();
}

/// Compares two files without holding them in memory.
fn assert_equal(one: &Path, other: &Path) {
    let (mut files, mut buffers) =
        ([File::open(one).unwrap(), File::open(other).unwrap()], [vec![0; 1 << 20], vec![0; 1 << 20]]);
    let length = files[0].metadata().unwrap().len();
    assert_eq!(length, files[1].metadata().unwrap().len(), "{} and {}", one.display(), other.display());
    assert!(length > 0);
    let mut at = 0;
    while at < length {
        let step = (length - at).min(1 << 20) as usize;
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.read_exact(&mut buffer[..step]).unwrap();
        }
        assert!(buffers[0][..step] == buffers[1][..step], "they differ within {step} bytes from {at} on");
        at += step as u64;
    }
}

fn reads_the_same(suite: &str) {
    let published = Published::new(suite);
    let output = published.read("read.ext4");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    published.snowmelt(&["export", "tools/small:v1", &published.text("exported.ext4")]);
    assert_equal(&published.path("read.ext4"), &published.path("exported.ext4"));
}

#[test]
fn blake3_gcm_images_read_the_same() {
    reads_the_same("blake3-gcm");
}

#[test]
fn sha256_ctr_images_read_the_same() {
    reads_the_same("sha256-ctr");
}

#[test]
fn the_other_implementation_refuses_what_was_changed() {
    for suite in ["blake3-gcm", "sha256-ctr"] {
        let published = Published::new(suite);
        let chunk = published.any_chunk();
        flip(&chunk, 1000);
        published.refused(&["chunk", chunk.file_name().unwrap().to_str().unwrap(), "damaged"]);
        flip(&chunk, 1000);

        let manifest = published.manifest();
        flip(&manifest, 60);
        published.refused(&["manifest", "damaged", "its id"]);

        // Whoever can write to the store can also name the changed manifest rightly: then the seal shows it.
        flip(&manifest, 60);
        let at = std::fs::metadata(&manifest).unwrap().len() - 1;
        flip(&manifest, at);
        let changed = blake3_of(&manifest);
        std::fs::copy(&manifest, manifest.with_file_name(&changed)).unwrap();
        let record = std::fs::read_to_string(published.name_record()).unwrap();
        let old = manifest.file_name().unwrap().to_str().unwrap();
        std::fs::write(published.name_record(), record.replace(old, &changed)).unwrap();
        published.refused(&["manifest was changed after it was sealed"]);
    }
}

fn blake3_of(path: &Path) -> String {
    snowmelt_chunk::ManifestId::of(&std::fs::read(path).unwrap()).to_string()
}

#[test]
fn the_other_implementation_agrees_with_the_vectors() {
    let output = read_image(&["--vectors", repository().join("tests/vectors").to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
