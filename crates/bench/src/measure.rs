//! Stopwatches: samples of a duration, a process until its first line of output, a process's memory.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// Durations of one thing, measured several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64());
    }

    /// A sample that is not a duration, such as a number of bytes.
    pub(crate) fn add_number(&mut self, number: f64) {
        self.0.push(number);
    }

    /// In seconds.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// In seconds; the slowest sample where there are fewer than ten.
    pub(crate) fn p90(&self) -> f64 {
        self.quantile(0.9)
    }

    pub(crate) fn slowest(&self) -> f64 {
        self.quantile(1.0)
    }

    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (share * (sorted.len() - 1) as f64).ceil() as usize;
        // The lower of the two middle samples, so that an even number of them invents no value.
        let index = if share <= 0.5 { (sorted.len() - 1) / 2 } else { index };
        sorted[index]
    }
}

/// How long a process took.
pub(crate) struct Ran {
    /// From before spawning it to its first line of output.
    pub(crate) first_line: Duration,
    /// To its end.
    pub(crate) total: Duration,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command that must succeed and print at least a line.
pub(crate) fn run(command: &mut Command) -> Result<Ran> {
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut errors = child.stderr.take().context("standard error is piped")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let mut output = BufReader::new(child.stdout.take().context("standard output is piped")?);
    let mut stdout = String::new();
    output.read_line(&mut stdout)?;
    let first_line = started.elapsed();
    output.read_to_string(&mut stdout)?;
    let status = child.wait()?;
    let total = started.elapsed();
    let stderr = errors.join().unwrap_or_default();
    if !status.success() {
        bail!("{command:?}: {status}\n{stdout}{stderr}");
    }
    Ok(Ran { first_line, total, stdout, stderr })
}

/// A command whose largest resident memory [`peak_memory`] reads afterwards.
pub(crate) fn with_peak_memory(command: &Command) -> Result<Command> {
    let mut wrapped = Command::new(std::env::current_exe()?);
    wrapped.arg("--peak-memory").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    Ok(wrapped)
}

/// Largest resident memory, in bytes, of any process under a command made by [`with_peak_memory`].
pub(crate) fn peak_memory(ran: &Ran) -> Result<u64> {
    let line = ran.stderr.lines().last().context("the last line has the figure")?;
    let kib: u64 = line.trim().parse().with_context(|| format!("`{line}` is not a number of KiB"))?;
    Ok(kib << 10)
}

/// The other side of [`with_peak_memory`]: this program as the parent of one command, and so of nothing else.
pub(crate) fn report_peak_memory(command: &[String]) -> Result<()> {
    let status = Command::new(&command[0]).args(&command[1..]).status()?;
    ensure!(status.success(), "{}: {status}", command[0]);
    eprintln!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}

/// Forgets the kernel's cached file content, so that the next read goes to the device.
pub(crate) fn drop_page_cache() -> Result<()> {
    nix::unistd::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "1").context("dropping the page cache")
}
