//! Reads a tar stream strictly, one entry after the other, and never touches a file system.
//!
//! Layers come from strangers, and several tar parsers have been fooled by headers that two readers understand
//! differently: one reader's file body is another reader's list of entries. So wherever two rules of the format
//! disagree about a name or a length the entry is refused, and every length that sizes an allocation has a limit.
//!
//! Understood are V7, ustar, star and GNU headers, PAX (local and global), GNU long names, sparse files (old GNU and
//! PAX 0.0, 0.1, 1.0), and base-256 numbers. A body streams through [`TarReader::copy_body`].

mod acl;
mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, BufReader, Read};

use snowmelt_ext4::{Timestamp, check_xattrs, has_xattr_namespace};

use crate::dropped::Dropped;
use crate::entry_path::{EntryPath, MAX_PATH};
pub(crate) use header::TAR_BLOCK;
use header::{Header, until_nul};
use pax::Extended;

/// Longest PAX header or GNU long name in bytes, as in Go's archive/tar.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;
/// Longest value of one extended attribute in bytes (the kernel's `XATTR_SIZE_MAX`).
pub(crate) const MAX_XATTR_BYTES: usize = 64 << 10;
pub(crate) use snowmelt_ext4::MAX_FILE_BYTES;
/// Longest symlink target in bytes that ext4 stores (a block less its terminator).
pub(crate) const MAX_SYMLINK_BYTES: usize = 4095;
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Why an entry, or the stream, can't be used.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Reading failed, which includes failed digests: readers below report them as errors at the end.
    Io(io::Error),
    /// The bytes break the format, or leave open what they mean.
    Malformed(String),
    /// Valid, but nothing an image may hold.
    Unsupported(String),
}

impl Problem {
    pub(crate) fn malformed(reason: impl Into<String>) -> Problem {
        Problem::Malformed(reason.into())
    }

    pub(crate) fn unsupported(reason: impl Into<String>) -> Problem {
        Problem::Unsupported(reason.into())
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Problem {
        Problem::Io(error)
    }
}

/// A problem and the entry it was met at: the entry's path as far as it was known, else its number.
#[derive(Debug)]
pub(crate) struct EntryError {
    pub(crate) entry: String,
    pub(crate) problem: Problem,
}

/// Extended attributes: names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What every kind of entry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// Full names, sorted.
    pub(crate) xattrs: Xattrs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// `size` in bytes, holes included.
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: EntryPath,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: EntryPath,
    pub(crate) kind: EntryKind,
    pub(crate) metadata: Metadata,
}

/// A part of a file's body, in order.
pub(crate) enum Piece<'a> {
    Data(&'a [u8]),
    /// So many zero bytes: a hole in the archive.
    Zeros(u64),
}

/// The body of the current entry that was not read yet.
#[derive(Default)]
struct Body {
    /// Bytes in the stream, padding excluded.
    stored: u64,
    padding: u64,
    /// Size of the file.
    size: u64,
    /// Where the stored bytes belong: ascending and disjoint.
    ranges: Vec<(u64, u64)>,
}

/// Iterates over a tar stream. Call [`next_entry`](Self::next_entry) until it gives `None`, which has then read the
/// stream to its end.
pub(crate) struct TarReader<R> {
    input: BufReader<R>,
    globals: Extended,
    body: Body,
    entries: u64,
    current: String,
    dropped: Dropped,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> TarReader<R> {
        TarReader {
            input: BufReader::with_capacity(READ_BUFFER_BYTES, input),
            globals: Extended::default(),
            body: Body::default(),
            entries: 0,
            current: String::new(),
            dropped: Dropped::default(),
        }
    }

