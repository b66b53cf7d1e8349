//! A node's side of the wire, as docs/protocol.md has it.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::metrics::{Lost, Metrics};
use super::patient::Patient;
use super::shards::Shards;
use crate::shard::{Shard, ShardKey};
use crate::tls::ServerTls;
use crate::wire;

/// What a node puts up with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once. Others wait until one ends.
    pub connections: usize,
    /// Reads of the disk at once.
    pub disk_reads: usize,
    /// How long a request waits for its turn at the disk; then it is refused, since nobody waits for it any more.
    pub disk_wait: Duration,
    /// Shards being received at once; others are refused, since nobody waits for them.
    pub puts: usize,
    /// How long a client may take to send a head or a body, or to take an answer. An idle connection is kept as long.
    pub patience: Duration,
    /// How long the end of the node waits for requests that it has begun.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            disk_reads: 64,
            disk_wait: Duration::from_millis(100),
            puts: 32,
            patience: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Who is answered. Without anything set, everybody.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What clients must show.
    pub token: Option<String>,
    /// Speaks TLS, and only TLS, with those who have a certificate.
    pub tls: Option<Arc<ServerTls>>,
}

impl From<Option<String>> for Access {
    fn from(token: Option<String>) -> Self {
        Self { token, tls: None }
    }
}

/// Answers for shards. Clones share everything.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shards: Arc<Shards>,
    limits: Limits,
    access: Access,
    metrics: Metrics,
    connections: Arc<Semaphore>,
    disk_reads: Semaphore,
    puts: Semaphore,
    is_draining: AtomicBool,
}

pub(super) type Answer = Response<Full<Bytes>>;

impl Server {
    /// Serves these shards to those who have access.
    pub fn new(shards: Arc<Shards>, access: impl Into<Access>, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            access: access.into(),
            metrics: Metrics::new(Arc::clone(&shards)),
            shards,
            connections: Arc::new(Semaphore::new(limits.connections)),
            disk_reads: Semaphore::new(limits.disk_reads),
            puts: Semaphore::new(limits.puts),
            is_draining: AtomicBool::new(false),
            limits,
        }))
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.0.metrics.open_connections()
    }

    /// What Prometheus collects, in the text format of OpenMetrics.
    pub fn metrics(&self) -> String {
        self.0.metrics.text()
    }

    /// Whether it takes requests, rather than ending.
    pub fn is_ready(&self) -> bool {
        !self.0.is_draining.load(Ordering::Relaxed)
    }

    /// Is not ready from now on, so that others can know before it ends.
    pub fn drain(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    /// Serves until `end` is there; then it takes no more connections, ends those it has after the requests that they are at,
    /// and has everything written to the disk.
    pub async fn serve(&self, listener: TcpListener, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        let mut serving = JoinSet::new();
        let (ending, ended) = tokio::sync::watch::channel(false);
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.0.connections).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, stream) = tokio::select! {
                () = &mut end => break,
                // What has ended is taken out, so that the set does not grow.
                Some(_) = serving.join_next(), if !serving.is_empty() => continue,
                (permit, accepted) = accepted => match accepted {
                    Ok((stream, _)) => (permit, stream),
                    Err(error) => {
                        // Such as no descriptor left: others must end first.
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let shared = Arc::clone(&self.0);
            let mut ended = ended.clone();
            serving.spawn(async move {
                let _permit = permit;
                let _open = shared.metrics.opened();
                shared.accepted(stream, async move { drop(ended.wait_for(|ended| *ended).await) }).await;
            });
        }
        drop(listener);
        self.drain();
        let _ = ending.send(true);
        let all = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(self.0.limits.drain, all).await.is_err() {
            tracing::warn!(connections = self.open_connections(), "requests are cut off");
            serving.shutdown().await;
        }
        let shards = Arc::clone(&self.0.shards);
        // A disk that does not answer is not waited for longer than clients are.
        let flushed = tokio::task::spawn_blocking(move || shards.flush());
        if tokio::time::timeout(self.0.limits.drain, flushed).await.is_err() {
            tracing::warn!("the disk does not take what waits for it, which is left out");
        }
    }
}

