//! The API over HTTP.

mod packages;
mod streaming;
mod urls;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::request::Parts;
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
use crate::invoke::{Given, Invoked};
use crate::model::new_id;
use crate::own;
use crate::service::{AccessKey, Service};
use crate::sigv4::{Claim, Signed};

/// A synchronous payload, and what asynchronous ones may have: 6 MB and 1 MB.
const MOST_PAYLOAD: usize = 6 * 1024 * 1024;
const MOST_EVENT: usize = 1024 * 1024;
/// Bodies of the other actions.
const MOST_BODY: usize = 1 << 20;
/// Of those that bring a package, in base64: as AWS has it.
const MOST_PACKAGE_BODY: usize = 70_167_211;
/// Such bodies at once: each is in memory three times.
static LARGE_BODIES: Semaphore = Semaphore::const_new(2);
/// Parts of a stream that wait for who reads it.
const MOST_STREAMED_PARTS: usize = 4;
/// Connections at once, and how long a head and a body may take.
const MOST_CONNECTIONS: usize = 4096;
const HEAD_PATIENCE: Duration = Duration::from_mins(1);
const IDLE_BEFORE_PROBES: Duration = Duration::from_mins(1);
const BODY_PATIENCE: Duration = Duration::from_mins(2);
/// Bodies that are being read take no more than this, in KiB: those of the API, and those of functions' URLs, which anybody may send.
static ROOM: Semaphore = Semaphore::const_new(256 << 10);
static ROOM_OF_URLS: Semaphore = Semaphore::const_new(128 << 10);
/// What is so small needs no place.
const SMALL_BODY: usize = 64 << 10;
/// Who calls without a key.
pub(crate) const ANYBODY: &str = "default";

pub(crate) type Body = BoxBody<Bytes, std::io::Error>;
pub(crate) type Answer = Response<Body>;

/// Answers on a listener, for ever. What is wrong with a connection is that connection's.
pub async fn serve(service: Arc<Service>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        // One whose machine has vanished is noticed by nobody else.
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let _ = rustix::net::sockopt::set_tcp_keepidle(&stream, IDLE_BEFORE_PROBES);
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _permit = permit;
            let answering = service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(answer(&service, request, peer.ip()).await) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE);
            // What is wrong with a connection is its caller's affair.
            let _ = server.serve_connection(TokioIo::new(stream), answering).await;
        });
    }
}

