//! Code becomes an image in the store: `snowmelt publish`, as anybody would run it, in a process that ends.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::model::Code;
use crate::service::ServiceOptions;

/// Why there is no image, as clients are told: a code of the model, and a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoImage {
    pub(crate) code: &'static str,
    pub(crate) reason: String,
}

/// A registry that gives its bytes one by one must not keep others from theirs.
const PATIENCE: Duration = Duration::from_mins(30);
/// What sources begin with that are no registry's.
const SCHEMES: [&str; 5] = ["docker://", "oci:", "oci-archive:", "docker-archive:", "dir:"];

/// This program, set up as the service is.
fn command(options: &ServiceOptions, tenant: &str) -> Command {
    let mut command = Command::new(&options.program);
    command.envs(options.environment.iter().map(|(name, value)| (name, value)));
    command.args(["--json", "--tenant", tenant]).stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Publishes an image under `name`.
///
/// # Errors
/// What is wrong with the image, or with what stores it.
pub(crate) async fn publish(options: &ServiceOptions, tenant: &str, uri: &str, name: &str) -> Result<Code, NoImage> {
    let failed = |reason: String| NoImage { code: "InvalidImage", reason };
    // As clients name images: registry, name and tag.
    let is_named = SCHEMES.iter().any(|scheme| uri.starts_with(scheme));
    let source = if is_named { uri.to_owned() } else { format!("docker://{uri}") };
    let output = command(options, tenant).args(["publish", &source, name]).stdout(Stdio::piped()).output();
    let output = tokio::time::timeout(PATIENCE, output).await;
    let output = output.map_err(|_| failed(format!("it is not here after {} minutes", PATIENCE.as_secs() / 60)))?;
    let output = output.map_err(|error| failed(format!("cannot publish it: {error}")))?;
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
pub(crate) async fn remove(options: &ServiceOptions, tenant: &str, name: &str) {
    let output = command(options, tenant).args(["rm", name]).stdout(Stdio::null()).output().await;
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            tracing::warn!(name, said = %String::from_utf8_lossy(&output.stderr).trim(), "an image was not removed");
        }
        Err(error) => tracing::warn!(name, %error, "an image was not removed"),
    }
}
