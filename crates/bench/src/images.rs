//! The images that are measured, from the scripts that build them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where images lie.
pub(crate) struct Images {
    repository: PathBuf,
}

impl Images {
    pub(crate) fn find() -> Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        Ok(Self { repository })
    }

    /// A script of the project.
    pub(crate) fn script(&self, name: &str) -> Command {
        Command::new(self.repository.join("scripts").join(name))
    }

    /// The OCI layout with the image `numpy`.
    pub(crate) fn layout(&self) -> Result<PathBuf> {
        last_line(self.script("test-images").arg("numpy"))
    }

    /// The OCI layout with functions in Python (`lambda`) and in Rust (`lambda-rust`).
    pub(crate) fn runtimes_layout(&self) -> Result<PathBuf> {
        last_line(self.script("test-images").args(["lambda", "lambda-rust"]))
    }

    /// `cargo lambda`, beside the function in Rust.
    pub(crate) fn cargo_lambda(&self) -> Result<Command> {
        let mut command = Command::new(last_line(&mut self.script("test-clients"))?.join("bin/cargo-lambda"));
        command.current_dir(self.repository.join("tests/functions/rust"));
        Ok(command)
    }

    /// The OCI layout with the images that functions are measured with: `big`, and so many of `one-1`, `one-2` and so on.
    pub(crate) fn function_layout(&self, count: usize) -> Result<PathBuf> {
        last_line(self.script("function-images").arg(count.to_string()))
    }

    /// The OCI layout with six images over one base, `team-1` to `team-6`.
    pub(crate) fn dedup_layout(&self) -> Result<PathBuf> {
        last_line(&mut self.script("dedup-images"))
    }
}

/// Runs a script that prints a path last.
fn last_line(command: &mut Command) -> Result<PathBuf> {
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().last().context("the script prints a path")?.into())
}
