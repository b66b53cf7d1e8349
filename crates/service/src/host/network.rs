//! A network namespace of its own for a container, in which this process can listen.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

/// A namespace with a loopback interface that is up, and nothing else. It is there as long as this, or anybody in it.
pub(super) struct Namespace(File);

impl Namespace {
    pub(super) fn new() -> io::Result<Self> {
        in_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            bring_loopback_up()?;
            File::open("/proc/thread-self/ns/net").map(Self)
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }

    /// Where it is, for others to join.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// A socket that listens in it, whoever accepts from it.
    pub(super) fn listen(&self, address: &str) -> io::Result<TcpListener> {
        self.inside(|| TcpListener::bind(address))
    }

    /// Does something in it: a socket that is made there stays there.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        in_own_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }
}

/// A thread's namespaces are its own.
fn in_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// As `ip link set lo up` does: netdevice(7).
#[allow(unsafe_code)]
fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all bytes of an `ifreq` may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is whole, and the kernel reads no more than it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
