//! The worker's side of the socket: one thread that never waits for anything but messages. What is here is answered at once; what is
//! not is answered by the threads that fetch it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use snowmelt_store::Store;

use super::protocol::{Answer, GREETING, MOST_BYTES, Request, receive, send};
use crate::fetcher::{Fetched, Waiter};
use crate::{ChunkName, Error, Fetcher, L1, Priority, Tier};

/// Connections of one user, which is one sandbox. It needs as many as it loads chunks at once.
const MOST_OF_ONE: usize = 128;
/// All connections.
const MOST: usize = 16_384;
const BACKLOG: i32 = 1024;
/// A sandbox's id is no longer.
const MOST_ID: usize = 64;

const LISTENER: u64 = 0;
const END: u64 = 1;

/// Says where a sandbox's chunks come from: by its id and the user that it runs as. `None` for one that is not known.
type StoreOf = Box<dyn Fn(&str, u32) -> Option<Arc<Store>> + Send + Sync>;

/// Answers for chunks. Ends when dropped; sandboxes that wait then are told so by the end of their connection.
#[derive(Debug)]
pub struct ChunkServer {
    end: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    l1: Arc<L1>,
    fetcher: Arc<Fetcher>,
    store_of: StoreOf,
}

/// One connection.
struct Connection {
    socket: Arc<Line>,
    user: u32,
    /// Whose it is, once it has said so.
    sandbox: Option<String>,
}

/// Where answers go.
struct Line {
    socket: OwnedFd,
    /// While a request waits for its answer.
    is_busy: AtomicBool,
}

impl ChunkServer {
    /// A socket to listen on at `path`, which is made anew.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn listen(path: &std::path::Path) -> Result<UnixListener, Error> {
        let io = |error: rustix::io::Errno| Error::io("listen on", path)(error.into());
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("replace", path)(error)),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(io)?;
        let address = rustix::net::SocketAddrUnix::new(path).map_err(io)?;
        rustix::net::bind(&socket, &address).map_err(io)?;
        rustix::net::listen(&socket, BACKLOG).map_err(io)?;
        Ok(UnixListener::from(socket))
    }

    /// Connects to such a socket.
    ///
    /// # Errors
    /// Those of the system.
    pub fn connect(path: &std::path::Path) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
        Ok(socket)
    }

    /// Serves what comes to a socket that [`ChunkServer::listen`] made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn start(
        listener: UnixListener,
        l1: Arc<L1>,
        fetcher: Arc<Fetcher>,
        store_of: impl Fn(&str, u32) -> Option<Arc<Store>> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let io = |error: rustix::io::Errno| Error::io("wait on", "a socket")(error.into());
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let end = Arc::new(rustix::event::eventfd(0, flags).map_err(io)?);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io)?;
        let watch = |socket: BorrowedFd<'_>, token| {
            epoll::add(&poll, socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN).map_err(io)
        };
        watch(listener.as_fd(), LISTENER)?;
        watch(end.as_fd(), END)?;
        let shared = Shared { l1, fetcher, store_of: Box::new(store_of) };
        let serving = Serving { shared, poll, listener, connections: HashMap::new(), by_user: HashMap::new(), next: 2 };
        let thread = std::thread::Builder::new().name("l1".into()).spawn(move || serving.run());
        let thread = thread.map_err(Error::io("start", "a thread"))?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for ChunkServer {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.end, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Serving {
    shared: Shared,
    poll: OwnedFd,
    listener: UnixListener,
    connections: HashMap<u64, Connection>,
    by_user: HashMap<u32, usize>,
    next: u64,
}

impl Serving {
    fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        let mut bytes = vec![0; MOST_BYTES];
        loop {
            events.clear();
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "sandboxes are not served any more");
                    return;
                }
            }
            for event in &events {
                match event.data.u64() {
                    END => return,
                    LISTENER => self.accept(),
                    token => {
                        if !self.serve(token, &mut bytes) {
                            self.close(token);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => return,
            Err(error) => {
                // Such as no descriptor left. It would be ready again at once.
                tracing::warn!(%error, "a sandbox's connection was not accepted");
                std::thread::sleep(std::time::Duration::from_millis(10));
                return;
            }
        };
        let Ok(peer) = rustix::net::sockopt::socket_peercred(&socket) else { return };
        let user = peer.uid.as_raw();
        let of_user = self.by_user.entry(user).or_default();
        let most_of_user = if user == 0 { MOST } else { MOST_OF_ONE };
        if *of_user >= most_of_user || self.connections.len() >= MOST {
            tracing::warn!(user, "a sandbox has too many connections");
            return;
        }
        let token = self.next;
        self.next += 1;
        let watched = epoll::add(&self.poll, &socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN);
        if watched.is_ok() {
            *of_user += 1;
            let socket = Arc::new(Line { socket, is_busy: AtomicBool::new(false) });
            self.connections.insert(token, Connection { socket, user, sandbox: None });
        }
    }

    fn close(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else { return };
        let _ = epoll::delete(&self.poll, &connection.socket.socket);
        // A fetch may still hold it for its answer; the other side need not wait for that.
        let _ = rustix::net::shutdown(&connection.socket.socket, rustix::net::Shutdown::Both);
        if let Some(count) = self.by_user.get_mut(&connection.user) {
            *count -= 1;
            if *count == 0 {
                self.by_user.remove(&connection.user);
            }
        }
    }

    /// Takes one message; false if the connection is to be closed.
    fn serve(&mut self, token: u64, bytes: &mut [u8]) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return true };
        let length = match receive(&connection.socket.socket, bytes) {
            Ok(Some((length, _))) => length,
            Ok(None) => return false,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        let message = &bytes[..length];
        let Some(sandbox) = &connection.sandbox else {
            let id = std::str::from_utf8(message).ok().and_then(|text| text.strip_prefix(GREETING));
            connection.sandbox = id.filter(|id| (1..=MOST_ID).contains(&id.len())).map(Into::into);
            return connection.sandbox.is_some();
        };
        let Some(request) = Request::decode(message) else {
            tracing::warn!(sandbox, "a sandbox sent what is no request");
            return false;
        };
        // One at a time, so that a sandbox cannot have more under way than it has connections.
        if connection.socket.is_busy.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.shared.answer(request, &connection.socket, sandbox, connection.user)
    }
}

