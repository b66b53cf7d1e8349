//! The first process of a container whose image has extensions: starts them and the runtime, and says what becomes of them.
//!
//! A static program that is built by itself (`build.rs`), since an image need not have the libraries of this machine. It decides
//! nothing: whose sandbox it is (`host/supervisor.rs`) says when the runtime is to start and what is to end. As the first process it
//! also waits for whatever loses its parent, and when it ends all others do.
//!
//! ```text
//! first-process SOCKET PROGRAM [ARGUMENT]…      SOCKET is a name in the abstract namespace, of the container's network
//!
//! it says    launched NAME | failed STATUS NAME | launched-all | ended STATUS NAME       STATUS is an exit code, 128 + n for signal n
//! it hears   begin                              it may start extensions
//!            run | terminate | kill             of the runtime, whose name is empty
//! ```
//! What extensions write goes through a second connection, since the container's own output is the runtime's.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead as _, BufReader, PipeWriter, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Where extensions are, in every image.
const EXTENSIONS: &str = "/opt/extensions";

/// What Lambda gives the runtime alone.
const OF_THE_RUNTIME: [&str; 10] = [
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_XRAY_CONTEXT_MISSING",
    "AWS_XRAY_DAEMON_ADDRESS",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
    "_AWS_XRAY_DAEMON_ADDRESS",
    "_AWS_XRAY_DAEMON_PORT",
    "_HANDLER",
];

/// The system calls that the standard library does not have: wait(2), kill(2).
mod system {
    use std::ffi::c_int;

    /// `siginfo_t`, of which nothing is read.
    #[repr(C, align(8))]
    pub(super) struct Information([u8; 128]);

    impl Information {
        pub(super) const EMPTY: Self = Self([0; 128]);
    }

    pub(super) const P_ALL: c_int = 0;
    pub(super) const WNOHANG: c_int = 1;
    pub(super) const WEXITED: c_int = 4;
    pub(super) const WNOWAIT: c_int = 0x0100_0000;
    pub(super) const SIGKILL: c_int = 9;
    pub(super) const SIGTERM: c_int = 15;

    #[allow(unsafe_code)]
    unsafe extern "C" {
        pub(super) fn waitid(kind: c_int, id: u32, information: *mut Information, options: c_int) -> c_int;
        pub(super) fn waitpid(pid: i32, status: *mut c_int, options: c_int) -> i32;
        pub(super) fn kill(pid: i32, signal: c_int) -> c_int;
    }
}

/// Processes by number, with their names.
#[derive(Default)]
struct Children {
    names: Mutex<HashMap<i32, String>>,
    started: Condvar,
}

/// The way to the host.
struct Host(Mutex<UnixStream>);

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let (Some(socket), Some(program)) = (words.next(), words.next()) else { return ExitCode::from(125) };
    match supervise(&socket, &program, &words.collect::<Vec<_>>()) {
        // Its host is gone, and the sandbox with it.
        Ok(()) => ExitCode::from(125),
        Err(error) => {
            eprintln!("extensions cannot be started: {error}");
            ExitCode::from(125)
        }
    }
}

fn supervise(socket: &OsStr, program: &OsStr, arguments: &[OsString]) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(socket.as_bytes())?;
    let control = UnixStream::connect_addr(&address)?;
    let mut logs = UnixStream::connect_addr(&address)?;
    let host = Arc::new(Host(Mutex::new(control.try_clone()?)));
    let children = Arc::new(Children::default());
    let (mut written, output) = io::pipe()?;
    std::thread::spawn(move || io::copy(&mut written, &mut logs));
    std::thread::spawn({
        let (host, children) = (Arc::clone(&host), Arc::clone(&children));
        move || reap(&host, &children)
    });
    let mut runtime = None;
    for line in BufReader::new(control).lines() {
        match line?.as_str() {
            "begin" => {
                for (name, path) in extensions() {
                    start_extension(&host, &children, &name, &path, &output)?;
                }
                host.say("launched-all")?;
            }
            "run" => {
                let mut command = Command::new(program);
                command.args(arguments).process_group(0);
                runtime = start(&host, &children, "", &mut command)?;
            }
            "terminate" => signal(&children, runtime, system::SIGTERM),
            "kill" => signal(&children, runtime, system::SIGKILL),
            _ => {}
        }
    }
    Ok(())
}

/// Every file there that can be executed, by name; in Lambda too it is the file's name that an extension registers by.
fn extensions() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(EXTENSIONS).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| {
            let metadata = std::fs::metadata(entry.path());
            metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
        })
        // Others could not be the value of a header.
        .filter_map(|entry| entry.file_name().into_string().ok().map(|name| (name, entry.path())))
        .filter(|(name, _)| !name.chars().any(char::is_control))
        .collect();
    found.sort();
    found
}

fn start_extension(
    host: &Host,
    children: &Children,
    name: &str,
    path: &Path,
    output: &PipeWriter,
) -> io::Result<Option<i32>> {
    let mut command = Command::new(path);
    command.current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    for variable in OF_THE_RUNTIME {
        command.env_remove(variable);
    }
    start(host, children, name, &mut command)
}

/// Starts a process; where that cannot be, the host is told.
fn start(host: &Host, children: &Children, name: &str, command: &mut Command) -> io::Result<Option<i32>> {
    // Before it can end, and be waited for.
    let mut names = children.lock();
    match command.spawn() {
        Ok(child) => {
            let pid = child.id().cast_signed();
            host.say(&format!("launched {name}"))?;
            names.insert(pid, name.to_owned());
            children.started.notify_all();
            Ok(Some(pid))
        }
        Err(error) => {
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            host.say(&format!("failed {code} {name}"))?;
            Ok(None)
        }
    }
}

/// To a process and whatever it has started, if it is there still.
fn signal(children: &Children, pid: Option<i32>, number: i32) {
    let names = children.lock();
    if let Some(pid) = pid.filter(|pid| names.contains_key(pid)) {
        // SAFETY: takes numbers. The process has not been waited for, so that the number is its own.
        #[allow(unsafe_code)]
        unsafe {
            system::kill(-pid, number);
        }
    }
}

/// Waits for whatever ends, for ever.
fn reap(host: &Host, children: &Children) {
    loop {
        let mut information = system::Information::EMPTY;
        // SAFETY: the kernel writes no more than a `siginfo_t`, which has 128 bytes.
        #[allow(unsafe_code)]
        let waited =
            unsafe { system::waitid(system::P_ALL, 0, &raw mut information, system::WEXITED | system::WNOWAIT) };
        let mut names = children.lock();
        if waited != 0 {
            // There is nobody to wait for.
            while names.is_empty() {
                names = children.started.wait(names).unwrap_or_else(PoisonError::into_inner);
            }
            continue;
        }
        // Under the lock, since who starts a process waits for one that could not be.
        let mut status = 0;
        // SAFETY: writes one number.
        #[allow(unsafe_code)]
        let pid = unsafe { system::waitpid(-1, &raw mut status, system::WNOHANG) };
        if let Some(name) = names.remove(&pid) {
            let signal = status & 0x7f;
            let code = if signal == 0 { (status >> 8) & 0xff } else { 128 + signal };
            // Without a host there is nobody to tell, and soon nothing.
            let _ = host.say(&format!("ended {code} {name}"));
        }
    }
}

impl Children {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    fn say(&self, line: &str) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(format!("{line}\n").as_bytes())
    }
}
