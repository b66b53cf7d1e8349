//! From a zip archive to a layer.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};

use tar::{Builder, EntryType, Header};
use zip::read::ZipFile;
use zip::{CompressionMethod, ZipArchive};

/// Where a package's files are.
const TASK: &str = "var/task";
/// Bytes of what is unpacked, as in Lambda: 250 MB.
const MOST_UNPACKED: u64 = 262_144_000;
/// Files and folders of a package.
const MOST_ENTRIES: usize = 200_000;
/// Of names, as file systems have it.
const MOST_NAME: usize = 255;
const MOST_PATH: usize = 4000;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
    Link,
}

/// Writes a package's files as a layer over an image, in `/var/task`: the same bytes for the same package. Gives how many bytes are in them.
///
/// # Errors
/// Why the package cannot be taken, in words for who sent it; or that of `to`.
pub(crate) fn write_layer(package: &[u8], to: impl Write) -> Result<u64, String> {
    let unreadable = |error: zip::result::ZipError| {
        format!("Could not unzip uploaded file. Please check your file, then try to upload again. ({error})")
    };
    let mut archive = ZipArchive::new(Cursor::new(package)).map_err(unreadable)?;
    if archive.len() > MOST_ENTRIES {
        return Err(format!("it has {} entries: at most {MOST_ENTRIES} are taken", archive.len()));
    }
    // What is said of an entry twice must be the same, and nothing may be there twice or beside what is listed: other readers would see
    // another package.
    archive.validate_header_consistency().map_err(unreadable)?;
    let mut layer = Layer { builder: Builder::new(to), kinds: BTreeMap::new(), unpacked: 0 };
    layer.begin().map_err(|error| error.to_string())?;
    let mut packed = 0_u64;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(unreadable)?;
        // Entries that lie in the same bytes make much of little, and take long.
        packed = packed.saturating_add(entry.compressed_size());
        if packed > package.len() as u64 {
            return Err("its entries overlap".into());
        }
        let name = entry.name().map_err(unreadable)?.into_owned();
        layer.add(&name, &mut entry).map_err(|reason| format!("{name:?}: {reason}"))?;
    }
    layer.builder.finish().map_err(|error| error.to_string())?;
    Ok(layer.unpacked)
}

struct Layer<W: Write> {
    builder: Builder<W>,
    /// What there is, by path.
    kinds: BTreeMap<String, Kind>,
    unpacked: u64,
}

impl<W: Write> Layer<W> {
    fn begin(&mut self) -> std::io::Result<()> {
        self.builder.append_data(&mut header(EntryType::Directory, 0o755, 0, 0), TASK, std::io::empty())?;
        // Nothing of the image below stays there.
        let opaque = format!("{TASK}/.wh..wh..opq");
        self.builder.append_data(&mut header(EntryType::Regular, 0o644, 0, 0), opaque, std::io::empty())
    }

    fn add<R: Read>(&mut self, name: &str, entry: &mut ZipFile<'_, R>) -> Result<(), String> {
        if entry.encrypted() {
            return Err("it is encrypted".into());
        }
        if ![CompressionMethod::Stored, CompressionMethod::Deflated].contains(&entry.compression()) {
            return Err(format!("it is compressed with {}: expected deflate", entry.compression()));
        }
        let kind = match entry.unix_mode().map_or(0, |mode| mode & 0o170_000) {
            0o120_000 => Kind::Link,
            0o040_000 => Kind::Folder,
            0 | 0o100_000 if entry.is_dir() => Kind::Folder,
            0 | 0o100_000 => Kind::File,
            _ => return Err("it is a device, a pipe or a socket".into()),
        };
        let Some(path) = clean(name)? else {
            return if kind == Kind::Folder { Ok(()) } else { Err("it has no name".into()) };
        };
        self.place(&path, kind)?;
        let path = format!("{TASK}/{path}");
        let seconds = seconds_of(entry.last_modified());
        // Whoever the code runs as may read it.
        let mode = entry.unix_mode().map_or(0, |mode| mode & 0o777);
        let written = match kind {
            Kind::Folder => {
                let mut header = header(EntryType::Directory, mode | 0o755, 0, seconds);
                self.builder.append_data(&mut header, path, std::io::empty())
            }
            Kind::Link => {
                let target = read(entry, MOST_PATH as u64)?;
                let target = String::from_utf8(target).map_err(|_| "it is a link to what is no text")?;
                check_target(&path, &target)?;
                let mut header = header(EntryType::Symlink, 0o777, 0, seconds);
                self.builder.append_link(&mut header, path, target)
            }
            Kind::File => {
                // What it says of its size may be anything.
                let bytes = read(entry, MOST_UNPACKED - self.unpacked)?;
                self.unpacked += bytes.len() as u64;
                let mut header = header(EntryType::Regular, mode | 0o444, bytes.len() as u64, seconds);
                self.builder.append_data(&mut header, path, bytes.as_slice())
            }
        };
        written.map_err(|error| error.to_string())
    }

