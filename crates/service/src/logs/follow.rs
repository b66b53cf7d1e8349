//! Reads a log while it is written and put aside.
//!
//! A file that is open stays readable when it gets another name or none. So a reader stays with the file that it has until that is no more the
//! newest and read to its end, and then goes on with the one after it, found by which file has which name now.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{STEP_MS, TIME_BYTES, before, times_of};

/// Read at once.
const BLOCK: usize = 64 << 10;

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// With all that there is.
    Start,
    /// With so many lines before the end.
    Lines(usize),
    /// With what was written at that time, in milliseconds since 1970, or up to a second before.
    Time(u64),
}

/// A reader of one log.
#[derive(Debug)]
pub(crate) struct Follower {
    path: PathBuf,
    from: Option<From>,
    file: Option<File>,
}

/// Which file it is, whatever it is called.
fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| identity(&metadata))
}

impl Follower {
    pub(super) fn new(path: PathBuf, from: From) -> Self {
        Self { path, from: Some(from), file: None }
    }

    /// What comes next; empty where there is nothing more at the moment.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn read(&mut self) -> std::io::Result<Vec<u8>> {
        if let Some(from) = self.from.take() {
            self.file = self.begin(from)?;
        }
        loop {
            if self.file.is_none() {
                self.file = open(&self.path)?;
            }
            let Some(file) = &mut self.file else { return Ok(Vec::new()) };
            let own = identity(&file.metadata()?);
            // Before it is read: nobody writes to one that was put aside.
            let is_newest = identity_of(&self.path) == Some(own);
            let mut bytes = vec![0; BLOCK];
            let count = file.read(&mut bytes)?;
            bytes.truncate(count);
            if count > 0 || is_newest {
                return Ok(bytes);
            }
            let is_one_before = identity_of(&before(&self.path)) == Some(own);
            let next = if is_one_before { None } else { open(&before(&self.path))? };
            self.file = match next {
                Some(next) => Some(next),
                None => open(&self.path)?,
            };
            if self.file.is_none() {
                return Ok(Vec::new());
            }
        }
    }

    /// The file to begin with, at the place to begin at.
    fn begin(&self, from: From) -> std::io::Result<Option<File>> {
        let older = before(&self.path);
        let (newest, older_file) = (open(&self.path)?, open(&older)?);
        match from {
            From::Start => Ok(older_file.or(newest)),
            From::Time(since) => {
                for (file, path) in [(older_file, &older), (newest, &self.path)] {
                    let Some(mut file) = file else { continue };
                    if let Some(offset) = offset_at(path, since) {
                        file.seek(SeekFrom::Start(offset))?;
                        return Ok(Some(file));
                    }
                    // Nothing in it is so new. Of the newest, what comes will be.
                    if *path == self.path {
                        file.seek(SeekFrom::End(0))?;
                        return Ok(Some(file));
                    }
                }
                Ok(None)
            }
            From::Lines(count) => {
                let mut left = count;
                if let Some(mut file) = newest {
                    left = seek_lines(&mut file, left)?;
                    if left == 0 || older_file.is_none() {
                        return Ok(Some(file));
                    }
                }
                let Some(mut file) = older_file else { return Ok(None) };
                seek_lines(&mut file, left)?;
                Ok(Some(file))
            }
        }
    }
}

fn open(path: &Path) -> std::io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where in a log that begins which was written at a time. `None` where all of it is older.
fn offset_at(log: &Path, since_ms: u64) -> Option<u64> {
    let times = std::fs::read(times_of(log)).ok()?;
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let times = times.chunks_exact(TIME_BYTES as usize).map(|time| (number(&time[..8]), number(&time[8..])));
    // What follows a time was written within a step after it.
    times.into_iter().find(|(at, _)| at.saturating_add(STEP_MS) > since_ms).map(|(_, offset)| offset)
}

