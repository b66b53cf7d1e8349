//! Random access to a tar file of blobs, as `docker save` and tools for OCI archives write it.
//!
//! Names lead to places in the file; nothing is unpacked. A compressed archive is decompressed once, into an unlinked
//! temporary file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::layer_reader::detect;
use crate::sources::Compression;

const TAR_BLOCK: u64 = 512;
/// Entries in an archive: a handful for each layer.
const MAX_ENTRIES: usize = 100_000;
/// Longest GNU long name or PAX header in bytes.
const MAX_EXTENDED_BYTES: u64 = 64 << 10;
/// Links to links that are followed.
const MAX_LINKS: usize = 8;

/// Why a pipe is refused.
pub(crate) const NO_PIPE: &str = "an archive is read from several places at once, which a pipe cannot do: save it to a file first, and name that file";

/// An indexed tar file.
pub(crate) struct Archive {
    file: Arc<File>,
    entries: BTreeMap<String, Entry>,
}

enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    /// `docker save` once wrote a layer that occurs twice as a link to the first.
    Link {
        target: String,
    },
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Archive, Error> {
        let failed = |error| match io::Error::kind(&error) {
            io::ErrorKind::NotFound => {
                Error::not_found(format!("the archive {}", path.display()), "there is no such file")
            }
            _ => Error::io("open", path, error),
        };
        // Looked at before it is opened, since opening a named pipe waits for a writer.
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if kind.is_dir() {
            let reason = "it is a directory: perhaps oci: or dir: is meant";
            return Err(Error::invalid(format!("the archive {}", path.display()), reason));
        }
        if !kind.is_file() {
            return Err(Error::invalid(format!("the archive {}", path.display()), NO_PIPE));
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut start = Vec::new();
        file.by_ref().take(6).read_to_end(&mut start).map_err(|error| Error::io("read", path, error))?;
        file.seek(SeekFrom::Start(0)).map_err(|error| Error::io("read", path, error))?;
        let compression = detect(&start).map_err(|name| {
            Error::invalid(
                format!("the archive {}", path.display()),
                format!("it is compressed with {name}: decompress it first, or use gzip or zstd"),
            )
        })?;
        if compression != Compression::None {
            file = decompressed(path, file, compression)?;
        }
        let file = Arc::new(file);
        let entries = index(&mut BufReader::with_capacity(64 << 10, ReadAt { file: Arc::clone(&file), position: 0 }))
            .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::corrupt(format!("the archive {}", path.display()), error.to_string()),
            _ => Error::io("read", path, error),
        })?;
        Ok(Archive { file, entries })
    }

    /// Size of the file of this name in bytes, if there is one.
    pub(crate) fn size(&self, name: &str) -> Option<u64> {
        self.find(name).map(|(_, size)| size)
    }

    /// The bytes of the file of this name.
    pub(crate) fn open_file(&self, name: &str) -> Option<Box<dyn Read + Send>> {
        let (offset, size) = self.find(name)?;
        Some(Box::new(ReadAt { file: Arc::clone(&self.file), position: offset }.take(size)))
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normal(name)?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name)? {
                Entry::File { offset, size } => return Some((*offset, *size)),
                Entry::Link { target } => name.clone_from(target),
            }
        }
        None
    }
}