    /// The next entry, after skipping what is left of the current one's body.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, EntryError> {
        self.entries += 1;
        self.current = format!("number {}", self.entries);
        self.read_entry().map_err(|problem| self.error(problem))
    }

    /// Hands the current entry's body to `sink`, holes included, and leaves nothing of it. Calling it for an entry
    /// that is no file, or twice, does nothing.
    pub(crate) fn copy_body(&mut self, sink: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> Result<(), EntryError> {
        self.try_copy_body(sink).map_err(|problem| self.error(problem))
    }

    /// Names the current entry.
    pub(crate) fn error(&self, problem: Problem) -> EntryError {
        EntryError { entry: self.current.clone(), problem }
    }

    /// What was left out of the entries so far.
    pub(crate) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    /// The stream, for reading on after an error.
    pub(crate) fn into_inner(self) -> R {
        self.input.into_inner()
    }

    fn try_copy_body(&mut self, sink: &mut dyn FnMut(Piece<'_>) -> io::Result<()>) -> Result<(), Problem> {
        let body = std::mem::take(&mut self.body);
        let mut position = 0;
        for &(offset, length) in &body.ranges {
            if offset > position {
                sink(Piece::Zeros(offset - position))?;
            }
            let mut left = length;
            while left > 0 {
                let available = self.input.fill_buf()?;
                if available.is_empty() {
                    return Err(truncated());
                }
                let count = usize::try_from(left).map_or(available.len(), |left| left.min(available.len()));
                sink(Piece::Data(&available[..count]))?;
                self.input.consume(count);
                left -= count as u64;
            }
            position = offset + length;
        }
        if body.size > position {
            sink(Piece::Zeros(body.size - position))?;
        }
        self.skip(body.padding)
    }

    fn read_entry(&mut self) -> Result<Option<Entry>, Problem> {
        let body = std::mem::take(&mut self.body);
        self.skip(body.stored + body.padding)?;
        let mut extended = self.globals.clone();
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut has_local = false;
        loop {
            let Some(header) = self.read_header()? else {
                if has_local || long_name.is_some() || long_link.is_some() {
                    return Err(Problem::malformed("the archive ends after an extended header"));
                }
                return Ok(None);
            };
            match header.type_flag() {
                b'g' => {
                    let records = self.read_extended(&header)?;
                    // A global header between a local one and its entry would apply to either, by reader.
                    if has_local || long_name.is_some() || long_link.is_some() {
                        return Err(Problem::malformed("a global header lies between an entry and its own headers"));
                    }
                    self.globals.apply_global(&records)?;
                    extended = self.globals.clone();
                }
                b'x' => {
                    if std::mem::replace(&mut has_local, true) {
                        return Err(Problem::malformed("two extended headers for one entry"));
                    }
                    let records = self.read_extended(&header)?;
                    extended.apply_local(&records)?;
                }
                b'L' => long_string(&mut long_name, &self.read_extended(&header)?)?,
                b'K' => long_string(&mut long_link, &self.read_extended(&header)?)?,
                _ => {
                    extended.path = one_of(extended.path, long_name, "names")?;
                    extended.link = one_of(extended.link, long_link, "link targets")?;
                    return self.finish_entry(&header, extended).map(Some);
                }
            }
        }
    }

    fn finish_entry(&mut self, header: &Header, mut extended: Extended) -> Result<Entry, Problem> {
        let raw_path = extended.sparse.name.take().or(extended.path.take()).unwrap_or_else(|| header.path());
        self.current = raw_path[..raw_path.len().min(MAX_PATH)].escape_ascii().to_string();
        let path = EntryPath::normalise(&raw_path).map_err(Problem::Malformed)?;
        let stored = stored_size(header, &extended)?;
        let raw_link = extended.link.take().unwrap_or_else(|| header.link());
        let names_directory = raw_path.ends_with(b"/");

        let kind = match header.type_flag() {
            // V7 had no type for directories.
            0 if names_directory => EntryKind::Directory,
            b'0' | b'7' if names_directory => {
                return Err(Problem::malformed("a file whose name ends in a slash"));
            }
            0 | b'0' | b'7' | b'S' => {
                self.body = self.file_body(header, &extended, stored)?;
                EntryKind::File { size: self.body.size }
            }
            b'1' => EntryKind::HardLink {
                target: EntryPath::normalise(&raw_link)
                    .map_err(|reason| Problem::Malformed(format!("hard link target: {reason}")))?,
            },
            b'2' => EntryKind::Symlink { target: symlink_target(raw_link)? },
            flag @ (b'3' | b'4') => {
                let (major, minor) = device_numbers(header, &extended)?;
                if flag == b'3' {
                    EntryKind::CharDevice { major, minor }
                } else {
                    EntryKind::BlockDevice { major, minor }
                }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            flag => {
                return Err(Problem::unsupported(format!("entry type `{}` is not known", flag.escape_ascii())));
            }
        };
        if !matches!(kind, EntryKind::File { .. }) {
            // Some readers skip a body here and some read entries from it.
            if stored != 0 {
                return Err(Problem::malformed(format!("an entry that is no file has a body of {stored} bytes")));
            }
            if extended.sparse.is_present() {
                return Err(Problem::malformed("an entry that is no file has a sparse map"));
            }
        }
        let mode = header.mode()?;
        let xattrs = self.xattrs(&mut extended, &kind, mode)?;
        let metadata = Metadata {
            mode,
            uid: extended.uid.map_or_else(|| header.uid(), Ok)?,
            gid: extended.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: match extended.mtime {
                Some(mtime) => mtime,
                None => Timestamp { seconds: header.mtime()?, nanoseconds: 0 },
            },
            xattrs,
        };
        Ok(Entry { path, kind, metadata })
    }

    /// What the image keeps of the entry's extended attributes and access control lists. What ext4 has no room for is
    /// refused here, where the entry is known and before memory is full of it.
    fn xattrs(&mut self, extended: &mut Extended, kind: &EntryKind, mode: u16) -> Result<Xattrs, Problem> {
        let mut xattrs = extended.take_xattrs();
        if matches!(kind, EntryKind::HardLink { .. }) {
            // They are those of the file that the link leads to.
            return Ok(Vec::new());
        }
        xattrs.retain(|name, _| {
            let is_kept = has_xattr_namespace(name);
            if !is_kept {
                self.dropped.add_xattr(&self.current, name);
            }
            is_kept
        });
        let values = [
            (&b"system.posix_acl_access"[..], extended.access_acl.take().map(|text| acl::access(&text, kind, mode))),
            (b"system.posix_acl_default", extended.default_acl.take().map(|text| acl::default(&text, kind).map(Some))),
        ];
        for (name, value) in values {
            match value {
                // The binary form, where the archive has that too, is exact.
                Some(Ok(Some(value))) => {
                    xattrs.entry(name.to_vec()).or_insert(value);
                }
                Some(Err(reason)) => self.dropped.add_acl(&self.current, &reason),
                Some(Ok(None)) | None => {}
            }
        }
        let xattrs = xattrs.into_iter().collect::<Xattrs>();
        check_xattrs(&xattrs).map_err(Problem::Unsupported)?;
        Ok(xattrs)
    }

    fn file_body(&mut self, header: &Header, extended: &Extended, stored: u64) -> Result<Body, Problem> {
        let padding = stored.next_multiple_of(TAR_BLOCK as u64) - stored;
        let records = &extended.sparse;
        let (size, ranges, stored) = if header.type_flag() == b'S' {
            if records.is_present() || !header.is_gnu() {
                return Err(Problem::malformed("a sparse file whose header is not GNU's, or has two maps"));
            }
            let mut map = header.gnu_sparse()?;
            while map.is_extended {
                let block = self.read_block()?.ok_or_else(truncated)?;
                map.is_extended = sparse::extend(&block, &mut map.ranges)?;
            }
            (map.size, map.ranges, stored)
        } else if records.major == Some(1) {
            let (ranges, map_bytes) = sparse::read_map(&mut self.input, stored)?;
            let size = records.size.ok_or_else(|| Problem::malformed("a sparse file without its size"))?;
            (size, ranges, stored - map_bytes)
        } else if records.is_present() {
            sparse::old_pax(records)?;
            let size = records.size.ok_or_else(|| Problem::malformed("a sparse file without its size"))?;
            (size, sparse::pairs(&records.numbers), stored)
        } else {
            (stored, if stored == 0 { Vec::new() } else { vec![(0, stored)] }, stored)
        };
        if size > MAX_FILE_BYTES {
            return Err(Problem::unsupported(format!("a file of {size} bytes, the limit is {MAX_FILE_BYTES}")));
        }
        sparse::check(&ranges, size, stored)?;
        Ok(Body { stored, padding, size, ranges })
    }

    /// The next header; `None` at the end of the archive, after reading whatever follows.
    fn read_header(&mut self) -> Result<Option<Header>, Problem> {
        let Some(block) = self.read_block()? else {
            return Ok(None);
        };
        if block.iter().any(|&byte| byte != 0) {
            return Header::parse(&block).map(Some);
        }
        // The rest is padding. It is read because layer readers check digests at the end, and because entries after
        // the end would be seen by some readers only.
        loop {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Ok(None);
            }
            if available.iter().any(|&byte| byte != 0) {
                return Err(Problem::malformed("the archive goes on after its end marker"));
            }
            let count = available.len();
            self.input.consume(count);
        }
    }

    /// One block; `None` at a clean end of the stream.
    fn read_block(&mut self) -> Result<Option<[u8; TAR_BLOCK]>, Problem> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut block = [0; TAR_BLOCK];
        self.input.read_exact(&mut block).map_err(end_is_truncation)?;
        Ok(Some(block))
    }

    fn read_extended(&mut self, header: &Header) -> Result<Vec<u8>, Problem> {
        let size = header.size()?;
        if size > MAX_EXTENDED_BYTES {
            return Err(Problem::malformed(format!(
                "an extended header of {size} bytes, the limit is {MAX_EXTENDED_BYTES}"
            )));
        }
        // Grows with what is there, not with what the header claims.
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < size {
            return Err(truncated());
        }
        self.skip(size.next_multiple_of(TAR_BLOCK as u64) - size)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), Problem> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        if skipped < count { Err(truncated()) } else { Ok(()) }
    }
}

