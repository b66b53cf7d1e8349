//! The Telemetry API and its predecessor, the Logs API: what a sandbox writes and what becomes of it, for extensions that want to know.
//!
//! Events are kept from the start until the sandbox has begun, since who subscribes then is to have the first ones too. Each subscriber has
//! a queue of a bounded size and a task that sends what is in it (`delivery`); what a queue does not take is counted and told of.

mod delivery;
mod subscription;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};

use super::network::Namespace;

use self::delivery::Queue;
pub(super) use self::subscription::{Api, Invalid, Subscription};

/// Events of a beginning that are kept for who subscribes later, in bytes.
const MOST_EARLY: usize = 1 << 20;
/// A longer line is cut in parts.
const MOST_LINE: usize = 64 << 10;
/// Subscriptions of a sandbox, those that were replaced too.
const MOST_SUBSCRIPTIONS: usize = 30;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Platform,
    Function,
    Extension,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Platform, Self::Function, Self::Extension];

    fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Function => "function",
            Self::Extension => "extension",
        }
    }
}

#[derive(Clone)]
struct Event {
    kind: Kind,
    /// Its type: `platform.start`, or the kind's name.
    name: &'static str,
    time: String,
    record: Value,
}

impl Event {
    fn new(kind: Kind, name: &'static str, record: Value) -> Self {
        let time = chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        Self { kind, name, time, record }
    }

    fn encode(&self, api: Api) -> Option<Bytes> {
        let (name, record) = match api {
            Api::Telemetry => (self.name, self.record.clone()),
            Api::Logs => subscription::as_log(self.name, &self.record)?,
        };
        Some(json!({ "time": self.time, "type": name, "record": record }).to_string().into())
    }
}

pub(super) struct Telemetry {
    namespace: Arc<Namespace>,
    state: Mutex<State>,
    /// Whether anybody hears or may come to hear of events.
    is_wanted: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Until the sandbox has begun.
    early: VecDeque<Event>,
    early_bytes: usize,
    is_closed: bool,
    subscribers: Vec<Subscriber>,
    subscriptions: usize,
    function: Lines,
    extension: Lines,
}

struct Subscriber {
    name: String,
    api: Api,
    kinds: Vec<Kind>,
    queue: Arc<Queue>,
}

/// Why there is no subscription.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The sandbox has begun.
    Closed,
    TooMany,
}

impl Telemetry {
    pub(super) fn new(namespace: Arc<Namespace>) -> Self {
        Self { namespace, state: Mutex::default(), is_wanted: AtomicBool::new(true) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Something of the sandbox itself.
    pub(super) fn platform(&self, name: &'static str, record: impl FnOnce() -> Value) {
        if self.is_wanted() {
            self.lock().add(Event::new(Kind::Platform, name, record()));
        }
    }

    /// The runtime has written something.
    pub(super) fn function(&self, bytes: &[u8]) {
        if self.is_wanted() {
            let mut state = self.lock();
            let lines = state.function.take(bytes);
            for line in lines {
                state.add(Event::new(Kind::Function, "function", line.into()));
            }
        }
    }

    /// An extension has written something.
    pub(super) fn extension(&self, bytes: &[u8]) {
        if self.is_wanted() {
            let mut state = self.lock();
            let lines = state.extension.take(bytes);
            for line in lines {
                state.add(Event::new(Kind::Extension, "extension", line.into()));
            }
        }
    }

    /// A line that has no end yet will have none.
    pub(super) fn end_of_lines(&self) {
        if self.is_wanted() {
            let mut state = self.lock();
            if let Some(rest) = state.function.rest() {
                state.add(Event::new(Kind::Function, "function", rest.into()));
            }
        }
    }

    /// An extension wants to hear of events from now on, and of those that were before it could say so.
    pub(super) fn subscribe(&self, name: &str, subscription: Subscription) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Refused::Closed);
        }
        if state.subscriptions >= MOST_SUBSCRIPTIONS {
            return Err(Refused::TooMany);
        }
        state.subscriptions += 1;
        let types: Vec<&str> = subscription.kinds.iter().map(|kind| kind.name()).collect();
        let record = json!({ "name": name, "state": "Subscribed", "types": types });
        let (api, kinds) = (subscription.api, subscription.kinds.clone());
        let queue = Queue::start(subscription, Arc::clone(&self.namespace));
        let subscriber = Subscriber { name: name.to_owned(), api, kinds, queue };
        for event in &state.early {
            subscriber.hear(event);
        }
        // Who subscribes again means this in place of that.
        for before in state.subscribers.extract_if(.., |before| before.name == name && before.api == api) {
            before.queue.end();
        }
        state.subscribers.push(subscriber);
        state.add(Event::new(Kind::Platform, "platform.telemetrySubscription", record));
        Ok(())
    }

    /// The sandbox has begun: nobody subscribes any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.early.clear();
        self.is_wanted.store(!state.subscribers.is_empty(), Ordering::Relaxed);
    }

    /// The end is near: what is held for a fuller batch is sent at once.
    pub(super) fn hurry(&self) {
        self.lock().subscribers.iter().for_each(|subscriber| subscriber.queue.hurry());
    }
}

impl State {
    fn add(&mut self, event: Event) {
        self.subscribers.iter().for_each(|subscriber| subscriber.hear(&event));
        if self.is_closed {
            return;
        }
        self.early_bytes += size(&event);
        self.early.push_back(event);
        while self.early_bytes > MOST_EARLY
            && let Some(old) = self.early.pop_front()
        {
            self.early_bytes -= size(&old);
        }
    }
}

/// About what it takes.
fn size(event: &Event) -> usize {
    256 + event.record.as_str().map_or(1024, str::len)
}

impl Subscriber {
    fn hear(&self, event: &Event) {
        if self.kinds.contains(&event.kind)
            && let Some(encoded) = event.encode(self.api)
        {
            self.queue.put(encoded);
        }
    }
}

/// Takes what is written to lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// The lines that are whole now, with their ends.
    fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in part.chunks(MOST_LINE) {
                self.0.extend_from_slice(part);
                if self.0.ends_with(b"\n") || self.0.len() >= MOST_LINE {
                    whole.extend(self.rest());
                }
            }
        }
        whole
    }

    fn rest(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.0);
        (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_whole_however_they_come() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\ntw"), ["one\n"]);
        assert_eq!(lines.take(b"o\n\nthree"), ["two\n", "\n"]);
        assert_eq!(lines.rest().as_deref(), Some("three"));
        assert_eq!(lines.rest(), None);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_grows(parts in proptest::collection::vec(proptest::collection::vec(0..128_u8, 0..100_000), 0..8)) {
            let mut lines = Lines::default();
            let mut all = String::new();
            for part in &parts {
                for line in lines.take(part) {
                    prop_assert!(line.len() < 2 * MOST_LINE);
                    all.push_str(&line);
                }
                prop_assert!(lines.0.len() < MOST_LINE);
            }
            all.extend(lines.rest());
            prop_assert_eq!(all.into_bytes(), parts.concat());
        }
    }
}
