//! `fn create` and `fn update`.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::client::{Asked, Client};
use crate::args::{CreateArgs, SettingsArgs, UpdateArgs};
use crate::output;

/// How often it is looked whether an image is there.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A function's own path.
fn path<'a>(name: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["2015-03-31", "functions", name], rest].concat()
}

fn asked<'a>(path: Vec<&'a str>, body: &Map<String, Value>) -> Asked<'a> {
    let headers = vec![("content-type", "application/json".to_owned())];
    Asked { path, headers, body: Value::from(body.clone()).to_string().into_bytes(), ..Asked::default() }
}

/// What is set, as the API calls it; not variables.
fn fields(settings: &SettingsArgs) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    };
    set("MemorySize", settings.memory.map(|value| json!(value)));
    set("Timeout", settings.timeout.map(|value| json!(value)));
    set("EphemeralStorage", settings.storage.map(|value| json!({ "Size": value })));
    set("Description", settings.description.as_ref().map(|value| json!(value)));
    let command = match &settings.handler {
        Some(handler) => vec![handler.clone()],
        None => settings.command.clone(),
    };
    set("ImageConfig", (!command.is_empty()).then(|| json!({ "Command": command })));
    fields
}

pub(super) async fn create(client: &Client, is_json: bool, args: &CreateArgs) -> Result<ExitCode> {
    let mut body = fields(&args.settings);
    body.insert("FunctionName".into(), json!(args.name));
    body.insert("Role".into(), json!(args.role));
    body.insert("PackageType".into(), json!("Image"));
    body.insert("Code".into(), json!({ "ImageUri": args.image }));
    if !args.settings.env.is_empty() {
        let variables: Map<String, Value> =
            args.settings.env.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        body.insert("Environment".into(), json!({ "Variables": variables }));
    }
    let made = client.json(Method::POST, asked(vec!["2015-03-31", "functions"], &body)).await?;
    finish(client, is_json, &args.name, &args.image, &args.settings, made).await
}

pub(super) async fn update(client: &Client, is_json: bool, args: &UpdateArgs) -> Result<ExitCode> {
    let mut body = fields(&args.settings);
    let changes_variables = !args.settings.env.is_empty() || !args.unset_env.is_empty();
    ensure!(
        !body.is_empty() || changes_variables || args.image.is_some(),
        "nothing is to be changed: give --image, --memory, --timeout, --env or another option"
    );
    let mut now = Value::Null;
    if changes_variables {
        // The API takes all variables or none. Nobody else may change them in between.
        let found =
            client.json(Method::GET, Asked { path: path(&args.name, &["configuration"]), ..Asked::default() }).await?;
        let mut variables = found["Environment"]["Variables"].as_object().cloned().unwrap_or_default();
        for key in &args.unset_env {
            ensure!(variables.remove(key).is_some(), "{} has no variable {key}", args.name);
        }
        variables.extend(args.settings.env.iter().map(|(key, value)| (key.clone(), json!(value))));
        body.insert("Environment".into(), json!({ "Variables": variables }));
        body.insert("RevisionId".into(), found["RevisionId"].clone());
    }
    if !body.is_empty() {
        now = client.json(Method::PUT, asked(path(&args.name, &["configuration"]), &body)).await?;
    }
    let mut image = now["PackageType"].as_str().unwrap_or_default();
    if let Some(wanted) = &args.image {
        image = wanted;
        // Settings may take a moment too.
        if !now.is_null() {
            wait(client, &args.name, "its settings", is_json).await?;
        }
        let body = Map::from_iter([("ImageUri".to_owned(), json!(wanted))]);
        now = client.json(Method::PUT, asked(path(&args.name, &["code"]), &body)).await?;
    }
    let image = image.to_owned();
    finish(client, is_json, &args.name, &image, &args.settings, now).await
}

/// Waits, if that is wanted, and says what there is.
async fn finish(
    client: &Client,
    is_json: bool,
    name: &str,
    image: &str,
    settings: &SettingsArgs,
    mut now: Value,
) -> Result<ExitCode> {
    if !settings.no_wait {
        now = wait(client, name, image, is_json).await?;
    }
    if is_json {
        output::print_json(&now)?;
    } else if settings.no_wait {
        output::print(&format!("{name} is on its way: `snowmelt fn ls` shows when it is there\n"))?;
    } else {
        output::print(&format!("{name} is ready: snowmelt fn invoke {name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Until no change is under way.
async fn wait(client: &Client, name: &str, what: &str, is_json: bool) -> Result<Value> {
    let bar =
        if is_json || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_message(format!("publishing {}", output::without_controls(what)));
    bar.enable_steady_tick(Duration::from_millis(100));
    loop {
        let asked = Asked { path: path(name, &["configuration"]), ..Asked::default() };
        let now = client.json(Method::GET, asked).await?;
        let text = |field: &str| now[field].as_str().unwrap_or_default();
        let reason = |field: &str| output::without_controls(text(field));
        match (text("State"), text("LastUpdateStatus")) {
            ("Pending", _) | (_, "InProgress") => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
            ("Failed", _) => {
                bar.finish_and_clear();
                bail!(
                    "{name} cannot be run: {}. `snowmelt fn update {name} --image IMAGE` gives it another image",
                    reason("StateReason")
                );
            }
            (_, "Failed") => {
                bar.finish_and_clear();
                bail!("{name} is as it was before: {}", reason("LastUpdateStatusReason"));
            }
            _ => {
                bar.finish_and_clear();
                return Ok(now);
            }
        }
    }
}
