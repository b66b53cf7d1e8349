//! What operators ask of a process that serves, on a port of its own: `/metrics`, `/healthz`, `/readyz`.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Server;
use super::server::{Answer, refusal};

/// Connections at once: a few collectors and probes, no more.
const MOST_CONNECTIONS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// What operators may know.
pub trait Operated: Clone + Send + 'static {
    /// Its metrics, in the text format of OpenMetrics.
    fn metrics(&self) -> String;

    /// Whether it takes work, rather than ending.
    fn is_ready(&self) -> bool;
}

impl Operated for Server {
    fn metrics(&self) -> String {
        self.metrics()
    }

    fn is_ready(&self) -> bool {
        self.is_ready()
    }
}

/// Answers until `end` is there.
pub async fn serve_admin(server: impl Operated, listener: TcpListener, end: impl Future<Output = ()>) {
    let mut end = std::pin::pin!(end);
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut serving = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            () = &mut end => return,
            Some(_) = serving.join_next(), if !serving.is_empty() => continue,
            (permit, accepted) = accepted => match accepted {
                Ok((stream, _)) => (permit, stream),
                Err(error) => {
                    tracing::warn!(%error, "a connection of an operator was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let server = server.clone();
        serving.spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let answer = answer(&server, &request);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                // One answer a connection, so that none has to be ended when the node is.
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that does not read what it asked for is not waited for.
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, connection).await {
                tracing::debug!(%error, "a connection of an operator ended");
            }
        });
    }
}

fn answer(server: &impl Operated, request: &Request<Incoming>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n");
    }
    match request.uri().path() {
        "/metrics" => {
            let mut answer = Response::new(Full::new(Bytes::from(server.metrics())));
            let open_metrics = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            answer.headers_mut().insert(CONTENT_TYPE, open_metrics);
            answer
        }
        "/healthz" => refusal(StatusCode::OK, "alive\n"),
        "/readyz" if server.is_ready() => refusal(StatusCode::OK, "ready\n"),
        "/readyz" => refusal(StatusCode::SERVICE_UNAVAILABLE, "it is ending\n"),
        _ => refusal(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}