    /// Takes a path, if nothing else is there and all above it are folders.
    fn place(&mut self, path: &str, kind: Kind) -> Result<(), String> {
        for (at, _) in path.match_indices('/') {
            match self.kinds.insert(path[..at].to_owned(), Kind::Folder) {
                None | Some(Kind::Folder) => {}
                Some(_) => return Err(format!("{:?}, in which it lies, is no folder", &path[..at])),
            }
        }
        match self.kinds.insert(path.to_owned(), kind) {
            None => Ok(()),
            Some(Kind::Folder) if kind == Kind::Folder => Ok(()),
            Some(_) => Err("it is there twice".into()),
        }
    }
}

fn header(kind: EntryType, mode: u32, size: u64, seconds: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(seconds);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// All of an entry, if that is no more than so many bytes.
fn read<R: Read>(entry: &mut ZipFile<'_, R>, most: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read =
        entry.by_ref().take(most + 1).read_to_end(&mut bytes).map_err(|error| format!("it is damaged: {error}"))?;
    if read as u64 > most {
        return Err(format!("Unzipped size must be smaller than {MOST_UNPACKED} bytes"));
    }
    Ok(bytes)
}

/// A path in the folder, without what says nothing. `None` for the folder itself.
fn clean(name: &str) -> Result<Option<String>, String> {
    if name.starts_with('/') {
        return Err("its name begins with a slash".into());
    }
    if name.contains('\\') {
        return Err("its name has a backslash: names of folders end with a slash".into());
    }
    if name.chars().any(char::is_control) {
        return Err("its name has control characters".into());
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    for part in &parts {
        if *part == ".." {
            return Err("its name leads out of the package".into());
        }
        if part.starts_with(".wh.") {
            return Err("its name begins with .wh., which hides files of images".into());
        }
        if part.len() > MOST_NAME {
            return Err(format!("a part of its name is longer than {MOST_NAME} bytes"));
        }
    }
    let path = parts.join("/");
    if path.len() > MOST_PATH {
        return Err(format!("its name is longer than {MOST_PATH} bytes"));
    }
    Ok((!path.is_empty()).then_some(path))
}

/// That a link stays in the folder.
fn check_target(path: &str, target: &str) -> Result<(), String> {
    let wrong = || Err(format!("it is a link to {target:?}, which is not in the package"));
    if target.is_empty() || target.starts_with('/') || target.chars().any(char::is_control) {
        return wrong();
    }
    let mut depth = path[TASK.len() + 1..].matches('/').count();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part != ".." {
            depth += 1;
        } else if depth == 0 {
            return wrong();
        } else {
            depth -= 1;
        }
    }
    Ok(())
}

/// Since 1970, as if the archive's clock had been UTC's. Compiled code remembers of which time its source was.
fn seconds_of(time: Option<zip::DateTime>) -> u64 {
    let date = time.and_then(|time| {
        let date = chrono::NaiveDate::from_ymd_opt(time.year().into(), time.month().into(), time.day().into())?;
        date.and_hms_opt(time.hour().into(), time.minute().into(), time.second().into())
    });
    date.and_then(|date| u64::try_from(date.and_utc().timestamp()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
