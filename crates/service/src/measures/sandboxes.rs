//! What is known of the sandboxes there are, beside what assignment knows: when they were wished for, what they did last, which processes they
//! are.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::assignment::Key;
use crate::link::Beginning;

/// Of every sandbox that there is.
#[derive(Debug, Default)]
pub(crate) struct Sandboxes(Mutex<HashMap<String, Seen>>);

/// What was seen of a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    key: Key,
    /// Where this service started it,
    wished: Option<Instant>,
    /// and when its host came.
    came: Option<Instant>,
    since: Instant,
    host: Option<u32>,
    has_begun: bool,
    known: Option<Known>,
    invocations: u64,
    ran: Option<Duration>,
}

/// Which processes it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// Serves its image.
    pub(crate) agent: Option<u32>,
    /// Says how much memory the container has.
    pub(crate) memory_file: Option<PathBuf>,
}

/// A sandbox's memory, in bytes, and how often it ran.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) container: Option<u64>,
    pub(crate) agent: Option<u64>,
    pub(crate) host: Option<u64>,
    pub(crate) invocations: u64,
    pub(crate) age: Duration,
}

impl Sandboxes {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One is to be started.
    pub(crate) fn wished(&self, sandbox: &str, key: &Key) {
        self.insert(sandbox, key, Some(Instant::now()));
    }

    /// One that was there before this service.
    pub(crate) fn expected(&self, sandbox: &str, key: &Key) {
        self.insert(sandbox, key, None);
    }

    fn insert(&self, sandbox: &str, key: &Key, wished: Option<Instant>) {
        let seen = Seen {
            key: key.clone(),
            wished,
            came: None,
            since: Instant::now(),
            host: None,
            has_begun: wished.is_none(),
            known: None,
            // Of one that was there nobody knows how often it ran: it is not cold.
            invocations: 0,
            ran: None,
        };
        self.lock().insert(sandbox.to_owned(), seen);
    }

    /// Its host has come.
    pub(crate) fn came(&self, sandbox: &str, host: Option<u32>) {
        if let Some(seen) = self.lock().get_mut(sandbox) {
            seen.came.get_or_insert_with(Instant::now);
            seen.host = host;
        }
    }

    /// Its runtime has asked for an invocation. Gives whose it is and how long it took to be placed, the first time that this is heard of one
    /// that this service started.
    pub(super) fn began(&self, sandbox: &str, beginning: &Beginning) -> Option<(Key, Duration)> {
        let mut sandboxes = self.lock();
        let seen = sandboxes.get_mut(sandbox)?;
        seen.known = Some(Known { agent: beginning.agent, memory_file: beginning.memory_file.clone() });
        if std::mem::replace(&mut seen.has_begun, true) {
            return None;
        }
        Some((seen.key.clone(), seen.came? - seen.wished?))
    }

    /// It gets an invocation. True if that is its first.
    pub(super) fn is_given(&self, sandbox: &str) -> bool {
        let mut sandboxes = self.lock();
        let Some(seen) = sandboxes.get_mut(sandbox) else { return false };
        seen.invocations += 1;
        seen.ran = None;
        seen.invocations == 1 && seen.wished.is_some()
    }

    /// How long the function took for what it was given last, by its host's clock.
    pub(crate) fn has_run(&self, sandbox: &str, took: Duration) {
        if let Some(seen) = self.lock().get_mut(sandbox) {
            seen.ran = Some(took);
        }
    }

    pub(super) fn ran(&self, sandbox: &str) -> Option<Duration> {
        self.lock().get(sandbox)?.ran
    }

    /// It is no more.
    pub(crate) fn ended(&self, sandbox: &str) {
        self.lock().remove(sandbox);
    }

    /// What one takes at this moment: some files of the kernel's are read for it.
    pub(crate) fn taken(&self, sandbox: &str) -> Taken {
        let Some(seen) = self.lock().get(sandbox).cloned() else { return Taken::default() };
        let known = seen.known.unwrap_or_default();
        let number = |file: &PathBuf| std::fs::read_to_string(file).ok()?.trim().parse().ok();
        Taken {
            container: known.memory_file.as_ref().and_then(number),
            agent: known.agent.and_then(own_memory),
            host: seen.host.and_then(own_memory),
            invocations: seen.invocations,
            age: seen.since.elapsed(),
        }
    }
}

/// Memory that a process shares with nobody: what of it is in no file.
fn own_memory(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}
