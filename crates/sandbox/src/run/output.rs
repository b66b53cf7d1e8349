//! The command's output. It goes to this process's own streams without a detour where nothing can be lost or mixed up
//! there: runc copies it too, and what it cannot write it drops without a word. So it is copied here
//! - to all but pipes and sockets, whose reader can go but never be full for good;
//! - where the time of the first byte is wanted;
//! - to a terminal, which a command that was given none must not get hold of;
//! - with `-t` but without `-i`, from the terminal in between ([`super::terminal`]);
//! - on standard error, where runtimes write messages that we write better.
//!
//! Where the runtime leaves the command, the command has both streams itself: who asks for that reads them, and gets the runtime's messages too.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;

use super::terminal::Between;
use crate::runtime::Failure;
use crate::{Error, RunSpec};

#[derive(Default)]
pub(super) struct Output {
    streams: Vec<Stream>,
    copiers: Vec<JoinHandle<Copied>>,
    between: Option<Between>,
    /// Takes standard output, for tests.
    #[cfg(test)]
    captured: Option<File>,
}

/// A stream that is copied.
struct Stream {
    name: &'static str,
    from: File,
    to: File,
    /// The runtime's log, what of it stands at the end of the stream is left out.
    log: Option<PathBuf>,
}

/// What was copied of a stream.
struct Copied {
    name: &'static str,
    first: Option<Duration>,
    error: Option<std::io::Error>,
}

const STDOUT: &str = "standard output";
const STDERR: &str = "standard error";

impl Output {
    #[cfg(test)]
    pub(super) fn to_file(file: File) -> Self {
        Self { captured: Some(file), ..Self::default() }
    }

    /// Sets the streams of the runtime that is about to be started, and that writes its log to `log`.
    pub(super) fn prepare(
        &mut self,
        command: &mut Command,
        spec: &RunSpec,
        log: &Path,
        detaches: bool,
    ) -> Result<(), Error> {
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        if detaches {
            command.stderr(own(stderr.as_fd(), STDERR)?);
        } else {
            command.stderr(self.pipe(STDERR, stderr.as_fd(), Some(log.to_owned()))?);
        }
        #[cfg(test)]
        if let Some(file) = self.captured.take() {
            command.stdout(file);
            return Ok(());
        }
        match (spec.tty, spec.interactive) {
            (true, false) => {
                let (between, theirs) = Between::open()?;
                self.add(STDOUT, between.output()?, stdout.as_fd(), None)?;
                self.between = Some(between);
                command.stdout(theirs);
            }
            _ if detaches => {
                command.stdout(own(stdout.as_fd(), STDOUT)?);
            }
            (false, _) if spec.stats || !is_pipe(stdout.as_fd()) => {
                command.stdout(self.pipe(STDOUT, stdout.as_fd(), None)?);
            }
            (true, true) | (false, _) => {}
        }
        Ok(())
    }

    fn pipe(&mut self, name: &'static str, to: BorrowedFd<'_>, log: Option<PathBuf>) -> Result<OwnedFd, Error> {
        let (reader, writer) = std::io::pipe().map_err(|source| Error::io("make", "a pipe for the output", source))?;
        self.add(name, OwnedFd::from(reader).into(), to, log)?;
        Ok(writer.into())
    }

    fn add(&mut self, name: &'static str, from: File, to: BorrowedFd<'_>, log: Option<PathBuf>) -> Result<(), Error> {
        let to = to.try_clone_to_owned().map_err(|source| Error::io("use", name, source))?;
        self.streams.push(Stream { name, from, to: to.into(), log });
        Ok(())
    }

    /// Begins to copy; after the command was started and its ends of the pipes are closed here.
    pub(super) fn start(&mut self, since: Instant) {
        self.copiers.extend(self.streams.drain(..).map(|stream| std::thread::spawn(move || stream.copy(since))));
    }

    /// The size of the caller's terminal has changed.
    pub(super) fn resize(&self) {
        if let Some(between) = &self.between {
            between.resize();
        }
    }

    /// Waits until all output is written. Gives the time of the first byte on standard output, and what went wrong.
    pub(super) fn finish(&mut self) -> (Option<Duration>, Result<(), Error>) {
        self.streams.clear();
        let (mut first, mut result) = (None, Ok(()));
        for copied in self.copiers.drain(..).filter_map(|copier| copier.join().ok()) {
            if copied.name == STDOUT {
                first = copied.first;
            }
            if let (Some(source), true) = (copied.error, result.is_ok()) {
                result = Err(Error::io("write", copied.name, source));
            }
        }
        (first, result)
    }
}

/// A stream as the command is to have it with nothing in between. What the command sets on a pipe's end, such as not to wait where it is
/// full, is not for this process's end.
fn own(stream: BorrowedFd<'_>, name: &'static str) -> Result<OwnedFd, Error> {
    let own = if rustix::fs::fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
        let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
        File::options().write(true).open(path).map(OwnedFd::from)
    } else {
        stream.try_clone_to_owned()
    };
    own.map_err(|source| Error::io("use", name, source))
}

