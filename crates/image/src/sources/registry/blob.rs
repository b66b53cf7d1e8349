//! One blob, streamed: a task fetches it, goes on where a broken connection left off, and verifies it; the reader takes
//! what came.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::background::Background;
use super::client::{Backoff, Client, Failure};
use crate::Error;
use crate::digest::{Digest, Hasher};
use crate::sources::verified::{too_long, truncated, wrong_digest};

/// Buffers of the HTTP client (at most some 400 KiB each) that may wait for the reader.
const WAITING_PIECES: usize = 16;
/// A connection that brought this much counts as one that worked, so that large layers survive any number of cuts, and a
/// server that gives a few bytes at a time is given up.
const PROGRESS_BYTES: u64 = 64 << 10;

/// What the task tells the reader.
enum Message {
    Piece(Bytes),
    /// All bytes came and the digest is right.
    End,
    Failed(Error),
}

/// The bytes of a blob. Dropping it ends the download.
pub(crate) struct BlobReader {
    messages: Receiver<Message>,
    /// Permits to send: bounds what waits.
    room: Arc<Semaphore>,
    task: JoinHandle<()>,
    subject: String,
    piece: Bytes,
    ended: bool,
    /// Keeps the runtime, where the reader may outlive the source.
    background: Option<Arc<Background>>,
}

/// Starts to fetch a blob. The digest and `size` in bytes are those of its descriptor; `subject` names it in errors.
pub(crate) fn open(
    background: &Background,
    client: &Arc<Client>,
    subject: String,
    digest: Digest,
    size: u64,
) -> BlobReader {
    let (sender, messages) = channel();
    let room = Arc::new(Semaphore::new(WAITING_PIECES));
    let hasher = Some(Hasher::new(digest.algorithm()));
    let mut download = Download {
        client: Arc::clone(client),
        subject: subject.clone(),
        digest,
        size,
        received: 0,
        hasher,
        sender,
        room: Arc::clone(&room),
    };
    let task = background.spawn(async move {
        let last = match download.run().await {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        };
        // A reader that is gone needs no end.
        let _ = download.sender.send(last);
    });
    BlobReader { messages, room, task, subject, piece: Bytes::new(), ended: false, background: None }
}

impl BlobReader {
    /// The same reader, which keeps `background` running.
    pub(crate) fn hold(reader: BlobReader, background: Option<Arc<Background>>) -> BlobReader {
        let mut reader = reader;
        reader.background = background;
        reader
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.messages.recv() {
                Ok(Message::Piece(piece)) => {
                    self.room.add_permits(1);
                    self.piece = piece;
                }
                Ok(Message::End) => self.ended = true,
                Ok(Message::Failed(error)) => return Err(error.into()),
                Err(_) => {
                    let reason = "the download ended early, by an earlier error";
                    return Err(Error::unavailable("fetch", &self.subject, reason).into());
                }
            }
        }
        let count = buffer.len().min(self.piece.len());
        buffer[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Download {
    client: Arc<Client>,
    subject: String,
    digest: Digest,
    size: u64,
    received: u64,
    /// `None` once the digest was taken.
    hasher: Option<Hasher>,
    sender: Sender<Message>,
    room: Arc<Semaphore>,
}

impl Download {
    /// Fetches to the end, however many connections that takes, and checks the digest.
    async fn run(&mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new();
        while self.received < self.size {
            let before = self.received;
            match self.attempt().await {
                Ok(()) => {}
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Again(again)) => {
                    if self.received - before >= PROGRESS_BYTES {
                        backoff = Backoff::new();
                    }
                    let came = format!("{} of {} bytes came", self.received, self.size);
                    backoff.wait("fetch", &self.subject, again, &came).await?;
                }
            }
        }
        let Some(actual) = self.hasher.take().map(Hasher::finish) else {
            return Err(truncated(&self.subject, self.received, self.size));
        };
        if actual == self.digest { Ok(()) } else { Err(wrong_digest(&self.subject, &actual, &self.digest)) }
    }

    /// One connection's worth.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let mut response = self.client.blob(&self.digest, self.received, &self.subject).await?;
        let mut skip = self.check_head(&response)?;
        loop {
            match response.chunk().await {
                Ok(Some(mut piece)) => {
                    let skipped = skip.min(piece.len() as u64);
                    skip -= skipped;
                    let _ = piece.split_to(skipped as usize);
                    if !piece.is_empty() {
                        self.take(piece).await?;
                    }
                }
                // Everything came; how the connection ends then doesn't matter.
                _ if self.received == self.size => return Ok(()),
                Ok(None) => return Err(Failure::again("the connection ended within the layer")),
                Err(error) => return Err(Failure::from_http("the connection broke within the layer", error)),
            }
        }
    }

    /// How many bytes of the body came already: none, unless the registry cannot give parts.
    fn check_head(&self, response: &reqwest::Response) -> Result<u64, Failure> {
        let disagree = |what: String| {
            Failure::Fatal(Error::corrupt(
                &self.subject,
                format!("the registry gives {what}, and the manifest says {} bytes: push the image again", self.size),
            ))
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return match response.content_length() {
                Some(length) if length != self.size => Err(disagree(format!("{length} bytes"))),
                _ => Ok(self.received),
            };
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let parsed = range.strip_prefix("bytes ").and_then(|range| range.split_once('/'));
        let start =
            parsed.and_then(|(range, _)| range.split_once('-')).and_then(|(start, _)| start.parse::<u64>().ok());
        match (start, parsed.map(|(_, total)| total.parse::<u64>())) {
            (_, Some(Ok(total))) if total != self.size => Err(disagree(format!("{total} bytes"))),
            (Some(start), _) if start == self.received => Ok(0),
            _ => Err(disagree(format!("the part {range:?} where that from {} was asked for", self.received))),
        }
    }

    async fn take(&mut self, piece: Bytes) -> Result<(), Failure> {
        self.received += piece.len() as u64;
        if self.received > self.size {
            return Err(Failure::Fatal(too_long(&self.subject, self.size)));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        // The semaphore is never closed; a reader that is gone aborts this task.
        if let Ok(permit) = self.room.acquire().await {
            permit.forget();
        }
        let _ = self.sender.send(Message::Piece(piece));
        Ok(())
    }
}
