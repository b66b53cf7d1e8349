//! What an agent gives up once its device is mounted: everything that serving chunks does not need.
//!
//! From then on it parses what the kernel and the image's own bytes tell it, and has nothing but the descriptors that it was left:
//! the FUSE connection, the overlay, the socket of the worker. It runs as a user that no other process of the machine is, with no
//! capability and no way to get one, within a limit of memory, and with the system calls that it makes. Whoever takes it over has the
//! one sandbox that it serves, with its keys, and nothing else.

use std::collections::BTreeMap;

use nix::libc;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

use crate::Error;

/// Descriptors that it may have open: one for each chunk on its way, and a few.
const MOST_FILES: u64 = 4096;

/// Gives up what is not needed any more, in all threads. It cannot be undone.
///
/// # Errors
/// [`Error::Io`]: the process must then end, since it may be half confined.
pub(super) fn confine(user: u32, memory_bytes: u64) -> Result<(), Error> {
    let io = |what: &'static str| move |error: nix::errno::Errno| Error::io("give up", what, error);
    // Private memory that is written to: code and the chunks of others in the page cache do not count.
    for (resource, most) in [(Resource::Data, memory_bytes), (Resource::Nofile, MOST_FILES)] {
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .map_err(|error| Error::io("give up", "resources", error))?;
    }
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    setgroups(&[]).map_err(io("groups"))?;
    setresgid(gid, gid, gid).map_err(io("the group"))?;
    // With the last of its user ids the process has lost all capabilities (capabilities(7)).
    setresuid(uid, uid, uid).map_err(io("the user"))?;
    let filter = filter()?;
    // Sets no_new_privs, too.
    apply_filter_all_threads(&filter)
        .map_err(|error| Error::io("give up", "system calls", std::io::Error::other(error.to_string())))
}

/// What an agent still does, and what the standard library and the allocator do for it. Anything else fails with EPERM.
fn filter() -> Result<BpfProgram, Error> {
    let failed = |error: seccompiler::BackendError| {
        Error::io("make", "a filter of system calls", std::io::Error::other(error.to_string()))
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Sockets of this machine only: the worker's.
    let is_local = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_UNIX as u64);
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![is_local.map_err(failed)?]).map_err(failed)?]);
    // To name threads, and to say of them that they serve a disk.
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, 57, libc::PR_SET_VMA];
    let options = options.iter().map(|option| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *option as u64)?;
        SeccompRule::new(vec![condition])
    });
    rules.insert(libc::SYS_prctl, options.collect::<Result<_, _>>().map_err(failed)?);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().map_err(failed)?;
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture).and_then(TryInto::try_into).map_err(failed)
}

const ALLOWED: &[i64] = &[
    // Reading and writing what is open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_close,
    libc::SYS_fadvise64,
    libc::SYS_memfd_create,
    libc::SYS_pipe2,
    // Sockets.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_restart_syscall,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_pidfd_open,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_getrandom,
    // Threads, and the end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];
