//! A subscriber's queue, and the task that sends what is in it to a port of the sandbox.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::subscription::{Destination, Subscription};
use super::{Event, Kind};
use crate::host::network::Namespace;

/// What may wait for a subscriber, in batches of its own size.
const MOST_BATCHES: usize = 4;
/// A batch that is not taken is offered so often.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// How long a batch may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A subscriber's answer is read up to here.
const MOST_ANSWER: usize = 64 << 10;

pub(super) struct Queue {
    state: Mutex<State>,
    /// There is more, or what there is must go.
    changed: Notify,
    subscription: Subscription,
}

#[derive(Default)]
struct State {
    events: VecDeque<Bytes>,
    bytes: usize,
    /// When the first of them came.
    since: Option<Instant>,
    /// What was not taken, since that was told of.
    dropped: (usize, usize),
    is_hurried: bool,
    is_ended: bool,
}

impl Queue {
    /// Makes one, and the task for it, which ends with its runtime.
    pub(super) fn start(subscription: Subscription, namespace: Arc<Namespace>) -> Arc<Self> {
        let queue = Arc::new(Self { state: Mutex::default(), changed: Notify::new(), subscription });
        tokio::spawn(send_all(Arc::clone(&queue), namespace));
        queue
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, event: Bytes) {
        {
            let (most_bytes, most_items) =
                (MOST_BATCHES * self.subscription.most_bytes, MOST_BATCHES * self.subscription.most_items);
            let mut state = self.lock();
            if state.bytes + event.len() > most_bytes || state.events.len() >= most_items {
                state.dropped.0 += 1;
                state.dropped.1 += event.len();
                return;
            }
            state.bytes += event.len();
            state.since.get_or_insert_with(Instant::now);
            state.events.push_back(event);
        }
        self.changed.notify_one();
    }

    pub(super) fn hurry(&self) {
        self.lock().is_hurried = true;
        self.changed.notify_one();
    }

    pub(super) fn end(&self) {
        self.lock().is_ended = true;
        self.changed.notify_one();
    }

    fn drop_batch(&self, batch: &[Bytes]) {
        let mut state = self.lock();
        state.dropped.0 += batch.len();
        state.dropped.1 += batch.iter().map(Bytes::len).sum::<usize>();
    }

