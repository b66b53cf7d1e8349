//! Code becomes an image in the store: `snowmelt publish`, as anybody would run it, in a process that ends.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use crate::model::Code;

/// Why there is no image, as clients are told: a code of the model, and a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoImage {
    pub(crate) code: &'static str,
    pub(crate) reason: String,
}

/// Publishes an image under `name`.
///
/// # Errors
/// What is wrong with the image, or with what stores it.
pub(crate) async fn publish(program: &Path, tenant: &str, uri: &str, name: &str) -> Result<Code, NoImage> {
    let failed = |reason: String| NoImage { code: "InvalidImage", reason };
    let mut command = Command::new(program);
    command.args(["--json", "--tenant", tenant, "publish", uri, name]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| failed(format!("cannot publish it: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says no reason");
        let reason = last.trim_start_matches("snowmelt: ").to_owned();
        let is_refused =
            ["denied", "unauthorized", "401", "403"].iter().any(|word| reason.to_lowercase().contains(word));
        return Err(NoImage { code: if is_refused { "ImageAccessDenied" } else { "InvalidImage" }, reason });
    }
    let said: Value = serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("{error}")))?;
    Ok(Code {
        image_uri: uri.to_owned(),
        image: Some(name.to_owned()),
        manifest: said["manifest"].as_str().map(str::to_owned),
        bytes: said["content_bytes"].as_u64().unwrap_or(0),
    })
}

/// Removes an image that nothing refers to any more. One that stays costs room and nothing else.
pub(crate) async fn remove(program: &Path, tenant: &str, name: &str) {
    let mut command = Command::new(program);
    command.args(["--json", "--tenant", tenant, "rm", name]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match command.output().await {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            tracing::warn!(name, said = %String::from_utf8_lossy(&output.stderr).trim(), "an image was not removed");
        }
        Err(error) => tracing::warn!(name, %error, "an image was not removed"),
    }
}
