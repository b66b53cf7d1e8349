//! An invocation, from a request to an answer.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use crate::Qualifier;
use crate::api::ApiError;
use crate::assignment::{Got, Key, StartFailure, Wish};
use crate::hosts::Host;
use crate::link::{Invocation, ToHost};
use crate::model::{Function, State, Version, new_id};
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
    pub(crate) stream: Option<mpsc::UnboundedSender<Bytes>>,
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

/// Which code is meant.
pub(crate) struct Target {
    pub(crate) function: Arc<Function>,
    pub(crate) number: Qualifier,
    pub(crate) version: Version,
    /// As the caller named it.
    pub(crate) arn: String,
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
        let (number, version) = function.resolve(qualifier, chance()).ok_or_else(missing)?;
        let version = version.clone();
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
        Ok(Target { function, number, version, arn })
    }

    /// Runs a function once. It goes on when nobody waits any more.
    ///
    /// # Errors
    /// Throttled, or our own fault. A function's failure is an answer.
    pub(crate) async fn invoke(self: &Arc<Self>, target: Target, given: Given) -> Result<Invoked, ApiError> {
        let service = Arc::clone(self);
        let running = tokio::spawn(async move { service.run(target, given).await });
        running.await.unwrap_or_else(|_| Err(ApiError::service("the invocation was given up: this is a bug")))
    }

    async fn run(self: &Arc<Self>, target: Target, given: Given) -> Result<Invoked, ApiError> {
        let Target { function, number, version, arn } = target;
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
        let host = match self.assigned(&key, &function, &version).await? {
            Ok(host) => host,
            Err(StartFailure { payload }) => return Ok(failed(payload)),
        };
        let timeout = Duration::from_secs(version.settings.timeout.into());
        let mut pieces = self.expect(&id);
        self.gave(&host.sandbox, &id);
        let invocation = Invocation {
            id: id.clone(),
            deadline_ms: milliseconds(SystemTime::now() + timeout),
            arn,
            trace: given.trace.clone(),
            client_context: given.client_context.clone(),
            wants_tail: given.wants_tail,
        };
        host.tell(ToHost::Invoke(Box::new(invocation)), given.payload.clone()).await;
        let deadline = tokio::time::Instant::now() + timeout;
        let mut all = Vec::new();
        let take = |all: &mut Vec<u8>, bytes: Bytes| match &given.stream {
            // Who read them may be gone.
            Some(stream) => drop(stream.send(bytes)),
            None => all.extend_from_slice(&bytes),
        };
        loop {
            match tokio::time::timeout_at(deadline, pieces.recv()).await {
                Ok(Some(Piece::Data(bytes))) => take(&mut all, bytes),
                Ok(Some(Piece::Done { body, tail })) => {
                    let body = if given.stream.is_none() && all.is_empty() {
                        body
                    } else {
                        take(&mut all, body);
                        all.into()
                    };
                    return Ok(Invoked { id, number, body, error: None, tail });
                }
                Ok(Some(Piece::Failed { body, tail, kind })) => {
                    let body = if body.is_empty() { json!({ "errorType": kind }).to_string().into() } else { body };
                    return Ok(Invoked { id, number, body, error: Some("Unhandled"), tail });
                }
                Ok(None) => return Err(ApiError::service("the sandbox was lost")),
                Err(_elapsed) => {
                    self.kill(&host).await;
                    let seconds = timeout.as_secs_f64();
                    let line = format!(
                        "{} {id} Task timed out after {seconds:.2} seconds\n\n",
                        chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ")
                    );
                    self.logs.add(&key.tenant, &key.function, line.as_bytes());
                    let message = format!("RequestId: {id} Error: Task timed out after {seconds:.2} seconds");
                    let body = json!({ "errorType": "Sandbox.Timedout", "errorMessage": message });
                    return Ok(failed(body.to_string().into()));
                }
            }
        }
    }

    /// Waits for a sandbox.
    async fn assigned(
        self: &Arc<Self>,
        key: &Key,
        function: &Function,
        version: &Version,
    ) -> Result<Result<Host, StartFailure>, ApiError> {
        match self.assignment.acquire(key, function.reserved_concurrency, &self.limits, Instant::now())? {
            Got::Warm(host) => Ok(Ok(host)),
            Got::Later(waiting, wish) => {
                if wish == Wish::Start {
                    self.start_sandbox(key.clone(), version.clone());
                }
                waiting.await.map_err(|_| ApiError::service("no sandbox came"))
            }
        }
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Between 0 and 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
