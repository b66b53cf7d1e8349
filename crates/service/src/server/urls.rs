//! Functions' URLs, served.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use chrono::Utc;
use http::header::HeaderName;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    ANYBODY, Answer, Caller, MOST_PAYLOAD, MOST_STREAMED_PARTS, ROOM_OF_URLS, headers_of, parts, read_body, set, whole,
};
use crate::Qualifier;
use crate::api::ApiError;
use crate::invoke::{Given, Invoked, Target};
use crate::model::{Function, new_id};
use crate::policy::Policy;
use crate::service::Service;
use crate::sigv4::Signed;
use crate::url::answer::{self, Head, NoAnswer};
use crate::url::request::Asked;
use crate::url::{UrlAuth, UrlConfig};

/// An answer that is no function's, as AWS gives them.
struct Refusal {
    status: StatusCode,
    body: Value,
}

impl Refusal {
    fn new(status: StatusCode, message: &str) -> Self {
        Self { status, body: json!({ "Message": message }) }
    }

    fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden")
    }

    fn bad_gateway() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "Internal Server Error")
    }

    /// What keeps a function from being run.
    fn of(error: &ApiError) -> Self {
        match error.status() {
            403 => Self::forbidden(),
            status @ (404 | 413 | 429) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                Self { status, body: error.body() }
            }
            400 => Self::new(StatusCode::BAD_REQUEST, "Bad Request"),
            // Its image is not there yet.
            409 => Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
            500 => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
            _ => Self::bad_gateway(),
        }
    }

    fn answer(&self) -> Answer {
        super::json(self.status.as_u16(), Some(&self.body))
    }
}

/// Answers a request to the URL of this id.
pub(super) async fn serve(service: &Arc<Service>, id: &str, head: &Parts, body: Incoming, source: IpAddr) -> Answer {
    let request_id = new_id();
    let Some((function, qualifier, config)) = service.registry.find_url(id) else {
        return Refusal::forbidden().answer();
    };
    let origin = head.headers.get(http::header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let is_question =
        head.method == http::Method::OPTIONS && head.headers.contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD);
    if let (Some(cors), Some(origin), true) = (&config.cors, origin, is_question) {
        let mut answer = Response::new(whole(Bytes::new()));
        add(answer.headers_mut(), cors.of_preflight(origin));
        return answer;
    }
    let call = Call { service, function: &function, qualifier, config: &config, source, request_id: &request_id };
    let mut answer = match call.run(head, body).await {
        Ok(answer) => answer,
        Err(refusal) => refusal.answer(),
    };
    if let Some(cors) = &config.cors {
        add(answer.headers_mut(), cors.of_answer(origin));
    }
    set(&mut answer, "x-amzn-requestid", &request_id);
    answer
}

fn add(headers: &mut HeaderMap, more: Vec<(&'static str, String)>) {
    for (name, value) in more {
        if let Ok(value) = HeaderValue::from_str(&value) {
            // What an answer varies by is said beside what the function says.
            match name {
                "vary" => drop(headers.append(http::header::VARY, value)),
                other => drop(headers.insert(HeaderName::from_static(other), value)),
            }
        }
    }
}

struct Call<'a> {
    service: &'a Arc<Service>,
    function: &'a Arc<Function>,
    /// What the URL is of.
    qualifier: Option<Qualifier>,
    config: &'a UrlConfig,
    source: IpAddr,
    request_id: &'a str,
}

