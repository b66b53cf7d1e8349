//! What a connection's bytes go through: the socket itself, or TLS over it. Never blocks.

use std::io::{self, BufReader, ErrorKind, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// Ciphertext that is taken from the socket at once: two records. The library itself would ask for 4 KiB at a time.
const READ_BYTES: usize = 32 << 10;

/// One of the two, or what stands for them in a simulation.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<Tls>),
    #[cfg(any(test, feature = "simulation"))]
    Simulated(super::simulation::Pipe),
}

#[derive(Debug)]
pub(super) struct Tls {
    session: ClientConnection,
    socket: BufReader<Socket>,
}

#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Transport {
    /// Begins to connect, and to shake hands where that is wanted.
    pub(super) fn open(
        address: &SocketAddr,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let Some((config, name)) = tls else { return Ok(Self::Plain(Socket(socket))) };
        let mut session = ClientConnection::new(config, name).map_err(refused)?;
        // A request is as long as a shard, and is ours already.
        session.set_buffer_limit(None);
        Ok(Self::Tls(Box::new(Tls { session, socket: BufReader::with_capacity(READ_BYTES, Socket(socket)) })))
    }

    /// A socket that is connected and does not block, as it is.
    pub(super) fn over(socket: OwnedFd) -> Self {
        Self::Plain(Socket(socket))
    }

    /// Bytes that are taken; `None` if none are yet. With TLS they may still have to wait here: [`Transport::receive`] sees to them.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(socket) => not_yet(socket.write(bytes)),
            Self::Tls(tls) => {
                let count = tls.session.writer().write(bytes)?;
                tls.flush()?;
                Ok(Some(count))
            }
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(pipe) => Ok(Some(pipe.send(bytes))),
        }
    }

    /// Bytes that came; `None` if none did yet.
    pub(super) fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(socket) => not_yet(socket.receive(into, RecvFlags::empty())),
            Self::Tls(tls) => tls.receive(into),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(pipe) => pipe.receive(into),
        }
    }

    /// The same for two places, the second of which takes what the first has no room for.
    pub(super) fn receive_both(&mut self, first: &mut [u8], second: &mut [u8]) -> io::Result<Option<usize>> {
        if let Self::Plain(socket) = self {
            return not_yet(socket.receive_both(first, second));
        }
        let Some(count) = self.receive(first)? else { return Ok(None) };
        if count < first.len() || second.is_empty() {
            return Ok(Some(count));
        }
        // What is wrong with the second is so at the next call too.
        let more = self.receive(second).ok().flatten();
        Ok(Some(count + more.unwrap_or(0)))
    }

    /// Whether all that came was given away, so that waiting for the socket is waiting for the next bytes.
    pub(super) fn holds_nothing(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Throws up to `count` bytes away; how many, `None` if none are there. With `MSG_TRUNC` TCP does not even copy them (tcp(7)), so
    /// what the buffer holds does not matter.
    pub(super) fn discard(&mut self, count: usize) -> io::Result<Option<usize>> {
        thread_local! {
            static NOWHERE: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; 128 << 10]);
        }
        NOWHERE.with_borrow_mut(|nowhere| {
            let length = count.min(nowhere.len());
            let nowhere = &mut nowhere[..length];
            match self {
                Self::Plain(socket) => not_yet(socket.receive(nowhere, RecvFlags::TRUNC)),
                Self::Tls(tls) => tls.receive(nowhere),
                #[cfg(any(test, feature = "simulation"))]
                Self::Simulated(pipe) => pipe.receive(nowhere),
            }
        })
    }

    /// What to wait for, before it is worth trying again.
    pub(super) fn awaits(&self, is_sending: bool) -> PollFlags {
        match self {
            Self::Plain(_) if is_sending => PollFlags::OUT,
            Self::Tls(tls) if tls.session.wants_write() => PollFlags::IN | PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }

    /// Whether the other side has closed an idle connection, or has sent what nobody asked for.
    pub(super) fn is_stale(&mut self) -> bool {
        match self {
            Self::Plain(socket) => {
                let peeked = socket.receive(&mut [0], RecvFlags::PEEK);
                !matches!(not_yet(peeked), Ok(None))
            }
            // Its own messages, such as a new key, are no answer.
            Self::Tls(tls) => !matches!(tls.receive(&mut [0]), Ok(None)),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(pipe) => !matches!(pipe.receive(&mut [0]), Ok(None)),
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.0.as_fd(),
            Self::Tls(tls) => tls.socket.get_ref().0.as_fd(),
            #[cfg(any(test, feature = "simulation"))]
            Self::Simulated(_) => unreachable!("a simulated network waits by itself"),
        }
    }
}

impl Tls {
    /// Sends what waits here, as far as the socket takes it.
    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if not_yet(self.session.write_tls(self.socket.get_mut()))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            self.flush()?;
            match self.session.reader().read(into) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            // At the end of the stream this is 0, and the reader says what that means.
            let Some(count) = not_yet(self.session.read_tls(&mut self.socket))? else { return Ok(None) };
            if let Err(error) = self.session.process_new_packets() {
                // The node may learn from it why.
                let _ = self.flush();
                return Err(refused(error));
            }
            if count == 0 && self.session.is_handshaking() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl Socket {
    fn receive(&self, into: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        match rustix::net::recv(&self.0, into, flags) {
            Ok((0, _)) => Err(ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => Ok(count),
            Err(error) => Err(error.into()),
        }
    }

    fn receive_both(&self, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        match rustix::io::readv(&self.0, &mut parts)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.0, into, RecvFlags::empty())?.0)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL) {
            // Not connected yet.
            Err(rustix::io::Errno::NOTCONN) => Err(ErrorKind::WouldBlock.into()),
            sent => Ok(sent?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `None` for what would have to wait.
fn not_yet<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One side does not believe the other. Not `InvalidData`, which is a damaged answer.
fn refused(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::PermissionDenied, error)
}
