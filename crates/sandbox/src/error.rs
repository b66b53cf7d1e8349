//! The library's one error type.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What went wrong, by what the caller decides on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image, a mount or a tool that is asked for does not exist.
    #[error("{what} `{subject}` was not found: {hint}")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        subject: String,
        /// What to do.
        hint: String,
    },
    /// The caller asked for something that makes no sense, or that this machine cannot do.
    #[error("{subject}: {reason}")]
    Invalid {
        /// The option or value.
        subject: String,
        /// What is wrong with it and what is accepted.
        reason: String,
    },
    /// Stored bytes do not match their hash or cannot be decoded.
    #[error("{subject} is corrupt: {reason}")]
    Corrupt {
        /// What is corrupt.
        subject: String,
        /// How that was found.
        reason: String,
    },
    /// A store, or the process that serves an image, does not answer.
    #[error("{subject} is unavailable: {reason}")]
    Unavailable {
        /// What does not answer.
        subject: String,
        /// Why, as far as it is known.
        reason: String,
    },
    /// An image could not be opened, mounted or served; the message names image, chunk and tier as far as they matter.
    #[error("{message}")]
    Image {
        /// What it means for the caller.
        cause: Cause,
        /// What happened.
        message: String,
    },
    /// A mount is in use.
    #[error("{} is in use: end the processes that have files or their working directory there, then try again", .directory.display())]
    Busy {
        /// Where it is mounted.
        directory: PathBuf,
    },
    /// The command does not exist in the image.
    #[error("cannot run `{command}` in {image}: {reason}")]
    CommandNotFound {
        /// The command.
        command: String,
        /// The image.
        image: String,
        /// What the runtime said.
        reason: String,
    },
    /// The command exists but cannot be executed.
    #[error("cannot run `{command}` in {image}: {reason}")]
    CommandNotExecutable {
        /// The command.
        command: String,
        /// The image.
        image: String,
        /// What the runtime said.
        reason: String,
    },
    /// The container runtime failed before the command ran.
    #[error("{runtime} could not start the container: {reason}")]
    Runtime {
        /// The runtime's program.
        runtime: String,
        /// What it said.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {operation} {subject}: {source}")]
    Io {
        /// The verb.
        operation: &'static str,
        /// What it was done to.
        subject: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The container did not end in order when it was asked to.
    #[error("the container was killed: {reason}")]
    Killed {
        /// The number of the signal that asked for its end.
        signal: i32,
        /// Why it came to that.
        reason: &'static str,
    },
    /// A signal ended the run before the command started.
    #[error("ended by signal {signal} before the command started")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
}

/// What a failure of the process that serves an image means to whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// There is no such image, or a part of it is missing.
    NotFound,
    /// Stored bytes are damaged.
    Corrupt,
    /// The store or the key service does not answer.
    Unavailable,
    /// Anything else.
    Other,
}

impl Error {
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Image { cause, .. } => *cause,
            Self::NotFound { .. } => Cause::NotFound,
            Self::Corrupt { .. } => Cause::Corrupt,
            Self::Unavailable { .. } => Cause::Unavailable,
            _ => Cause::Other,
        }
    }

    /// The exit status that `docker run` gives for this: 127 for a command that is not there, 126 for one that cannot
    /// be executed, 128 + n for signal n, 125 for everything that is not about the command.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::CommandNotExecutable { .. } => 126,
            Self::Interrupted { signal } | Self::Killed { signal, .. } => exit_code_of_signal(*signal),
            _ => 125,
        }
    }

    pub(crate) fn io(
        operation: &'static str,
        subject: impl std::fmt::Display,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io { operation, subject: subject.to_string(), source: source.into() }
    }

    pub(crate) fn invalid(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), reason: reason.into() }
    }
}

/// 128 + n, as shells report a process that signal n ended.
pub(crate) fn exit_code_of_signal(signal: i32) -> u8 {
    u8::try_from(signal).map_or(255, |signal| signal.saturating_add(128))
}
