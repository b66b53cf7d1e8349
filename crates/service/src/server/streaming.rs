//! Answers that go out while the function gives them.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::MOST_STREAMED_PARTS as MOST_PARTS;
use crate::api::{ApiError, event_stream};
use crate::invoke::{Given, Invoked, Target};
use crate::model::new_id;
use crate::service::Service;

/// What is being streamed.
pub(super) struct Streamed {
    pub(super) id: String,
    pub(super) number: String,
    pub(super) frames: mpsc::Receiver<std::io::Result<Bytes>>,
}

/// Has a function run, and gives what it gives as an event stream.
///
/// # Errors
/// Those of an invocation that does not come about: nothing was sent then.
pub(super) async fn start(service: &Arc<Service>, target: Target, mut given: Given) -> Result<Streamed, ApiError> {
    let (parts, mut chunks) = mpsc::channel(MOST_PARTS);
    let (id, number) = (new_id(), target.number.to_string());
    given.id = Some(id.clone());
    given.stream = Some(parts);
    let (frames, body) = mpsc::channel(MOST_PARTS);
    let running = Arc::clone(service);
    let mut running = Box::pin(async move { running.invoke(target, given).await });
    // The first part, or how it ended without any: what was refused is told as every refusal is.
    let (first, ended) = tokio::select! {
        biased;
        Some(first) = chunks.recv() => (Some(first), None),
        ended = &mut running => (None, Some(ended?)),
    };
    tokio::spawn(async move {
        let pass_on = async {
            if let Some(first) = first {
                let _ = frames.send(Ok(event_stream::chunk(&first))).await;
            }
            while let Some(chunk) = chunks.recv().await {
                // Who reads it may be gone; the function goes on.
                let _ = frames.send(Ok(event_stream::chunk(&chunk))).await;
            }
        };
        let end = async {
            match ended {
                Some(ended) => Ok(ended),
                None => running.await,
            }
        };
        let (invoked, ()) = tokio::join!(end, pass_on);
        let _ = frames.send(Ok(event_stream::complete(&complete(invoked)))).await;
    });
    Ok(Streamed { id, number, frames: body })
}

/// What the end of a stream says.
fn complete(invoked: Result<Invoked, ApiError>) -> Value {
    let mut end = serde_json::Map::new();
    let mut set = |name: &str, value: String| end.insert(name.into(), value.into());
    match invoked {
        Ok(Invoked { body, error: Some(_), tail, .. }) => {
            let details = String::from_utf8_lossy(&body).into_owned();
            let kind = serde_json::from_str::<Value>(&details).ok();
            let kind = kind.and_then(|error| error.get("errorType")?.as_str().map(str::to_owned));
            set("ErrorCode", kind.unwrap_or_else(|| "Unhandled".into()));
            set("ErrorDetails", details);
            tail.and_then(|tail| set("LogResult", tail));
        }
        Ok(Invoked { tail, .. }) => drop(tail.and_then(|tail| set("LogResult", tail))),
        Err(error) => {
            set("ErrorCode", error.name().to_owned());
            set("ErrorDetails", error.message().to_owned());
        }
    }
    Value::Object(end)
}
