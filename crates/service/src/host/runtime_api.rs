//! The Runtime API, 2018-06-01, for the one container that reaches it, and the way to what else is there for it.
//!
//! Whoever is in the container may send anything. What is held for it is bounded (connections, heads, bodies at once), and so is how fast
//! it can make this process work in vain: this process has no limit of processor time, as the container has.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::extensions_api as extensions;
use super::lifecycle::{At, Reason};
use super::serving::Shared;
use super::telemetry::Api;
use crate::invoke::MOST_ANSWER;
use crate::link::FromHost;

/// A header may be so long: Python's client puts stack traces into one.
const MOST_HEADERS: usize = 2 << 20;
/// Of an answer that is streamed, said at once.
const MOST_PIECE: usize = 64 << 10;
/// One that is streamed.
const MOST_STREAMED: usize = 200 << 20;
/// The type of an answer that begins with a status and headers.
const HTTP_ANSWER: &str = "application/vnd.awslambda.http-integration-response";
/// Connections at once: a runtime has one, and extensions and libraries a few.
const MOST_CONNECTIONS: usize = 32;
/// Bodies that are read at once and whole: each may be as long as an answer.
pub(super) const MOST_BODIES: usize = 4;
/// How long the place of a connection is kept, and how long one that sent nonsense waits: those who do nothing else are slow.
const PAUSE: Duration = Duration::from_millis(10);
/// Descriptions of errors.
const MOST_ERROR: usize = 1 << 20;

pub(super) type Answer = Response<Full<Bytes>>;

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // What they hold is this process's memory, and not the container's.
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let since = Instant::now();
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.max_buf_size(MOST_HEADERS);
            // What is wrong with a connection is the container's affair.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            tokio::time::sleep(PAUSE.saturating_sub(since.elapsed())).await;
            drop(permit);
        });
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let answer = route(shared, request).await;
    if answer.status().is_client_error() {
        tokio::time::sleep(PAUSE).await;
    }
    answer
}

async fn route(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    // Some clients end a path with a slash.
    let parts: Vec<&str> = path.trim_matches('/').splitn(6, '/').collect();
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["2018-06-01", "runtime", "invocation", "next"]) => next(shared).await,
        (&Method::POST, ["2018-06-01", "runtime", "invocation", id, "response"]) => response(shared, id, request).await,
        (&Method::POST, ["2018-06-01", "runtime", "invocation", id, "error"]) => error(shared, id, request).await,
        (&Method::POST, ["2018-06-01", "runtime", "init", "error"]) => init_error(shared, request).await,
        (&Method::POST, ["2020-01-01", "extension", "register"]) => extensions::register(shared, request).await,
        (&Method::GET, ["2020-01-01", "extension", "event", "next"]) => {
            extensions::next(shared, request.headers()).await
        }
        (&Method::POST, ["2020-01-01", "extension", "init", "error"]) => {
            extensions::error(shared, At::InitError, request.headers())
        }
        (&Method::POST, ["2020-01-01", "extension", "exit", "error"]) => {
            extensions::error(shared, At::ExitError, request.headers())
        }
        (&Method::PUT, ["2022-07-01", "telemetry"]) => extensions::subscribe(shared, Api::Telemetry, request).await,
        (&Method::PUT, ["2020-08-15", "logs"]) => extensions::subscribe(shared, Api::Logs, request).await,
        _ => not_found(),
    }
}

