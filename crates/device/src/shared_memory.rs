//! Memory that outlives its process: words of a file without a name (`memfd_create(2)`), which live as long as anybody has a
//! descriptor of it. Pages of it that were never written take no memory, as long as they are not read either.

use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a word.
const WORD: usize = size_of::<AtomicU64>();

/// Shared words. Other processes may change them at any time, so there is no way to them but by atomic operations, and what is
/// read must be checked.
pub(crate) struct SharedWords {
    start: NonNull<AtomicU64>,
    length: usize,
    file: OwnedFd,
}

impl SharedWords {
    /// That many words (more than none), all 0. `name` is only for who looks at `/proc`.
    pub(crate) fn new(name: &str, length: usize) -> io::Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, (length * WORD) as u64)?;
        // Nobody who has a descriptor can take pages away under who has them mapped.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(file, length)
    }

    /// The words that another process made.
    ///
    /// # Errors
    /// The kernel's, and `InvalidData` for a file of another length or one that could still be made shorter.
    pub(crate) fn open(file: OwnedFd, length: usize) -> io::Result<Self> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        if !fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
            return Err(invalid("its length is not sealed"));
        }
        if rustix::fs::fstat(&file)?.st_size.cast_unsigned() != (length * WORD) as u64 {
            return Err(invalid("it has another length"));
        }
        Self::map(file, length)
    }

    #[allow(unsafe_code)]
    fn map(file: OwnedFd, length: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let mapped = unsafe { mmap(std::ptr::null_mut(), length * WORD, access, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(mapped.cast::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length, file })
    }

    /// The ranges of words that were ever touched, in whole pages of memory; the others are 0.
    pub(crate) fn touched(&self) -> io::Result<Vec<Range<usize>>> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => return Ok(found),
                Err(error) => return Err(error.into()),
            };
            at = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
            found.push(start as usize / WORD..(at as usize / WORD).min(self.length));
        }
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `length` words begin at `start`, aligned to a page, until `self` is dropped. The file is sealed against
        // becoming shorter, so they stay; that others change them is what atomics are for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedWords {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the range is our whole mapping, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length * WORD) };
    }
}

// SAFETY: it owns its mapping; the pointer is only followed through `&self`, to atomics.
#[allow(unsafe_code)]
unsafe impl Send for SharedWords {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for SharedWords {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn words_outlive_who_made_them_and_only_touched_pages_are_there() {
        let words = SharedWords::new("test", 4096).unwrap();
        words[700].store(7, Ordering::Relaxed);
        assert_eq!(words.touched().unwrap(), vec![512_usize..1024], "the second page");
        let file = words.as_fd().try_clone_to_owned().unwrap();
        drop(words);
        let words = SharedWords::open(file, 4096).unwrap();
        assert_eq!(words[700].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn what_could_vanish_is_refused() {
        let words = SharedWords::new("test", 512).unwrap();
        let file = words.as_fd().try_clone_to_owned().unwrap();
        assert!(ftruncate(&file, 0).is_err(), "sealed");
        assert!(SharedWords::open(file, 1024).is_err(), "another length");
        let unsealed = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&unsealed, 4096).unwrap();
        assert!(SharedWords::open(unsealed, 512).is_err());
        assert!(SharedWords::open(tempfile::tempfile().unwrap().into(), 512).is_err(), "a file of a disk");
    }
}
