//! A log as text.
//!
//! ```text
//! snowmelt start log 2
//! starts N                       how many starts are merged in it
//! chunk INDEX WEIGHT             a chunk that was needed, once each, in the order of need; what was read of it follows
//! device OFFSET LENGTH           metadata: bytes of the device
//! file INODE OFFSET LENGTH       content: bytes of a file
//! vain INDEX START               a chunk that was loaded ahead for nothing, and at which start
//! ```

use std::collections::HashSet;
use std::fmt::Write as _;
use std::ops::Range;

use super::merge::MOST_WEIGHT;
use super::{FileRead, LoggedChunk, StartLog, Vain};

pub(crate) const HEADER: &str = "snowmelt start log 2";
/// A log of more lines than this is not ours.
const MOST_LINES: usize = 100_000;

impl StartLog {
    /// As text.
    pub fn encode(&self) -> String {
        let mut text = format!("{HEADER}\nstarts {}\n", self.starts);
        // Writing to a string does not fail.
        for chunk in &self.chunks {
            let _ = writeln!(text, "chunk {} {}", chunk.index, chunk.weight);
            for range in &chunk.metadata {
                let _ = writeln!(text, "device {} {}", range.start, range.end - range.start);
            }
            for FileRead { inode, range } in &chunk.files {
                let _ = writeln!(text, "file {inode} {} {}", range.start, range.end - range.start);
            }
        }
        for Vain { index, start } in &self.vain {
            let _ = writeln!(text, "vain {index} {start}");
        }
        text
    }

    /// From text; `None` if it is not all such a log.
    pub fn decode(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEADER {
            return None;
        }
        let mut log = Self::default();
        let mut seen = HashSet::new();
        for (at, line) in lines.enumerate() {
            let mut words = line.split(' ');
            let kind = words.next()?;
            let mut number = || words.next()?.parse::<u64>().ok();
            match kind {
                _ if at >= MOST_LINES => return None,
                "starts" if at == 0 => log.starts = number()?,
                "chunk" => {
                    let (index, weight) = (number()?, u8::try_from(number()?).ok()?);
                    if !(1..=MOST_WEIGHT).contains(&weight) || !seen.insert(index) {
                        return None;
                    }
                    log.chunks.push(LoggedChunk { index, weight, ..LoggedChunk::default() });
                }
                "device" => log.chunks.last_mut()?.metadata.push(range(number()?, number()?)?),
                "file" => {
                    let inode = u32::try_from(number()?).ok()?;
                    log.chunks.last_mut()?.files.push(FileRead { inode, range: range(number()?, number()?)? });
                }
                "vain" => log.vain.push(Vain { index: number()?, start: number()? }),
                _ => return None,
            }
            if words.next().is_some() {
                return None;
            }
        }
        Some(log)
    }
}

fn range(start: u64, length: u64) -> Option<Range<u64>> {
    // What the kernel takes for offsets is signed.
    let end = start.checked_add(length).filter(|end| i64::try_from(*end).is_ok())?;
    (length > 0).then_some(start..end)
}
