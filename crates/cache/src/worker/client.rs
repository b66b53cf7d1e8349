//! A sandbox's side of the socket.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snowmelt_chunk::ChunkId;

use super::protocol::{Answer, GREETING, MOST_ANSWER, MOST_IDS, Request, receive, send};
use crate::{ChunkName, Error, Priority, Tier};

/// Connections that are kept while nobody uses them.
const MOST_IDLE: usize = 16;

/// Asks a worker for chunks. May be used from many threads; each waits for its own answer.
pub struct WorkerClient {
    connect: Box<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>,
    sandbox: String,
    patience: Duration,
    idle: Mutex<Vec<OwnedFd>>,
}

impl std::fmt::Debug for WorkerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerClient").field("sandbox", &self.sandbox).finish_non_exhaustive()
    }
}

impl WorkerClient {
    /// Asks on behalf of a sandbox. `connect` makes a connection, whenever one is needed: the worker may have been started again.
    /// `patience` is how long an answer may take.
    pub fn new(
        sandbox: &str,
        patience: Duration,
        connect: impl Fn() -> io::Result<OwnedFd> + Send + Sync + 'static,
    ) -> Self {
        Self { connect: Box::new(connect), sandbox: sandbox.into(), patience, idle: Mutex::default() }
    }

    pub(crate) fn get(
        &self,
        chunk: &ChunkName,
        priority: Priority,
        asks: &dyn Fn(Tier),
    ) -> Result<(Tier, OwnedFd), Error> {
        match self.ask_for(chunk, &Request::Get(*chunk, priority), asks)? {
            (tier, Some(file)) => Ok((tier, file)),
            (_, None) => Err(Self::failed(chunk, &io::Error::other("it sent no descriptor"))),
        }
    }

    pub(crate) fn warm(&self, chunk: &ChunkName, priority: Priority, asks: &dyn Fn(Tier)) -> Result<Tier, Error> {
        self.ask_for(chunk, &Request::Warm(*chunk, priority), asks).map(|(tier, _)| tier)
    }

    /// Has the worker look at a copy that did not open.
    pub(crate) fn check(&self, chunk: &ChunkName) -> Result<(), Error> {
        self.ask_for(chunk, &Request::Check(*chunk), &|_| {}).map(drop)
    }

    /// Which of the chunks are here; none, where the worker does not say.
    pub(crate) fn contains(&self, chunks: &[(ChunkId, u32)]) -> Vec<bool> {
        let mut all = Vec::with_capacity(chunks.len());
        for chunks in chunks.chunks(MOST_IDS) {
            match self.ask(&Request::Contains(chunks.to_vec()), &|_| {}) {
                Ok((Answer::Contains(here), _)) if here.len() == chunks.len() => all.extend(here),
                _ => all.resize(all.len() + chunks.len(), false),
            }
        }
        all
    }

    fn ask_for(
        &self,
        chunk: &ChunkName,
        request: &Request,
        asks: &dyn Fn(Tier),
    ) -> Result<(Tier, Option<OwnedFd>), Error> {
        let (answer, file) = self.ask(request, asks).map_err(|error| Self::failed(chunk, &error))?;
        let worker = |reason, is_passing, is_missing| Error::Worker {
            chunk: chunk.id.to_string(),
            reason,
            is_passing,
            is_missing,
        };
        match answer {
            Answer::Here(tier) => Ok((tier, file)),
            Answer::Unavailable(reason) => Err(worker(reason, true, false)),
            Answer::Lost(reason) => Err(worker(reason, false, false)),
            Answer::Missing(reason) => Err(worker(reason, false, true)),
            Answer::Asks(_) | Answer::Contains(_) => Err(Self::failed(chunk, &unexpected())),
        }
    }

    fn failed(chunk: &ChunkName, error: &io::Error) -> Error {
        let reason = format!("the worker does not answer: {error}");
        Error::Worker { chunk: chunk.id.to_string(), reason, is_passing: true, is_missing: false }
    }

    fn ask(&self, request: &Request, asks: &dyn Fn(Tier)) -> io::Result<(Answer, Option<OwnedFd>)> {
        let request = request.encode();
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // A connection that lay idle may be one to a worker that is gone.
        if let Some(connection) = idle
            && let Ok(answered) = self.ask_over(connection, &request, asks)
        {
            return Ok(answered);
        }
        let connection = (self.connect)()?;
        send(&connection, format!("{GREETING}{}", self.sandbox).as_bytes(), None)?;
        self.ask_over(connection, &request, asks)
    }

    fn ask_over(
        &self,
        connection: OwnedFd,
        request: &[u8],
        asks: &dyn Fn(Tier),
    ) -> io::Result<(Answer, Option<OwnedFd>)> {
        send(&connection, request, None)?;
        let deadline = Instant::now() + self.patience;
        let mut bytes = [0; MOST_ANSWER];
        loop {
            wait_until(&connection, deadline)?;
            let (length, file) = receive(&connection, &mut bytes)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            match Answer::decode(&bytes[..length]).ok_or_else(unexpected)? {
                Answer::Asks(tier) => asks(tier),
                answer => {
                    let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                    if idle.len() < MOST_IDLE {
                        idle.push(connection);
                    }
                    return Ok((answer, file));
                }
            }
        }
    }
}

fn unexpected() -> io::Error {
    io::Error::other("it sent what is no answer: are two versions at work?")
}

fn wait_until(connection: &OwnedFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(connection, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            polled => return polled.map(drop).map_err(Into::into),
        }
    }
}
