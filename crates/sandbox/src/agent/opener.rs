//! Opens an image for an agent that a worker starts, in a process that ends when it has done so.
//!
//! Whoever opens images has what it takes to reach the store and the key service, which often opens more images than one. An agent is to have
//! its own image's keys and nothing else, not even in memory that was given back: so it never had them. It is started without this machine's
//! variables, and reads from a pipe what the opener found: the manifest, the key of its sealed part, and what earlier starts read.
//!
//! ```text
//! u32 little endian   bytes of the head
//! head                JSON, a [`Head`]
//! 32 bytes            the data key
//! start log           as text, of the length in the head
//! manifest            as it is stored, to the end
//! ```

use std::fs::File;
use std::io::{Read as _, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use snowmelt_chunk::{DataKey, Manifest};
use snowmelt_device::StartLog;
use snowmelt_store::NameRecord;
use zeroize::Zeroizing;

use super::opening::{Found, Opening, find};
use super::protocol::{AgentConfig, Lines};
use super::start_logs::Expected;
use crate::{Cause, Error};

/// A longer head is not ours.
const MOST_HEAD: usize = 1 << 20;
/// No log of a start is longer.
const MOST_LOG: u64 = 64 << 20;

/// What the process is asked: the one line that it reads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OpenRequest {
    pub(crate) config: AgentConfig,
    pub(crate) image: String,
    /// What will be run, as it was asked for; `None` if it is not known.
    pub(crate) command: Option<Vec<String>>,
    /// What the name stood for when the sandbox began, where that is to be opened: it may stand for another image by now.
    pub(crate) record: Option<NameRecord>,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Head {
    Opened { record: Box<NameRecord>, same_command: bool, log_bytes: u64 },
    Failed { cause: Cause, message: String },
}

/// The process's whole life. Gives its exit status: 0, or 1 after a failure, which it has reported.
pub(super) fn main() -> u8 {
    let reply = std::io::stdout().as_fd().try_clone_to_owned();
    let Ok(reply) = reply else { return 1 };
    end_with_reader(&reply);
    let mut reply = File::from(reply);
    let sent = match open() {
        Ok((found, expected)) => send(&mut reply, &found, &expected),
        Err(error) => {
            let head = Head::Failed { cause: error.cause(), message: error.to_string() };
            send_head(&mut reply, &head).and_then(|()| Err(std::io::Error::other("not opened")))
        }
    };
    u8::from(sent.is_err())
}

/// Ends this process when nobody reads its answer any more: it may be waiting for a server that does not answer.
fn end_with_reader(reply: &OwnedFd) {
    let Ok(reply) = reply.try_clone() else { return };
    let watch = move || {
        let mut events = [PollFd::new(&reply, PollFlags::empty())];
        while poll(&mut events, None).is_err() {}
        std::process::exit(1);
    };
    // Without a thread it ends with its deadline.
    let _ = std::thread::Builder::new().name("reader".into()).spawn(watch);
}

fn open() -> Result<(Found, Expected), Error> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|source| Error::io("use", "a standard stream", source))?;
    let request = Lines::new(input).next::<OpenRequest>()?;
    let request = request.ok_or_else(|| Error::invalid("agent", "is started by other commands, not by hand"))?;
    let OpenRequest { config, image, command, record } = request;
    let Opening { found, expected, .. } = find(&config, &image, command.as_deref(), record)?;
    Ok((found, expected))
}

fn send_head(to: &mut impl Write, head: &Head) -> std::io::Result<()> {
    let head = serde_json::to_vec(head)?;
    to.write_all(&(head.len() as u32).to_le_bytes())?;
    to.write_all(&head)
}

fn send(to: &mut impl Write, found: &Found, expected: &Expected) -> std::io::Result<()> {
    let log = expected.log.encode();
    let (record, log_bytes) = (Box::new(found.record.clone()), log.len() as u64);
    send_head(to, &Head::Opened { record, same_command: expected.same_command, log_bytes })?;
    to.write_all(found.data_key.expose())?;
    to.write_all(log.as_bytes())?;
    to.write_all(found.manifest.as_bytes())
}

/// Waits for what an opener found.
///
/// # Errors
/// What it failed with; [`Error::Unavailable`] where it ended without a word.
pub(super) fn receive(mut from: impl std::io::Read) -> Result<(Found, Expected), Error> {
    let gone = |source: std::io::Error| Error::Unavailable {
        subject: "the process that opens images".into(),
        reason: format!("it ended before it was done ({source})"),
    };
    let invalid = |what: &str| Error::invalid("the process that opens images", format!("sent {what}: this is a bug"));
    let mut length = [0; 4];
    from.read_exact(&mut length).map_err(gone)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MOST_HEAD {
        return Err(invalid("a head that is too long"));
    }
    let mut head = vec![0; length];
    from.read_exact(&mut head).map_err(gone)?;
    let head: Head = serde_json::from_slice(&head).map_err(|_| invalid("what is no head"))?;
    let (record, same_command, log_bytes) = match head {
        Head::Opened { record, same_command, log_bytes } if log_bytes <= MOST_LOG => (record, same_command, log_bytes),
        Head::Opened { .. } => return Err(invalid("a log that is too long")),
        Head::Failed { cause, message } => return Err(Error::Image { cause, message }),
    };
    // Straight to where it stays, through no buffer.
    let mut key = Zeroizing::new([0; 32]);
    from.read_exact(&mut *key).map_err(gone)?;
    let data_key = DataKey::from_bytes(&key);
    let mut log = Vec::new();
    from.by_ref().take(log_bytes).read_to_end(&mut log).map_err(gone)?;
    let log = std::str::from_utf8(&log).ok().and_then(StartLog::decode).unwrap_or_default();
    let mut manifest = Vec::new();
    from.read_to_end(&mut manifest).map_err(gone)?;
    let manifest = Manifest::decode(&manifest).map_err(|_| invalid("what is no manifest"))?;
    Ok((Found { record: *record, manifest, data_key, opened: None }, Expected { log, same_command }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_went_wrong_is_said_and_what_is_cut_off_is_no_image() {
        let mut bytes = Vec::new();
        send_head(&mut bytes, &Head::Failed { cause: Cause::NotFound, message: "no such image".into() }).unwrap();
        let error = receive(&bytes[..]).unwrap_err();
        assert_eq!((error.cause(), error.to_string().as_str()), (Cause::NotFound, "no such image"));
        for length in 0..bytes.len() {
            assert!(matches!(receive(&bytes[..length]), Err(Error::Unavailable { .. })), "{length}");
        }
        bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(receive(&bytes[..]).unwrap_err().to_string().contains("too long"));
    }
}
