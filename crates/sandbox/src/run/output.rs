//! The command's output. It goes to this process's own streams without a detour, but for two cases: the time of the first
//! byte is wanted, or a stream is a terminal and the command was given none: then it must not get hold of this one.

use std::io::{IsTerminal, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, RunSpec};

#[derive(Default)]
pub(super) struct Output {
    streams: Vec<(PipeReader, OwnedFd, bool)>,
    copiers: Vec<(JoinHandle<Option<Duration>>, bool)>,
    /// Takes standard output, for tests.
    #[cfg(test)]
    captured: Option<std::fs::File>,
}

impl Output {
    #[cfg(test)]
    pub(super) fn to_file(file: std::fs::File) -> Self {
        Self { captured: Some(file), ..Self::default() }
    }

    /// Sets the streams of the command that is about to be started.
    pub(super) fn prepare(&mut self, command: &mut Command, spec: &RunSpec) -> Result<(), Error> {
        if spec.tty {
            return Ok(());
        }
        #[cfg(test)]
        if let Some(file) = self.captured.take() {
            command.stdout(file);
            return Ok(());
        }
        let io = |source| Error::io("make", "a pipe for the output", source);
        if spec.stats || std::io::stdout().is_terminal() {
            let (reader, writer) = std::io::pipe().map_err(io)?;
            command.stdout(writer);
            self.streams.push((reader, std::io::stdout().as_fd().try_clone_to_owned().map_err(io)?, true));
        }
        if std::io::stderr().is_terminal() {
            let (reader, writer) = std::io::pipe().map_err(io)?;
            command.stderr(writer);
            self.streams.push((reader, std::io::stderr().as_fd().try_clone_to_owned().map_err(io)?, false));
        }
        Ok(())
    }

    /// Begins to copy; after the command was started and its ends of the pipes are closed here.
    pub(super) fn start(&mut self, since: Instant) {
        for (reader, writer, is_stdout) in self.streams.drain(..) {
            self.copiers.push((std::thread::spawn(move || copy(reader, writer.into(), since)), is_stdout));
        }
    }

    /// Waits until all output is written. Gives the time of the first byte on standard output.
    pub(super) fn finish(&mut self) -> Option<Duration> {
        self.streams.clear();
        let mut first = None;
        for (copier, is_stdout) in self.copiers.drain(..) {
            let time = copier.join().ok().flatten();
            if is_stdout {
                first = time;
            }
        }
        first
    }
}

fn copy(mut from: PipeReader, mut to: std::fs::File, since: Instant) -> Option<Duration> {
    let mut bytes = vec![0; 64 << 10];
    let mut first = None;
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return first,
            Ok(length) => {
                first = first.or_else(|| Some(since.elapsed()));
                if to.write_all(&bytes[..length]).is_err() {
                    // Our reader is gone; so, by closing the pipe, is the command's.
                    return first;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return first,
        }
    }
}
