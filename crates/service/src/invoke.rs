//! An invocation, from a request to an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::Qualifier;
use crate::api::ApiError;
use crate::assignment::{Assigned, Got, Key, RETURNS_WITHIN, StartFailure, StillWaits, Wish};
use crate::hosts::Host;
use crate::link::{Invocation, ToHost};
use crate::measures::Timing;
use crate::model::{Function, State, Version, new_id};
use crate::placement::StartFor;
use crate::service::{Piece, Service};

/// What a function is given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub(crate) payload: Bytes,
    pub(crate) client_context: Option<String>,
    pub(crate) trace: Option<String>,
    pub(crate) wants_tail: bool,
    /// The request's id, where it has one already.
    pub(crate) id: Option<String>,
    /// Where parts of the answer go as they come, in place of the whole.
    pub(crate) stream: Option<mpsc::Sender<Bytes>>,
    /// Set before the answer's first part where that is the head of an answer of HTTP.
    pub(crate) is_http: Arc<AtomicBool>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Invoked {
    pub(crate) id: String,
    pub(crate) number: Qualifier,
    pub(crate) body: Bytes,
    /// How the function failed, where it did.
    pub(crate) error: Option<&'static str>,
    pub(crate) tail: Option<String>,
}

/// An answer that is not streamed: 6 MB, and a little for what AWS counts otherwise.
pub(crate) const MOST_ANSWER: usize = 6 * 1024 * 1024 + 100;

/// What a sandbox gave.
struct Answer {
    body: Bytes,
    tail: Option<String>,
    error: Option<&'static str>,
}

/// Ends the wait for an invocation's answers, however its run ends.
struct Forget<'a>(&'a Service, &'a str);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget_answers(self.1);
    }
}

/// Which code is meant.
pub(crate) struct Target {
    pub(crate) function: Arc<Function>,
    pub(crate) number: Qualifier,
    /// As the caller named it.
    pub(crate) arn: String,
}

impl Target {
    fn version(&self) -> Result<&Version, ApiError> {
        let found = self.function.resolve(Some(&self.number), 0.0);
        found
            .map(|(_, version)| version)
            .ok_or_else(|| ApiError::service("a version is not there that was: this is a bug"))
    }
}

impl Service {
    /// Finds the code that a caller names, which must be there to run.
    ///
    /// # Errors
    /// Not found; conflict while its image is being published; invalid runtime where there is none.
    pub(crate) fn target(&self, tenant: &str, name: &str, qualifier: Option<&Qualifier>) -> Result<Target, ApiError> {
        let arn = self.options.place.arn(name, qualifier);
        let missing = || ApiError::not_found(format!("Function not found: {arn}"));
        let function = self.registry.find(tenant, name).ok_or_else(missing)?;
        let chance = if matches!(qualifier, Some(Qualifier::Alias(_))) { chance() } else { 0.0 };
        let (number, version) = function.resolve(qualifier, chance).ok_or_else(missing)?;
        match &version.state {
            State::Active => {}
            State::Pending => {
                return Err(ApiError::conflict(format!(
                    "The operation cannot be performed at this time. The function is currently in the following state: Pending: {arn}"
                )));
            }
            State::Failed { reason, .. } => {
                return Err(ApiError::invalid_runtime(format!("{arn} has no image that can be run: {reason}")));
            }
        }
        Ok(Target { number, arn, function: Arc::clone(&function) })
    }

    /// Runs a function once. It goes on when nobody waits any more.
    ///
    /// # Errors
    /// Throttled, or our own fault. A function's failure is an answer.
    pub(crate) async fn invoke(self: &Arc<Self>, target: Target, given: Given) -> Result<Invoked, ApiError> {
        let service = Arc::clone(self);
        let running = tokio::spawn(async move {
            let timing = service.board.begin(&target.function.tenant, &target.function.name);
            let outcome = service.run(target, given, &timing).await;
            timing.end(&outcome);
            outcome
        });
        running.await.unwrap_or_else(|_| Err(ApiError::service("the invocation was given up: this is a bug")))
    }

