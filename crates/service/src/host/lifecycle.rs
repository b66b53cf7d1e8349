//! What the runtime and the extensions of a sandbox are at: pure, without time and without connections.
//!
//! A sandbox has begun, and is free after an invocation, when the runtime and every extension have asked for what is next. Extensions that
//! are programs of the image (external ones) are known before they speak; those within the runtime (internal ones) make themselves known
//! until the runtime has asked for the first time. An invocation goes to the runtime and to each extension that wants to know of it; the
//! end of the sandbox to external extensions that want to know of that.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::link::Invocation;
use crate::model::new_id;

/// Extensions of a sandbox, as many as Lambda has.
pub(super) const MOST_EXTENSIONS: usize = 10;

/// Why a sandbox is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reason {
    /// Nobody needs it.
    Spindown,
    /// It took too long.
    Timeout,
    /// The runtime or an extension has failed.
    Failure,
}

impl Reason {
    /// As extensions are told.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spindown => "spindown",
            Self::Timeout => "timeout",
            Self::Failure => "failure",
        }
    }
}

/// What an extension is told.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Invoke(Arc<Invocation>),
    Shutdown { reason: Reason, deadline_ms: u64 },
}

/// Which events an extension wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) invoke: bool,
    pub(super) shutdown: bool,
}

impl Wanted {
    /// As they are written in logs.
    pub(super) fn names(self) -> Vec<&'static str> {
        [(self.invoke, "INVOKE"), (self.shutdown, "SHUTDOWN")]
            .iter()
            .filter_map(|(is_wanted, name)| is_wanted.then_some(*name))
            .collect()
    }
}

/// What an extension is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Launched,
    Registered,
    /// It waits for an event.
    Ready,
    /// It was given one.
    Running,
    /// It said that it cannot begin.
    InitError,
    /// It said that it will end.
    ExitError,
    /// Its process has ended.
    Exited,
}

impl At {
    /// As Lambda names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Launched => "Started",
            Self::Registered => "Registered",
            Self::Ready => "Ready",
            Self::Running => "Running",
            Self::InitError => "InitError",
            Self::ExitError => "ExitError",
            Self::Exited => "Exited",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Extension {
    pub(super) name: String,
    id: String,
    pub(super) is_external: bool,
    pub(super) wanted: Wanted,
    pub(super) at: At,
    pending: Option<Event>,
}

/// Why a request of an extension is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: &'static str,
    pub(super) message: String,
}

fn refusal<T>(kind: &'static str, message: String) -> Result<T, Refusal> {
    Err(Refusal { kind, message })
}

/// An invocation that the runtime is at.
pub(super) struct Running {
    pub(super) invocation: Arc<Invocation>,
    pub(super) since: Instant,
}

#[derive(Default)]
pub(super) struct Lifecycle {
    /// An invocation that the runtime has not taken yet.
    next: Option<(Arc<Invocation>, Bytes)>,
    running: Option<Running>,
    is_runtime_asking: bool,
    has_runtime_asked: bool,
    /// Whether everybody asks for what is next, and was told of as asking.
    is_free: bool,
    /// How often that was so.
    asks: u64,
    extensions: Vec<Extension>,
    ending: Option<Reason>,
}

impl Lifecycle {
    /// An external extension was started. False if there are too many.
    pub(super) fn launched(&mut self, name: &str) -> bool {
        self.add(name, true, At::Launched).is_some()
    }

    fn add(&mut self, name: &str, is_external: bool, at: At) -> Option<&mut Extension> {
        if self.extensions.len() >= MOST_EXTENSIONS {
            return None;
        }
        self.extensions.push(Extension {
            name: name.to_owned(),
            id: new_id(),
            is_external,
            wanted: Wanted::default(),
            at,
            pending: None,
        });
        self.extensions.last_mut()
    }

    /// An extension makes itself known: gives its identifier.
    pub(super) fn register(&mut self, name: &str, wanted: Wanted) -> Result<String, Refusal> {
        if let Some(known) = self.extensions.iter_mut().find(|known| known.is_external && known.name == name) {
            known.step(At::Registered, &[At::Launched])?;
            known.wanted = wanted;
            return Ok(known.id.clone());
        }
        if wanted.shutdown {
            return refusal(
                "Extension.InvalidEventType",
                "SHUTDOWN: internal extensions cannot be told of the end of the sandbox".into(),
            );
        }
        if self.has_runtime_asked || self.ending.is_some() {
            return refusal("Extension.RegistrationClosed", "Extension registration closed already".into());
        }
        if self.extensions.iter().any(|known| known.name == name) {
            return refusal("Extension.InvalidExtensionState", "Extension with this name already registered".into());
        }
        let Some(added) = self.add(name, false, At::Registered) else {
            return refusal("Extension.TooManyExtensions", format!("Extension limit ({MOST_EXTENSIONS}) reached"));
        };
        added.wanted = wanted;
        Ok(added.id.clone())
    }

    fn extension(&mut self, id: &str) -> Result<&mut Extension, Refusal> {
        let found = self.extensions.iter_mut().find(|known| known.id == id && known.at != At::Launched);
        found.ok_or_else(|| Refusal {
            kind: "Extension.UnknownExtensionIdentifier",
            message: format!("Unknown extension {id}"),
        })
    }

    /// The name that goes with an identifier.
    pub(super) fn name_of(&mut self, id: &str) -> Result<String, Refusal> {
        self.extension(id).map(|extension| extension.name.clone())
    }