impl Call<'_> {
    async fn run(&self, head: &Parts, body: Incoming) -> Result<Answer, Refusal> {
        let headers = headers_of(head);
        let (method, path, query) = (head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or(""));
        let signed = |body| Signed { method, path, query, headers: &headers, body };
        // Who may not call is not listened to.
        let caller = self.caller(&signed(&[]))?;
        let body = read_body(body, MOST_PAYLOAD, "a function URL", &ROOM_OF_URLS)
            .await
            .map_err(|error| Refusal::of(&error))?;
        let key = match &caller {
            Some(Caller::Key(key, claim)) => {
                let verified = claim.verify(&signed(&body), &key.secret, SystemTime::now());
                verified.map_err(|_| Refusal::forbidden())?;
                Some(key.id.as_str())
            }
            Some(Caller::Anybody) => Some(ANYBODY),
            None => None,
        };
        let options = &self.service.options;
        let host = headers.iter().find_map(|(name, value)| (name == "host").then_some(value.as_str())).unwrap_or("");
        let asked = Asked {
            method,
            path,
            query,
            headers: &headers,
            body: &body,
            id: &self.config.id,
            domain: host.rsplit_once(':').map_or(host, |(name, _)| name),
            scheme: &options.urls.scheme,
            source: self.source,
            request_id: self.request_id,
            at: Utc::now(),
            caller: key.map(|key| (key, options.place.account.as_str(), self.function.tenant.as_str())),
        };
        let payload = asked.event().to_string();
        if payload.len() > MOST_PAYLOAD {
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long"));
        }
        let trace = asked.header("x-amzn-trace-id").map(str::to_owned);
        let target = self.service.target(&self.function.tenant, &self.function.name, self.qualifier.as_ref());
        let target = target.map_err(|error| Refusal::of(&error))?;
        let is_http = Arc::new(AtomicBool::new(false));
        let given = Given {
            payload: payload.into(),
            trace,
            id: Some(self.request_id.to_owned()),
            is_http: Arc::clone(&is_http),
            ..Given::default()
        };
        if self.config.is_streamed {
            return self.stream(target, given, &is_http).await;
        }
        let invoked = self.service.invoke(target, given).await.map_err(|error| Refusal::of(&error))?;
        check(&invoked)?;
        let bad = |NoAnswer| Refusal::bad_gateway();
        let (head, body) = if is_http.load(Ordering::Acquire) {
            let (head, at) = answer::read_head(&invoked.body).map_err(bad)?.ok_or_else(Refusal::bad_gateway)?;
            (head, invoked.body.slice(at..))
        } else {
            answer::read(invoked.body).map_err(bad)?
        };
        Ok(with_head(head, whole(body)))
    }

    /// Who calls; `None` where everybody may.
    fn caller<'b>(&'b self, request: &Signed<'_>) -> Result<Option<Caller<'b>>, Refusal> {
        if self.config.auth == UrlAuth::None {
            let key = self.qualifier.as_ref().map(ToString::to_string).unwrap_or_default();
            let is_open = self.function.policies.get(&key).is_some_and(Policy::allows_everybody);
            return if is_open { Ok(None) } else { Err(Refusal::forbidden()) };
        }
        if self.service.options.access_keys.is_empty() {
            // A page cannot send this header unasked, whoever looks at it.
            let is_signed = request
                .headers
                .iter()
                .any(|(name, value)| name == "authorization" && value.starts_with("AWS4-HMAC-SHA256"));
            return if is_signed { Ok(Some(Caller::Anybody)) } else { Err(Refusal::forbidden()) };
        }
        let caller = Caller::find(self.service, request).map_err(|_| Refusal::forbidden())?;
        match &caller {
            Caller::Key(key, _) if key.tenant == self.function.tenant => Ok(Some(caller)),
            _ => Err(Refusal::forbidden()),
        }
    }

    /// Passes the answer on as it comes.
    async fn stream(&self, target: Target, mut given: Given, is_http: &AtomicBool) -> Result<Answer, Refusal> {
        let (to_us, mut chunks) = mpsc::channel(MOST_STREAMED_PARTS);
        given.stream = Some(to_us);
        let service = Arc::clone(self.service);
        let mut running = Box::pin(async move { service.invoke(target, given).await });
        let mut begun = BytesMut::new();
        // Until it is known how the answer begins.
        let (head, ended) = loop {
            let ended = tokio::select! {
                biased;
                Some(chunk) = chunks.recv() => {
                    begun.extend_from_slice(&chunk);
                    None
                }
                ended = &mut running => Some(ended.map_err(|error| Refusal::of(&error))?),
            };
            if let Some(ended) = &ended {
                check(ended)?;
                while let Ok(chunk) = chunks.try_recv() {
                    begun.extend_from_slice(&chunk);
                }
            }
            if !is_http.load(Ordering::Acquire) {
                break (Head::bytes(), ended);
            }
            match answer::read_head(&begun).map_err(|NoAnswer| Refusal::bad_gateway())? {
                Some((head, at)) => {
                    drop(begun.split_to(at));
                    break (head, ended);
                }
                None if ended.is_some() => return Err(Refusal::bad_gateway()),
                None => {}
            }
        };
        let (frames, body) = mpsc::channel(MOST_STREAMED_PARTS);
        tokio::spawn(async move {
            if !begun.is_empty() {
                let _ = frames.send(Ok(begun.freeze())).await;
            }
            if ended.is_some() {
                return;
            }
            let pass_on = async {
                while let Some(chunk) = chunks.recv().await {
                    // Who reads it may be gone; the function goes on.
                    let _ = frames.send(Ok(chunk)).await;
                }
            };
            let (ended, ()) = tokio::join!(running, pass_on);
            if ended.is_ok_and(|invoked| invoked.error.is_none()) {
                return;
            }
            // What was cut off must not look whole.
            let _ = frames.send(Err(std::io::Error::other("the function failed"))).await;
        });
        Ok(with_head(head, parts(body)))
    }
}

/// That the function did not fail.
fn check(invoked: &Invoked) -> Result<(), Refusal> {
    if invoked.error.is_none() {
        return Ok(());
    }
    let error = serde_json::from_slice::<Value>(&invoked.body).unwrap_or_default();
    if error["errorType"] == "Sandbox.Timedout" {
        return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "Gateway Timeout"));
    }
    Err(Refusal::bad_gateway())
}

fn with_head(head: Head, body: super::Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = head.status;
    for (name, value) in head.headers {
        answer.headers_mut().append(name, value);
    }
    answer
}
