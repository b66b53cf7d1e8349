//! `cargo lambda watch`: what people try Rust functions with on their own machine.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::Bench;
use crate::functions::{invoke, path};
use crate::http::Client;
use crate::tiers::Process;

/// It builds the function when it is first called.
const BUILD_PATIENCE: Duration = Duration::from_mins(5);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A running one; killed when dropped.
pub(super) struct Watch {
    process: Process,
    pub(super) address: SocketAddr,
}

impl Watch {
    /// The function that tests have too.
    pub(super) const FUNCTION: &str = "test-function";

    pub(super) fn start(bench: &Bench) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = bench.path("cargo-lambda.log");
        let mut command = bench.images.cargo_lambda()?;
        command.args([
            "lambda",
            "watch",
            "--release",
            "--ignore-changes",
            "--invoke-address",
            "127.0.0.1",
            "--invoke-port",
        ]);
        command.arg(address.port().to_string());
        command.env("CARGO_TARGET_DIR", bench.path("cargo-lambda"));
        let messages = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages);
        // Its children are the function and what builds it: a group of their own ends together.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut watch = Self { process: Process::from(command.spawn()?), address };
        let begun = Instant::now();
        loop {
            let answered =
                Client::connect(address).and_then(|mut client| invoke(&mut client, &path(Self::FUNCTION), b"{}"));
            let Err(error) = answered else { return Ok(watch) };
            let ended = watch.process.child.try_wait()?;
            ensure!(
                ended.is_none() && begun.elapsed() < BUILD_PATIENCE,
                "cargo lambda watch does not answer: {error:#}: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.process.id());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    }
}

/// One that nobody listens at: it takes its port by number.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
