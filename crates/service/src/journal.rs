//! Which sandboxes there are, for a service that is started after this one.
//!
//! A log of lines, each the start of a sandbox with what it runs, or its end. It is never synced: sandboxes do not outlive the machine, and
//! what a process has written before it is killed is there. A line that is cut off says nothing; the log is written anew when it is opened,
//! and when most of it is about sandboxes that are gone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::assignment::Key;

/// Lines beyond those that are needed.
const MOST_IN_VAIN: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// Of this start of the machine: what was there before is not.
    Boot {
        id: String,
    },
    Started {
        sandbox: String,
        key: Key,
        #[serde(default)]
        is_provisioned: bool,
    },
    Ended {
        sandbox: String,
    },
}

/// What sandboxes run, and whether they are kept.
pub(crate) type Sandboxes = BTreeMap<String, (Key, bool)>;

pub(crate) struct Journal {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    there: Sandboxes,
    lines: usize,
}

impl Journal {
    /// Opens it, with the sandboxes that are in it.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Sandboxes)> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let boot = boot();
        let there = replay(&text, &boot);
        let file = write_anew(path, &there, &boot)?;
        let lines = there.len();
        let state = Mutex::new(State { file, there: there.clone(), lines });
        Ok((Self { path: path.to_owned(), state }, there))
    }

    /// A sandbox is about to be there.
    pub(crate) fn started(&self, id: &str, key: &Key, is_provisioned: bool) {
        let line = Line::Started { sandbox: id.to_owned(), key: key.clone(), is_provisioned };
        self.add(&line, |there| drop(there.insert(id.to_owned(), (key.clone(), is_provisioned))));
    }

    /// It is no more.
    pub(crate) fn ended(&self, id: &str) {
        self.add(&Line::Ended { sandbox: id.to_owned() }, |there| drop(there.remove(id)));
    }

    fn add(&self, line: &Line, change: impl FnOnce(&mut Sandboxes)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.there);
        let written = if state.lines > 2 * state.there.len() + MOST_IN_VAIN {
            write_anew(&self.path, &state.there, &boot()).map(|file| {
                state.file = file;
                state.lines = state.there.len();
            })
        } else {
            state.lines += 1;
            encode(line).and_then(|line| state.file.write_all(&line))
        };
        if let Err(error) = written {
            tracing::error!(path = %self.path.display(), %error, "the next service will not know what sandboxes there are");
        }
    }
}

fn encode(line: &Line) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    Ok(line)
}

fn replay(text: &[u8], boot: &str) -> Sandboxes {
    let mut there = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Started { sandbox, key, is_provisioned }) => {
                there.insert(sandbox, (key, is_provisioned));
            }
            Ok(Line::Ended { sandbox }) => drop(there.remove(&sandbox)),
            // The first line of a log: nothing is kept of one of another start.
            Ok(Line::Boot { id }) if id != boot => return BTreeMap::new(),
            // Of this one; or cut off, or empty.
            Ok(Line::Boot { .. }) | Err(_) => {}
        }
    }
    there
}

/// Names this start of the machine; random(4). Empty where the kernel does not say: then nothing is known of other starts.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Puts a log that says as much in the place of the one before.
fn write_anew(path: &Path, there: &Sandboxes, boot: &str) -> io::Result<File> {
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(&encode(&Line::Boot { id: boot.to_owned() })?)?;
    for (sandbox, (key, is_provisioned)) in there {
        let line = Line::Started { sandbox: sandbox.clone(), key: key.clone(), is_provisioned: *is_provisioned };
        file.write_all(&encode(&line)?)?;
    }
    std::fs::rename(&draft, path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        let text = number.to_string();
        Key { tenant: "t".into(), function: text.clone(), number: "$LATEST".into(), revision: text }
    }

    proptest! {
        #[test]
        fn what_is_there_is_known_wherever_the_log_is_cut(steps in proptest::collection::vec((0_u8..20, any::<bool>()), 0..100), cut in 0_usize..40) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            let (journal, before) = Journal::open(&path).unwrap();
            prop_assert!(before.is_empty());
            let mut there = BTreeMap::new();
            let mut states = vec![there.clone()];
            for (number, starts) in steps {
                let id = number.to_string();
                if starts {
                    journal.started(&id, &key(number), number % 2 == 0);
                    there.insert(id, (key(number), number % 2 == 0));
                } else {
                    journal.ended(&id);
                    there.remove(&id);
                }
                states.push(there.clone());
            }
            drop(journal);
            let (journal, found) = Journal::open(&path).unwrap();
            prop_assert_eq!(&found, &there);
            // Once more, of what was written anew and goes on, cut in the last line.
            journal.started("last", &key(99), false);
            let text = std::fs::read(&path).unwrap();
            let last = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            std::fs::write(&path, &text[..(last + cut).min(text.len() - 2)]).unwrap();
            prop_assert_eq!(Journal::open(&path).unwrap().1, there);
        }

        #[test]
        fn sandboxes_do_not_outlive_the_machine(numbers in proptest::collection::btree_set(0_u8..20, 0..10)) {
            let there: Sandboxes = numbers.into_iter().map(|number| (number.to_string(), (key(number), false))).collect();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            write_anew(&path, &there, "this").unwrap();
            let text = std::fs::read(&path).unwrap();
            prop_assert_eq!(replay(&text, "this"), there);
            prop_assert!(replay(&text, "another").is_empty());
        }

        #[test]
        fn any_bytes_are_a_log(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = replay(&bytes, "");
        }
    }

    #[test]
    fn a_long_log_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, _) = Journal::open(&path).unwrap();
        journal.started("stays", &key(1), true);
        for _ in 0..2 * MOST_IN_VAIN {
            journal.started("goes", &key(2), false);
            journal.ended("goes");
        }
        assert!(std::fs::read_to_string(&path).unwrap().lines().count() <= MOST_IN_VAIN + 3);
        assert_eq!(Journal::open(&path).unwrap().1.into_keys().collect::<Vec<_>>(), ["stays"]);
    }
}
