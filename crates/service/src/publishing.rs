//! Code becomes an image in the store: `snowmelt publish`, as anybody would run it, in a process that ends.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::assignment::Key;
use crate::model::{Code, Function, State, Update, Version, new_id};
use crate::service::{Service, ServiceOptions};
use crate::sigv4::hex;

/// Why there is no image, as clients are told: a code of the model, and a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NoImage {
    code: &'static str,
    reason: String,
}

/// Images that are published at once.
pub(crate) const MOST_AT_ONCE: usize = 4;
/// How long an image is kept for what may still be started from it: tenths of a second.
const IMAGE_PATIENCE: usize = 600;
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

impl Service {
    /// Has the code that is wanted for a function's latest version published, in the background.
    pub(crate) fn publish(self: &Arc<Self>, function: &Arc<Function>) {
        let (service, function) = (Arc::clone(self), Arc::clone(function));
        let Some(uri) = function.latest.wanted.clone() else { return };
        self.in_background(async move {
            let Ok(_permit) = service.publishing.acquire().await else { return };
            let name = image_name(&function.name, &new_id());
            let published = publish(&service.options, &function.tenant, &uri, &name).await;
            let mut before = None;
            let changed = service.registry.change(&function.tenant, &function.name, |function| {
                if function.latest.wanted.as_ref() != Some(&uri) {
                    return Ok(false);
                }
                // Versions that were published with it wait for the same.
                for version in function.versions.values_mut().filter(|version| version.wanted.as_ref() == Some(&uri)) {
                    version.came(&published);
                }
                before = function.latest.came(&published);
                function.latest.revision = new_id();
                Ok(true)
            });
            let is_kept = matches!(changed, Ok((_, true)));
            if let Some(before) = before.filter(|_| is_kept) {
                service.remove_unused(&function.tenant, &function.name, &before).await;
            }
            if !is_kept && published.is_ok() {
                // Deleted or changed meanwhile, or not written down.
                remove(&service.options, &function.tenant, &name).await;
            }
        });
    }

    /// Removes an image once no version has it and nothing that runs may still be started from it.
    pub(crate) async fn remove_unused(&self, tenant: &str, function: &str, image: &str) {
        for _ in 0..IMAGE_PATIENCE {
            let current = self.registry.find(tenant, function);
            if current.as_ref().is_some_and(|function| function.uses(image)) {
                return;
            }
            let is_current =
                |key: &Key| current.as_ref().is_some_and(|function| function.has_revision(&key.number, &key.revision));
            let of_function = |key: &Key| key.tenant == tenant && key.function == function;
            if !self.assignment.has_any(&|key| of_function(key) && !is_current(key)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        remove(&self.options, tenant, image).await;
    }
}

impl Version {
    /// The code that it waits for is there, or is not to be. Gives the image that it had before.
    fn came(&mut self, published: &Result<Code, NoImage>) -> Option<String> {
        self.wanted = None;
        match published.clone() {
            Ok(code) => {
                self.state = State::Active;
                self.last_update = Update::Successful;
                std::mem::replace(&mut self.code, code).image
            }
            Err(NoImage { code, reason }) => {
                let code = code.to_owned();
                if self.state == State::Pending {
                    self.state = State::Failed { code: code.clone(), reason: reason.clone() };
                }
                self.last_update = Update::Failed { code, reason };
                None
            }
        }
    }
}

/// What an image is called that holds a function's code.
fn image_name(function: &str, id: &str) -> String {
    // A function's name may have capitals, which an image's may not.
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, function.as_bytes());
    format!("functions/{}:{}", hex(&hash.as_ref()[..8]), id.replace('-', ""))
}

/// Publishes an image under `name`.
///
/// # Errors
/// What is wrong with the image, or with what stores it.
async fn publish(options: &ServiceOptions, tenant: &str, uri: &str, name: &str) -> Result<Code, NoImage> {
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
async fn remove(options: &ServiceOptions, tenant: &str, name: &str) {
    let output = command(options, tenant).args(["rm", name]).stdout(Stdio::null()).output().await;
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            tracing::warn!(name, said = %String::from_utf8_lossy(&output.stderr).trim(), "an image was not removed");
        }
        Err(error) => tracing::warn!(name, %error, "an image was not removed"),
    }
}
