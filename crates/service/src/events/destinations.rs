//! Who is told what became of an event, and how.
//!
//! A destination takes a record of the run, a dead-letter target what the function was given. Both are a function, a file or an address,
//! are checked when they are set and again when they are used, and are tried for a while.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Event, FIRST_PAUSE, Outcome};
use crate::FunctionName;
use crate::api::ApiError;
use crate::invoke::Given;
use crate::model::new_id;
use crate::service::Service;

/// How long an HTTP endpoint may take to take a record.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// For how long a destination is tried.
const DELIVERY_TRIES: Duration = Duration::from_mins(2);
/// A circle of destinations ends after so many.
const MOST_HOPS: u32 = 16;
/// Of an error that a dead letter tells: 1 KB, as AWS has it.
const MOST_REASON: usize = 1024;

/// What is sent.
pub(super) enum Message {
    /// A record of what became of it.
    Record(Value),
    /// What the function was given, and why that came to nothing.
    Letter { body: String, attributes: [(&'static str, &'static str, String); 3] },
}

/// What a dead-letter target is sent: the event as it came, with attributes as AWS has them.
pub(super) fn letter(event: &Event, outcome: &Outcome) -> Message {
    let (code, reason) = match outcome {
        Outcome::Succeeded(invoked) | Outcome::Failed(invoked) => {
            let error = serde_json::from_slice::<Value>(&invoked.body).ok();
            let message = error.and_then(|error| error.get("errorMessage")?.as_str().map(str::to_owned));
            (200, message.unwrap_or_else(|| "Unhandled".into()))
        }
        Outcome::Hindered(error) => (error.status(), error.message().to_owned()),
    };
    let mut reason = reason;
    let end = (0..=MOST_REASON.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    reason.truncate(end);
    let payload = base64::engine::general_purpose::STANDARD.decode(&event.payload).unwrap_or_default();
    Message::Letter {
        body: String::from_utf8_lossy(&payload).into_owned(),
        attributes: [
            ("RequestID", "String", event.id.clone()),
            ("ErrorCode", "Number", code.to_string()),
            ("ErrorMessage", "String", reason),
        ],
    }
}

impl Message {
    /// A line of a file.
    fn line(&self) -> String {
        match self {
            Self::Record(record) => format!("{record}\n"),
            Self::Letter { body, attributes } => {
                let attributes: serde_json::Map<String, Value> = attributes
                    .iter()
                    .map(|(name, kind, value)| ((*name).to_owned(), json!({ "DataType": kind, "StringValue": value })))
                    .collect();
                format!("{}\n", json!({ "Body": body, "MessageAttributes": attributes }))
            }
        }
    }

    /// What a function is given: of a letter, what one is that reads a queue of Amazon SQS where it lies.
    fn event(&self, arn: &str) -> String {
        let Self::Letter { body, attributes } = self else { return self.line() };
        let attributes: serde_json::Map<String, Value> = attributes
            .iter()
            .map(|(name, kind, value)| ((*name).to_owned(), json!({ "dataType": kind, "stringValue": value })))
            .collect();
        let record = json!({
            "messageId": new_id(),
            "body": body,
            "messageAttributes": attributes,
            "eventSource": "aws:lambda",
            "eventSourceARN": arn,
        });
        json!({ "Records": [record] }).to_string()
    }

    /// As a request to an address.
    fn request(&self, client: &reqwest::Client, to: &str) -> reqwest::RequestBuilder {
        let mut request = client.post(to).header("content-type", "application/json");
        match self {
            Self::Record(record) => request.body(record.to_string()),
            Self::Letter { body, attributes } => {
                for (name, _, value) in attributes {
                    // A header has no lines.
                    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                    if let Ok(value) = reqwest::header::HeaderValue::from_bytes(value.as_bytes()) {
                        request = request.header(*name, value);
                    }
                }
                request.body(body.clone())
            }
        }
    }
}

/// As Lambda writes it (invocation records, version 1.0).
pub(super) fn record(service: &Service, event: &Event, condition: &str, outcome: &Outcome) -> Message {
    let payload = base64::engine::general_purpose::STANDARD.decode(&event.payload).unwrap_or_default();
    let value = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
    let arn = service.options.place.arn(&event.function, Some(&event.qualifier.clone().unwrap_or_default()));
    let mut all = json!({
        "version": "1.0",
        "timestamp": chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        "requestContext": {
            "requestId": event.id,
            "functionArn": arn,
            "condition": condition,
            "approximateInvokeCount": event.failures + u32::from(matches!(outcome, Outcome::Succeeded(_))),
        },
        "requestPayload": value(&payload),
    });
    match outcome {
        Outcome::Succeeded(invoked) | Outcome::Failed(invoked) => {
            let mut context = json!({ "statusCode": 200, "executedVersion": invoked.number.to_string() });
            if let Some(error) = invoked.error {
                context["functionError"] = json!(error);
            }
            all["responseContext"] = context;
            all["responsePayload"] = value(&invoked.body);
        }
        Outcome::Hindered(_) => {}
    }
    Message::Record(all)
}

/// A destination that fails is tried again, for a while: other events of its tenant wait for this one's place.
pub(super) async fn deliver_patiently(
    service: &Arc<Service>,
    event: &Event,
    destination: &str,
    message: &Message,
) -> Result<(), String> {
    let (mut pause, until) = (FIRST_PAUSE, Instant::now() + DELIVERY_TRIES);
    loop {
        let Err(error) = deliver(service, event, destination, message).await else { return Ok(()) };
        if Instant::now() + pause > until || service.is_closing() {
            return Err(error);
        }
        tracing::warn!(function = event.function, destination, error, "a destination is tried again");
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn deliver(service: &Arc<Service>, event: &Event, destination: &str, message: &Message) -> Result<(), String> {
    check_destination(service, &event.tenant, "Destination", destination)
        .map_err(|error| error.message().to_owned())?;
    if let Some(path) = destination.strip_prefix("file://") {
        use std::io::Write as _;
        let (path, line) = (path.to_owned(), message.line());
        let append = move || {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).append(true).custom_flags(nix::libc::O_NOFOLLOW);
            let mut file = options.open(path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        return tokio::task::spawn_blocking(append)
            .await
            .map_err(|_| "given up".to_owned())?
            .map_err(|error| error.to_string());
    }
    if destination.starts_with("http://") || destination.starts_with("https://") {
        let client = reqwest::Client::builder().timeout(DELIVERY_PATIENCE).redirect(reqwest::redirect::Policy::none());
        let client = client.build().map_err(|error| error.to_string())?;
        let answer = message.request(&client, destination).send().await.map_err(|error| error.to_string())?;
        return if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) };
    }
    let sender = service.registry.find(&event.tenant, &event.function);
    if event.hops >= MOST_HOPS && !sender.is_some_and(|sender| sender.allows_recursion) {
        return Err(format!("{MOST_HOPS} functions have passed it on already"));
    }
    let name = FunctionName::parse(destination, &service.options.place).map_err(|error| error.message().to_owned())?;
    if service.registry.find(&event.tenant, &name.name).is_none() {
        return Err("there is no such function".into());
    }
    let given = Given {
        payload: Bytes::from(message.event(&service.options.place.arn(&event.function, None))),
        ..Given::default()
    };
    service.enqueue(&event.tenant, &name, &given, event.hops + 1).await.map(drop).map_err(|error| error.to_string())
}

/// Where records may go: checked when it is set.
pub(crate) fn check_destination(
    service: &Service,
    tenant: &str,
    what: &str,
    destination: &str,
) -> Result<(), ApiError> {
    if let Some(path) = destination.strip_prefix("file://") {
        // Anybody who may call could have root write anywhere, or what is another tenant's.
        let folder = service.options.destinations.as_ref().map(|folder| folder.join(tenant));
        let is_inside = folder.is_some_and(|folder| {
            let parent = Path::new(path).parent().and_then(|parent| parent.canonicalize().ok());
            parent.is_some() && parent == folder.canonicalize().ok()
        });
        return if is_inside {
            Ok(())
        } else {
            Err(ApiError::invalid(format!(
                "{what} {destination}: files are written only to the folder {tenant} in the one that `snowmelt serve --destinations DIR` names"
            )))
        };
    }
    if destination.starts_with("http://") || destination.starts_with("https://") {
        if !service.options.allows_http_destinations {
            return Err(ApiError::invalid(format!(
                "{what} {destination}: addresses are not allowed: `snowmelt serve --allow-http-destinations` allows them"
            )));
        }
        return reqwest::Url::parse(destination)
            .map(drop)
            .map_err(|error| ApiError::invalid(format!("{what} {destination}: {error}")));
    }
    let name = FunctionName::parse(destination, &service.options.place);
    let is_there = name.is_ok_and(|name| service.registry.find(tenant, &name.name).is_some());
    if is_there && destination.starts_with("arn:") {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "{what} {destination}: expected the ARN of a function that is there, file://PATH, or an http:// or https:// address"
    )))
}
