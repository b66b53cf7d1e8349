//! What goes over the socket, which keeps messages apart (SOCK_SEQPACKET). Numbers are little-endian.
//!
//! ```text
//! first        "snowmelt chunks 1 " and the sandbox's id
//! get, warm, check     kind (1)  suite (1)  priority (1)  0  stored bytes (4)  id (32)
//! contains             4  0 0 0, then per chunk: stored bytes (4)  id (32)
//!
//! answer       status (1)  tier (1), then a text, or what the status says
//! ```
//!
//! One request at a time: whoever sends another before the answer is cut off. Before its answer, a request may be told which tier is
//! being asked, any number of times. The answer to a get brings a descriptor of a file that has the chunk's bytes from offset 0 on.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use snowmelt_chunk::{ChunkId, Suite};

use crate::{ChunkName, Priority, Tier};

/// Before a sandbox's id in the first message.
pub(super) const GREETING: &str = "snowmelt chunks 1 ";
/// Chunks that one message may ask for.
pub(super) const MOST_IDS: usize = 1024;
/// No message is longer.
pub(super) const MOST_BYTES: usize = 4 + MOST_IDS * 36;
/// No answer is longer.
pub(super) const MOST_ANSWER: usize = 4096;
/// Of a chunk, as the format has it.
const MOST_CHUNK_BYTES: u32 = 16 << 20;

/// What a sandbox asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A descriptor of the chunk.
    Get(ChunkName, Priority),
    /// That the chunk be on this machine.
    Warm(ChunkName, Priority),
    /// That a copy which did not open be looked at.
    Check(ChunkName),
    /// Which of these chunks are on this machine.
    Contains(Vec<(ChunkId, u32)>),
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let one = |kind: u8, chunk: &ChunkName, priority: Priority| {
            let mut bytes = vec![kind, chunk.suite.code(), priority as u8, 0];
            bytes.extend_from_slice(&chunk.stored_length.to_le_bytes());
            bytes.extend_from_slice(&chunk.id.0);
            bytes
        };
        match self {
            Self::Get(chunk, priority) => one(1, chunk, *priority),
            Self::Warm(chunk, priority) => one(2, chunk, *priority),
            Self::Check(chunk) => one(3, chunk, Priority::Demand),
            Self::Contains(chunks) => {
                let mut bytes = vec![4, 0, 0, 0];
                for (id, length) in chunks.iter().take(MOST_IDS) {
                    bytes.extend_from_slice(&length.to_le_bytes());
                    bytes.extend_from_slice(&id.0);
                }
                bytes
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        if head[0] == 4 {
            let (chunks, rest) = rest.as_chunks::<36>();
            let is_right = rest.is_empty() && chunks.len() <= MOST_IDS && head[1..] == [0, 0, 0];
            return is_right.then(|| Self::Contains(chunks.iter().map(listed).collect()));
        }
        let chunk: &[u8; 36] = rest.try_into().ok()?;
        let (id, stored_length) = listed(chunk);
        let suite = Suite::from_code(head[1])?;
        let priority = *Priority::ALL.get(usize::from(head[2]))?;
        if head[3] != 0 || !(1..=MOST_CHUNK_BYTES).contains(&stored_length) {
            return None;
        }
        let chunk = ChunkName { id, suite, stored_length };
        match head[0] {
            1 => Some(Self::Get(chunk, priority)),
            2 => Some(Self::Warm(chunk, priority)),
            3 if priority == Priority::Demand => Some(Self::Check(chunk)),
            _ => None,
        }
    }
}