/// Goes back from the end by so many lines, or to the start. Gives how many are missing.
fn seek_lines(file: &mut File, count: usize) -> std::io::Result<usize> {
    let mut end = file.metadata()?.len();
    if count == 0 {
        file.seek(SeekFrom::End(0))?;
        return Ok(0);
    }
    // The last line's own end does not begin another.
    let mut is_last_byte = true;
    let mut found = 0;
    let mut block = vec![0; BLOCK];
    while end > 0 {
        let start = end.saturating_sub(BLOCK as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        for (at, byte) in part.iter().enumerate().rev() {
            if *byte == b'\n' && !is_last_byte {
                found += 1;
                if found == count {
                    file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                    return Ok(0);
                }
            }
            is_last_byte = false;
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    let lines = found + usize::from(!is_last_byte);
    Ok(count.saturating_sub(lines))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::logs::Logs;

    fn all(follower: &mut Follower) -> String {
        let mut text = Vec::new();
        loop {
            let more = follower.read().unwrap();
            if more.is_empty() {
                return String::from_utf8(text).unwrap();
            }
            text.extend(more);
        }
    }

    fn put_aside(logs: &Logs) {
        let path = logs.path("t", "f");
        logs.open.lock().unwrap().clear();
        std::fs::rename(times_of(&path), times_of(&before(&path))).unwrap();
        std::fs::rename(&path, before(&path)).unwrap();
    }

    #[test]
    fn a_reader_misses_nothing_when_logs_are_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path());
        let mut early = logs.follow("t", "f", From::Start);
        assert_eq!(all(&mut early), "");
        logs.add("t", "f", b"1\n");
        assert_eq!(all(&mut early), "1\n");
        logs.add("t", "f", b"2\n");
        put_aside(&logs);
        // Nothing is newest at this moment.
        assert_eq!(all(&mut early), "2\n");
        assert_eq!(all(&mut early), "");
        logs.add("t", "f", b"3\n");
        assert_eq!(all(&mut early), "3\n");
        // Two at once: what it reads has no name any more, and the one after it is the one before the newest.
        logs.add("t", "f", b"4\n");
        put_aside(&logs);
        logs.add("t", "f", b"5\n");
        put_aside(&logs);
        logs.add("t", "f", b"6\n");
        assert_eq!(all(&mut early), "4\n5\n6\n");
        assert_eq!(all(&mut logs.follow("t", "f", From::Start)), "5\n6\n");
        logs.remove("t", "f");
        assert_eq!(all(&mut early), "");
    }

    #[test]
    fn lines_are_counted_over_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path());
        let long = "x".repeat(BLOCK * 2);
        logs.add("t", "f", format!("1\n{long}\n3\n").as_bytes());
        put_aside(&logs);
        logs.add("t", "f", b"4\n5\nunfinished");
        let tail = |count| all(&mut logs.follow("t", "f", From::Lines(count)));
        assert_eq!(tail(0), "");
        assert_eq!(tail(1), "unfinished");
        assert_eq!(tail(2), "5\nunfinished");
        assert_eq!(tail(3), "4\n5\nunfinished");
        assert_eq!(tail(4), "3\n4\n5\nunfinished");
        assert_eq!(tail(5), format!("{long}\n3\n4\n5\nunfinished"));
        assert_eq!(tail(100), format!("1\n{long}\n3\n4\n5\nunfinished"));
    }

    #[test]
    fn times_say_where_to_begin() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path());
        logs.add("t", "f", b"old\n");
        put_aside(&logs);
        logs.add("t", "f", b"newer\nnewest\n");
        let write = |path: &Path, times: &[(u64, u64)]| {
            let bytes = times.iter().flat_map(|(at, offset)| [at.to_le_bytes(), offset.to_le_bytes()].concat());
            std::fs::write(times_of(path), bytes.collect::<Vec<u8>>()).unwrap();
        };
        let path = logs.path("t", "f");
        write(&before(&path), &[(10_000, 0)]);
        write(&path, &[(20_000, 0), (30_000, 6)]);
        let since = |ms| all(&mut logs.follow("t", "f", From::Time(ms)));
        assert_eq!(since(0), "old\nnewer\nnewest\n");
        assert_eq!(since(10_999), "old\nnewer\nnewest\n");
        assert_eq!(since(11_000), "newer\nnewest\n");
        assert_eq!(since(25_000), "newest\n");
        assert_eq!(since(40_000), "");
        let mut late = logs.follow("t", "f", From::Time(40_000));
        assert_eq!(all(&mut late), "");
        logs.add("t", "f", b"later\n");
        assert_eq!(all(&mut late), "later\n");
    }

    #[test]
    fn a_log_that_is_full_is_put_aside_with_its_times() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::new(folder.path());
        let block = vec![b'x'; 32 << 20];
        (0..3).for_each(|_| logs.add("t", "f", &block));
        logs.add("t", "f", b"next\n");
        let path = logs.path("t", "f");
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        assert_eq!(std::fs::metadata(before(&path)).unwrap().len(), 96 << 20);
        assert!(times_of(&before(&path)).exists() && times_of(&path).exists());
    }
}