/// The whole of a body, of those that are read at once.
pub(super) async fn read_body(shared: &Shared, request: Request<Incoming>, most: usize) -> Result<Bytes, Answer> {
    let _room = shared.bodies.acquire().await;
    let body = Limited::new(request.into_body(), most).collect().await;
    let too_long = |_| refused(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", "the request's body is too long");
    body.map(http_body_util::Collected::to_bytes).map_err(too_long)
}

pub(super) fn plain(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.to_string())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

pub(super) fn accepted() -> Answer {
    plain(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
}

pub(super) fn refused(status: StatusCode, kind: &str, message: &str) -> Answer {
    plain(status, &json!({ "errorType": kind, "errorMessage": message }))
}

fn not_found() -> Answer {
    refused(StatusCode::NOT_FOUND, "Runtime.NotFound", "the Runtime API has no such path")
}

async fn next(shared: &Arc<Shared>) -> Answer {
    let Some((invocation, body)) = shared.next().await else {
        return refused(
            StatusCode::FORBIDDEN,
            "InvalidStateTransition",
            "the invocation that was given last has no answer yet",
        );
    };
    let mut answer = Response::new(Full::new(body));
    let headers = answer.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut set = |name: &'static str, value: &str| {
        // JSON has no meaning for blanks between its parts, and a header has no lines.
        if let Ok(value) = HeaderValue::from_bytes(value.replace(['\r', '\n'], " ").as_bytes()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("lambda-runtime-aws-request-id", &invocation.id);
    set("lambda-runtime-deadline-ms", &invocation.deadline_ms.to_string());
    set("lambda-runtime-invoked-function-arn", &invocation.arn);
    for (name, value) in
        [("lambda-runtime-trace-id", &invocation.trace), ("lambda-runtime-client-context", &invocation.client_context)]
    {
        if let Some(value) = value {
            set(name, value);
        }
    }
    answer
}

fn not_at_it(id: &str) -> Answer {
    refused(StatusCode::BAD_REQUEST, "InvalidRequestID", &format!("{id} is not the invocation that was given last"))
}

pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

async fn response(shared: &Arc<Shared>, id: &str, request: Request<Incoming>) -> Answer {
    if !shared.is_at(id) {
        return not_at_it(id);
    }
    if header(request.headers(), "content-type").as_deref() == Some(HTTP_ANSWER) {
        shared.send(FromHost::Http { id: id.to_owned() }, Bytes::new()).await;
    }
    if header(request.headers(), "lambda-runtime-function-response-mode").as_deref() == Some("streaming") {
        return stream(shared, id, request.into_body()).await;
    }
    let body = read_body(shared, request, MOST_ANSWER).await;
    let kind = "Function.ResponseSizeTooLarge";
    let (error, bytes) = (body.is_err().then_some(kind), body.as_ref().map_or(0, Bytes::len));
    let Some(tail) = shared.finish(id, error, bytes).await else { return not_at_it(id) };
    let id = id.to_owned();
    if let Ok(body) = body {
        shared.send(FromHost::Response { id, tail, is_last: true }, body).await;
        return accepted();
    }
    let message = format!("Response payload size exceeded maximum allowed payload size ({MOST_ANSWER} bytes).");
    let body = json!({ "errorType": kind, "errorMessage": message });
    shared.send(FromHost::Failed { id, kind: kind.into(), tail }, body.to_string().into()).await;
    refused(StatusCode::PAYLOAD_TOO_LARGE, kind, "the answer is too long")
}

/// Passes an answer on as it comes.
async fn stream(shared: &Arc<Shared>, id: &str, mut body: Incoming) -> Answer {
    let mut broken: Option<String> = None;
    let mut said = Bytes::new();
    let mut passed = 0;
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(bytes)) => {
                passed += bytes.len();
                if passed > MOST_STREAMED {
                    broken = Some("Function.ResponseSizeTooLarge".into());
                    break;
                }
                if !shared.is_at(id) {
                    return not_at_it(id);
                }
                // In pieces: who reads slowly has the function wait, and few bytes are on their way.
                let mut rest = bytes;
                while !rest.is_empty() {
                    let piece = rest.split_to(rest.len().min(MOST_PIECE));
                    let head = FromHost::Response { id: id.to_owned(), tail: None, is_last: false };
                    shared.send(head, piece).await;
                }
            }
            Ok(Err(frame)) => {
                if let Ok(trailers) = frame.into_trailers() {
                    broken = header(&trailers, "lambda-runtime-function-error-type").or(broken);
                    let body = header(&trailers, "lambda-runtime-function-error-body");
                    said = body.and_then(|body| STANDARD.decode(body).ok()).unwrap_or_default().into();
                }
            }
            Err(_) => {
                broken = Some("Runtime.TruncatedResponse".into());
                break;
            }
        }
    }
    let Some(tail) = shared.finish(id, broken.as_deref(), passed).await else { return not_at_it(id) };
    let id = id.to_owned();
    let (head, said) = match broken {
        Some(kind) => (FromHost::Failed { id, kind, tail }, said),
        None => (FromHost::Response { id, tail, is_last: true }, Bytes::new()),
    };
    shared.send(head, said).await;
    accepted()
}

/// The body of an error, and what kind it is.
async fn read_error(shared: &Shared, request: Request<Incoming>) -> Result<(String, Bytes), Answer> {
    let kind = header(request.headers(), "lambda-runtime-function-error-type");
    let body = read_body(shared, request, MOST_ERROR).await?;
    let said = || serde_json::from_slice::<Value>(&body).ok()?.get("errorType")?.as_str().map(str::to_owned);
    let kind = kind.or_else(said).unwrap_or_else(|| "Runtime.UnknownReason".into());
    Ok((kind, body))
}

async fn error(shared: &Arc<Shared>, id: &str, request: Request<Incoming>) -> Answer {
    if !shared.is_at(id) {
        return not_at_it(id);
    }
    // One that is too long is an error still.
    let (kind, body, answer) = match read_error(shared, request).await {
        Ok((kind, body)) => (kind, body, accepted()),
        Err(answer) => {
            let kind = "Function.ResponseSizeTooLarge".to_owned();
            let body = json!({ "errorType": kind, "errorMessage": "the function's error was too long" });
            (kind, body.to_string().into(), answer)
        }
    };
    let Some(tail) = shared.finish(id, Some(&kind), 0).await else { return not_at_it(id) };
    shared.send(FromHost::Failed { id: id.to_owned(), kind, tail }, body).await;
    answer
}

async fn init_error(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    if shared.has_runtime_begun() {
        return refused(
            StatusCode::FORBIDDEN,
            "InvalidStateTransition",
            "the runtime has asked for an invocation: it has begun",
        );
    }
    match read_error(shared, request).await {
        Ok((kind, body)) => {
            let shared = Arc::clone(shared);
            tokio::spawn(async move { shared.fail(Reason::Failure, &kind, "", Some(body)).await });
            accepted()
        }
        Err(answer) => answer,
    }
}
