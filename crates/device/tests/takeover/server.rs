//! The process that serves, and the one that holds what its successor needs.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use snowmelt_device::fuse::{self, Handover, SessionState};
use snowmelt_device::{Device, DeviceHandover, DeviceOptions, DeviceState, Fault, MemoryChunks};

pub(crate) const CHUNK: u32 = 64 << 10;
const FOLDER: &str = "SNOWMELT_TEST_TAKEOVER";

/// What a server is told.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    Serve,
    /// With the descriptors of the session first.
    TakeOver(DeviceState, SessionState),
    LetGo,
}

/// How a server behaves.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Behaviour {
    pub(crate) read_only: bool,
    /// A chunk that it never gets.
    pub(crate) stuck: Option<u64>,
    pub(crate) other_key: bool,
}

#[derive(Serialize, Deserialize)]
enum Told {
    Serving(DeviceState, SessionState),
    CannotBeTakenOver,
    Refused(String),
    /// A read of the chunk that is never had has begun.
    Stuck,
    LetGo(usize),
}

fn send(socket: BorrowedFd<'_>, message: &impl Serialize, descriptors: &[OwnedFd]) {
    let bytes = serde_json::to_vec(message).unwrap();
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[_] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::empty(), None).unwrap();
}

/// `None` when the other end is closed.
#[allow(unsafe_code)]
fn receive<T: for<'a> Deserialize<'a>>(socket: BorrowedFd<'_>) -> Option<(T, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 64 << 10];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!([i32; 8]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags).unwrap();
    let mut descriptors = Vec::new();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let length = message.bytes;
    (length > 0).then(|| (serde_json::from_slice(&bytes[..length]).unwrap(), descriptors))
}

/// The process that serves: this same program again, with a socket for its standard input.
#[test]
fn server_process() {
    if let Ok(folder) = std::env::var(FOLDER) {
        serve(Path::new(&folder));
    }
}

fn serve(folder: &Path) {
    let stdin = std::io::stdin();
    let socket = stdin.as_fd();
    let (behaviour, _): (Behaviour, _) = receive(socket).unwrap();
    let (order, mut descriptors): (Order, _) = receive(socket).unwrap();
    let chunks = Arc::new(MemoryChunks::new(fs::read(folder.join("image")).unwrap(), CHUNK));
    if let Some(stuck) = behaviour.stuck {
        chunks.set_fault(stuck, Some(Fault::Slow));
    }
    let options = DeviceOptions {
        writable: !behaviour.read_only,
        overlay_directory: folder.to_path_buf(),
        // Small, so that chunks are evicted and needed again.
        memory_bytes: 1 << 20,
        ..DeviceOptions::default()
    };
    let key = if behaviour.other_key { [1; 32] } else { [2; 32] };
    let reader = Arc::clone(&chunks) as _;
    let (device, export) = match order {
        Order::TakeOver(device, session) => {
            let connection = descriptors.remove(0);
            let handover = DeviceHandover { descriptors, state: device };
            let device = match Device::resume_with_reader(reader, options, handover, &key) {
                Ok(device) => Arc::new(device),
                Err(error) => return send(socket, &Told::Refused(error.to_string()), &[]),
            };
            let handover = Handover { descriptors: vec![connection], state: session };
            let export = fuse::resume(Arc::clone(&device), handover).unwrap();
            (device, export)
        }
        Order::Serve | Order::LetGo => {
            let device = Arc::new(Device::with_reader(reader, options).unwrap());
            let export = fuse::serve(Arc::clone(&device), &folder.join("device")).unwrap();
            (device, export)
        }
    };
    if !export.can_be_taken_over() {
        assert!(export.handover().is_err());
        export.unmount().unwrap();
        return send(socket, &Told::CannotBeTakenOver, &[]);
    }
    let (ours, session) = (device.handover(&key).unwrap(), export.handover().unwrap());
    let descriptors: Vec<_> = session.descriptors.into_iter().chain(ours.descriptors).collect();
    send(socket, &Told::Serving(ours.state, session.state), &descriptors);
    drop(descriptors);
    if let Some(stuck) = behaviour.stuck {
        let mut reads = 0;
        while !chunks.order().contains(&stuck) {
            reads += 1;
            chunks.await_reads(reads);
        }
        send(socket, &Told::Stuck, &[]);
    }
    if let Some((Order::LetGo, _)) = receive(socket) {
        // No longer than it takes where all can be answered.
        let patience = if behaviour.stuck.is_some() { Duration::ZERO } else { Duration::from_mins(1) };
        let left = export.let_go(patience).unwrap();
        assert!(device.write_at(0, &[0; 4096]).is_err(), "it writes no more");
        send(socket, &Told::LetGo(left), &[]);
        // It may take its time to end: it stays until it is killed.
        let _ = receive::<Order>(socket);
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    socket: OwnedFd,
}

impl Server {
    fn start(folder: &Path, behaviour: &Behaviour, order: &Order, descriptors: &[OwnedFd]) -> Self {
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::server_process", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        send(socket.as_fd(), behaviour, &[]);
        send(socket.as_fd(), order, descriptors);
        Self { child, socket }
    }

    /// SIGKILL; gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn await_stuck(&self) {
        assert!(matches!(receive(self.socket.as_fd()), Some((Told::Stuck, _))));
    }

    /// Asks it to let go. Gives how many requests it left unanswered.
    pub(crate) fn let_go(&self) -> usize {
        send(self.socket.as_fd(), &Order::LetGo, &[]);
        match receive(self.socket.as_fd()) {
            Some((Told::LetGo(left), _)) => left,
            _ => panic!("it did not let go"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Holds duplicates for successors.
pub(crate) struct Supervisor {
    folder: tempfile::TempDir,
    held: Vec<OwnedFd>,
    states: (DeviceState, SessionState),
}

impl Supervisor {
    /// Has an image served. `None` where the kernel cannot hand a session over.
    pub(crate) fn start(image: &[u8], behaviour: &Behaviour) -> Option<(Self, Server)> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("image"), image).unwrap();
        let server = Server::start(folder.path(), behaviour, &Order::Serve, &[]);
        match receive(server.socket.as_fd()) {
            Some((Told::Serving(device, session), held)) => {
                // Closed once, so that the kernel knows that nothing is flushed here: a successor closes what it inherits from this
                // process before it runs, and would wait for itself.
                drop(fs::File::open(folder.path().join("device")).unwrap());
                Some((Self { folder, held, states: (device, session) }, server))
            }
            Some((Told::CannotBeTakenOver, _)) => {
                eprintln!("not tested: this kernel cannot send FUSE requests again; Linux 6.9 or later is missing");
                None
            }
            _ => panic!("nothing is served: root, /dev/fuse or the kernel module fuse is missing"),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    pub(crate) fn device(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    /// Starts a successor, and waits until it serves.
    ///
    /// # Errors
    /// What it said where it refused.
    pub(crate) fn succeed(&mut self, behaviour: &Behaviour) -> Result<Server, String> {
        let (device, session) = self.states.clone();
        let server = Server::start(self.folder.path(), behaviour, &Order::TakeOver(device, session), &self.held);
        match receive(server.socket.as_fd()) {
            Some((Told::Serving(device, session), held)) => {
                self.states = (device, session);
                self.held = held;
                Ok(server)
            }
            Some((Told::Refused(why), _)) => Err(why),
            _ => panic!("the successor failed"),
        }
    }

    /// Closes what a successor would need.
    pub(crate) fn give_up(&mut self) {
        self.held.clear();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = fuse::unmount_stale(&self.device());
    }
}
