//! Memory for secrets: it is not swapped out, not in core files, and zeros before it is given back.
//!
//! Each secret has pages of its own, since `mlock(2)` and `madvise(2)` are about pages and do not count: what shared a page
//! with it would undo them. Not being swapped is a best effort: a process may only lock so much (`RLIMIT_MEMLOCK`), and an
//! image must open all the same.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize as _;

/// Bytes that only their owner sees. Their length is fixed.
pub(crate) struct SecretBytes {
    /// Of a mapping of `length` bytes that is ours alone; dangling where `length` is 0.
    start: NonNull<u8>,
    length: usize,
}

impl SecretBytes {
    /// That many zero bytes. Running out of memory ends the process, as it does with a `Vec`.
    #[allow(unsafe_code)]
    pub(crate) fn zeroed(length: usize) -> Self {
        if length == 0 {
            return Self { start: NonNull::dangling(), length };
        }
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), length, access, kind) };
        let start = mapped.ok().and_then(|start| NonNull::new(start.cast::<u8>()));
        let Some(start) = start else { handle_alloc_error(Layout::array::<u8>(length).unwrap_or(Layout::new::<u8>())) };
        // Neither changes what the memory holds, and where the kernel refuses there is no better memory to be had.
        // SAFETY: the range is the mapping that was just made, and its bytes stay as they are.
        unsafe {
            let _ = madvise(start.as_ptr().cast(), length, Advice::LinuxDontDump);
            let _ = mlock(start.as_ptr().cast(), length);
        }
        Self { start, length }
    }

    /// A copy of `bytes`, which should be wiped by whoever has them.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        copy
    }
}

impl Deref for SecretBytes {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        // SAFETY: `length` readable bytes begin at `start` until `self` is dropped, and nobody else has the mapping.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for SecretBytes {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only way to the bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for SecretBytes {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.zeroize();
        if self.length > 0 {
            // SAFETY: the range is our whole mapping, and no reference into it outlives `self`.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
        }
    }
}

// SAFETY: it owns its memory as a `Box<[u8]>` does; the pointer is only followed through `&self` and `&mut self`.
#[allow(unsafe_code)]
unsafe impl Send for SecretBytes {}
// SAFETY: as above: shared, it can only be read.
#[allow(unsafe_code)]
unsafe impl Sync for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.length)
    }
}

/// Keeps this process from leaving a core file, and other processes of its user from reading its memory (`PR_SET_DUMPABLE`
/// in prctl(2)). Programs that it starts are not concerned: executing one undoes it.
pub fn no_core_files() {
    // The kernel has no reason to refuse, and without it there would still be `SecretBytes`.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The flags that the kernel has for the mapping at this address (`VmFlags` in proc_pid_smaps(5)).
    fn flags(address: usize) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = false;
        for line in maps.lines() {
            if let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-'))
                && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                found = (start..end).contains(&address);
            } else if found && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no mapping at {address:x}");
    }

    #[test]
    fn secrets_are_kept_out_of_core_files_and_swap() {
        let secret = SecretBytes::copy_of(&[7; 5000]);
        let flags = flags(secret.as_ptr() as usize);
        assert!(flags.contains(&"dd".into()), "not dumped: {flags:?}");
        assert!(flags.contains(&"lo".into()), "locked, which 8 KiB always can be: {flags:?}");
        assert_eq!(*secret, [7; 5000]);
    }

    #[test]
    fn more_than_may_be_locked_is_held_all_the_same() {
        let mut secret = SecretBytes::zeroed(256 << 20);
        secret[(256 << 20) - 1] = 1;
        assert_eq!(secret[(256 << 20) - 1], 1);
        assert_eq!(*SecretBytes::zeroed(0), []);
    }

    #[test]
    fn a_process_can_do_without_core_files() {
        no_core_files();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), rustix::process::DumpableBehavior::NotDumpable);
    }

    #[test]
    fn secrets_move_between_threads() {
        let secret = SecretBytes::copy_of(&[9; 32]);
        let secret = std::thread::spawn(move || secret).join().unwrap();
        assert_eq!(*secret, [9; 32]);
        assert_eq!(format!("{secret:?}"), "SecretBytes(32 bytes)");
    }
}
