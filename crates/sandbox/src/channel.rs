//! Messages between processes of one machine, with descriptors: JSON over a Unix socket that keeps messages apart.
//!
//! A message is `i` and its JSON, or where that is long, `m` alone: its JSON is then in a file in memory, which comes as the first of
//! the descriptors.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;

/// A message whose JSON is longer goes by a file.
const MOST_INLINE: usize = 32 << 10;
/// No message is longer: image configurations are the longest, and end at 8 MiB.
const MOST_BYTES: u64 = 32 << 20;
/// Descriptors of one message.
const MOST_DESCRIPTORS: usize = 16;
const BACKLOG: i32 = 256;

/// One end of such a socket.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Connects to a socket that [`listen`] made.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Takes the next connection.
    pub(crate) fn accept(listener: impl AsFd) -> io::Result<Self> {
        Ok(Self(rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?))
    }

    /// Two ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// The process and the user at the other end, when it connected.
    pub(crate) fn peer(&self) -> io::Result<(i32, u32)> {
        let peer = rustix::net::sockopt::socket_peercred(&self.0)?;
        Ok((peer.pid.as_raw_nonzero().get(), peer.uid.as_raw()))
    }

    /// Sends a message.
    pub(crate) fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = vec![b'i'];
        serde_json::to_writer(&mut bytes, message)?;
        let file = if bytes.len() > MOST_INLINE {
            let mut file = File::from(memfd_create("snowmelt-message", MemfdFlags::CLOEXEC)?);
            file.write_all(&bytes[1..])?;
            bytes = vec![b'm'];
            Some(file)
        } else {
            None
        };
        let all: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).chain(descriptors.iter().copied()).collect();
        self.send_bytes(&bytes, &all)
    }

    /// Sends anything.
    pub(crate) fn send_bytes(&self, bytes: &[u8], all: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !all.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(all)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                sent => return sent.map(drop).map_err(Into::into),
            }
        }
    }

    /// Waits for a message; `None` at the end.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; MOST_INLINE + 1];
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                descriptors.extend(files);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::other("a message is too long"));
        }
        let json = match bytes[..received.bytes].split_first() {
            None => return Ok(None),
            Some((b'i', json)) => json.to_vec(),
            Some((b'm', [])) if !descriptors.is_empty() => read_whole(descriptors.remove(0))?,
            Some(_) => return Err(io::Error::other("a message is none of ours")),
        };
        Ok(Some((serde_json::from_slice(&json)?, descriptors)))
    }

    /// The same as an error of this crate; the end is one too.
    pub(crate) fn expect<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), Error> {
        let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let received = self.receive().and_then(|received| received.ok_or_else(gone));
        received.map_err(|source| Error::io("hear from", "the worker", source))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file in memory may be written to by who sent it, but what is read is bounded and then parsed.
fn read_whole(file: OwnedFd) -> io::Result<Vec<u8>> {
    let file = File::from(file);
    let mut bytes = Vec::new();
    let mut at_start = &file;
    io::Seek::rewind(&mut at_start)?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("a message is too long"));
    }
    Ok(bytes)
}

/// Makes a socket to listen on, in place of one that is there from before. `mode` says who may connect.
pub(crate) fn listen(path: &Path, mode: u32) -> Result<OwnedFd, Error> {
    let io = |source: rustix::io::Errno| Error::io("listen on", path.display(), source);
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("replace", path.display(), source));
        }
        _ => {}
    }
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(io)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).map_err(io)?).map_err(io)?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode)).map_err(io)?;
    rustix::net::listen(&socket, BACKLOG).map_err(io)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn messages_of_any_length_bring_their_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        for length in [0, 100, MOST_INLINE, 3 << 20] {
            let text = "x".repeat(length);
            let (reader, mut writer) = io::pipe().unwrap();
            a.send(&text, &[reader.as_fd()]).unwrap();
            let (received, descriptors) = b.receive::<String>().unwrap().unwrap();
            assert_eq!((received.len(), descriptors.len()), (length, 1));
            writer.write_all(b"!").unwrap();
            let mut byte = [0];
            File::from(descriptors.into_iter().next().unwrap()).read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"!");
        }
        drop(a);
        assert!(b.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (a, b) = Channel::pair().unwrap();
        for bytes in [&b"x"[..], b"m", b"i{", &vec![b'i'; MOST_INLINE + 2]] {
            rustix::net::send(&a, bytes, SendFlags::empty()).unwrap();
            b.receive::<String>().unwrap_err();
        }
    }

    #[test]
    fn who_connects_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = listen(&path, 0o600).unwrap();
        let _client = Channel::connect(&path).unwrap();
        let (process, user) = Channel::accept(&listener).unwrap().peer().unwrap();
        assert_eq!((process.unsigned_abs(), user), (std::process::id(), rustix::process::geteuid().as_raw()));
        listen(&path, 0o600).unwrap();
    }
}
