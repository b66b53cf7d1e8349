//! The container runtime: runc, or crun where cgroup v2 is unified. Run as a process; what it keeps of a container lies
//! in our own state directory, so that nobody else's `list` shows it and our cleanup finds it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::oci::CgroupVersion;

/// The variable that names another runtime: a program with runc's command line, by name or path.
const OVERRIDE: &str = "SNOWMELT_RUNTIME";

/// A runtime's program and where it keeps its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runtime {
    pub(crate) program: PathBuf,
    pub(crate) state: PathBuf,
}

impl Runtime {
    /// `is_to_leave`: it is to leave the command if it can ([`Runtime::leaves_commands`]).
    pub(crate) fn choose(cgroups: CgroupVersion, state: &Path, is_to_leave: bool) -> Result<Self, Error> {
        let found = |program: PathBuf| Self { program, state: state.to_owned() };
        if let Some(name) = std::env::var_os(OVERRIDE).filter(|name| !name.is_empty()) {
            let missing = || Error::NotFound {
                what: "container runtime",
                subject: name.to_string_lossy().into_owned(),
                hint: format!("install it or correct {OVERRIDE}"),
            };
            return find(Path::new(&name)).map(found).ok_or_else(missing);
        }
        // crun 1.8 refuses hybrid cgroups, and is the faster one where it works.
        let names: &[&str] = match (cgroups, is_to_leave) {
            (CgroupVersion::V2, false) => &["crun", "runc"],
            (CgroupVersion::V2, true) => &["runc", "crun"],
            (CgroupVersion::V1, _) => &["runc"],
        };
        names.iter().find_map(|name| find(Path::new(name))).map(found).ok_or_else(|| Error::NotFound {
            what: "container runtime",
            subject: names.join("` or `"),
            hint: "install it (Debian: apt-get install runc), or name one in SNOWMELT_RUNTIME".to_owned(),
        })
    }

    /// Whether the command that it starts and leaves is a child of whoever called it. runc's is; crun detaches itself first, so that nobody
    /// knows when it is done, nor ends it before.
    pub(crate) fn leaves_commands(&self) -> bool {
        self.program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("runc"))
    }

    /// The beginning of a command line.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state);
        command
    }

    /// Kills whatever runs in a container and removes what the runtime keeps of it. Nothing if there is none.
    pub(crate) fn delete(&self, container: &str) -> Result<(), Error> {
        if !self.state.join(container).exists() {
            return Ok(());
        }
        let mut command = self.command();
        command
            .args(["delete", "--force", container])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let output = command.output().map_err(|source| Error::io("run", self.program.display(), source))?;
        if output.status.success() || !self.state.join(container).exists() {
            return Ok(());
        }
        Err(self.failure(String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Sends a signal to a container's first process.
    pub(crate) fn signal(&self, container: &str, signal: i32) -> Result<(), Error> {
        let mut command = self.command();
        let output = command.args(["kill", container, &signal.to_string()]).stdin(Stdio::null()).output();
        let output = output.map_err(|source| Error::io("run", self.program.display(), source))?;
        if output.status.success() { Ok(()) } else { Err(self.failure(String::from_utf8_lossy(&output.stderr).trim())) }
    }

    pub(crate) fn failure(&self, reason: &str) -> Error {
        Error::Runtime { runtime: self.program.display().to_string(), reason: reason.to_owned() }
    }
}

fn find(name: &Path) -> Option<PathBuf> {
    let executable =
        |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if name.components().count() > 1 {
        return executable(name).then(|| name.to_owned());
    }
    // root's login shells have the sbin directories, cron and sudo may not.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|path| executable(path))
}

/// Why a runtime ended with an error, from its log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    NotFound(String),
    NotExecutable(String),
    Other(String),
}

impl Failure {
    /// The last error in a JSON log; `None` if the runtime logged none: then the status is the command's own.
    pub(crate) fn from_log(log: &str) -> Option<Self> {
        let message = Self::message(log)?;
        let lower = message.to_lowercase();
        let has = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
        // The wording is Go's (runc) and strerror's (crun); about `exec` only, since mounts fail in the same words.
        let about_command =
            has(&["exec: \"", "exec failed", "exec /", "exec container process", "executable file", "open executable"]);
        Some(match message {
            _ if about_command && has(&["not found", "no such file"]) => Self::NotFound(message),
            _ if about_command && has(&["permission denied", "is a directory", "format error"]) => {
                Self::NotExecutable(message)
            }
            _ => Self::Other(message),
        })
    }

    /// The text of the last error in a JSON log.
    pub(crate) fn message(log: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Line {
            level: String,
            msg: String,
        }
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        Some(lines.rev().find(|line| matches!(line.level.as_str(), "error" | "fatal"))?.msg)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn failures() {
        let line = |msg: &str| {
            format!("{{\"level\":\"warning\",\"msg\":\"w\"}}\nnoise\n{{\"level\":\"error\",\"msg\":{msg:?}}}\n")
        };
        let of = |msg: &str| Failure::from_log(&line(msg)).unwrap();
        let prefix = "runc run failed: unable to start container process: exec: ";
        assert!(matches!(of(&format!("{prefix}\"x\": executable file not found in $PATH")), Failure::NotFound(_)));
        assert!(matches!(of(&format!("{prefix}\"/x\": stat /x: no such file or directory")), Failure::NotFound(_)));
        assert!(matches!(of(&format!("{prefix}\"/x\": permission denied")), Failure::NotExecutable(_)));
        // crun 1.8: its own words, and strerror's.
        for missing in [
            "executable file `nosuch` not found in $PATH: No such file or directory",
            "exec container process `/x`: No such file or directory",
            "exec container process (missing dynamic library?) `/x`: No such file or directory",
            "open executable: No such file or directory",
        ] {
            assert!(matches!(of(missing), Failure::NotFound(_)), "{missing}");
        }
        for refused in [
            "open executable: Permission denied",
            "exec container process `/x`: Permission denied",
            "exec container process `/x`: Exec format error",
            "exec container process `/x`: Is a directory",
        ] {
            assert!(matches!(of(refused), Failure::NotExecutable(_)), "{refused}");
        }
        assert!(matches!(of("mount `x` to `y`: No such file or directory"), Failure::Other(_)));
        assert!(matches!(of("error mounting: no such file or directory"), Failure::Other(_)));
        assert_eq!(Failure::from_log("{\"level\":\"warning\",\"msg\":\"w\"}\n"), None);
        assert_eq!(Failure::from_log(""), None);
    }

    #[test]
    fn programs() {
        assert_eq!(find(Path::new("/bin/sh")), Some("/bin/sh".into()));
        assert!(find(Path::new("sh")).is_some());
        assert_eq!(find(Path::new("/etc/passwd")), None);
        assert_eq!(find(Path::new("surely-no-such-program")), None);
    }
}
