//! Which system calls a container may make: the default profile of docker and containerd (moby/profiles, as of 2025),
//! evaluated for the capabilities that every container here has. Everything not listed fails with EPERM.
//!
//! The runtime compiles the profile at each start, once per architecture, and its time shows: on one machine 3 ms for
//! the 64-bit calls of x86 and 17 ms more for the 32-bit and x32 ones. So the 32-bit calls are listed only for an image
//! that can run 32-bit programs; in any other such a program is killed. x32 is never listed.

use serde_json::{Value, json};
use snowmelt_image::ImageConfig;

use crate::root::Root;

/// The calls that an image's programs can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    /// Those of the machine's own width.
    Native,
    /// Also those of the 32-bit programs that the machine can run.
    NativeAnd32Bit,
}

impl Abi {
    /// 32-bit if the image says so, or has a 32-bit dynamic loader.
    pub(super) fn of(root: &Root, image: &ImageConfig) -> Self {
        // glibc's and musl's loaders: paths that the ABIs fix.
        const LOADERS: &[&str] = if cfg!(target_arch = "x86_64") {
            &["/lib/ld-linux.so.2", "/lib/ld-musl-i386.so.1"]
        } else {
            &["/lib/ld-linux-armhf.so.3", "/lib/ld-linux.so.3", "/lib/ld-musl-armhf.so.1"]
        };
        let is_32_bit = matches!(image.architecture.as_str(), "386" | "arm");
        if is_32_bit || LOADERS.iter().any(|loader| root.exists(loader)) { Self::NativeAnd32Bit } else { Self::Native }
    }
}

/// AF_VSOCK: reaches the hypervisor, past the network namespace.
const AF_VSOCK: u64 = 40;
/// The CLONE_NEW* flags: new namespaces, which need CAP_SYS_ADMIN and are a common way to kernel bugs.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// PER_LINUX, PER_LINUX32, both with UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const EPERM: u64 = 1;
const ENOSYS: u64 = 38;

/// The `linux.seccomp` object.
pub(super) fn profile(abi: Abi) -> Value {
    let (native, narrow) = if cfg!(target_arch = "x86_64") {
        ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
    } else {
        ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")
    };
    let mut names: Vec<&str> = ALLOWED.split_ascii_whitespace().collect();
    names.extend(if cfg!(target_arch = "x86_64") {
        ALLOWED_X86.split_ascii_whitespace()
    } else {
        ALLOWED_ARM.split_ascii_whitespace()
    });
    let mut architectures = vec![native];
    if abi == Abi::NativeAnd32Bit {
        names.extend(ALLOWED_32_BIT.split_ascii_whitespace());
        architectures.push(narrow);
    }
    let argument = |value: u64, operator: &str| json!([{ "index": 0, "value": value, "op": operator }]);
    let mut masked = argument(CLONE_NAMESPACES, "SCMP_CMP_MASKED_EQ");
    masked[0]["valueTwo"] = json!(0);
    let allow = |name: &str, args: Value| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args });
    let mut rules = vec![
        json!({ "names": names, "action": "SCMP_ACT_ALLOW" }),
        allow("socket", argument(AF_VSOCK, "SCMP_CMP_NE")),
        allow("clone", masked),
        // The flags of clone3 lie in memory, where a filter cannot look; ENOSYS makes C libraries fall back to clone.
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ];
    rules.extend(PERSONALITIES.iter().map(|value| allow("personality", argument(*value, "SCMP_CMP_EQ"))));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": rules,
    })
}

/// Calls allowed with any arguments, on every architecture.
const ALLOWED: &str = "\
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chroot clock_adjtime clock_getres \
clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group \
faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync \
fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait \
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid \
getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage \
getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill \
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr \
listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret \
mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll \
prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6 ptrace pwrite64 pwritev \
pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename \
renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn \
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area \
set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid \
setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times \
tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev";

const ALLOWED_X86: &str = "arch_prctl modify_ldt";
const ALLOWED_ARM: &str = "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

/// Calls that only 32-bit programs have.
const ALLOWED_32_BIT: &str = "\
_llseek _newselect chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64 fchown32 \
fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32 getresgid32 getresuid32 \
getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 mq_timedreceive_time64 mq_timedsend_time64 ppoll_time64 \
pselect6_time64 recv recvmmsg_time64 rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 send sendfile64 \
setfsgid32 setfsuid32 setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sigprocmask sigreturn \
socketcall stat64 statfs64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit \
utimensat_time64 waitpid";