/// Whether a stream has somebody who reads it at the other end.
fn is_pipe(stream: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(stream)
        .is_ok_and(|stat| matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket))
}

impl Stream {
    fn copy(mut self, since: Instant) -> Copied {
        let mut bytes = vec![0; 64 << 10];
        let mut copied = Copied { name: self.name, first: None, error: None };
        loop {
            match self.from.read(&mut bytes) {
                Ok(0) => return copied,
                Ok(length) => {
                    if copied.first.is_none() && self.log.is_some() {
                        self.wait_for_end();
                    }
                    copied.first = copied.first.or_else(|| Some(since.elapsed()));
                    let kept = self.without_runtime(&bytes[..length]);
                    if let Err(error) = write_all(&mut self.to, kept) {
                        // Where our reader is gone the command's goes too, with this end of its pipe, and that tells it.
                        copied.error = Some(error).filter(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
                        return copied;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // What a terminal says at its end, among others.
                Err(_) => return copied,
            }
        }
    }

    /// Gives a runtime that could not start the command the time to write its log, which crun does after it has complained
    /// here: then this is the first that comes, and soon also the end.
    fn wait_for_end(&self) {
        let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let _ = poll(&mut [PollFd::new(&self.from, PollFlags::HUP)], Some(&patience));
    }

    /// Leaves out the last line if it is the error that the runtime has written to its log before: it is told with its
    /// command and image at the end of the run.
    fn without_runtime<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let log = self.log.as_ref().filter(|log| log.metadata().is_ok_and(|log| log.len() > 0));
        let Some(message) =
            log.and_then(|log| std::fs::read_to_string(log).ok()).and_then(|log| Failure::message(&log))
        else {
            return bytes;
        };
        match bytes.trim_ascii_end().strip_suffix(message.trim_end().as_bytes()) {
            Some(before) => &before[..before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)],
            None => bytes,
        }
    }
}

/// As [`Write::write_all`], also to what does not block: others who have the same terminal or pipe may have made it so.
fn write_all(to: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                // An error of the wait comes back from the next write.
                let _ = poll(&mut [PollFd::new(&*to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stream(log: &str, to: File) -> (Stream, std::io::PipeWriter, tempfile::NamedTempFile) {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(log.as_bytes()).unwrap();
        let stream = Stream { name: STDERR, from: OwnedFd::from(reader).into(), to, log: Some(file.path().to_owned()) };
        (stream, writer, file)
    }

    #[test]
    fn what_the_runtime_says_itself_is_left_out() {
        let log = "{\"level\":\"error\",\"msg\":\"runc run failed: no such \\\"thing\\\"\"}\n";
        for (log, written, expected) in [
            (log, "runc run failed: no such \"thing\"\n", ""),
            (log, "from the command\ncrun: runc run failed: no such \"thing\"\n", "from the command\n"),
            (log, "from the command\n", "from the command\n"),
            ("", "runc run failed: no such \"thing\"\n", "runc run failed: no such \"thing\"\n"),
        ] {
            let mut output = tempfile::tempfile().unwrap();
            let (stream, mut writer, _log) = stream(log, output.try_clone().unwrap());
            writer.write_all(written.as_bytes()).unwrap();
            drop(writer);
            assert!(stream.copy(Instant::now()).error.is_none());
            let mut text = String::new();
            std::io::Seek::rewind(&mut output).unwrap();
            output.read_to_string(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn output_that_cannot_be_written_is_an_error_unless_nobody_wants_it() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (to_full, mut writer, _log) = stream("", full);
        writer.write_all(b"x").unwrap();
        assert_eq!(to_full.copy(Instant::now()).error.unwrap().kind(), std::io::ErrorKind::StorageFull);
        let (gone, closed) = std::io::pipe().unwrap();
        drop(gone);
        let (to_nobody, mut writer, _log) = stream("", OwnedFd::from(closed).into());
        writer.write_all(b"x").unwrap();
        assert!(to_nobody.copy(Instant::now()).error.is_none());
    }

    #[test]
    fn what_does_not_block_gets_all_of_it() {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&theirs, true).unwrap();
        let (stream, mut writer, _log) = stream("", OwnedFd::from(theirs).into());
        let copier = std::thread::spawn(move || stream.copy(Instant::now()).error.is_none());
        // Over twice what both pipes hold, so that the copier finds its own full before anything is read.
        let filler = std::thread::spawn(move || writer.write_all(&vec![7; 300 << 10]));
        let mut bytes = Vec::new();
        ours.read_to_end(&mut bytes).unwrap();
        assert!(bytes == vec![7; 300 << 10]);
        filler.join().unwrap().unwrap();
        assert!(copier.join().unwrap());
    }
}
