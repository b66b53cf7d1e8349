//! The API over HTTP.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::FunctionName;
use crate::api::{self, ApiError, event_stream};
use crate::control::{Input, Success, act};
use crate::invoke::{Given, Invoked, Target};
use crate::model::new_id;
use crate::own;
use crate::service::{AccessKey, Service};
use crate::sigv4::{Claim, Signed};

/// A synchronous payload, and what asynchronous ones may have: 6 MB and 1 MB.
const MOST_PAYLOAD: usize = 6 * 1024 * 1024;
const MOST_EVENT: usize = 1024 * 1024;
/// Bodies of the other actions.
const MOST_BODY: usize = 1 << 20;
/// Parts of a stream that wait for who reads it.
const MOST_PARTS: usize = 4;
/// Connections at once, and how long a head and a body may take.
const MOST_CONNECTIONS: usize = 4096;
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
const BODY_PATIENCE: Duration = Duration::from_mins(2);
/// Who calls without a key.
pub(crate) const ANYBODY: &str = "default";

pub(crate) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Answers on a listener, for ever. What is wrong with a connection is that connection's.
pub async fn serve(service: Arc<Service>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _permit = permit;
            let answering = service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(answer(&service, request).await) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
            // What is wrong with a connection is its caller's affair.
            let _ = server.serve_connection(TokioIo::new(stream), answering).await;
        });
    }
}

async fn answer(service: &Arc<Service>, request: Request<Incoming>) -> Answer {
    let id = new_id();
    let mut answer = match handle(service, request).await {
        Ok(answer) => answer,
        Err(error) => refuse(&error),
    };
    if !answer.headers().contains_key("x-amzn-requestid") {
        set(&mut answer, "x-amzn-requestid", &id);
    }
    answer
}

fn set(answer: &mut Answer, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

fn refuse(error: &ApiError) -> Answer {
    let mut answer = json(error.status(), Some(&error.body()));
    set(&mut answer, "x-amzn-errortype", error.name());
    if let Some(seconds) = error.retry_after_seconds() {
        set(&mut answer, "retry-after", &seconds.to_string());
    }
    answer
}

fn whole(body: Bytes) -> BoxBody<Bytes, Infallible> {
    Full::new(body).boxed()
}

fn json(status: u16, body: Option<&Value>) -> Answer {
    let mut answer = Response::new(whole(body.map_or_else(Bytes::new, |body| body.to_string().into())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if body.is_some() {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    answer
}

async fn handle(service: &Arc<Service>, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let headers: Vec<(String, String)> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let (method, path, query) = (head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or(""));
    let signed = |body| Signed { method, path, query, headers: &headers, body };
    if let Some(answer) = own::answer(service, &signed(&[])).await? {
        return Ok(answer);
    }
    // Who has no key is not listened to for longer than that takes.
    let caller = Caller::find(service, &signed(&[]))?;
    let route = api::find(method, path, query)
        .ok_or_else(|| ApiError::unknown_operation(format!("AWS Lambda has no {method} {path}")))?;
    let is_invocation = matches!(route.action, "Invoke" | "InvokeWithResponseStream");
    let most = if is_invocation { MOST_PAYLOAD } else { MOST_BODY };
    let body = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, most).collect()).await;
    let body = body.map_err(|_| ApiError::invalid_content("the request did not come as a whole in time"))?;
    let body = body.map_err(|error| match error.downcast_ref::<http_body_util::LengthLimitError>() {
        Some(_) => ApiError::too_large(format!("Request must be smaller than {most} bytes for {}", route.action)),
        None => ApiError::invalid_content(format!("the request did not come as a whole: {error}")),
    })?;
    let body = body.to_bytes();
    let tenant = caller.verify(&signed(&body))?;
    let header = |name: &str| headers.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()));
    if is_invocation {
        let is_streamed = route.action != "Invoke";
        let input =
            Input { tenant, path: route.parameters, query: api::query_values(query), body: serde_json::Map::new() };
        return invoke(service, &input, header, body, is_streamed).await;
    }
    let input = Input { tenant, path: route.parameters, query: api::query_values(query), body: Input::body(&body)? };
    // It is written to the disk, which takes its time.
    let (service, action) = (Arc::clone(service), route.action);
    let handle = tokio::runtime::Handle::current();
    let acted = tokio::task::spawn_blocking(move || {
        let _context = handle.enter();
        act(&service, action, &input)
    });
    let acted = acted.await.unwrap_or_else(|_| Err(ApiError::service("it was given up: this is a bug")));
    let Success { status, body } = acted?;
    Ok(json(status, body.as_ref()))
}

/// Who calls, before it is known that it is so.
pub(crate) enum Caller<'a> {
    /// Nobody needs a key.
    Anybody,
    Key(&'a AccessKey, Claim),
}

impl<'a> Caller<'a> {
    /// By the head of a request.
    pub(crate) fn find(service: &'a Service, request: &Signed<'_>) -> Result<Self, ApiError> {
        let keys = &service.options.access_keys;
        if keys.is_empty() {
            check_is_no_browser(request)?;
            return Ok(Self::Anybody);
        }
        let claim = Claim::read(request)?;
        let unknown = || ApiError::unknown_key("The security token included in the request is invalid.");
        let key = keys.iter().find(|key| key.id == claim.access_key).ok_or_else(unknown)?;
        claim.check_time(SystemTime::now())?;
        if key.session_token != claim.session_token {
            return Err(unknown());
        }
        Ok(Self::Key(key, claim))
    }

