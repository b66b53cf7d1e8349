//! The Extensions API (2020-01-01), and where extensions subscribe to telemetry (2022-07-01) and logs (2020-08-15).

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::lifecycle::{At, Event, Refusal, Wanted};
use super::runtime_api::{Answer, accepted, header, plain, read_body, refused};
use super::serving::{FirstProcess, Shared};
use super::telemetry::{Api, Invalid, Refused, Subscription};
use crate::model::new_id;

const NAME: &str = "lambda-extension-name";
const IDENTIFIER: HeaderName = HeaderName::from_static("lambda-extension-identifier");
const EVENT_IDENTIFIER: HeaderName = HeaderName::from_static("lambda-extension-event-identifier");
const ERROR_TYPE: &str = "lambda-extension-function-error-type";
const FEATURES: &str = "lambda-extension-accept-feature";
/// Requests are small.
const MOST_REQUEST: usize = 64 << 10;
/// A name, an error's type.
const MOST_HEADER: usize = 256;

fn forbidden(refusal: &Refusal) -> Answer {
    refused(StatusCode::FORBIDDEN, refusal.kind, &refusal.message)
}

fn refusal(kind: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into() }
}

/// The identifier that an extension was given: a UUID.
fn identifier(headers: &HeaderMap) -> Result<String, Refusal> {
    let Some(value) = headers.get(&IDENTIFIER) else {
        return Err(refusal("Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header"));
    };
    let is_id = |text: &str| {
        text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
    };
    match value.to_str() {
        Ok(text) if is_id(text) => Ok(text.to_ascii_lowercase()),
        _ => Err(refusal("Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registration {
    #[serde(default)]
    events: Option<Vec<String>>,
    #[serde(default)]
    configuration_keys: Vec<Value>,
}

fn wanted(body: &[u8]) -> Result<Wanted, Refusal> {
    let format = |message: String| refusal("InvalidRequestFormat", message);
    let registration: Registration = serde_json::from_slice(body).map_err(|error| format(error.to_string()))?;
    if !registration.configuration_keys.is_empty() {
        return Err(format("configurationKeys are deprecated; use environment variables instead".into()));
    }
    let mut wanted = Wanted::default();
    for event in registration.events.unwrap_or_default() {
        match event.as_str() {
            "INVOKE" => wanted.invoke = true,
            "SHUTDOWN" => wanted.shutdown = true,
            other => return Err(refusal("Extension.InvalidEventType", format!("{other}: is not INVOKE or SHUTDOWN"))),
        }
    }
    Ok(wanted)
}

pub(super) async fn register(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let Some(name) = header(headers, NAME).filter(|name| !name.is_empty() && name.len() <= MOST_HEADER) else {
        return forbidden(&refusal("Extension.InvalidExtensionName", "Empty extension name"));
    };
    let wants_account = header(headers, FEATURES)
        .is_some_and(|features| features.split(',').any(|feature| feature.trim() == "accountId"));
    let wanted = match read_body(shared, request, MOST_REQUEST).await {
        Ok(body) => match wanted(&body) {
            Ok(wanted) => wanted,
            Err(refusal) => return forbidden(&refusal),
        },
        Err(answer) => return answer,
    };
    // Which of them are external is known when all were started.
    shared.until(|state| state.first_process != FirstProcess::Starting).await;
    let id = match shared.change(|state| state.lifecycle.register(&name, wanted)) {
        Ok(id) => id,
        Err(refusal) => return forbidden(&refusal),
    };
    let config = &shared.config;
    let mut body =
        json!({ "functionName": config.function, "functionVersion": config.version, "handler": config.handler });
    if wants_account {
        body["accountId"] = json!(config.account);
    }
    let mut answer = plain(StatusCode::OK, &body);
    if let Ok(id) = HeaderValue::from_str(&id) {
        answer.headers_mut().insert(IDENTIFIER, id);
    }
    answer
}

pub(super) async fn next(shared: &Arc<Shared>, headers: &HeaderMap) -> Answer {
    let id = match identifier(headers) {
        Ok(id) => id,
        Err(refusal) => return forbidden(&refusal),
    };
    match shared.change(|state| state.lifecycle.extension_asks(&id)) {
        Ok(asks) => shared.told_of_asking(asks).await,
        Err(refusal) => return forbidden(&refusal),
    }
    let event = shared.until_some(|state| state.lifecycle.take_event(&id)).await;
    let body = match event {
        Event::Invoke(invocation) => {
            let mut body = json!({
                "eventType": "INVOKE",
                "deadlineMs": invocation.deadline_ms,
                "requestId": invocation.id,
                "invokedFunctionArn": invocation.arn,
            });
            let trace = invocation.trace.as_deref().unwrap_or_default();
            body["tracing"] = json!({ "type": "X-Amzn-Trace-Id", "value": trace });
            body
        }
        Event::Shutdown { reason, deadline_ms } => {
            json!({ "eventType": "SHUTDOWN", "shutdownReason": reason.name(), "deadlineMs": deadline_ms })
        }
    };
    let mut answer = plain(StatusCode::OK, &body);
    if let Ok(id) = HeaderValue::from_str(&new_id()) {
        answer.headers_mut().insert(EVENT_IDENTIFIER, id);
    }
    answer
}

/// An extension cannot begin, or will end.
pub(super) fn error(shared: &Arc<Shared>, at: At, headers: &HeaderMap) -> Answer {
    let id = match identifier(headers) {
        Ok(id) => id,
        Err(refusal) => return forbidden(&refusal),
    };
    let Some(kind) = header(headers, ERROR_TYPE) else {
        return forbidden(&refusal("Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found"));
    };
    let kind: String = kind.chars().filter(|c| !c.is_control()).take(MOST_HEADER).collect();
    let failed = shared.change(|state| {
        state.lifecycle.extension_fails(&id, at)?;
        state.lifecycle.name_of(&id)
    });
    let name = match failed {
        Ok(name) => name,
        Err(refusal) => return forbidden(&refusal),
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move { shared.extension_failed(&name, at, &kind).await });
    accepted()
}

pub(super) async fn subscribe(shared: &Arc<Shared>, api: Api, request: Request<Incoming>) -> Answer {
    let name = match identifier(request.headers()) {
        Ok(id) => shared.lock().lifecycle.name_of(&id),
        Err(refusal) => Err(refusal),
    };
    let name = match name {
        Ok(name) => name,
        Err(refusal) => return forbidden(&refusal),
    };
    let body = match read_body(shared, request, MOST_REQUEST).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let subscription = match Subscription::parse(api, &body) {
        Ok(subscription) => subscription,
        Err(Invalid(why)) => return refused(StatusCode::BAD_REQUEST, "ValidationError", &why),
    };
    let word = if api == Api::Telemetry { "Telemetry" } else { "Logs" };
    match shared.telemetry.subscribe(&name, subscription) {
        Ok(()) => {
            let mut answer = Response::new(Full::new(Bytes::from_static(b"OK")));
            answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            answer
        }
        Err(Refused::Closed) => refused(
            StatusCode::FORBIDDEN,
            if api == Api::Telemetry { "Telemetry.SubscriptionClosed" } else { "Logs.SubscriptionClosed" },
            &format!("{word} API subscription is closed already"),
        ),
        Err(Refused::TooMany) => {
            refused(StatusCode::FORBIDDEN, "ValidationError", &format!("{word} API: too many subscriptions"))
        }
    }
}
