//! Starting an agent, and the process that opens its image for it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::Serialize;
use snowmelt_store::NameRecord;

use crate::Error;
use crate::agent::opener::OpenRequest;
use crate::agent::protocol::{Request, send};
use crate::identity::ProcessId;

/// Variables of this worker's that an agent has too. None of them opens a door.
const HARMLESS: [&str; 7] = ["SNOWMELT_LOG", "SNOWMELT_STATE_DIR", "PATH", "LANG", "TZ", "TMPDIR", "RUST_BACKTRACE"];

/// What was started. Both processes are to be waited for.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) agent: ProcessId,
    pub(super) opener: Child,
    /// Where the opener writes what it found.
    pub(super) opened: OwnedFd,
}

impl Started {
    /// Starts both. `pipes` are those of the command: the third takes messages. `record` says which image it is that a sandbox goes on with.
    pub(super) fn new(
        program: &Path,
        request: &Request,
        pipes: &[OwnedFd],
        record: Option<NameRecord>,
    ) -> Result<Self, Error> {
        let io = |source| Error::io("start", program.display(), source);
        let messages = pipes.get(2).ok_or_else(|| io(std::io::Error::other("no pipe for messages")))?;
        let messages = || messages.try_clone().map_err(io);
        let (opened, opens) = std::io::pipe().map_err(io)?;
        let ask = OpenRequest {
            config: request.config.clone(),
            image: request.record.image.clone(),
            command: request.command.clone(),
            record,
        };
        let mut opener = Command::new(program);
        opener.args(["agent", "--open"]).stdin(Stdio::piped()).stdout(opens).stderr(messages()?);
        let (mut opener, _) = start(&mut opener, &ask).map_err(io)?;
        let begin = || {
            let mut agent = Command::new(program);
            agent.arg("agent").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(messages()?);
            agent.env_clear().envs(std::env::vars_os().filter(|(name, _)| is_harmless(name)));
            let request = Request { config: request.config.without_access(), ..request.clone() };
            let (mut child, agent) = start(&mut agent, &request).map_err(io)?;
            if agent.is_none() {
                let _ = child.wait();
            }
            Ok((child, agent.ok_or_else(|| io(std::io::Error::other("it ended at once")))?))
        };
        match begin() {
            Ok((child, agent)) => Ok(Self { child, agent, opener, opened: opened.into() }),
            Err(error) => {
                let _ = opener.kill();
                let _ = opener.wait();
                Err(error)
            }
        }
    }
}

/// Starts a process and tells it what it reads first.
fn start(command: &mut Command, request: &impl Serialize) -> std::io::Result<(Child, Option<ProcessId>)> {
    let mut child = command.spawn()?;
    let process = ProcessId::of(child.id());
    if let Some(mut input) = child.stdin.take() {
        // One that is gone already is noticed where it does not answer.
        let _ = send(&mut input, request);
    }
    Ok((child, process))
}

fn is_harmless(name: &OsStr) -> bool {
    HARMLESS.iter().any(|harmless| name == *harmless)
}