    /// Waits for a batch: as many events as there may be in one, or those of so long a time. `None` at the end.
    async fn batch(&self) -> Option<Vec<Bytes>> {
        loop {
            let wait = {
                let mut state = self.lock();
                if state.is_ended {
                    return None;
                }
                let is_full = state.events.len() >= self.subscription.most_items
                    || state.bytes >= self.subscription.most_bytes
                    || state.is_hurried;
                match state.since {
                    Some(since) if is_full || since.elapsed() >= self.subscription.patience => {
                        return Some(state.take(&self.subscription));
                    }
                    Some(since) => Some(since + self.subscription.patience),
                    None => None,
                }
            };
            match wait {
                Some(until) => drop(tokio::time::timeout_at(until, self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }
}

impl State {
    fn take(&mut self, subscription: &Subscription) -> Vec<Bytes> {
        let mut batch = Vec::new();
        if let (records @ 1.., bytes) = std::mem::take(&mut self.dropped) {
            let reason = "Consumer seems to have fallen behind as it has not acknowledged receipt of logs.";
            let record = json!({ "droppedBytes": bytes, "droppedRecords": records, "reason": reason });
            batch.extend(Event::new(Kind::Platform, "platform.logsDropped", record).encode(subscription.api));
        }
        let mut bytes = 0;
        while batch.len() < subscription.most_items
            && let Some(event) = self.events.front()
            && (batch.is_empty() || bytes + event.len() <= subscription.most_bytes)
        {
            bytes += event.len();
            batch.extend(self.events.pop_front());
        }
        self.bytes -= bytes;
        self.since = (!self.events.is_empty()).then(Instant::now);
        batch
    }
}

/// The way to the subscriber, kept between batches.
enum Way {
    Http(SendRequest<Full<Bytes>>),
    Tcp(TcpStream),
}

async fn send_all(queue: Arc<Queue>, namespace: Arc<Namespace>) {
    let mut way = None;
    while let Some(batch) = queue.batch().await {
        let mut pause = FIRST_PAUSE;
        let mut is_sent = false;
        for _ in 0..TRIES {
            let sending = send(&queue.subscription.destination, &namespace, &mut way, &batch);
            match tokio::time::timeout(PATIENCE, sending).await {
                Ok(Ok(())) => {
                    is_sent = true;
                    break;
                }
                // It may not listen yet, or not any more.
                Ok(Err(_)) | Err(_) => way = None,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        if !is_sent {
            queue.drop_batch(&batch);
        }
    }
}

async fn send(
    destination: &Destination,
    namespace: &Namespace,
    way: &mut Option<Way>,
    batch: &[Bytes],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let is_there = match way {
        Some(Way::Http(sender)) => !sender.is_closed(),
        Some(Way::Tcp(_)) => true,
        None => false,
    };
    if !is_there {
        *way = Some(connect(destination, namespace).await?);
    }
    match (way, destination) {
        (Some(Way::Http(sender)), Destination::Http { authority, path, method, .. }) => {
            let request = http::Request::builder().method(*method).uri(path).header(http::header::HOST, authority);
            let request = request.header(http::header::CONTENT_TYPE, "application/json");
            sender.ready().await?;
            let answer = sender.send_request(request.body(Full::new(array(batch)))?).await?;
            let status = answer.status();
            Limited::new(answer.into_body(), MOST_ANSWER).collect().await?;
            if status.is_success() { Ok(()) } else { Err(status.to_string().into()) }
        }
        (Some(Way::Tcp(stream)), _) => {
            for event in batch {
                stream.write_all(event).await?;
                stream.write_all(b"\n").await?;
            }
            Ok(stream.flush().await?)
        }
        _ => Err("there is no way to the subscriber".into()),
    }
}

/// A JSON array of what is JSON.
fn array(batch: &[Bytes]) -> Bytes {
    let mut all = Vec::with_capacity(batch.iter().map(|event| event.len() + 1).sum::<usize>() + 2);
    all.push(b'[');
    for (index, event) in batch.iter().enumerate() {
        if index > 0 {
            all.push(b',');
        }
        all.extend_from_slice(event);
    }
    all.push(b']');
    all.into()
}

/// Connects within the sandbox: to where its own processes listen, and nowhere else.
async fn connect(
    destination: &Destination,
    namespace: &Namespace,
) -> Result<Way, Box<dyn std::error::Error + Send + Sync>> {
    let socket = namespace.inside(TcpSocket::new_v4)?;
    let stream = socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, destination.port()))).await?;
    stream.set_nodelay(true)?;
    match destination {
        Destination::Tcp { .. } => Ok(Way::Tcp(stream)),
        Destination::Http { .. } => {
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            // What is wrong with it is seen by who sends.
            tokio::spawn(async move { drop(connection.await) });
            Ok(Way::Http(sender))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Api;
    use super::*;

    fn queue(patience: u64) -> Queue {
        let body = serde_json::json!({
            "types": ["function"], "buffering": { "maxItems": 1000, "timeoutMs": patience },
            "destination": { "protocol": "TCP", "port": 9 },
        });
        let subscription = Subscription::parse(Api::Telemetry, body.to_string().as_bytes()).unwrap();
        Queue { state: Mutex::default(), changed: Notify::new(), subscription }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn batches_are_of_their_size_and_what_does_not_fit_is_told_of() {
        runtime().block_on(async {
            let queue = queue(30_000);
            for number in 0..4100 {
                queue.put(Bytes::from(format!("{number}")));
            }
            assert_eq!(queue.lock().dropped, (100, 400));
            let first = queue.batch().await.unwrap();
            assert_eq!(first.len(), 1000);
            let told: serde_json::Value = serde_json::from_slice(&first[0]).unwrap();
            assert_eq!(told["type"], "platform.logsDropped");
            assert_eq!(told["record"]["droppedRecords"], 100);
            assert_eq!(first[1], "0");
            assert_eq!(queue.batch().await.unwrap()[0], "999");
            assert_eq!(queue.lock().dropped, (0, 0));
            queue.drop_batch(&first[..2]);
            assert_eq!(queue.lock().dropped.0, 2);
        });
    }

    #[test]
    fn a_batch_waits_for_more_until_its_time_or_the_end() {
        runtime().block_on(async {
            let queue = queue(100);
            queue.put(Bytes::from_static(b"1"));
            let begun = Instant::now();
            assert_eq!(queue.batch().await.unwrap(), ["1"]);
            assert!(begun.elapsed() >= Duration::from_millis(100));
            let hurried = self::queue(30_000);
            let begun = Instant::now();
            hurried.put(Bytes::from_static(b"2"));
            hurried.hurry();
            assert_eq!(hurried.batch().await.unwrap(), ["2"]);
            assert!(begun.elapsed() < Duration::from_secs(15));
            assert_eq!(array(&[Bytes::from_static(b"1"), Bytes::from_static(b"{}")]), "[1,{}]");
            queue.end();
            assert!(queue.batch().await.is_none());
        });
    }

    #[test]
    fn bytes_are_bounded_too() {
        runtime().block_on(async {
            let queue = queue(30_000);
            let large = Bytes::from(vec![b'1'; 200_000]);
            for _ in 0..20 {
                queue.put(large.clone());
            }
            assert!(queue.lock().bytes <= MOST_BATCHES * queue.subscription.most_bytes);
            // One alone may be as large as it is.
            assert_eq!(queue.batch().await.unwrap().len(), 2);
        });
    }
}
