//! Invocations that nobody waits for: a queue that survives whatever happens to this process.
//!
//! An event is in the database before its caller hears of it, and until it has been dealt with: run, given up, and told to where its
//! function says. So it is run at least once. A function that fails is run again twice, after one minute and after two; what keeps an
//! event from being run at all (throttling, an image that is not there yet) is tried again for as long as the event may get old.

mod destinations;
mod queue;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

pub(crate) use self::destinations::check_destination;
use self::destinations::{deliver_patiently, letter, record};
use self::queue::{Next, Queue};
use crate::api::ApiError;
use crate::invoke::{Given, Invoked};
use crate::model::{EventConfig, new_id};
use crate::service::Service;
use crate::{FunctionName, Qualifier};

const EVENTS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("events");
/// Events that are being run.
const MOST_AT_ONCE: usize = 256;
/// Of one tenant.
const MOST_OF_TENANT: usize = 64;
/// The clock may be set, and the service may go.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// After what keeps an event from being run.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// What is to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    id: String,
    tenant: String,
    function: String,
    qualifier: Option<Qualifier>,
    /// In base64.
    payload: String,
    client_context: Option<String>,
    trace: Option<String>,
    /// Milliseconds since 1970.
    accepted_ms: u64,
    /// Runs of the function that failed.
    failures: u32,
    /// Tries that did not get so far.
    hindered: u32,
    /// How many functions have passed it on: a circle of destinations ends.
    hops: u32,
    due_ms: u64,
}

/// The queue.
pub(crate) struct Events {
    database: Database,
    queue: Queue,
    next: Mutex<u64>,
    changed: Notify,
    /// Before a failed run is repeated for the first time; twice as long before the second.
    retry_after: Duration,
}

/// A tenant's event that is being run.
struct Turn<'a> {
    events: &'a Events,
    tenant: Arc<str>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.events.queue.ended(&self.tenant);
        self.events.changed.notify_one();
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn broken(error: impl std::fmt::Display) -> ApiError {
    tracing::error!(%error, "the queue of events");
    ApiError::service("the queue of events cannot be written: the service's log says why")
}

impl Events {
    /// Opens the queue, with what is in it.
    ///
    /// # Errors
    /// What is wrong with the database.
    pub(crate) fn open(path: &Path, retry_after: Duration) -> Result<Self, redb::Error> {
        let database = Database::create(path)?;
        let begun = database.begin_write()?;
        begun.open_table(EVENTS)?;
        begun.commit()?;
        let queue = Queue::default();
        let mut next = 0;
        for entry in database.begin_read()?.open_table(EVENTS)?.iter()? {
            let (number, event) = entry?;
            next = number.value() + 1;
            match serde_json::from_slice::<Event>(event.value()) {
                Ok(event) => queue.add(event.due_ms, number.value(), &event.tenant),
                Err(error) => tracing::error!(%error, number = number.value(), "an event is not understood and stays"),
            }
        }
        Ok(Self { database, queue, next: Mutex::new(next), changed: Notify::new(), retry_after })
    }

    /// Takes an event: it is on the disk when this returns.
    ///
    /// # Errors
    /// Our own fault: then it was not taken.
    fn add(&self, event: &Event) -> Result<(), ApiError> {
        let bytes = serde_json::to_vec(event).map_err(broken)?;
        let number = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next - 1
        };
        self.write(|table| table.insert(number, bytes.as_slice()).map(drop))?;
        self.queue.add(event.due_ms, number, &event.tenant);
        self.changed.notify_one();
        Ok(())
    }

    fn write(
        &self,
        change: impl FnOnce(&mut redb::Table<'_, u64, &'static [u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), ApiError> {
        let begun = self.database.begin_write().map_err(broken)?;
        change(&mut begun.open_table(EVENTS).map_err(broken)?).map_err(broken)?;
        begun.commit().map_err(broken)
    }

    fn read(&self, number: u64) -> Option<Event> {
        let read = self.database.begin_read().ok()?;
        let found = read.open_table(EVENTS).ok()?.get(number).ok()??;
        serde_json::from_slice(found.value()).ok()
    }
}

impl Service {
    /// Takes an invocation that nobody waits for.
    ///
    /// # Errors
    /// Our own fault: then it was not taken.
    pub(crate) async fn enqueue(
        self: &Arc<Self>,
        tenant: &str,
        name: &FunctionName,
        given: &Given,
        hops: u32,
    ) -> Result<String, ApiError> {
        let now = now_ms();
        let event = Event {
            id: new_id(),
            tenant: tenant.to_owned(),
            function: name.name.clone(),
            qualifier: name.qualifier.clone(),
            payload: base64::engine::general_purpose::STANDARD.encode(&given.payload),
            client_context: given.client_context.clone(),
            trace: given.trace.clone(),
            accepted_ms: now,
            failures: 0,
            hindered: 0,
            hops,
            due_ms: now,
        };
        let (service, id) = (Arc::clone(self), event.id.clone());
        // It is synced, which takes its time.
        let added = tokio::task::spawn_blocking(move || service.events.add(&event)).await;
        added.unwrap_or_else(|_| Err(ApiError::service("the event was given up: this is a bug")))?;
        Ok(id)
    }
}

/// Runs what is due, for as long as the service is there.
pub(crate) async fn dispatch(service: Weak<Service>) {
    let room = Arc::new(Semaphore::new(MOST_AT_ONCE));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Some(strong) = service.upgrade().filter(|service| !service.is_closing()) else { return };
        let now = now_ms();
        let (number, tenant) = match strong.events.queue.next(now, MOST_OF_TENANT) {
            Next::Run(number, tenant) => (number, tenant),
            Next::Wait(due) => {
                let wait = due.map_or(LONGEST_WAIT, |at| Duration::from_millis(at.saturating_sub(now)));
                let _ = tokio::time::timeout(wait.min(LONGEST_WAIT), strong.events.changed.notified()).await;
                continue;
            }
        };
        tokio::spawn(async move {
            let _permit = permit;
            let _turn = Turn { events: &strong.events, tenant };
            let Some(event) = strong.events.read(number) else {
                tracing::error!(number, "an event cannot be read: the next service tries again");
                return;
            };
            deal_with(&strong, number, event).await;
        });
    }
}

