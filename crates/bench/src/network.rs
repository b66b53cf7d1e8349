//! A slower network: a TCP proxy that holds back requests and limits the speed of answers.
//!
//! It knows nothing of HTTP but that a client speaks first: bytes from the client that follow an answer (or open the
//! connection) are a request, and wait for the configured latency. Speed is shared by all connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How slow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    pub(crate) name: &'static str,
    /// Added to each request.
    pub(crate) latency: Duration,
    /// Of answers, over all connections.
    pub(crate) bytes_per_second: Option<f64>,
}

/// The three origins that lazy loaders are usually measured against.
pub(crate) const ORIGINS: [Conditions; 3] = [
    Conditions { name: "0 ms", latency: Duration::ZERO, bytes_per_second: None },
    Conditions { name: "20 ms per request", latency: Duration::from_millis(20), bytes_per_second: None },
    Conditions { name: "5 ms, 200 Mbit/s", latency: Duration::from_millis(5), bytes_per_second: Some(200e6 / 8.0) },
];

/// A proxy on a free port of 127.0.0.1; stops accepting when dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    conditions: Conditions,
    requests: AtomicU64,
    answered_bytes: AtomicU64,
    /// When the link is free again.
    free_at: Mutex<Instant>,
    stopping: AtomicBool,
}

impl Proxy {
    pub(crate) fn start(target: SocketAddr, conditions: Conditions) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            conditions,
            requests: AtomicU64::new(0),
            answered_bytes: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
            stopping: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stopping.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || {
                    // A connection that breaks is the client's to notice.
                    let _ = serve(&client, &shared);
                });
            }
        });
        Ok(Self { address, shared })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests and bytes of answers since the last call.
    pub(crate) fn take_counts(&self) -> (u64, u64) {
        (self.shared.requests.swap(0, Ordering::Relaxed), self.shared.answered_bytes.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    let server = TcpStream::connect(shared.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let answered = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = forward_requests(client, &server, &answered, shared);
            let _ = server.shutdown(Shutdown::Write);
        });
        let _ = forward_answers(&server, client, &answered, shared);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
    Ok(())
}

fn forward_requests(mut from: &TcpStream, mut to: &TcpStream, answered: &AtomicBool, shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if answered.swap(false, Ordering::AcqRel) {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(shared.conditions.latency);
        }
        to.write_all(&buffer[..length])?;
    }
}

fn forward_answers(mut from: &TcpStream, mut to: &TcpStream, answered: &AtomicBool, shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        answered.store(true, Ordering::Release);
        shared.answered_bytes.fetch_add(length as u64, Ordering::Relaxed);
        if let Some(speed) = shared.conditions.bytes_per_second {
            let takes = Duration::from_secs_f64(length as f64 / speed);
            let until = {
                let mut free_at = shared.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *free_at = (*free_at).max(Instant::now()) + takes;
                *free_at
            };
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        to.write_all(&buffer[..length])?;
    }
}
