//! What answers: cache nodes and nginx, each a process of its own on loopback.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use snowmelt_zone::{Code, ShardKey, checksum};

use super::{CHUNK_BYTES, Chunk};
use crate::Bench;
use crate::tiers::{Process, cache_node};

/// More than all shards of all chunks.
const MEMORY_BYTES: u64 = 1 << 30;

/// A process that is killed when dropped.
pub(super) struct Server {
    process: Process,
    pub(super) address: SocketAddr,
}

impl Server {
    /// A cache node with nothing in it.
    pub(super) fn node(bench: &Bench) -> Result<Self> {
        let (process, address) = cache_node(bench, MEMORY_BYTES)?;
        Ok(Self { process, address })
    }

    /// nginx with one worker, which answers for whole chunks just as a node does: from files in memory, by sendfile.
    pub(super) fn nginx(bench: &Bench, chunks: &[Chunk]) -> Result<Self> {
        let folder = bench.memory.path().join("nginx");
        std::fs::create_dir_all(&folder)?;
        let mut locations = String::new();
        for (number, chunk) in chunks.iter().enumerate() {
            let file = folder.join(number.to_string());
            std::fs::write(&file, &chunk.bytes)?;
            let key = ShardKey { chunk: chunk.id, code: Code::new(1, 0)?, index: 0 };
            let checksum = checksum(&key, CHUNK_BYTES as u32, &chunk.bytes);
            let _ = writeln!(
                locations,
                "location = /v1/shards/1+0/{}/0 {{ alias {}; add_header snowmelt-chunk-bytes {CHUNK_BYTES}; \
                 add_header snowmelt-crc32c {checksum:08x}; }}",
                chunk.id,
                file.display()
            );
        }
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let own = folder.display();
        let settings = format!(
            "daemon off; master_process off; user root; pid {own}/pid; error_log {own}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; open_file_cache max=1000;\n\
             client_body_temp_path {own}/body; proxy_temp_path {own}/proxy; fastcgi_temp_path {own}/fastcgi;\n\
             uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
             server {{ listen {address}; {locations} }} }}\n"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, settings)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&folder).arg("-c").arg(&file).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("starting nginx: scripts/setup installs it")?;
        let mut server = Self { process: Process::from(child), address };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            let log = || std::fs::read_to_string(folder.join("error.log")).unwrap_or_default();
            if let Some(status) = server.process.child.try_wait()? {
                bail!("nginx ended ({status}): {}", log());
            }
            ensure!(Instant::now() < deadline, "nginx does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.process.id()), signal)?)
    }

    /// From now on it does nothing, and its kernel takes what it is sent.
    pub(super) fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub(super) fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Processor time so far, its own and the kernel's for it; proc(5).
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let file = format!("/proc/{}/stat", self.process.id());
        let text = std::fs::read_to_string(&file)?;
        // The name in parentheses may have any bytes in it.
        let (_, fields) = text.rsplit_once(')').with_context(|| format!("{file} has another form"))?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().with_context(|| format!("{file} has another form")))
            .sum::<Result<_>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks have a length")?;
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }
}
