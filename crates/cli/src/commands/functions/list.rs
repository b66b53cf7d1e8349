//! `fn ls`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::client::Client;
use crate::output;

/// Longer names of images are cut: their ends tell them apart.
const MOST_IMAGE: usize = 48;

pub(super) async fn list(client: &Client, is_json: bool) -> Result<ExitCode> {
    let status = client.status().await?;
    if is_json {
        output::print_json(&status["functions"])?;
        return Ok(ExitCode::SUCCESS);
    }
    let functions = status["functions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if functions.is_empty() {
        output::print("no functions: make one with `snowmelt fn create NAME IMAGE`\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["NAME", "STATE", "MEMORY", "TIMEOUT", "BUSY", "IDLE", "COLD", "WARM", "ERRORS", "CHANGED", "IMAGE"];
    output::print(&output::table(&header, &[2, 3, 4, 5, 6, 7, 8], functions.iter().map(row).collect()))?;
    Ok(ExitCode::SUCCESS)
}

fn row(function: &Value) -> Vec<String> {
    let text = |pointer: &str| function.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |pointer: &str| function.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let image = text("/image");
    let cut = image.char_indices().rev().nth(MOST_IMAGE - 1).map_or(0, |(at, _)| at);
    vec![
        text("/name"),
        state(function),
        format!("{} MB", number("/memory_mb")),
        format!("{} s", number("/timeout_seconds")),
        number("/sandboxes/busy").to_string(),
        number("/sandboxes/idle").to_string(),
        number("/measures/cold_starts").to_string(),
        number("/measures/warm_starts").to_string(),
        number("/measures/errors").to_string(),
        text("/modified").get(..16).unwrap_or_default().replace('T', " "),
        if cut > 0 { format!("…{}", &image[cut..]) } else { image },
    ]
}

/// What people want to know of a function's state and its last change.
pub(crate) fn state(function: &Value) -> String {
    match (function["state"].as_str(), function["last_update"].as_str()) {
        (Some("Active"), Some("InProgress")) => "updating".into(),
        (Some("Active"), Some("Failed")) => "update failed".into(),
        (Some(state), _) => state.to_lowercase(),
        (None, _) => "-".into(),
    }
}
