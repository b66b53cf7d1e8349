//! Containers that have started and wait: how long each took, and what is in memory while all of them run.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

/// A container that has said its line, and ends when its input does.
pub(super) struct Running {
    child: Child,
    input: Option<ChildStdin>,
    /// From before it was spawned to its line.
    pub(super) took: Duration,
}

impl Running {
    /// Starts it and waits for its line.
    fn start(mut command: Command) -> Result<Self> {
        let begun = Instant::now();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("standard output is piped")?;
        let mut running = Self { child, input, took: Duration::ZERO };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        running.took = begun.elapsed();
        if line.is_empty() {
            let said = running.end().err().map_or_else(String::new, |error| error.to_string());
            return Err(anyhow!("{command:?} said nothing: {said}"));
        }
        Ok(running)
    }

    /// As many at once as there are commands.
    pub(super) fn start_all(commands: Vec<Command>) -> Result<Vec<Self>> {
        std::thread::scope(|scope| {
            let starting: Vec<_> = commands.into_iter().map(|command| scope.spawn(|| Self::start(command))).collect();
            let join = |start: std::thread::ScopedJoinHandle<'_, Result<Self>>| {
                start.join().unwrap_or_else(|_| Err(anyhow!("a start panicked")))
            };
            starting.into_iter().map(join).collect()
        })
    }

    pub(super) fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(super) fn ensure_runs(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "a container ended by itself: {ended:?}");
        Ok(())
    }

    /// Ends its input, so that it ends.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.input.take());
        // It says little: that fits the pipe.
        let status = self.child.wait()?;
        let mut said = String::new();
        if let Some(errors) = &mut self.child.stderr {
            std::io::Read::read_to_string(errors, &mut said)?;
        }
        ensure!(status.success(), "a container ended with {status}: {said}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where it has ended, this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is in memory while containers run, in bytes. Of processes it is their proportional set: a page that several have counts
/// for each by its share.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    pub(super) worker: u64,
    /// Chunks that the worker keeps, which are files in memory and belong to no process.
    pub(super) chunks: u64,
    pub(super) agent_mean: u64,
    pub(super) agent_most: u64,
    /// The commands that containers were started by.
    pub(super) run_mean: u64,
}

/// Mean and most of some processes.
pub(super) fn memory_of(processes: &[i32]) -> Result<(u64, u64)> {
    let each: Vec<u64> = processes.iter().map(|process| proportional_set(*process)).collect::<Result<_>>()?;
    let most = each.iter().copied().max().context("there are processes")?;
    Ok((each.iter().sum::<u64>() / each.len() as u64, most))
}

/// In bytes; proc_pid_smaps(5).
pub(crate) fn proportional_set(process: i32) -> Result<u64> {
    let file = format!("/proc/{process}/smaps_rollup");
    let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{file} has another form"))? << 10)
}
