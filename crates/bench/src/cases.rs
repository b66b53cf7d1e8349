//! What is measured, one module each, and what they share.

pub(crate) mod cold;
pub(crate) mod collect;
pub(crate) mod dedup;
pub(crate) mod device;
pub(crate) mod eviction;
pub(crate) mod functions;
pub(crate) mod memory;
pub(crate) mod modes;
pub(crate) mod publish;
pub(crate) mod reads;
pub(crate) mod starts;
pub(crate) mod suites;
pub(crate) mod warm;
pub(crate) mod zone;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Bench;
use crate::measure;

/// A start of Python that does nothing else.
pub(crate) const HELLO: [&str; 3] = ["python3", "-c", "print('hello', flush=True)"];
/// A start that loads a large library.
pub(crate) const IMPORT_PANDAS: [&str; 3] = ["python3", "-c", "import pandas; print(pandas.__version__, flush=True)"];

impl Bench {
    /// The binary, with store and keys of its own in `place`, and caches in `cache`.
    pub(crate) fn snowmelt(&self, place: &Path, cache: &Path) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("SNOWMELT_CONFIG", place.join("config.toml"))
            .env("SNOWMELT_STORE", place.join("store"))
            .env("SNOWMELT_KEYS_DIR", place.join("keys"))
            .env("SNOWMELT_STATE_DIR", self.state(cache))
            .env("SNOWMELT_CACHE_DIR", cache.join("cache"))
            .env_remove("SNOWMELT_TENANT");
        command
    }

    /// Where running sandboxes are recorded. As on most systems, where it is /run, and for runc too, that is memory.
    pub(crate) fn state(&self, cache: &Path) -> PathBuf {
        self.memory.path().join(cache.file_name().unwrap_or_default())
    }

    /// Waits until nothing is left of a run whose state is in `cache`: it takes down what is left after its command has ended,
    /// which must not slow the next sample. Gives when that was.
    pub(crate) fn settle(&self, cache: &Path) -> Result<Instant> {
        let state = self.state(cache);
        loop {
            let sandboxes = std::fs::read_dir(&state)?.flatten().filter(|entry| {
                let name = entry.file_name();
                name.len() == 12 && name.to_string_lossy().bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            if sandboxes.count() == 0 {
                return Ok(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A new place for store and keys.
    pub(crate) fn place(&self, name: &str) -> Result<PathBuf> {
        let place = self.path(name);
        std::fs::create_dir_all(&place)?;
        std::fs::write(place.join("config.toml"), "")?;
        Ok(place)
    }

    /// A place where `numpy` is published; made once for all cases.
    pub(crate) fn published(&self) -> Result<PathBuf> {
        let place = self.path("published");
        if !place.exists() {
            self.place("published")?;
            let source = format!("oci:{}:numpy", self.images.layout()?.display());
            measure::run(self.snowmelt(&place, &self.path("published-cache")).args(["publish", &source, "numpy"]))?;
        }
        Ok(place)
    }

    /// `umoci unpack` of `numpy`, as a bundle that runc runs; made once for all cases.
    pub(crate) fn unpacked(&self) -> Result<PathBuf> {
        let bundle = self.path("unpacked");
        if !bundle.exists() {
            unpack(&format!("{}:numpy", self.images.layout()?.display()), &bundle)?;
        }
        Ok(bundle)
    }
}

/// Unpacks an image, `LAYOUT:TAG`.
fn unpack(image: &str, bundle: &Path) -> Result<()> {
    let output = Command::new("umoci").args(["unpack", "--image", image]).arg(bundle).output()?;
    anyhow::ensure!(output.status.success(), "umoci unpack: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Makes an unpacked bundle run `command` without a terminal.
fn set_command(bundle: &Path, command: &[&str]) -> Result<()> {
    let file = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let process = config.get_mut("process").context("a bundle has a process")?;
    process["terminal"] = false.into();
    process["args"] = command.to_vec().into();
    std::fs::write(&file, config.to_string())?;
    Ok(())
}

/// Apparent size of a file tree, in bytes, each file counted once.
pub(crate) fn tree_size(directory: &Path) -> Result<u64> {
    let output =
        Command::new("du").args(["--summarize", "--apparent-size", "--block-size=1"]).arg(directory).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("du prints a number")?.parse()?)
}