/// Reads a shared file from a place of its own.
struct ReadAt {
    file: Arc<File>,
    position: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for ReadAt {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Copies the decompressed archive to a file without a name, in TMPDIR or else in /var/tmp: it can be large, and /tmp is
/// often kept in memory.
fn decompressed(path: &Path, file: File, compression: Compression) -> Result<File, Error> {
    let directory = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let mut spool = tempfile::tempfile_in(&directory)
        .map_err(|error| Error::io("create a temporary file in", &directory, error))?;
    let input = BufReader::with_capacity(256 << 10, file);
    let copied = match compression {
        Compression::Gzip => io::copy(&mut flate2::bufread::MultiGzDecoder::new(input), &mut spool),
        _ => zstd::stream::read::Decoder::with_buffer(input).and_then(|mut input| io::copy(&mut input, &mut spool)),
    };
    copied.map_err(|error| Error::io("decompress (into TMPDIR or /var/tmp)", path, error))?;
    Ok(spool)
}

/// The names in a tar stream. Malformed archives give `InvalidData`.
fn index<R: Read + Seek>(input: &mut BufReader<R>) -> io::Result<IndexedEntries> {
    let malformed = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut entries = IndexedEntries::new();
    let mut long_name: Option<String> = None;
    let mut long_size: Option<u64> = None;
    let end = input.seek(SeekFrom::End(0))?;
    let mut offset = input.seek(SeekFrom::Start(0))?;
    loop {
        if offset + TAR_BLOCK > end {
            // Some writers leave out the blocks of zeros at the end.
            return if offset == end && offset > 0 {
                Ok(entries)
            } else {
                Err(malformed("it is not a complete tar file"))
            };
        }
        let mut header = tar::Header::new_old();
        input.read_exact(header.as_mut_bytes())?;
        offset += TAR_BLOCK;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(entries);
        }
        if !checksum_is_right(&header) {
            return Err(malformed("it is not a tar file, or one of its headers is damaged"));
        }
        let kind = header.entry_type();
        let mut size = header.entry_size().map_err(|_| malformed("an entry has a malformed size"))?;
        let is_extended = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if !is_extended && let Some(long) = long_size.take() {
            size = long;
        }
        let next = size.checked_next_multiple_of(TAR_BLOCK).and_then(|padded| offset.checked_add(padded));
        let Some(next) = next.filter(|next| *next <= end.next_multiple_of(TAR_BLOCK) && size <= end - offset) else {
            return Err(malformed("it ends within an entry"));
        };
        if is_extended {
            if size > MAX_EXTENDED_BYTES {
                return Err(malformed("an entry has an extended header of absurd size"));
            }
            let mut body = vec![0; size as usize];
            input.read_exact(&mut body)?;
            if kind.is_gnu_longname() {
                let end = body.iter().position(|byte| *byte == 0).unwrap_or(body.len());
                long_name = Some(String::from_utf8_lossy(&body[..end]).into_owned());
            } else if kind.is_pax_local_extensions() {
                for extension in tar::PaxExtensions::new(&body).flatten() {
                    match (extension.key(), extension.value()) {
                        (Ok("path"), Ok(path)) => long_name = Some(path.to_owned()),
                        (Ok("size"), Ok(size)) => {
                            long_size = Some(size.parse().map_err(|_| malformed("an entry has a malformed size"))?);
                        }
                        _ => {}
                    }
                }
            }
        } else {
            let name = long_name.take().unwrap_or_else(|| String::from_utf8_lossy(&header.path_bytes()).into_owned());
            let entry = if kind.is_file() || kind.is_contiguous() {
                Some(Entry::File { offset, size })
            } else if kind.is_symlink() || kind.is_hard_link() {
                link_target(&header, &name).map(|target| Entry::Link { target })
            } else {
                None
            };
            if let (Some(entry), Some(name)) = (entry, normal(&name)) {
                if entries.len() == MAX_ENTRIES {
                    return Err(malformed("it has more entries than an archive of images can have"));
                }
                entries.insert(name, entry);
            }
        }
        let here = input.stream_position()?;
        input.seek_relative(next as i64 - here as i64)?;
        offset = next;
    }
}

type IndexedEntries = BTreeMap<String, Entry>;

fn link_target(header: &tar::Header, name: &str) -> Option<String> {
    let target = header.link_name_bytes()?;
    let target = String::from_utf8_lossy(&target);
    match name.rsplit_once('/') {
        // A symlink is relative to where it is, a hard link to the archive.
        Some((parent, _)) if header.entry_type().is_symlink() => normal(&format!("{parent}/{target}")),
        _ => normal(&target),
    }
}

/// A name without `.` and `..`; `None` where it leaves the archive.
fn normal(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn checksum_is_right(header: &tar::Header) -> bool {
    let bytes = header.as_bytes();
    // The field itself counts as spaces.
    let sum = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    header.cksum().is_ok_and(|expected| expected == sum)
}