    /// The tenant, once the whole of the request is here.
    pub(crate) fn verify(self, request: &Signed<'_>) -> Result<String, ApiError> {
        match self {
            Self::Anybody => Ok(ANYBODY.to_owned()),
            Self::Key(key, claim) => {
                claim.verify(request, &key.secret, SystemTime::now())?;
                Ok(key.tenant.clone())
            }
        }
    }
}

/// Without keys a web page that somebody looks at on this machine could do what its reader may. AWS's clients always sign; a page cannot
/// look as if it did without asking first, which is never answered, nor come by a name of its own.
fn check_is_no_browser(request: &Signed<'_>) -> Result<(), ApiError> {
    let header = |name: &str| request.header(name);
    let is_signed = header("authorization").is_some_and(|value| value.starts_with("AWS4-HMAC-SHA256"))
        || request.query.contains("X-Amz-Algorithm=AWS4-HMAC-SHA256");
    if header("origin").is_some() || !is_signed {
        return Err(ApiError::not_signed(
            "Missing Authentication Token: sign requests as AWS's clients do; any key is as good, since this service was given none",
        ));
    }
    check_host(request)
}

/// A page may come by a name of its own that leads here.
pub(crate) fn check_host(request: &Signed<'_>) -> Result<(), ApiError> {
    let host = request.header("host").unwrap_or("");
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    if name == "localhost" || name.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    Err(ApiError::access_denied(format!(
        "without access keys the service is called by localhost or an address, and not by {name:?}"
    )))
}

async fn invoke<'a>(
    service: &Arc<Service>,
    input: &Input,
    header: impl Fn(&str) -> Option<&'a str>,
    payload: Bytes,
    is_streamed: bool,
) -> Result<Answer, ApiError> {
    let named =
        FunctionName::parse(input.parameter(0)?, &service.options.place)?.qualified(input.query("Qualifier"))?;
    if !payload.is_empty() && serde_json::from_slice::<serde::de::IgnoredAny>(&payload).is_err() {
        return Err(ApiError::invalid_content("Could not parse request body into json"));
    }
    let kind = header("x-amz-invocation-type");
    if kind == Some("Event") && payload.len() > MOST_EVENT {
        return Err(ApiError::too_large(format!(
            "{} byte payload is too large for the Event invocation type (limit {MOST_EVENT} bytes)",
            payload.len()
        )));
    }
    let target = service.target(&input.tenant, &named.name, named.qualifier.as_ref());
    // What is accepted may be run later.
    let target = if kind == Some("Event") && target.as_ref().is_err_and(|error| error.status() != 404) {
        None
    } else {
        Some(target?)
    };
    match kind {
        None | Some("RequestResponse" | "Event") => {}
        Some("DryRun") => return Ok(json(204, None)),
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "InvocationType {other:?}: expected RequestResponse, Event or DryRun"
            )));
        }
    }
    let given = Given {
        payload: if payload.is_empty() { Bytes::from_static(b"{}") } else { payload },
        client_context: header("x-amz-client-context").map(decode_context).transpose()?,
        trace: header("x-amzn-trace-id").map(str::to_owned),
        wants_tail: header("x-amz-log-type").is_some_and(|kind| kind.eq_ignore_ascii_case("tail")),
        id: None,
        stream: None,
    };
    let Some(target) = target.filter(|_| kind != Some("Event")) else {
        let id = service.enqueue(&input.tenant, &named, &given, 0).await?;
        let mut answer = json(202, None);
        set(&mut answer, "x-amzn-requestid", &id);
        return Ok(answer);
    };
    if is_streamed {
        return Ok(stream(service, target, given));
    }
    let Invoked { id, number, body, error, tail } = service.invoke(target, given).await?;
    let mut answer = Response::new(whole(body));
    set(&mut answer, "x-amzn-requestid", &id);
    set(&mut answer, "x-amz-executed-version", &number.to_string());
    if let Some(error) = error {
        set(&mut answer, "x-amz-function-error", error);
    }
    if let Some(tail) = tail {
        set(&mut answer, "x-amz-log-result", &tail);
    }
    Ok(answer)
}

/// Answers with what the function gives, as it comes.
fn stream(service: &Arc<Service>, target: Target, mut given: Given) -> Answer {
    let (parts, mut chunks) = tokio::sync::mpsc::channel(MOST_PARTS);
    let (id, number) = (new_id(), target.number.clone());
    given.id = Some(id.clone());
    given.stream = Some(parts);
    let (frames, body) = tokio::sync::mpsc::channel(MOST_PARTS);
    let service = Arc::clone(service);
    tokio::spawn(async move {
        let pass_on = async {
            while let Some(chunk) = chunks.recv().await {
                // Who reads it may be gone; the function goes on.
                let _ = frames.send(event_stream::chunk(&chunk)).await;
            }
        };
        let (invoked, ()) = tokio::join!(service.invoke(target, given), pass_on);
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
        let _ = frames.send(event_stream::complete(&Value::Object(end))).await;
    });
    let frames = futures::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|bytes| (Ok(Frame::data(bytes)), body))
    });
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    set(&mut answer, "content-type", event_stream::CONTENT_TYPE);
    set(&mut answer, "x-amzn-requestid", &id);
    set(&mut answer, "x-amz-executed-version", &number.to_string());
    answer
}

/// Clients send it in base64; runtimes are given JSON.
fn decode_context(text: &str) -> Result<String, ApiError> {
    use base64::Engine as _;
    let bad = || ApiError::invalid("ClientContext: expected up to 3583 bytes of JSON in base64");
    if text.len() > 3583 {
        return Err(bad());
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| bad())?;
    String::from_utf8(bytes).map_err(|_| bad())
}