/// What became of a try.
enum Outcome {
    Succeeded(Invoked),
    Failed(Invoked),
    /// It was not run.
    Hindered(ApiError),
}

async fn deal_with(service: &Arc<Service>, number: u64, mut event: Event) {
    // A function that was deleted has nobody to be told.
    let Some(function) = service.registry.find(&event.tenant, &event.function) else {
        return remove(service, number).await;
    };
    let qualifier = event.qualifier.clone().unwrap_or_default();
    let config = function.event_configs.get(&qualifier.to_string()).cloned().unwrap_or_default();
    let dead_letter =
        function.resolve(Some(&qualifier), 0.0).and_then(|(_, version)| version.settings.dead_letter.clone());
    let finish = |event: Event, condition, outcome| {
        let targets = Targets { config: &config, dead_letter: dead_letter.as_deref() };
        async move { finish(service, number, &event, targets, condition, &outcome).await }
    };
    let outcome = attempt(service, &event).await;
    // What ended with the service is not the function's fault: the next one runs it.
    if service.is_closing() && !matches!(outcome, Outcome::Succeeded(_)) {
        return;
    }
    let age = Duration::from_millis(now_ms().saturating_sub(event.accepted_ms));
    let most_age = Duration::from_secs(config.most_age_seconds.into());
    let (condition, pause) = match &outcome {
        Outcome::Succeeded(_) => ("Success", None),
        Outcome::Failed(_) => {
            event.failures += 1;
            let pause = service.events.retry_after * event.failures;
            ("RetriesExhausted", (event.failures <= config.most_retries).then_some(pause))
        }
        Outcome::Hindered(error) => {
            tracing::info!(function = event.function, %error, "an event waits");
            event.hindered += 1;
            let pause = FIRST_PAUSE.saturating_mul(1 << event.hindered.min(9).saturating_sub(1)).min(LONGEST_PAUSE);
            ("EventAgeExceeded", Some(pause))
        }
    };
    match pause {
        Some(pause) if age + pause <= most_age => put_off(service, number, event, pause).await,
        Some(_) => finish(event, "EventAgeExceeded", outcome).await,
        None => finish(event, condition, outcome).await,
    }
}

async fn attempt(service: &Arc<Service>, event: &Event) -> Outcome {
    let payload = base64::engine::general_purpose::STANDARD.decode(&event.payload).unwrap_or_default();
    let given = Given {
        payload: payload.into(),
        client_context: event.client_context.clone(),
        trace: event.trace.clone(),
        id: Some(event.id.clone()),
        ..Given::default()
    };
    let target = match service.target(&event.tenant, &event.function, event.qualifier.as_ref()) {
        Ok(target) => target,
        Err(error) => return Outcome::Hindered(error),
    };
    match service.invoke(target, given).await {
        Ok(invoked) if invoked.error.is_none() => Outcome::Succeeded(invoked),
        Ok(invoked) => Outcome::Failed(invoked),
        Err(error) => Outcome::Hindered(error),
    }
}

async fn put_off(service: &Arc<Service>, number: u64, mut event: Event, pause: Duration) {
    event.due_ms = now_ms() + pause.as_millis() as u64;
    let service = Arc::clone(service);
    let write = move || {
        let written = serde_json::to_vec(&event)
            .map_err(broken)
            .and_then(|bytes| service.events.write(|table| table.insert(number, bytes.as_slice()).map(drop)));
        if written.is_err() {
            tracing::error!(function = event.function, "how often an event failed is not kept");
        }
        service.events.queue.add(event.due_ms, number, &event.tenant);
        service.events.changed.notify_one();
    };
    let _ = tokio::task::spawn_blocking(write).await;
}

async fn remove(service: &Arc<Service>, number: u64) {
    let service = Arc::clone(service);
    let remove = move || {
        if service.events.write(|table| table.remove(number).map(drop)).is_err() {
            tracing::error!("an event that was dealt with stays: it is run again by the next service");
        }
    };
    let _ = tokio::task::spawn_blocking(remove).await;
}

/// Who is to be told.
struct Targets<'a> {
    config: &'a EventConfig,
    dead_letter: Option<&'a str>,
}

/// Tells whoever is to be told, and only then forgets the event.
async fn finish(
    service: &Arc<Service>,
    number: u64,
    event: &Event,
    targets: Targets<'_>,
    condition: &str,
    outcome: &Outcome,
) {
    let is_success = condition == "Success";
    let destination = if is_success { &targets.config.on_success } else { &targets.config.on_failure };
    let mut messages = Vec::new();
    messages.extend(destination.as_deref().map(|to| (to, record(service, event, condition, outcome))));
    messages.extend(targets.dead_letter.filter(|_| !is_success).map(|to| (to, letter(event, outcome))));
    for (destination, message) in messages {
        if let Err(error) = deliver_patiently(service, event, destination, &message).await {
            if service.is_closing() {
                // The next one runs it again, and tells of that.
                return;
            }
            tracing::error!(function = event.function, destination, error, "what became of an event is not told");
            let line = format!("{} Destination {destination}: {error}\n", event.id);
            service.log(&event.tenant, &event.function, line.as_bytes());
        }
    }
    remove(service, number).await;
}