async fn answer(service: &Arc<Service>, request: Request<Incoming>, peer: std::net::IpAddr) -> Answer {
    let (head, body) = request.into_parts();
    let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = head.uri.authority().map(http::uri::Authority::as_str).or(host).unwrap_or("");
    // By such a name only the function is reached, which is for browsers too.
    if let Some(url) = service.options.urls.id_of(host, &service.options.place.region) {
        return urls::serve(service, &url, &head, body, peer).await;
    }
    let mut answer = match handle(service, &head, body).await {
        Ok(answer) => answer,
        Err(error) => refuse(&error),
    };
    if !answer.headers().contains_key("x-amzn-requestid") {
        set(&mut answer, "x-amzn-requestid", &new_id());
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

pub(crate) fn whole(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed()
}

fn json(status: u16, body: Option<&Value>) -> Answer {
    let mut answer = Response::new(whole(body.map_or_else(Bytes::new, |body| body.to_string().into())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if body.is_some() {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    answer
}

fn headers_of(head: &Parts) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// The whole of a body, of which no more is read than it may have, while `room` has place for it.
async fn read_body(body: Incoming, most: usize, what: &str, room: &Semaphore) -> Result<Bytes, ApiError> {
    let size = hyper::body::Body::size_hint(&body).upper().map_or(most, |size| (size as usize).min(most));
    let kib = if size <= SMALL_BODY { 0 } else { (size >> 10) as u32 };
    let place = tokio::time::timeout(BODY_PATIENCE, room.acquire_many(kib)).await;
    let Ok(Ok(_place)) = place else { return Err(ApiError::throttled("CallerRateLimitExceeded", 1)) };
    let body = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, most).collect()).await;
    let body = body.map_err(|_| ApiError::invalid_content("the request did not come as a whole in time"))?;
    let body = body.map_err(|error| match error.downcast_ref::<http_body_util::LengthLimitError>() {
        Some(_) => ApiError::too_large(format!("Request must be smaller than {most} bytes for {what}")),
        None => ApiError::invalid_content(format!("the request did not come as a whole: {error}")),
    })?;
    Ok(body.to_bytes())
}

async fn handle(service: &Arc<Service>, head: &Parts, body: Incoming) -> Result<Answer, ApiError> {
    let headers = headers_of(head);
    let (method, path, query) = (head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or(""));
    let signed = |body| Signed { method, path, query, headers: &headers, body };
    if let (Some(place), "GET") = (path.strip_prefix(packages::PREFIX), method) {
        return packages::fetch(service, place, query).await;
    }
    if let Some(answer) = own::answer(service, &signed(&[])).await? {
        return Ok(answer);
    }
    // Who has no key is not listened to for longer than that takes.
    let caller = Caller::find(service, &signed(&[]))?;
    let route = api::find(method, path, query)
        .ok_or_else(|| ApiError::unknown_operation(format!("AWS Lambda has no {method} {path}")))?;
    let is_invocation = matches!(route.action, "Invoke" | "InvokeWithResponseStream");
    let most = match route.action {
        _ if is_invocation => MOST_PAYLOAD,
        "CreateFunction" | "UpdateFunctionCode" => MOST_PACKAGE_BODY,
        _ => MOST_BODY,
    };
    let is_large = most == MOST_PACKAGE_BODY
        && hyper::body::Body::size_hint(&body).upper().is_none_or(|size| size > MOST_BODY as u64);
    let _room = if is_large { LARGE_BODIES.acquire().await.ok() } else { None };
    let body = read_body(body, most, route.action, &ROOM).await?;
    let tenant = caller.verify(&signed(&body))?;
    let header = |name: &str| headers.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()));
    let base = format!("{}://{}", header("x-forwarded-proto").unwrap_or("http"), header("host").unwrap_or("localhost"));
    let (path, query) = (route.parameters, api::query_values(query));
    let mut input = Input { tenant, base, path, query, body: serde_json::Map::new() };
    if is_invocation {
        let is_streamed = route.action != "Invoke";
        return invoke(service, &input, header, body, is_streamed).await;
    }
    // It is written to the disk, which takes its time.
    let (service, action) = (Arc::clone(service), route.action);
    let handle = tokio::runtime::Handle::current();
    let acted = tokio::task::spawn_blocking(move || {
        let _context = handle.enter();
        input.body = Input::body(&body)?;
        drop(body);
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
    let is_from_elsewhere = header("origin").is_some()
        || header("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_from_elsewhere || !is_signed {
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
        ..Given::default()
    };
    let Some(target) = target.filter(|_| kind != Some("Event")) else {
        let id = service.enqueue(&input.tenant, &named, &given, 0).await?;
        let mut answer = json(202, None);
        set(&mut answer, "x-amzn-requestid", &id);
        return Ok(answer);
    };
    if is_streamed {
        let streamed = streaming::start(service, target, given).await?;
        let mut answer = Response::new(parts(streamed.frames));
        set(&mut answer, "content-type", event_stream::CONTENT_TYPE);
        set(&mut answer, "x-amzn-requestid", &streamed.id);
        set(&mut answer, "x-amz-executed-version", &streamed.number);
        return Ok(answer);
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

/// A body that comes in parts.
fn parts(body: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
    let frames = futures::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|bytes| (bytes.map(Frame::data), body))
    });
    BodyExt::boxed(StreamBody::new(frames))
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