    async fn run(self: &Arc<Self>, target: Target, given: Given, timing: &Timing<'_>) -> Result<Invoked, ApiError> {
        let version = target.version()?;
        let Target { function, number, arn } = &target;
        let key = Key {
            tenant: function.tenant.clone(),
            function: function.name.clone(),
            number: number.to_string(),
            revision: version.revision.clone(),
        };
        let id = given.id.clone().unwrap_or_else(new_id);
        let failed = |body: Bytes| Invoked {
            id: id.clone(),
            number: number.clone(),
            body,
            error: Some("Unhandled"),
            tail: given.wants_tail.then(String::new),
        };
        let timeout = Duration::from_secs(version.settings.timeout.into());
        let _waiting = Forget(self, &id);
        let mut pieces = self.expect(&id);
        // A sandbox may go in the moment that it is given.
        let (host, deadline) = loop {
            let (host, was_waited_for) = match self.assigned(&key, version).await? {
                Ok(assigned) => assigned,
                Err(failure) => return Ok(failed(failure.payload(&id))),
            };
            let left = timeout.saturating_sub(self.spent_on_init(&host.sandbox));
            let deadline = Instant::now() + left;
            if self.gave(&host.sandbox, &id, deadline) {
                timing.given(&host.sandbox, was_waited_for);
                break (host, deadline);
            }
        };
        let invocation = Invocation {
            id: id.clone(),
            deadline_ms: milliseconds(SystemTime::now() + deadline.saturating_duration_since(Instant::now())),
            arn: arn.clone(),
            trace: Some(given.trace.clone().unwrap_or_else(new_trace)),
            client_context: given.client_context.clone(),
            wants_tail: given.wants_tail,
        };
        host.tell(ToHost::Invoke(Box::new(invocation)), given.payload.clone()).await;
        let answer = self.collect(&mut pieces, &given, timing);
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Some(Answer { body, tail, error })) => {
                Ok(Invoked { id: id.clone(), number: number.clone(), body, error, tail })
            }
            Ok(None) => Err(ApiError::service("the sandbox was lost")),
            Err(_elapsed) => {
                self.kill_at(&host, &id);
                let seconds = timeout.as_secs_f64();
                let now = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ");
                let line = format!("{now} {id} Task timed out after {seconds:.2} seconds\n\n");
                self.log(&key.tenant, &key.function, line.as_bytes());
                let message = format!("RequestId: {id} Error: Task timed out after {seconds:.2} seconds");
                let body = json!({ "errorType": "Sandbox.Timedout", "errorMessage": message });
                Ok(failed(body.to_string().into()))
            }
        }
    }

    /// Takes an answer together, or passes it on as it comes.
    async fn collect(&self, pieces: &mut mpsc::Receiver<Piece>, given: &Given, timing: &Timing<'_>) -> Option<Answer> {
        let mut all = Vec::new();
        loop {
            let piece = pieces.recv().await?;
            timing.answered();
            let (bytes, end) = match piece {
                Piece::Http => {
                    given.is_http.store(true, Ordering::Release);
                    continue;
                }
                Piece::Data(bytes) => (bytes, None),
                Piece::Done { body, tail } => (body, Some(tail)),
                Piece::Failed { body, tail, kind } => {
                    let body = if body.is_empty() { json!({ "errorType": kind }).to_string().into() } else { body };
                    return Some(Answer { body, tail, error: Some("Unhandled") });
                }
            };
            match &given.stream {
                // Who read them may be gone: the function goes on.
                Some(stream) => drop(stream.send(bytes).await),
                None if all.is_empty() && end.is_some() => {
                    return end.map(|tail| Answer { body: bytes, tail, error: None });
                }
                None => all.extend_from_slice(&bytes),
            }
            if all.len() > MOST_ANSWER {
                let kind = "Function.ResponseSizeTooLarge";
                let message =
                    format!("Response payload size exceeded maximum allowed payload size ({MOST_ANSWER} bytes).");
                let body = json!({ "errorType": kind, "errorMessage": message }).to_string().into();
                return Some(Answer { body, tail: None, error: Some("Unhandled") });
            }
            if let Some(tail) = end {
                return Some(Answer { body: all.into(), tail, error: None });
            }
        }
    }

    /// Waits for one that has answered and asks for more at once, or does not.
    async fn wait_shortly(
        self: &Arc<Self>,
        waiting: &mut oneshot::Receiver<Assigned>,
        key: &Key,
        ticket: u64,
    ) -> Result<Option<Assigned>, ApiError> {
        loop {
            if let Ok(assigned) = tokio::time::timeout(RETURNS_WITHIN, &mut *waiting).await {
                return assigned.map(Some).map_err(|_| ApiError::service("no sandbox came"));
            }
            match self.assignment.still_waits(key, ticket, &self.limits, Instant::now()) {
                StillWaits::Shortly => {}
                StillWaits::Refused(refusal) => return Err(refusal),
                StillWaits::Given => return Ok(None),
                StillWaits::Long(starts) => {
                    for _ in 0..starts {
                        self.follow(Some((key.clone(), Wish::Start)), StartFor::Invocation);
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Waits for a sandbox. Gives also whether it was waited for.
    async fn assigned(
        self: &Arc<Self>,
        key: &Key,
        version: &Version,
    ) -> Result<Result<(Host, bool), StartFailure>, ApiError> {
        if self.is_closing() {
            return Err(ApiError::service("the service is ending: try again"));
        }
        match self.assignment.acquire(key, &self.limits, Instant::now())? {
            Got::Warm(host) => Ok(Ok((host, false))),
            Got::Later(mut waiting, wish, ticket) => {
                if wish == Wish::Start {
                    self.start_sandbox(key.clone(), version.clone(), StartFor::Invocation);
                } else if let Some(assigned) = self.wait_shortly(&mut waiting, key, ticket).await? {
                    return Ok(assigned.map(|host| (host, true)));
                }
                let assigned = waiting.await.map_err(|_| ApiError::service("no sandbox came"))?;
                Ok(assigned.map(|host| (host, true)))
            }
        }
    }
}

pub(crate) fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What follows an invocation through what it calls, where its caller has none: not recorded.
fn new_trace() -> String {
    let id = new_id().replace('-', "");
    let seconds = milliseconds(SystemTime::now()) / 1000;
    format!("Root=1-{seconds:08x}-{};Parent={};Sampled=0", &id[8..], &id[..16])
}

/// Between 0 and 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