    /// Whether every extension that was started has made itself known.
    pub(super) fn are_all_registered(&self) -> bool {
        self.extensions.iter().all(|extension| extension.at != At::Launched)
    }

    /// An extension asks for an event. Gives how often the sandbox was free, if it is now.
    pub(super) fn extension_asks(&mut self, id: &str) -> Result<Option<u64>, Refusal> {
        self.extension(id)?.step(At::Ready, &[At::Registered, At::Ready, At::Running])?;
        Ok(self.free())
    }

    /// What an extension that asks is told, once there is something.
    pub(super) fn take_event(&mut self, id: &str) -> Option<Event> {
        let extension = self.extension(id).ok().filter(|extension| extension.at == At::Ready)?;
        let event = extension.pending.take()?;
        extension.at = At::Running;
        Some(event)
    }

    /// An extension says that it cannot begin, or that it will end.
    pub(super) fn extension_fails(&mut self, id: &str, at: At) -> Result<(), Refusal> {
        let from: &[At] =
            if at == At::InitError { &[At::Registered] } else { &[At::Registered, At::Ready, At::Running] };
        self.extension(id)?.step(at, from)
    }

    /// Its process has ended.
    pub(super) fn extension_ended(&mut self, name: &str) {
        if let Some(known) = self.extensions.iter_mut().find(|known| known.is_external && known.name == name) {
            known.at = At::Exited;
        }
    }

    /// The runtime asks for an invocation; `Err` while it is at another. Gives how often the sandbox was free, if it is now.
    pub(super) fn runtime_asks(&mut self) -> Result<Option<u64>, ()> {
        if self.running.is_some() {
            return Err(());
        }
        // Who asks again before it is given anything, as after a timeout of its own, asks for the same.
        self.is_runtime_asking = true;
        self.has_runtime_asked = true;
        Ok(self.free())
    }

    fn free(&mut self) -> Option<u64> {
        let is_free = self.is_runtime_asking
            && self.next.is_none()
            && self.ending.is_none()
            && self.extensions.iter().all(|extension| extension.at == At::Ready && extension.pending.is_none());
        if !is_free || std::mem::replace(&mut self.is_free, true) {
            return None;
        }
        self.asks += 1;
        Some(self.asks)
    }

    /// There is an invocation.
    pub(super) fn give(&mut self, invocation: Invocation, body: Bytes) {
        let invocation = Arc::new(invocation);
        self.is_free = false;
        for extension in self.extensions.iter_mut().filter(|extension| extension.wanted.invoke) {
            extension.pending = Some(Event::Invoke(Arc::clone(&invocation)));
        }
        self.next = Some((invocation, body));
    }

    /// The runtime takes the invocation that there is.
    pub(super) fn take_invocation(&mut self, now: Instant) -> Option<(Arc<Invocation>, Bytes)> {
        if self.ending.is_some() {
            return None;
        }
        let (invocation, body) = self.next.take()?;
        self.is_runtime_asking = false;
        self.running = Some(Running { invocation: Arc::clone(&invocation), since: now });
        Some((invocation, body))
    }

    /// The runtime is at that invocation.
    pub(super) fn is_at(&self, id: &str) -> bool {
        self.running.as_ref().is_some_and(|running| running.invocation.id == id)
    }

    /// The runtime is done with an invocation.
    pub(super) fn finish(&mut self, id: &str) -> Option<Running> {
        if self.is_at(id) { self.running.take() } else { None }
    }

    /// The sandbox is to end: false if that is so already.
    pub(super) fn end(&mut self, reason: Reason) -> bool {
        self.is_free = false;
        let is_first = self.ending.is_none();
        self.ending.get_or_insert(reason);
        is_first
    }

    /// Extensions that want to know are told of the end. False if there are none.
    pub(super) fn tell_of_end(&mut self, reason: Reason, deadline_ms: u64) -> bool {
        let mut is_anybody_told = false;
        for extension in &mut self.extensions {
            extension.pending = None;
            if extension.is_waited_for_at_end() {
                extension.pending = Some(Event::Shutdown { reason, deadline_ms });
                is_anybody_told = true;
            }
        }
        is_anybody_told
    }

    /// Whether an extension that was told of the end has not ended.
    pub(super) fn is_end_awaited(&self) -> bool {
        self.extensions.iter().any(Extension::is_waited_for_at_end)
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn has_begun(&self) -> bool {
        self.asks > 0
    }

    pub(super) fn asks(&self) -> u64 {
        self.asks
    }

    pub(super) fn is_free(&self) -> bool {
        self.is_free
    }

    pub(super) fn has_runtime_asked(&self) -> bool {
        self.has_runtime_asked
    }

    pub(super) fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// The invocation that the sandbox is at, or is to begin.
    pub(super) fn invocation(&self) -> Option<&Arc<Invocation>> {
        let running = self.running.as_ref().map(|running| &running.invocation);
        running.or(self.next.as_ref().map(|(invocation, _)| invocation))
    }
}

impl Extension {
    /// Goes on, if it is at one of these.
    fn step(&mut self, to: At, from: &[At]) -> Result<(), Refusal> {
        if from.contains(&self.at) {
            self.at = to;
            return Ok(());
        }
        refusal(
            "Extension.InvalidExtensionState",
            format!(
                "State transition from {} to {} failed for extension {}. Error: State transition is not allowed",
                self.at.name(),
                to.name(),
                self.name
            ),
        )
    }

    fn is_waited_for_at_end(&self) -> bool {
        self.is_external && self.wanted.shutdown && matches!(self.at, At::Registered | At::Ready | At::Running)
    }
}

#[cfg(test)]
mod tests;
