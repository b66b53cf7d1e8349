//! Invocations that nobody waits for: a queue that survives whatever happens to this process.
//!
//! An event is in the database before its caller hears of it, and until it has been dealt with: run, given up, and told to where its
//! function says. So it is run at least once. A function that fails is run again twice, after one minute and after two; what keeps an
//! event from being run at all (throttling, an image that is not there yet) is tried again for as long as the event may get old.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use bytes::Bytes;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

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
const BACK_AFTER_MS: u64 = 50;
/// After what keeps an event from being run.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long an HTTP endpoint may take to take a record.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// For how long a destination is tried.
const DELIVERY_TRIES: Duration = Duration::from_mins(2);

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

/// A circle of destinations ends after so many.
const MOST_HOPS: u32 = 16;

/// The queue.
pub(crate) struct Events {
    database: Database,
    /// When each is due, and its number.
    due: Mutex<BTreeSet<(u64, u64)>>,
    next: Mutex<u64>,
    changed: Notify,
    /// Before a failed run is repeated for the first time; twice as long before the second.
    retry_after: Duration,
    /// How many of a tenant's are being run.
    running: Mutex<HashMap<String, usize>>,
}

/// A tenant's event that is being run.
struct Turn<'a> {
    events: &'a Events,
    tenant: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut running = self.events.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = running.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.tenant);
            }
        }
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
        let mut due = BTreeSet::new();
        let mut next = 0;
        for entry in database.begin_read()?.open_table(EVENTS)?.iter()? {
            let (number, event) = entry?;
            next = number.value() + 1;
            match serde_json::from_slice::<Event>(event.value()) {
                Ok(event) => drop(due.insert((event.due_ms, number.value()))),
                Err(error) => tracing::error!(%error, number = number.value(), "an event is not understood and stays"),
            }
        }
        Ok(Self {
            database,
            due: Mutex::new(due),
            next: Mutex::new(next),
            changed: Notify::new(),
            retry_after,
            running: Mutex::default(),
        })
    }

    fn due(&self) -> MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tenant's turn; `None` while as many of its events are being run as may be.
    fn turn(&self, tenant: &str) -> Option<Turn<'_>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let count = running.entry(tenant.to_owned()).or_default();
        if *count >= MOST_OF_TENANT {
            return None;
        }
        *count += 1;
        Some(Turn { events: self, tenant: tenant.to_owned() })
    }

    fn put_back(&self, number: u64, due_ms: u64) {
        self.due().insert((due_ms, number));
        self.changed.notify_one();
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
        self.due().insert((event.due_ms, number));
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
        let (taken, wait) = {
            let mut due = strong.events.due();
            match due.first().copied() {
                Some((at, number)) if at <= now => {
                    due.remove(&(at, number));
                    (Some(number), Duration::ZERO)
                }
                Some((at, _)) => (None, Duration::from_millis(at - now)),
                None => (None, Duration::from_secs(1)),
            }
        };
        let Some(number) = taken else {
            // Not for long: the clock may be set, and the service may go.
            let _ = tokio::time::timeout(wait.min(Duration::from_secs(1)), strong.events.changed.notified()).await;
            continue;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let Some(event) = strong.events.read(number) else {
                tracing::error!(number, "an event cannot be read: the next service tries again");
                return;
            };
            // Where so many of the tenant's are running, those of other tenants have their turn.
            let Some(_turn) = strong.events.turn(&event.tenant) else {
                return strong.events.put_back(number, now_ms() + BACK_AFTER_MS);
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
    let config = service.registry.find(&event.tenant, &event.function).map(|function| {
        let qualifier = event.qualifier.clone().unwrap_or_default();
        function.event_configs.get(&qualifier.to_string()).cloned().unwrap_or_default()
    });
    // A function that was deleted has nobody to be told.
    let Some(config) = config else { return remove(service, number).await };
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
        Some(_) => finish(service, number, &event, &config, "EventAgeExceeded", &outcome).await,
        None => finish(service, number, &event, &config, condition, &outcome).await,
    }
}

async fn attempt(service: &Arc<Service>, event: &Event) -> Outcome {
    let payload = base64::engine::general_purpose::STANDARD.decode(&event.payload).unwrap_or_default();
    let given = Given {
        payload: payload.into(),
        client_context: event.client_context.clone(),
        trace: event.trace.clone(),
        wants_tail: false,
        id: Some(event.id.clone()),
        stream: None,
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
        let due = (event.due_ms, number);
        let written = serde_json::to_vec(&event)
            .map_err(broken)
            .and_then(|bytes| service.events.write(|table| table.insert(number, bytes.as_slice()).map(drop)));
        if written.is_err() {
            tracing::error!(function = event.function, "how often an event failed is not kept");
        }
        service.events.due().insert(due);
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

/// Tells whoever is to be told, and only then forgets the event.
async fn finish(
    service: &Arc<Service>,
    number: u64,
    event: &Event,
    config: &EventConfig,
    condition: &str,
    outcome: &Outcome,
) {
    let destination = if condition == "Success" { &config.on_success } else { &config.on_failure };
    if let Some(destination) = destination {
        let record = record(service, event, condition, outcome);
        if let Err(error) = deliver_patiently(service, event, destination, &record).await {
            if service.is_closing() {
                // The next one runs it again, and tells of that.
                return;
            }
            tracing::error!(function = event.function, destination, error, "what became of an event is not told");
            let line = format!("{} Destination {destination}: {error}\n", event.id);
            service.logs.add(&event.tenant, &event.function, line.as_bytes());
        }
    }
    remove(service, number).await;
}

/// As Lambda writes it (invocation records, version 1.0).
fn record(service: &Service, event: &Event, condition: &str, outcome: &Outcome) -> Value {
    let payload = base64::engine::general_purpose::STANDARD.decode(&event.payload).unwrap_or_default();
    let value = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
    let arn = service.options.place.arn(&event.function, Some(&event.qualifier.clone().unwrap_or_default()));
    let mut all = json!({
        "version": "1.0",
        "timestamp": chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        "requestContext": {
            "requestId": event.id,
            "functionArn": arn,
            "condition": condition,
            "approximateInvokeCount": event.failures + u32::from(matches!(outcome, Outcome::Succeeded(_))),
        },
        "requestPayload": value(&payload),
    });
    match outcome {
        Outcome::Succeeded(invoked) | Outcome::Failed(invoked) => {
            let mut context = json!({ "statusCode": 200, "executedVersion": invoked.number.to_string() });
            if let Some(error) = invoked.error {
                context["functionError"] = json!(error);
            }
            all["responseContext"] = context;
            all["responsePayload"] = value(&invoked.body);
        }
        Outcome::Hindered(_) => {}
    }
    all
}

/// A destination that fails is tried again, for a while: other events of its tenant wait for this one's place.
async fn deliver_patiently(
    service: &Arc<Service>,
    event: &Event,
    destination: &str,
    record: &Value,
) -> Result<(), String> {
    let (mut pause, until) = (FIRST_PAUSE, Instant::now() + DELIVERY_TRIES);
    loop {
        let Err(error) = deliver(service, event, destination, record).await else { return Ok(()) };
        if Instant::now() + pause > until || service.is_closing() {
            return Err(error);
        }
        tracing::warn!(function = event.function, destination, error, "a destination is tried again");
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn deliver(service: &Arc<Service>, event: &Event, destination: &str, record: &Value) -> Result<(), String> {
    check_destination(service, &event.tenant, destination).map_err(|error| error.message().to_owned())?;
    if let Some(path) = destination.strip_prefix("file://") {
        use std::io::Write as _;
        let (path, line) = (path.to_owned(), format!("{record}\n"));
        let append = move || {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).append(true).custom_flags(nix::libc::O_NOFOLLOW);
            let mut file = options.open(path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        return tokio::task::spawn_blocking(append)
            .await
            .map_err(|_| "given up".to_owned())?
            .map_err(|error| error.to_string());
    }
    if destination.starts_with("http://") || destination.starts_with("https://") {
        let client = reqwest::Client::builder().timeout(DELIVERY_PATIENCE).redirect(reqwest::redirect::Policy::none());
        let client = client.build().map_err(|error| error.to_string())?;
        let request = client.post(destination).header("content-type", "application/json").body(record.to_string());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        return if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) };
    }
    if event.hops >= MOST_HOPS {
        return Err(format!("{MOST_HOPS} functions have passed it on already"));
    }
    let name = FunctionName::parse(destination, &service.options.place).map_err(|error| error.message().to_owned())?;
    if service.registry.find(&event.tenant, &name.name).is_none() {
        return Err("there is no such function".into());
    }
    let given = Given { payload: Bytes::from(record.to_string()), ..Given::default() };
    service.enqueue(&event.tenant, &name, &given, event.hops + 1).await.map(drop).map_err(|error| error.to_string())
}

/// Where records may go: checked when it is set.
pub(crate) fn check_destination(service: &Service, tenant: &str, destination: &str) -> Result<(), ApiError> {
    if let Some(path) = destination.strip_prefix("file://") {
        // Anybody who may call could have root write anywhere, or what is another tenant's.
        let folder = service.options.destinations.as_ref().map(|folder| folder.join(tenant));
        let is_inside = folder.is_some_and(|folder| {
            let parent = Path::new(path).parent().and_then(|parent| parent.canonicalize().ok());
            parent.is_some() && parent == folder.canonicalize().ok()
        });
        return if is_inside {
            Ok(())
        } else {
            Err(ApiError::invalid(format!(
                "Destination {destination}: files are written only to the folder {tenant} in the one that `snowmelt serve --destinations DIR` names"
            )))
        };
    }
    if destination.starts_with("http://") || destination.starts_with("https://") {
        if !service.options.allows_http_destinations {
            return Err(ApiError::invalid(format!(
                "Destination {destination}: addresses are not allowed: `snowmelt serve --allow-http-destinations` allows them"
            )));
        }
        return reqwest::Url::parse(destination)
            .map(drop)
            .map_err(|error| ApiError::invalid(format!("Destination {destination}: {error}")));
    }
    let name = FunctionName::parse(destination, &service.options.place);
    let is_there = name.is_ok_and(|name| service.registry.find(tenant, &name.name).is_some());
    if is_there && destination.starts_with("arn:") {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "Destination {destination}: expected the ARN of a function that is there, file://PATH, or an http:// or https:// address"
    )))
}
