//! `mount` and `unmount`: an image on a directory, served by an agent that outlives the command.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::protocol::{Answer, Lines, Query, Report, send};
use crate::agent_process::AgentProcess;
use crate::run::{Progress, Step};
use crate::state::{Kind, Leftovers, Record};
use crate::worker::Interruption;
use crate::{AgentConfig, Cause, Error, StateDir, Stats};

/// How long an agent may take to end once it has unmounted.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// Mounts an image on a directory, until [`unmount`]. Writes, if `writable`, are discarded then. Removes what killed
/// commands left, first. `progress` is told how much of an image is here that is loaded before it is mounted.
///
/// # Errors
/// Those of opening and mounting the image, [`Error::Invalid`] if `directory` is none or in use as a mount point of ours.
pub fn mount(
    image: &str,
    directory: &Path,
    writable: bool,
    config: &AgentConfig,
    state: &StateDir,
    progress: &Progress<'_>,
) -> Result<Record, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::invalid("mount", "mounting images needs root: use sudo"));
    }
    state.cleanup_stale()?;
    let directory = directory.canonicalize().map_err(|source| Error::io("mount on", directory.display(), source))?;
    if !directory.is_dir() {
        return Err(Error::invalid(directory.display().to_string(), "is not a directory"));
    }
    if let Some(record) = find(&directory, state)? {
        let reason = format!("{} is mounted there already: unmount it first", record.image);
        return Err(Error::invalid(directory.display().to_string(), reason));
    }
    let mut record = state.create(Kind::Mount, image, writable, Some(&directory), None)?;
    let result = start(&mut record, config, state, progress);
    if result.is_err() {
        let _ = state.dismantle(&record, Leftovers::Files);
    }
    result.map(|()| record)
}

fn start(record: &mut Record, config: &AgentConfig, state: &StateDir, progress: &Progress<'_>) -> Result<(), Error> {
    let log_path = log_path(record, state);
    let log = File::create(&log_path).map_err(|source| Error::io("make", log_path.display(), source))?;
    let mut agent = AgentProcess::start(config, state, record, None, log.into(), &mut Patient)?;
    record.agent = agent.id();
    record.worker = agent.worker();
    state.update(record)?;
    loop {
        match agent.reports.next()? {
            Some(Report::Opened(_)) => {}
            Some(Report::Loading { bytes, total }) => progress(Step::Loading { bytes, total })?,
            Some(Report::Mounted) => break,
            Some(Report::Failed { cause, message }) => return Err(Error::Image { cause, message }),
            Some(Report::Finished(_)) | None => {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                let message =
                    format!("{}: the process that serves the image ended unexpectedly: {}", record.image, log.trim());
                return Err(Error::Image { cause: Cause::Other, message });
            }
        }
    }
    agent.detach();
    Ok(())
}

/// Waits for the worker as long as it takes: a signal ends this process.
struct Patient;

impl Interruption for Patient {
    fn waits(&mut self, reason: &str) {
        eprintln!("snowmelt: waiting: {reason}");
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn check(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Unmounts what [`mount`] mounted. Gives what it served, unless its agent had been killed.
///
/// # Errors
/// [`Error::Busy`] if it is in use, and it then stays as it is; [`Error::NotFound`] if nothing of ours is there.
pub fn unmount(directory: &Path, state: &StateDir) -> Result<Option<Stats>, Error> {
    // An agent that was killed leaves a mount that answers nothing, not even its own name.
    state.cleanup_stale()?;
    let absolute = directory.canonicalize().or_else(|_| std::path::absolute(directory));
    let directory = absolute.map_err(|source| Error::io("resolve", directory.display(), source))?;
    let Some(record) = find(&directory, state)? else {
        if state.has_cleaned(&directory) {
            return Ok(None);
        }
        return Err(Error::NotFound {
            what: "mount",
            subject: directory.display().to_string(),
            hint: "nothing that this program mounted is there".to_owned(),
        });
    };
    match ask(&record, &Query::Unmount, state)? {
        Answer::Unmounted(stats) => {
            if record.agent.is_some_and(|agent| !agent.wait(END_PATIENCE)) {
                return Err(Error::Unavailable { subject: record.image, reason: "its agent does not end".to_owned() });
            }
            // An agent that a worker started has left what it may not unmount.
            state.dismantle(&record, Leftovers::Any)?;
            Ok(Some(*stats))
        }
        Answer::Busy => Err(Error::Busy { directory }),
        Answer::Failed(reason) => Err(Error::Unavailable { subject: directory.display().to_string(), reason }),
        Answer::Stats(_) => Err(Error::invalid("agent", "gave the wrong answer: are two versions at work?")),
    }
}

/// What a running sandbox has served so far.
///
/// # Errors
/// [`Error::Unavailable`] if its agent does not answer.
pub fn stats(record: &Record, state: &StateDir) -> Result<Stats, Error> {
    match ask(record, &Query::Stats, state)? {
        Answer::Stats(stats) => Ok(*stats),
        _ => Err(Error::invalid("agent", "gave the wrong answer: are two versions at work?")),
    }
}

/// Where the agent of a mount writes its messages.
pub fn log_path(record: &Record, state: &StateDir) -> PathBuf {
    state.directory(&record.id).join("agent.log")
}

fn find(directory: &Path, state: &StateDir) -> Result<Option<Record>, Error> {
    let mut records = state.list()?;
    records.retain(|record| record.kind == Kind::Mount && record.directory == directory);
    Ok(records.pop())
}

fn ask(record: &Record, query: &Query, state: &StateDir) -> Result<Answer, Error> {
    let socket = state.directory(&record.id).join("agent.sock");
    let unavailable = |reason: String| Error::Unavailable { subject: format!("the agent of {}", record.image), reason };
    let stream = UnixStream::connect(&socket).map_err(|error| unavailable(error.to_string()))?;
    send(&stream, query).map_err(|error| unavailable(error.to_string()))?;
    Lines::new(stream.into()).next()?.ok_or_else(|| unavailable("it ended".to_owned()))
}
