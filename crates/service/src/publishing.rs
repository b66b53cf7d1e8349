//! Code becomes an image in the store: `snowmelt publish`, as anybody would run it, in a process that ends.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::Command;

use crate::assignment::Key;
use crate::model::{Code, Function, Source, State, Update, Version, new_id};
use crate::package::write_layer;
use crate::registry::Noted;
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
/// What names of layers that are being made begin with.
const LAYER: &str = "layer-";
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
        let Some(source) = function.latest.wanted.clone() else { return };
        self.in_background(async move {
            let wanted_since = Instant::now();
            let Ok(permit) = service.publishing.acquire().await else { return };
            let name = image_name(&function.name, &new_id());
            // Before it is there, so that none is ever there that the next service does not know.
            let published = match service.registry.note_image(&function.tenant, &function.name, &name) {
                Ok(()) => service.publish_source(&function, &source, &name).await,
                Err(error) => Err(NoImage { code: "InternalError", reason: error.message().to_owned() }),
            };
            // What follows may wait for invocations to end.
            drop(permit);
            let mut before = None;
            let changed = service.registry.change(&function.tenant, &function.name, |function| {
                if function.latest.wanted.as_ref() != Some(&source) {
                    return Ok(false);
                }
                // Versions that were published with it wait for the same.
                for version in function.versions.values_mut().filter(|version| version.wanted.as_ref() == Some(&source))
                {
                    version.came(&published);
                }
                before = function.latest.came(&published);
                // Where nothing has changed its sandboxes stay.
                if published.is_ok() {
                    function.latest.revision = new_id();
                }
                Ok(true)
            });
            let is_kept = matches!(changed, Ok((_, true)));
            if is_kept && published.is_ok() {
                service.board.published(&function.tenant, &function.name, wanted_since.elapsed());
            }
            if let Some(before) = before.filter(|_| is_kept) {
                service.remove_unused(&function.tenant, &function.name, &before).await;
            }
            service.remove_unused_packages(&function.tenant, &function.name).await;
            if published.is_err() {
                let _ = service.registry.forget_image(&function.tenant, &name);
            } else if !is_kept {
                // Deleted or changed meanwhile, or not written down.
                service.remove_image(&function.tenant, &name, Duration::MAX).await;
            }
        });
    }

    /// Publishes what code is made of.
    async fn publish_source(&self, function: &Function, source: &Source, name: &str) -> Result<Code, NoImage> {
        let package = match source {
            Source::Image(uri) => return publish(&self.options, &function.tenant, uri, None, name).await,
            Source::Package(package) => package,
        };
        let failed = |reason: String| NoImage { code: "InvalidZipFileException", reason };
        let Some(image) = self.options.runtimes.get(&package.runtime) else {
            return Err(NoImage { code: "InvalidRuntime", reason: no_runtime(&self.options, &package.runtime) });
        };
        let path = self.packages.path(&function.tenant, &function.name, &package.sha256);
        let folder = self.options.folder.clone();
        let made = tokio::task::spawn_blocking(move || {
            let package = std::fs::read(path).map_err(|error| format!("reading the package: {error}"))?;
            let mut layer = tempfile::Builder::new()
                .prefix(LAYER)
                .suffix(".tar")
                .tempfile_in(folder)
                .map_err(|error| error.to_string())?;
            write_layer(&package, std::io::BufWriter::new(layer.as_file_mut()))?;
            Ok(layer)
        });
        let layer = made.await.map_err(|_| failed("it was given up: this is a bug".into()))?.map_err(failed)?;
        let code = publish(&self.options, &function.tenant, image, Some(layer.path()), name).await?;
        Ok(Code { package: Some(package.clone()), ..code })
    }

    /// Removes what a service before this one left: images and packages that no version has, and layers that were being made.
    pub(crate) fn remove_leftovers(self: &Arc<Self>) {
        for entry in std::fs::read_dir(&self.options.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(LAYER) {
                // One that stays costs room and nothing else.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        for Noted { tenant, image, function, age } in self.registry.unused_images().unwrap_or_default() {
            let service = Arc::clone(self);
            self.in_background(async move {
                if service.wait_for_sandboxes(&tenant, &function, &image).await {
                    service.remove_image(&tenant, &image, age).await;
                }
            });
        }
        let service = Arc::clone(self);
        self.in_background(async move {
            for (tenant, function) in service.packages.owners() {
                service.remove_unused_packages(&tenant, &function).await;
            }
        });
    }

    /// Removes packages that no version has any more.
    pub(crate) async fn remove_unused_packages(self: &Arc<Self>, tenant: &str, function: &str) {
        let (service, tenant, function) = (Arc::clone(self), tenant.to_owned(), function.to_owned());
        let removed = tokio::task::spawn_blocking(move || {
            let turn = service.packages.turn();
            let found = service.registry.find(&tenant, &function);
            turn.keep_only(&tenant, &function, &found.map(|function| function.packages()).unwrap_or_default());
        });
        let _ = removed.await;
    }

    /// Removes an image once no version has it and nothing that runs may still be started from it.
    pub(crate) async fn remove_unused(&self, tenant: &str, function: &str, image: &str) {
        if self.wait_for_sandboxes(tenant, function, image).await {
            self.remove_image(tenant, image, Duration::MAX).await;
        }
    }

    /// Waits until nothing that runs may still be started from an image. False where a version has it.
    async fn wait_for_sandboxes(&self, tenant: &str, function: &str, image: &str) -> bool {
        for _ in 0..IMAGE_PATIENCE {
            let current = self.registry.find(tenant, function);
            if current.as_ref().is_some_and(|function| function.uses(image)) {
                return false;
            }
            let is_current =
                |key: &Key| current.as_ref().is_some_and(|function| function.has_revision(&key.number, &key.revision));
            let of_function = |key: &Key| key.tenant == tenant && key.function == function;
            if !self.assignment.has_any(&|key| of_function(key) && !is_current(key)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    }

    /// Removes an image that nothing refers to any more. One that stays costs room and nothing else, and is tried again by the next
    /// service. `age` is for how long it was to be there: one that is not there may still be made by who was told to.
    async fn remove_image(&self, tenant: &str, name: &str, age: Duration) {
        let output = command(&self.options, tenant).args(["rm", name]).stdout(Stdio::null()).output().await;
        let said = match output {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let is_missing = said.as_ref().is_some_and(|said| said.contains("is not in the store"));
        if said.is_none() || (is_missing && age > 2 * PATIENCE) {
            let _ = self.registry.forget_image(tenant, name);
        } else if !is_missing {
            tracing::warn!(name, said, "an image was not removed");
        }
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

/// Why a runtime cannot be had, and what to do.
pub(crate) fn no_runtime(options: &ServiceOptions, runtime: &str) -> String {
    let known: Vec<&str> = options.runtimes.keys().map(String::as_str).collect();
    let known = if known.is_empty() { "none is".to_owned() } else { format!("{} are", known.join(", ")) };
    format!(
        "Runtime {runtime} is not configured here, {known}: `snowmelt serve --runtime {runtime}=IMAGE` names the image that has it"
    )
}

/// Publishes an image under `name`, perhaps with a layer over it.
///
/// # Errors
/// What is wrong with the image, or with what stores it.
async fn publish(
    options: &ServiceOptions,
    tenant: &str,
    uri: &str,
    layer: Option<&Path>,
    name: &str,
) -> Result<Code, NoImage> {
    let failed = |reason: String| NoImage { code: "InvalidImage", reason };
    // As clients name images: registry, name and tag.
    let is_named = SCHEMES.iter().any(|scheme| uri.starts_with(scheme));
    let source = if is_named { uri.to_owned() } else { format!("docker://{uri}") };
    let mut publish = command(options, tenant);
    publish.args(["publish", &source, name]);
    if let Some(layer) = layer {
        publish.arg("--add-layer").arg(layer);
    }
    let output = publish.stdout(Stdio::piped()).output();
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
        package: None,
    })
}
