//! Paths that are not AWS's: what the service is doing, what functions write, and the page that shows it.
//!
//! Who may look: whoever signs with a key, at what is that tenant's; whoever has the status token, at what is everybody's; and where there are
//! no keys whoever reaches the service, but no web page of another's. The page itself is the same for all and tells nothing: it asks for the
//! status as anybody would.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::Frame;
use tokio::sync::OwnedSemaphorePermit;

use crate::FunctionName;
use crate::api::{self, ApiError};
use crate::logs::{Follower, From};
use crate::server::{ANYBODY, Answer, Caller, check_host, whole};
use crate::service::Service;
use crate::sigv4::Signed;
use crate::status::{Whose, status};

/// How often a log that has nothing new is looked at.
const LOOK_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(100);
/// Lines of a log's end that can be asked for.
const MOST_LINES: usize = 100_000;
/// Parts of a log that wait for who reads it.
const MOST_PARTS: usize = 4;

const PAGE: &str = include_str!("../web/page.html");
const STYLE: &str = include_str!("../web/page.css");
const SCRIPT: &str = include_str!("../web/page.js");
/// Nothing from elsewhere, nothing that is written into the page, and nobody around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers what is asked for by a path of our own; `None` for AWS's.
///
/// # Errors
/// For who may not look, and for what cannot be shown.
pub(crate) async fn answer(service: &Arc<Service>, request: &Signed<'_>) -> Result<Option<Answer>, ApiError> {
    if !matches!(request.method, "GET" | "HEAD") {
        return Ok(None);
    }
    let answer = match request.path {
        "/healthz" => text(StatusCode::OK, "alive\n"),
        "/readyz" if service.is_closing() => text(StatusCode::SERVICE_UNAVAILABLE, "it is ending\n"),
        "/readyz" => text(StatusCode::OK, "ready\n"),
        "/" => page(service, request, PAGE, "text/html; charset=utf-8")?,
        "/_snowmelt/page.css" => page(service, request, STYLE, "text/css; charset=utf-8")?,
        "/_snowmelt/page.js" => page(service, request, SCRIPT, "text/javascript; charset=utf-8")?,
        "/metrics" => {
            let whose = who_looks(service, request)?;
            let counts = service.assignment.counts_by_function().into_iter();
            let counts = counts.filter(|((tenant, _), _)| whose.includes(tenant));
            let counts = counts.map(|((tenant, function), counts)| (tenant, function, counts)).collect();
            let text = service.board.text(&|tenant| whose.includes(tenant), counts);
            data(text, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        }
        "/_snowmelt/status" => {
            let whose = who_looks(service, request)?;
            let service = Arc::clone(service);
            // Files of the kernel's are read for it.
            let shown = tokio::task::spawn_blocking(move || status(&service, &whose).to_string()).await;
            let shown = shown.map_err(|_| ApiError::service("it was given up: this is a bug"))?;
            data(shown, "application/json")
        }
        path => {
            let name = path.strip_prefix("/_snowmelt/functions/").and_then(|rest| rest.strip_suffix("/log"));
            match name {
                Some(name) => log(service, request, name)?,
                None => return Ok(None),
            }
        }
    };
    Ok(Some(answer))
}

fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer.headers_mut().insert(name, HeaderValue::from_static(value));
}