impl Shared {
    fn answer(&self, request: Request, line: &Arc<Line>, sandbox: &str, user: u32) -> bool {
        let (chunk, priority, is_get) = match request {
            Request::Get(chunk, priority) => (chunk, priority, true),
            Request::Warm(chunk, priority) => (chunk, priority, false),
            Request::Check(chunk) => {
                self.l1.check(&chunk);
                return line.answer(&Answer::Here(Tier::Memory), None);
            }
            Request::Contains(chunks) => {
                let here = chunks.iter().map(|(id, _)| self.l1.contains(id)).collect();
                return line.answer(&Answer::Contains(here), None);
            }
        };
        if is_get {
            if let Some((tier, file)) = self.l1.get(&chunk) {
                return line.answer(&Answer::Here(tier), Some(&file));
            }
        } else if self.l1.contains(&chunk.id) {
            return line.answer(&Answer::Here(Tier::Disk), None);
        }
        let Some(store) = (self.store_of)(sandbox, user) else {
            let reason = format!("this worker does not know the sandbox {sandbox}");
            return line.answer(&Answer::Unavailable(reason), None);
        };
        self.fetch(chunk, &store, priority, Arc::clone(line), is_get);
        true
    }

    fn fetch(&self, chunk: ChunkName, store: &Arc<Store>, priority: Priority, line: Arc<Line>, is_get: bool) {
        self.fetcher.fetch(chunk, store, priority, Box::new(Reply { line, is_get }));
    }
}

impl Line {
    /// False where the other side does not take it: it is gone, or does not read.
    fn answer(&self, answer: &Answer, file: Option<&OwnedFd>) -> bool {
        // Before it is sent: the next request may come at once.
        self.is_busy.store(false, Ordering::Release);
        self.send(answer, file)
    }

    fn send(&self, answer: &Answer, file: Option<&OwnedFd>) -> bool {
        send(&self.socket, &answer.encode(), file.map(AsFd::as_fd)).is_ok()
    }
}

/// Somebody who waits for what is fetched.
struct Reply {
    line: Arc<Line>,
    is_get: bool,
}

impl Waiter for Reply {
    fn asks(&self, tier: Tier) {
        self.line.send(&Answer::Asks(tier), None);
    }

    fn done(self: Box<Self>, fetched: Fetched) {
        let is_sent = match fetched {
            Ok((tier, file)) => self.line.answer(&Answer::Here(tier), self.is_get.then_some(&*file)),
            Err(error) => {
                let reason = reason_of(&error);
                let answer = if error.is_unavailable() {
                    Answer::Unavailable(reason)
                } else if error.is_missing() {
                    Answer::Missing(reason)
                } else {
                    Answer::Lost(reason)
                };
                self.line.answer(&answer, None)
            }
        };
        if !is_sent {
            // The thread that serves it then sees its end.
            let _ = rustix::net::shutdown(&self.line.socket, rustix::net::Shutdown::Both);
        }
    }
}

/// What went wrong, without the chunk, which the other side names itself.
fn reason_of(error: &Error) -> String {
    match error {
        Error::Lost { source, .. } | Error::Unavailable { source, .. } => source.to_string(),
        Error::Worker { reason, .. } => reason.clone(),
        Error::Busy { waiting, .. } => format!("the worker has {waiting} chunks to fetch already"),
        error => error.to_string(),
    }
}
