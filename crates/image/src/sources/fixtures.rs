//! What tests of sources share: images made by real tools, a real registry, and servers that misbehave.

#![allow(clippy::unwrap_used, missing_docs)]

pub(crate) mod http;
pub(crate) mod proxy;
pub(crate) mod registry;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::digest::Digest;
use crate::layer_reader::open_layer_tar;
use crate::{Error, Source};

/// Runs a command of the system, and fails the test with its output if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stderr}", output.status);
    output
}

/// Copies an image between any two kinds of place.
pub(crate) fn skopeo_copy(options: &[&str], from: &str, to: &str) {
    let mut arguments =
        vec!["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"];
    arguments.extend(options);
    arguments.extend([from, to]);
    run("skopeo", &arguments);
}

/// A layout with one image of two layers, the first of 3 MiB that don't compress, made by umoci.
pub(crate) struct Layout {
    pub(crate) directory: TempDir,
}

pub(crate) const TAG: &str = "v1";
pub(crate) const BIG_FILE_BYTES: usize = 3 << 20;

impl Layout {
    pub(crate) fn create() -> Layout {
        let directory = TempDir::new().unwrap();
        let layout = Layout { directory };
        let mut noise = vec![0; BIG_FILE_BYTES];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
        let content = layout.directory.path().join("content");
        std::fs::create_dir(&content).unwrap();
        std::fs::write(content.join("noise"), &noise).unwrap();
        std::fs::write(content.join("text"), "words ".repeat(10_000)).unwrap();
        let path = layout.path().to_str().unwrap().to_owned();
        let image = format!("{path}:{TAG}");
        run("umoci", &["init", "--layout", &path]);
        run("umoci", &["new", "--image", &image]);
        let file = |name: &str| content.join(name).to_str().unwrap().to_owned();
        for name in ["noise", "text"] {
            run("umoci", &["insert", "--rootless", "--image", &image, &file(name), &format!("/{name}")]);
        }
        let config =
            ["config", "--image", &image, "--config.cmd", "/bin/sh", "--config.env", "A=b", "--config.user", "7:8"];
        run("umoci", &config);
        layout
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    /// As a source's text.
    pub(crate) fn source(&self) -> String {
        format!("oci:{}:{TAG}", self.path().display())
    }

    /// The file of the blob with this digest.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        self.path().join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }
}

/// Opens a source for the platform that umoci writes.
pub(crate) fn open(source: &str) -> Result<Box<dyn Source>, Error> {
    crate::open(&source.parse()?, &crate::OpenOptions::default())
}

/// Reads all layers at once, each in a thread, and gives the digests of their tar streams.
pub(crate) fn read_layers(source: &dyn Source) -> Result<Vec<String>, Error> {
    std::thread::scope(|scope| {
        let read = |index| move || read_layer(source, index).map(|bytes| Digest::of(&bytes).to_string());
        let threads: Vec<_> = (0..source.layers().len()).map(|index| scope.spawn(read(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The tar stream of a layer.
pub(crate) fn read_layer(source: &dyn Source, index: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    open_layer_tar(source, index)?.read_to_end(&mut bytes).map_err(|error| Error::from_read("layer", error))?;
    Ok(bytes)
}

/// Checks that a source is the image of [`Layout::create`], to the last byte.
pub(crate) fn assert_is_the_image(source: &dyn Source) {
    let config = source.config();
    assert_eq!(config.cmd, ["/bin/sh"]);
    assert!(config.env.contains(&"A=b".to_owned()), "{:?}", config.env);
    assert_eq!(config.user, "7:8");
    assert_eq!(config.os, "linux");
    let diff_ids: Vec<String> = source.layers().iter().map(|layer| layer.diff_id.clone().unwrap()).collect();
    assert_eq!(diff_ids.len(), 2);
    assert_eq!(read_layers(source).unwrap(), diff_ids);
}

/// Changes one byte in the middle of a file.
pub(crate) fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
