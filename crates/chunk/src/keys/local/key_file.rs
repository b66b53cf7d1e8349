//! One secret in a file: 64 hexadecimal digits and a line feed, for its owner alone.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{fill_random, io_error, sync};
use crate::Error;
use crate::id::parse_hex;

/// A fresh key.
pub(super) fn random() -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut key = Zeroizing::new([0; 32]);
    fill_random(key.as_mut())?;
    Ok(key)
}

/// Reads a key file; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<[u8; 32]>>, Error> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mode = file.metadata().map_err(io_error("read", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::BadKeyFile {
            path: path.into(),
            what: format!("others may read it (mode {mode:04o}): chmod 600 it, and consider the key as known"),
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(80));
    (&mut file).take(80).read_to_string(&mut text).map_err(io_error("read", path))?;
    parse_hex(text.trim_end()).map(|key| Some(Zeroizing::new(key))).ok_or_else(|| Error::BadKeyFile {
        path: path.into(),
        what: "it does not hold 64 hexadecimal digits: restore it from a backup".into(),
    })
}

/// Reads a key file, making it with a random key where there is none. Whoever makes it first wins: a complete file is
/// linked into place, so that no other process and no crash ever sees half of one.
pub(super) fn read_or_make(path: &Path) -> Result<Zeroizing<[u8; 32]>, Error> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(io_error("make", folder))?;
    let draft = draft(folder, &*random()?)?;
    let made = match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    };
    let removed = fs::remove_file(&draft);
    made.and(removed).map_err(io_error("make", path))?;
    sync(folder)?;
    read(path)?.ok_or_else(|| io_error("read", path)(io::ErrorKind::NotFound.into()))
}

/// Writes a key to a file of its own, which is to be linked or renamed to where it belongs. It is on the disk afterwards.
pub(super) fn draft(folder: &Path, key: &[u8; 32]) -> Result<PathBuf, Error> {
    let mut unique = [0; 8];
    fill_random(&mut unique)?;
    let draft = folder.join(format!(".draft-{:016x}", u64::from_le_bytes(unique)));
    let text = Zeroizing::new(format!("{}\n", crate::ChunkId(*key)));
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(&draft).and_then(|mut file| {
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
            let _ = fs::remove_file(&draft);
        })
    });
    made.map_err(io_error("make", &draft))?;
    Ok(draft)
}
