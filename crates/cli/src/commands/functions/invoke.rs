//! `fn invoke`.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Asked, Client};
use crate::args::InvokeArgs;
use crate::output;

/// What this ends with where the function failed, which is no fault of the call.
const FUNCTION_FAILED: u8 = 3;

pub(super) async fn invoke(client: &Client, is_json: bool, args: &InvokeArgs) -> Result<ExitCode> {
    let body = payload(args.payload.as_deref())?;
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if args.event {
        headers.push(("x-amz-invocation-type", "Event".to_owned()));
    }
    if args.tail {
        headers.push(("x-amz-log-type", "Tail".to_owned()));
    }
    let query = args.qualifier.iter().map(|qualifier| ("Qualifier", qualifier.clone())).collect();
    let path = vec!["2015-03-31", "functions", &args.name, "invocations"];
    let answer = client.ask(Method::POST, Asked { path, query, headers, body }).await?;
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (id, error) = (header("x-amzn-requestid").unwrap_or_default(), header("x-amz-function-error"));
    let version = header("x-amz-executed-version");
    let log = header("x-amz-log-result").map(|log| base64::engine::general_purpose::STANDARD.decode(log));
    let log = log.transpose().context("the log's end is not what it should be")?;
    let payload = answer.bytes().await.context("the answer did not come as a whole")?;
    let log = log.map(|log| String::from_utf8_lossy(&log).into_owned());
    if is_json {
        let text = || json!(String::from_utf8_lossy(&payload));
        let payload =
            if payload.is_empty() { Value::Null } else { serde_json::from_slice(&payload).unwrap_or_else(|_| text()) };
        output::print_json(&json!({
            "request_id": id, "version": version, "function_error": error, "log": log, "payload": payload,
        }))?;
    } else {
        if let Some(log) = log {
            // Where nobody reads it, it is lost.
            let _ = write!(std::io::stderr(), "{}", super::logs::shown(&log, std::io::stderr().is_terminal()));
        }
        if args.event {
            eprintln!("accepted as {id}");
        }
        write_answer(&payload)?;
    }
    Ok(if error.is_some() { ExitCode::from(FUNCTION_FAILED) } else { ExitCode::SUCCESS })
}

/// As it is; on a terminal with an end of line, and without what would steer that.
fn write_answer(payload: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = if out.is_terminal() && !payload.is_empty() {
        let text = super::logs::shown(&String::from_utf8_lossy(payload), true);
        writeln!(out, "{text}")
    } else {
        out.write_all(payload)
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// What the function is given.
fn payload(given: Option<&str>) -> Result<Vec<u8>> {
    let (bytes, from) = match given {
        None => return Ok(Vec::new()),
        Some("-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("reading standard input")?;
            (bytes, "standard input".to_owned())
        }
        Some(text) => match text.strip_prefix('@') {
            Some(file) => (std::fs::read(file).with_context(|| format!("reading {file}"))?, file.to_owned()),
            None => (text.as_bytes().to_vec(), "the payload".to_owned()),
        },
    };
    if bytes.is_empty() {
        return Ok(bytes);
    }
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes) {
        bail!(
            "{from} is no JSON: {error}. Give such as '{{\"key\": 1}}' or '\"text\"', @FILE, or - for standard input"
        );
    }
    Ok(bytes)
}