/// Bytes of body in the stream. The PAX record is there for sizes that the header can't hold: the header then has zero
/// or the same number, and anything else hides entries from one reader or the other.
fn stored_size(header: &Header, extended: &Extended) -> Result<u64, Problem> {
    const OCTAL_LIMIT: u64 = 1 << 33;
    let in_header = header.size()?;
    let size = match extended.size {
        Some(size) if size == in_header || (in_header == 0 && size >= OCTAL_LIMIT) => size,
        Some(size) => {
            return Err(Problem::malformed(format!("the header gives {in_header} bytes, its extension {size}")));
        }
        None => in_header,
    };
    if size > MAX_FILE_BYTES {
        return Err(Problem::unsupported(format!("a body of {size} bytes, the limit is {MAX_FILE_BYTES}")));
    }
    Ok(size)
}

fn device_numbers(header: &Header, extended: &Extended) -> Result<(u32, u32), Problem> {
    let (major, minor) = header.device()?;
    let (major, minor) = (extended.device_major.unwrap_or(major), extended.device_minor.unwrap_or(minor));
    // The kernel's dev_t: 12 and 20 bits.
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(Problem::unsupported(format!("device number {major}:{minor} does not exist in Linux")));
    }
    Ok((major, minor))
}

fn symlink_target(target: Vec<u8>) -> Result<Vec<u8>, Problem> {
    if target.is_empty() || target.len() > MAX_SYMLINK_BYTES {
        return Err(Problem::malformed(format!(
            "a symlink with a target of {} bytes, allowed are 1 to {MAX_SYMLINK_BYTES}",
            target.len()
        )));
    }
    Ok(target)
}

fn long_string(slot: &mut Option<Vec<u8>>, bytes: &[u8]) -> Result<(), Problem> {
    let text = until_nul(bytes);
    if bytes[text.len()..].iter().any(|&byte| byte != 0) {
        return Err(Problem::malformed("a long name holds a NUL byte"));
    }
    if slot.replace(text.to_vec()).is_some() {
        return Err(Problem::malformed("two long names for one entry"));
    }
    Ok(())
}

/// Both ways to give a long name in front of one entry are fine as long as they agree.
fn one_of(pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>, what: &str) -> Result<Option<Vec<u8>>, Problem> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(Problem::malformed(format!("two different {what} for one entry"))),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

fn truncated() -> Problem {
    Problem::malformed("the archive ends in the middle of an entry")
}

fn end_is_truncation(error: io::Error) -> Problem {
    if error.kind() == io::ErrorKind::UnexpectedEof && error.get_ref().is_none() {
        truncated()
    } else {
        Problem::Io(error)
    }
}