/// What no page of another's may use, and what is not kept.
fn data(text: impl Into<Bytes>, kind: &'static str) -> Answer {
    let mut answer = Response::new(whole(text.into()));
    set(&mut answer, CONTENT_TYPE, kind);
    set(&mut answer, CACHE_CONTROL, "no-store");
    set(&mut answer, X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut answer, HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    answer
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = data(text, "text/plain; charset=utf-8");
    *answer.status_mut() = status;
    answer
}

fn page(service: &Service, request: &Signed<'_>, text: &'static str, kind: &'static str) -> Result<Answer, ApiError> {
    if service.options.access_keys.is_empty() {
        check_host(request)?;
    }
    let mut answer = data(text, kind);
    set(&mut answer, CONTENT_SECURITY_POLICY, POLICY);
    set(&mut answer, REFERRER_POLICY, "no-referrer");
    Ok(answer)
}

/// Whose functions a caller may look at.
fn who_looks(service: &Service, request: &Signed<'_>) -> Result<Whose, ApiError> {
    if let Some(given) = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
        let wanted = service.options.status_token.as_deref();
        // In the same time however much of it is right.
        let is_right = wanted.is_some_and(|wanted| {
            aws_lc_rs::constant_time::verify_slices_are_equal(wanted.as_bytes(), given.as_bytes()).is_ok()
        });
        return if is_right { Ok(Whose::All) } else { Err(ApiError::access_denied("that is not the status token")) };
    }
    if !service.options.access_keys.is_empty() {
        if request.header("authorization").is_none() {
            return Err(ApiError::not_signed(
                "Missing Authentication Token: sign the request with an access key, or give the status token (Authorization: Bearer …)",
            ));
        }
        return Ok(Whose::Of(Caller::find(service, request)?.verify(request)?));
    }
    check_host(request)?;
    // A page of another's cannot read the answer; that it asks at all is seen here, and refused.
    let is_from_elsewhere = request.header("origin").is_some()
        || request.header("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if is_from_elsewhere {
        return Err(ApiError::access_denied("pages of other sites may not look at this"));
    }
    Ok(Whose::Of(ANYBODY.to_owned()))
}

/// A function's log, to its end or as it is written.
fn log(service: &Arc<Service>, request: &Signed<'_>, name: &str) -> Result<Answer, ApiError> {
    let tenant = Caller::find(service, request)?.verify(request)?;
    let name = api::decode(name).ok_or_else(|| ApiError::invalid(format!("{name:?} is no name")))?;
    let name = FunctionName::parse(&name, &service.options.place)?.unqualified()?;
    if service.registry.find(&tenant, &name).is_none() {
        return Err(ApiError::not_found(format!("Function not found: {}", service.options.place.arn(&name, None))));
    }
    let query = api::query_values(request.query);
    let value = |name: &str| query.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()));
    let number = |name: &str| {
        let parse =
            |text: &str| text.parse::<u64>().map_err(|_| ApiError::invalid(format!("{name}: expected a number")));
        value(name).map(parse).transpose()
    };
    let from = match (number("lines")?, number("since")?) {
        (Some(_), Some(_)) => return Err(ApiError::invalid("lines and since: give one of them")),
        (Some(lines), None) => From::Lines((lines as usize).min(MOST_LINES)),
        (None, Some(since)) => From::Time(since),
        (None, None) => From::Start,
    };
    let follows = match value("follow") {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(ApiError::invalid(format!("follow {other:?}: expected true or false"))),
    };
    let permit = Arc::clone(&service.readers).try_acquire_owned();
    let permit = permit.map_err(|_| ApiError::throttled("CallerRateLimitExceeded", 1))?;
    let follower = service.logs.follow(&tenant, &name, from);
    let (parts, body) = tokio::sync::mpsc::channel(MOST_PARTS);
    tokio::spawn(read(Arc::downgrade(service), (tenant, name), follower, follows, parts, permit));
    let frames = futures::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|bytes: Bytes| (Ok(Frame::data(bytes)), body))
    });
    let mut answer = data("", "text/plain; charset=utf-8");
    *answer.body_mut() = BoxBody::new(StreamBody::new(frames));
    Ok(answer)
}

/// Gives what is written, until that is all or nobody reads it.
async fn read(
    service: std::sync::Weak<Service>,
    (tenant, name): (String, String),
    mut follower: Follower,
    follows: bool,
    parts: tokio::sync::mpsc::Sender<Bytes>,
    _permit: OwnedSemaphorePermit,
) {
    loop {
        let is_there = || {
            let service = service.upgrade()?;
            (!service.is_closing() && service.registry.find(&tenant, &name).is_some()).then_some(())
        };
        // Before it is read: what was written until then comes.
        let is_over = !follows || is_there().is_none();
        let read = tokio::task::spawn_blocking(move || {
            let read = follower.read();
            (follower, read)
        });
        let Ok((back, read)) = read.await else { return };
        follower = back;
        match read {
            Ok(bytes) if bytes.is_empty() => {
                if is_over {
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_AGAIN_AFTER) => {}
                    () = parts.closed() => return,
                }
            }
            Ok(bytes) => {
                if parts.send(bytes.into()).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(tenant, function = name, %error, "a log is not read");
                return;
            }
        }
    }
}