fn listed(bytes: &[u8; 36]) -> (ChunkId, u32) {
    let ([a, b, c, d], rest) = (*bytes.first_chunk::<4>().unwrap_or(&[0; 4]), &bytes[4..]);
    let mut id = [0; 32];
    id.copy_from_slice(rest);
    (ChunkId(id), u32::from_le_bytes([a, b, c, d]))
}

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Here it is, or it is here.
    Here(Tier),
    /// This tier is asked; the answer follows.
    Asks(Tier),
    /// It cannot be had at the moment.
    Unavailable(String),
    /// It cannot be had.
    Lost(String),
    /// The origin does not have it.
    Missing(String),
    /// For each of the chunks that were asked for, whether it is here.
    Contains(Vec<bool>),
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = |status: u8, reason: &str| {
            let mut bytes = vec![status, 0];
            let most = (MOST_ANSWER - bytes.len()).min(reason.len());
            bytes.extend_from_slice(&reason.as_bytes()[..most]);
            bytes
        };
        match self {
            Self::Here(tier) => vec![0, *tier as u8],
            Self::Asks(tier) => vec![1, *tier as u8],
            Self::Unavailable(reason) => text(2, reason),
            Self::Lost(reason) => text(3, reason),
            Self::Missing(reason) => text(4, reason),
            Self::Contains(here) => [5, 0].into_iter().chain(here.iter().map(|here| u8::from(*here))).collect(),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<2>()?;
        let text = || String::from_utf8_lossy(rest).into_owned();
        let tier = Tier::ALL.get(usize::from(head[1])).copied();
        match head {
            [0, _] => tier.filter(|_| rest.is_empty()).map(Self::Here),
            [1, _] => tier.filter(|_| rest.is_empty()).map(Self::Asks),
            [2, 0] => Some(Self::Unavailable(text())),
            [3, 0] => Some(Self::Lost(text())),
            [4, 0] => Some(Self::Missing(text())),
            [5, 0] => rest
                .iter()
                .map(|byte| if *byte <= 1 { Some(*byte == 1) } else { None })
                .collect::<Option<_>>()
                .map(Self::Contains),
            _ => None,
        }
    }
}

/// Sends a message, with a descriptor if there is one.
pub(super) fn send(to: impl AsFd, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
    }
    loop {
        match sendmsg(&to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return sent.map(drop).map_err(Into::into),
        }
    }
}

/// Receives a message and its descriptor: `None` at the end. Further descriptors are closed.
pub(super) fn receive(from: impl AsFd, into: &mut [u8]) -> std::io::Result<Option<(usize, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&from, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let file = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    // A message that was cut short is none of ours.
    if received.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(std::io::Error::other("a message is too long"));
    }
    Ok((received.bytes > 0).then_some((received.bytes, file)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn chunk() -> impl Strategy<Value = ChunkName> {
        let suite = prop_oneof![Just(Suite::Blake3Gcm), Just(Suite::Sha256Ctr)];
        (any::<[u8; 32]>(), suite, 1..=MOST_CHUNK_BYTES).prop_map(|(id, suite, stored_length)| ChunkName {
            id: ChunkId(id),
            suite,
            stored_length,
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        let priority = || prop::sample::select(&Priority::ALL[..]);
        prop_oneof![
            (chunk(), priority()).prop_map(|(chunk, priority)| Request::Get(chunk, priority)),
            (chunk(), priority()).prop_map(|(chunk, priority)| Request::Warm(chunk, priority)),
            chunk().prop_map(Request::Check),
            prop::collection::vec((any::<[u8; 32]>(), any::<u32>()), 0..40).prop_map(|chunks| Request::Contains(
                chunks.into_iter().map(|(id, length)| (ChunkId(id), length)).collect()
            )),
        ]
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let tier = || prop::sample::select(&Tier::ALL[..]);
        prop_oneof![
            tier().prop_map(Answer::Here),
            tier().prop_map(Answer::Asks),
            ".{0,40}".prop_map(Answer::Unavailable),
            ".{0,40}".prop_map(Answer::Lost),
            ".{0,40}".prop_map(Answer::Missing),
            prop::collection::vec(any::<bool>(), 0..40).prop_map(Answer::Contains),
        ]
    }

    proptest! {
        #[test]
        fn requests_are_read_as_they_are_written(request in request()) {
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
        }

        #[test]
        fn answers_are_read_as_they_are_written(answer in answer()) {
            prop_assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }

        #[test]
        fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), &bytes[..]);
            }
            let _ = Answer::decode(&bytes);
        }
    }
}
