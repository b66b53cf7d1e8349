//! What the service and the hosts of its sandboxes say to each other, over a socket of this machine.
//!
//! ```text
//! u32 little endian   bytes of the head
//! u32 little endian   bytes of the body
//! head                JSON
//! body                what a function is given, or gives
//! ```

mod stream;

use std::path::PathBuf;

use bytes::Bytes;

pub(crate) use crate::host::Reason;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use snowmelt_sandbox::TierLoads;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) use self::stream::split;

/// A longer head is not ours.
const MOST_HEAD: usize = 4 << 20;
/// The longest body is a response that is not streamed, and a chunk of one that is.
const MOST_BODY: usize = 64 << 20;

/// From a host. The body is in brackets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromHost {
    /// The first message: which sandbox it has, and what that is doing.
    Hello { sandbox: String, asks: u64, is_asking: bool, invocation: Option<String> },
    /// The runtime asks for an invocation, for the how many-th time: after an answer it is free only then. A new service hears of the last
    /// one twice, by [`FromHost::Hello`] too. `init_ms` is how long it took to begin where that is the invocation's time.
    Asks { number: u64, init_ms: Option<u64> },
    /// How the sandbox began, once its runtime has asked for the first time; each service hears it.
    Began(Box<Beginning>),
    /// What the function took for an invocation. The answer's end follows.
    Ran { id: String, took_us: u64 },
    /// It could not begin. [what the runtime says of that, if it does] It ends soon.
    InitFailed { kind: String, message: String },
    /// The answer that follows begins with the head of an answer of HTTP, and eight NUL bytes.
    Http { id: String },
    /// The answer to an invocation. [payload] `tail` is the end of its log, if that was asked for.
    Response { id: String, tail: Option<String>, is_last: bool },
    /// It failed, perhaps with an answer begun. [error]
    Failed { id: String, kind: String, tail: Option<String> },
    /// [a part of the log]
    Log,
    /// It takes nothing more, and ends soon: what it writes until then follows.
    Ending,
    /// The sandbox has ended; nothing follows.
    Exited { how: String },
}

/// To a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToHost {
    /// Run once. [payload]
    Invoke(Box<Invocation>),
    /// Nothing more will come: let it end as Lambda does, which takes two seconds where there are extensions.
    End(Reason),
    /// End it at once.
    Kill,
}

/// What a runtime is told of an invocation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Invocation {
    pub(crate) id: String,
    /// Milliseconds since 1970.
    pub(crate) deadline_ms: u64,
    pub(crate) arn: String,
    pub(crate) trace: Option<String>,
    pub(crate) client_context: Option<String>,
    pub(crate) wants_tail: bool,
}

/// A body up to this is copied beside its head, which costs less than another call.
const MOST_COPIED: usize = 16 << 10;

/// How a sandbox began: how long its steps took, what was read for them, and which processes it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// From when its host was ready until the image was mounted.
    pub(crate) mount_us: Option<u64>,
    /// From then until the command was executed.
    pub(crate) start_us: Option<u64>,
    /// From then, or where that is not known from the mount, until the runtime asked.
    pub(crate) init_us: Option<u64>,
    /// Where chunks came from until then.
    pub(crate) loads: Vec<TierLoads>,
    /// Serves the image.
    pub(crate) agent: Option<u32>,
    /// The kernel's file that says how much memory the container has.
    pub(crate) memory_file: Option<PathBuf>,
}

/// Writes a message, and sees that it goes.
///
/// # Errors
/// Those of the socket.
pub(crate) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    head: &impl Serialize,
    body: &[u8],
) -> std::io::Result<()> {
    write(to, head, body).await?;
    to.flush().await
}

/// Writes a message.
///
/// # Errors
/// Those of the socket.
pub(crate) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    head: &impl Serialize,
    body: &[u8],
) -> std::io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let is_short = body.len() <= MOST_COPIED;
    let mut start = Vec::with_capacity(8 + head.len() + if is_short { body.len() } else { 0 });
    start.extend_from_slice(&(head.len() as u32).to_le_bytes());
    start.extend_from_slice(&(body.len() as u32).to_le_bytes());
    start.extend_from_slice(&head);
    // One call for most messages.
    if is_short {
        start.extend_from_slice(body);
    }
    to.write_all(&start).await?;
    if !is_short {
        to.write_all(body).await?;
    }
    Ok(())
}

/// Reads a message; `None` at the end. Reads in parts: `from` is best buffered.
///
/// # Errors
/// Those of the socket, and for what is no message.
pub(crate) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<Option<(T, Bytes)>> {
    let mut lengths = [0; 8];
    match from.read_exact(&mut lengths).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length =
        |at: usize| u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]) as usize;
    let (head_bytes, body_bytes) = (length(0), length(4));
    if head_bytes > MOST_HEAD || body_bytes > MOST_BODY {
        return Err(std::io::Error::other("a message is too long"));
    }
    let mut head = vec![0; head_bytes];
    from.read_exact(&mut head).await?;
    let mut body = vec![0; body_bytes];
    from.read_exact(&mut body).await?;
    Ok(Some((serde_json::from_slice(&head)?, body.into())))
}