impl Shared {
    async fn accepted(self: &Arc<Self>, stream: TcpStream, ended: impl Future<Output = ()>) {
        // A response is two small writes at most, and its end must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let stream = Patient::new(stream, self.limits.patience);
        let Some(tls) = &self.access.tls else { return self.connection(stream, ended).await };
        let accepting = TlsAcceptor::from(tls.config()).accept(stream);
        let mut ended = std::pin::pin!(ended);
        tokio::select! {
            accepted = tokio::time::timeout(self.limits.patience, accepting) => match accepted {
                Ok(Ok(stream)) => self.connection(stream, ended).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no TLS with a client");
                    self.metrics.lost(Lost::Tls);
                }
                Err(_) => self.metrics.lost(Lost::Slow),
            },
            () = ended.as_mut() => {}
        }
    }

    async fn connection<S>(self: &Arc<Self>, stream: S, ended: impl Future<Output = ()>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::clone(self);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move {
                let start = Instant::now();
                let method = request.method().clone();
                let answer = shared.answer(request).await;
                shared.metrics.answered(&method, answer.status(), start.elapsed(), answer.body());
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.patience)
            .max_headers(32)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = ended => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended");
            if error.is_timeout() || is_late(&error) {
                self.metrics.lost(Lost::Slow);
            } else if error.is_parse() {
                self.metrics.lost(Lost::Malformed);
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let Some(key) = wire::parse_path(request.uri().path()) else {
            return refusal(StatusCode::NOT_FOUND, "no such path: shards are at /v1/shards/CODE/CHUNK/INDEX");
        };
        if !self.is_allowed(request.headers()) {
            return refusal(StatusCode::UNAUTHORIZED, "expected `authorization: Bearer TOKEN` with the zone's token");
        }
        match *request.method() {
            Method::GET => self.get(&key).await,
            Method::PUT => self.put(key, request).await,
            _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "expected GET or PUT"),
        }
    }

    fn is_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.access.token else { return true };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // Their hashes, so that neither length nor content shows in the time it takes.
        given.is_some_and(|given| blake3::hash(given) == blake3::hash(token.as_bytes()))
    }

    async fn get(&self, key: &ShardKey) -> Answer {
        let found = match self.shards.in_memory(key) {
            Some(shard) => Some(shard),
            None if self.shards.may_be_on_disk(key) => {
                let Ok(Ok(_permit)) = tokio::time::timeout(self.limits.disk_wait, self.disk_reads.acquire()).await
                else {
                    return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many reads wait for the disk");
                };
                let (shards, key) = (Arc::clone(&self.shards), *key);
                tokio::task::spawn_blocking(move || shards.on_disk(&key)).await.ok().flatten()
            }
            None => None,
        };
        let Some(shard) = found else { return refusal(StatusCode::NOT_FOUND, "") };
        let mut answer = Response::new(Full::new(shard.bytes));
        let headers = answer.headers_mut();
        headers.insert(wire::CHUNK_BYTES, HeaderValue::from(shard.chunk_bytes));
        if let Ok(checksum) = HeaderValue::try_from(wire::checksum_text(shard.checksum)) {
            headers.insert(wire::CHECKSUM, checksum);
        }
        answer
    }

    async fn put(&self, key: ShardKey, request: Request<Incoming>) -> Answer {
        let Ok(_permit) = self.puts.try_acquire() else {
            let mut answer = refusal(StatusCode::SERVICE_UNAVAILABLE, "too many shards are coming at once");
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return answer;
        };
        let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let Some(chunk_bytes) = text(wire::CHUNK_BYTES).and_then(wire::parse_chunk_bytes) else {
            return refusal(StatusCode::BAD_REQUEST, "expected snowmelt-chunk-bytes: the bytes of the whole chunk");
        };
        let Some(checksum) = text(wire::CHECKSUM).and_then(wire::parse_checksum) else {
            return refusal(
                StatusCode::BAD_REQUEST,
                "expected snowmelt-crc32c: the shard's checksum, 8 hexadecimal digits",
            );
        };
        let expected = key.code.bytes_of(usize::from(key.index), chunk_bytes as usize);
        if text(CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()) != Some(expected) {
            return refusal(
                StatusCode::BAD_REQUEST,
                "expected content-length: the bytes that this shard has with its code",
            );
        }
        let body = Limited::new(request.into_body(), expected);
        let bytes = match tokio::time::timeout(self.limits.patience, body.collect()).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(_)) => return refusal(StatusCode::BAD_REQUEST, "the body has another length"),
            Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"),
        };
        self.metrics.received(bytes.len());
        let shard = Shard { chunk_bytes, checksum, bytes };
        if !shard.is_whole(&key) {
            return refusal(StatusCode::BAD_REQUEST, "the checksum is not that of the body under this path");
        }
        let is_new = self.shards.put(key, shard);
        let mut answer = refusal(if is_new { StatusCode::CREATED } else { StatusCode::OK }, "");
        answer.headers_mut().remove(CONTENT_TYPE);
        answer
    }
}

/// Whether the client did not take its answer in time.
fn is_late(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::TimedOut)
}

/// An answer without a shard.
pub(super) fn refusal(status: StatusCode, reason: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(reason.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
