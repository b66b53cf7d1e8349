//! Wakes threads that wait in `read(2)` for a request: by a signal, since everything else that could be waited for beside the
//! descriptor costs a system call more for each request.

use std::io;
use std::sync::OnceLock;

/// Ignored by default, so that one that comes at another time does no harm.
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn nothing(_signal: libc::c_int) {}

/// Has [`SIGNAL`] interrupt what a thread waits for. Done once, by a process that hands a session over.
#[allow(unsafe_code)]
pub(super) fn prepare() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: zeros are a `sigaction` without flags and with an empty mask. Without SA_RESTART system calls are interrupted.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the action is whole, and its handler does nothing, which it may do at any moment.
        match unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    done.map_err(io::Error::from_raw_os_error)
}

/// Interrupts a thread that has not been joined yet.
#[allow(unsafe_code)]
pub(super) fn interrupt(thread: libc::pthread_t) {
    // SAFETY: threads of a session are joined only after the last of them was interrupted, so the number is still the thread's.
    // That it has ended already is no failure.
    unsafe { libc::pthread_kill(thread, SIGNAL) };
}
