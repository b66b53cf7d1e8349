//! What follows when a sandbox has begun, fails or is not needed: what is told, to whom, and how long everybody may take.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use super::lifecycle::{At, Reason};
use super::report;
use super::serving::{Ended, FirstProcess, Shared};
use super::supervisor::Order;
use crate::assignment::payload;
use crate::invoke::milliseconds;
use crate::link::FromHost;

/// How long the end of a sandbox with external extensions may take, as in Lambda.
const WITH_EXTERNAL: Duration = Duration::from_secs(2);
/// Of that the runtime's part.
const RUNTIME_OF_EXTERNAL: Duration = Duration::from_millis(300);
/// With internal ones alone.
const WITH_INTERNAL: Duration = Duration::from_millis(500);

impl Shared {
    /// The runtime has asked for the first time.
    pub(super) fn runtime_has_begun(&self) {
        self.telemetry.platform("platform.initRuntimeDone", || report::init_runtime_done(&self.config, None));
    }

    /// Everybody has asked: the sandbox has begun. Gives how long it took, in milliseconds, where that is the invocation's time.
    pub(super) async fn has_begun(&self) -> Option<u64> {
        let (extensions, init) = {
            let mut state = self.lock();
            let init = state.started.map(|started| started.elapsed()).unwrap_or_default();
            state.init = Some(init).filter(|_| !self.config.is_last_try);
            (state.lifecycle.extensions().to_vec(), init)
        };
        for extension in &extensions {
            self.extension_report(&extension.name, extension.at.name(), &extension.wanted.names(), None).await;
        }
        self.telemetry.platform("platform.initReport", || report::init_report(&self.config, init, "success", None));
        // Who wants to hear of more has said so.
        self.telemetry.close();
        self.config.is_last_try.then_some(init.as_millis() as u64)
    }

    async fn extension_report(&self, name: &str, state: &str, events: &[&str], error: Option<&str>) {
        self.telemetry.platform("platform.extension", || report::extension(name, state, events, error));
        let error = error.map(|error| format!("\tError Type: {error}")).unwrap_or_default();
        let line = format!("EXTENSION\tName: {name}\tState: {state}\tEvents: [{}]{error}\n", events.join(", "));
        self.log_line(line.into_bytes()).await;
    }

    /// An extension has said that it cannot go on.
    pub(super) async fn extension_failed(self: &Arc<Self>, name: &str, at: At, said: &str) {
        let kind = if at == At::InitError { "Extension.InitError" } else { "Extension.ExitError" };
        self.extension_report(name, at.name(), &[], Some(said)).await;
        self.fail(Reason::Failure, kind, said, None).await;
    }

    /// The sandbox has failed, and is ended. `said` is what the runtime itself says of that, in place of `kind` and `message`.
    pub(super) async fn fail(self: &Arc<Self>, reason: Reason, kind: &str, message: &str, said: Option<Bytes>) {
        let Some((has_begun, running)) = self.change(|state| {
            let found = (state.lifecycle.has_begun(), state.lifecycle.invocation().map(|one| one.id.clone()));
            state.lifecycle.end(reason).then_some(found)
        }) else {
            // It was about to end.
            return;
        };
        if !has_begun {
            self.init_failed(reason, kind, message, said).await;
        } else if let Some(id) = running {
            let body = payload(&id, kind, message);
            // It may have been given, and not taken.
            let tail = self.finish(&id, Some(kind), 0).await.unwrap_or_default();
            self.send(FromHost::Failed { id, kind: kind.to_owned(), tail }, body).await;
        }
        if has_begun {
            self.send(FromHost::Ending, Bytes::new()).await;
        }
        self.report_invocation();
        self.shut_down(reason).await;
    }

    async fn init_failed(&self, reason: Reason, kind: &str, message: &str, said: Option<Bytes>) {
        let init = self.lock().started.map(|started| started.elapsed()).unwrap_or_default();
        let is_last_try = self.config.is_last_try;
        let status = if reason == Reason::Timeout { "timeout" } else { "error" };
        if !self.has_runtime_begun() {
            let error = Some((status, kind));
            self.telemetry.platform("platform.initRuntimeDone", || report::init_runtime_done(&self.config, error));
        }
        self.telemetry.platform("platform.initReport", || report::init_report(&self.config, init, status, Some(kind)));
        self.telemetry.close();
        self.log_line(report::init_line(is_last_try, init, status, kind).into_bytes()).await;
        let (kind, message) = (kind.to_owned(), message.to_owned());
        self.send(FromHost::InitFailed { kind, message }, said.unwrap_or_default()).await;
    }

    /// Nobody needs the sandbox any more, or who waited for it does not.
    pub(super) async fn end(self: &Arc<Self>, reason: Reason) {
        let (is_first, running) = self.change(|state| {
            let running = state.lifecycle.invocation().map(|one| one.id.clone());
            (state.lifecycle.end(reason), running)
        });
        if !is_first {
            return;
        }
        if let Some(id) = running {
            let kind = if reason == Reason::Timeout { "Sandbox.Timedout" } else { "Sandbox.Failure" };
            let _ = self.finish(&id, Some(kind), 0).await;
            self.report_invocation();
        }
        self.shut_down(reason).await;
    }

    /// The end, as Lambda does it: the runtime first, then the extensions, and then by force. Nothing of that where there are no extensions.
    async fn shut_down(self: &Arc<Self>, reason: Reason) {
        let begun = Instant::now();
        let (has_extensions, first_process, has_ended) = {
            let state = self.lock();
            let any = !state.lifecycle.extensions().is_empty();
            (any, state.first_process, state.ended == Ended::Container)
        };
        self.telemetry.hurry();
        if has_extensions && !has_ended {
            if first_process == FirstProcess::None {
                // The run has a stop signal for the command.
                let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGTERM);
                self.wait(WITH_INTERNAL, |state| state.ended != Ended::Nothing).await;
            } else {
                self.order(Order::Terminate).await;
                self.wait(RUNTIME_OF_EXTERNAL, |state| state.ended != Ended::Nothing).await;
                self.order(Order::Kill).await;
            }
            let left = WITH_EXTERNAL.saturating_sub(begun.elapsed());
            let deadline = milliseconds(SystemTime::now() + left);
            if self.change(|state| state.lifecycle.tell_of_end(reason, deadline)) {
                self.wait(left, |state| !state.lifecycle.is_end_awaited() || state.ended == Ended::Container).await;
            }
        }
        self.send(FromHost::Exited { how: "it was ended".into() }, Bytes::new()).await;
    }

    async fn wait(&self, at_most: Duration, is_so: impl Fn(&super::serving::State) -> bool) {
        let _ = tokio::time::timeout(at_most, self.until(is_so)).await;
    }
}
