//! What the kernel writes to `/dev/fuse` and reads from it: linux/fuse.h, as far as a mount of one regular file needs it.
//!
//! Requests are parsed out of any bytes without panicking; what is too short for what it says it is, is an error.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's version; the kernel speaks no other.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version whose structures are known here: the first with [`HAS_RESEND`].
pub(super) const MINOR: u32 = 40;
/// Linux 5.10 has 32; nothing older is served.
pub(super) const OLDEST_MINOR: u32 = 31;

/// Flags of [`InitIn`] and [`InitOut`], both words of them.
pub(super) mod flags {
    pub(in crate::fuse) const ASYNC_READ: u64 = 1 << 0;
    pub(in crate::fuse) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::fuse) const ASYNC_DIO: u64 = 1 << 15;
    pub(in crate::fuse) const MAX_PAGES: u64 = 1 << 22;
    /// Says that the second word counts.
    pub(in crate::fuse) const INIT_EXT: u64 = 1 << 30;
    /// The kernel sends requests again that were read and never answered, when it is told to. Linux 6.9.
    pub(in crate::fuse) const HAS_RESEND: u64 = 1 << 39;
}

/// Flags of [`OpenOut`].
pub(super) const OPEN_DIRECT_IO: u32 = 1 << 0;
/// Closing the file asks nothing. Linux 5.16; older ones do not know it, and ask once.
pub(super) const OPEN_NO_FLUSH: u32 = 1 << 5;
pub(super) const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// A notification's code stands where an answer has its error.
pub(super) const NOTIFY_RESEND: i32 = 7;

/// `struct fuse_in_header`
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) length: u32,
    pub(super) opcode: u32,
    /// What the answer has to repeat, all of it: the highest bit says that the request was sent before.
    pub(super) unique: u64,
    pub(super) node: u64,
    uid: u32,
    gid: u32,
    pid: u32,
    extension_length: u16,
    padding: u16,
}

/// `struct fuse_out_header`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) length: u32,
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// `struct fuse_init_in`, without what later versions put after it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
}

/// `struct fuse_init_out`
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitOut {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) max_background: u16,
    pub(super) congestion_threshold: u16,
    pub(super) max_write: u32,
    pub(super) time_granularity_ns: u32,
    pub(super) max_pages: u16,
    pub(super) map_alignment: u16,
    pub(super) flags2: u32,
    pub(super) max_stack_depth: u32,
    pub(super) unused: [u32; 6],
}

/// `struct fuse_attr`
#[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Attributes {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) times_s: [u64; 3],
    pub(super) times_ns: [u32; 3],
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) block_size: u32,
    pub(super) flags: u32,
}

/// `struct fuse_attr_out`
#[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) valid_s: u64,
    pub(super) valid_ns: u32,
    pub(super) padding: u32,
    pub(super) attributes: Attributes,
}

/// `struct fuse_entry_out`
#[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct EntryOut {
    pub(super) node: u64,
    pub(super) generation: u64,
    pub(super) entry_valid_s: u64,
    pub(super) attributes_valid_s: u64,
    pub(super) entry_valid_ns: u32,
    pub(super) attributes_valid_ns: u32,
    pub(super) attributes: Attributes,
}

/// `struct fuse_open_out`
#[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OpenOut {
    pub(super) handle: u64,
    pub(super) flags: u32,
    pub(super) backing: u32,
}

/// `struct fuse_write_out`
#[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct WriteOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// `struct fuse_statfs_out`
#[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub(super) counts: [u64; 5],
    pub(super) block_size: u32,
    pub(super) longest_name: u32,
    pub(super) fragment_size: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

/// `struct fuse_dirent`, before the name.
#[derive(Clone, Copy, Debug, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct DirectoryEntry {
    inode: u64,
    next_offset: u64,
    name_length: u32,
    kind: u32,
}

/// `struct fuse_read_in`
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ReadIn {
    handle: u64,
    offset: u64,
    size: u32,
    read_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

/// `struct fuse_write_in`
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct WriteIn {
    handle: u64,
    offset: u64,
    size: u32,
    write_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

/// `struct fuse_fallocate_in`
#[derive(Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct FallocateIn {
    handle: u64,
    offset: u64,
    length: u64,
    mode: u32,
    padding: u32,
}

/// Where the bytes of a write begin in its request.
pub(super) const WRITE_PAYLOAD_AT: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// What the kernel asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation<'a> {
    /// The first request of a session, and the flags of both words.
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    GetAttributes,
    Open,
    OpenDirectory,
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        bytes: &'a [u8],
    },
    Allocate {
        offset: u64,
        length: u64,
        mode: i32,
    },
    ReadDirectory {
        offset: u64,
        size: u32,
    },
    StatFileSystem,
    Release,
    Destroy,
    /// Nothing that is answered: nodes are forgotten, requests interrupted.
    Unanswered,
    /// Nothing that this file system does.
    Other,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    pub(super) operation: Operation<'a>,
}

/// Why bytes are no request. Where the header could be read, an answer can say so to who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Malformed {
    pub(super) unique: Option<u64>,
}

impl<'a> Request<'a> {
    /// # Errors
    /// [`Malformed`] where the bytes end before what they announce.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = InHeader::read_from_prefix(bytes).map_err(|_| Malformed { unique: None })?;
        let malformed = Malformed { unique: Some(header.unique) };
        let body = bytes.get(size_of::<InHeader>()..header.length as usize).ok_or(malformed)?;
        let operation = Operation::parse(header.opcode, body).ok_or(malformed)?;
        Ok(Self { header, operation })
    }
}

impl<'a> Operation<'a> {
    fn parse(opcode: u32, body: &'a [u8]) -> Option<Self> {
        Some(match opcode {
            1 => Self::Lookup { name: body.get(..body.iter().position(|byte| *byte == 0)?)? },
            2 | 36 | 42 => Self::Unanswered,
            3 => Self::GetAttributes,
            14 => Self::Open,
            15 => {
                let read = prefix::<ReadIn>(body)?;
                Self::Read { offset: read.offset, size: read.size }
            }
            16 => {
                let (write, bytes) = WriteIn::read_from_prefix(body).ok()?;
                Self::Write { offset: write.offset, bytes: bytes.get(..write.size as usize)? }
            }
            17 => Self::StatFileSystem,
            18 | 29 => Self::Release,
            26 => {
                let (init, rest) = InitIn::read_from_prefix(body).ok()?;
                let second = if u64::from(init.flags) & flags::INIT_EXT == 0 { 0 } else { prefix::<u32>(rest)? };
                let flags = u64::from(init.flags) | u64::from(second) << 32;
                Self::Init { major: init.major, minor: init.minor, max_readahead: init.max_readahead, flags }
            }
            27 => Self::OpenDirectory,
            28 => {
                let read = prefix::<ReadIn>(body)?;
                Self::ReadDirectory { offset: read.offset, size: read.size }
            }
            38 => Self::Destroy,
            43 => {
                let allocate = prefix::<FallocateIn>(body)?;
                let mode = allocate.mode.cast_signed();
                Self::Allocate { offset: allocate.offset, length: allocate.length, mode }
            }
            _ => Self::Other,
        })
    }
}

fn prefix<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// Adds an entry of a directory to what is answered; false where `most_bytes` have no room for it.
pub(super) fn push_entry(
    into: &mut Vec<u8>,
    most_bytes: usize,
    inode: u64,
    next_offset: u64,
    kind: u32,
    name: &str,
) -> bool {
    let entry = DirectoryEntry { inode, next_offset, name_length: name.len() as u32, kind };
    let end = (into.len() + size_of_val(&entry) + name.len()).next_multiple_of(8);
    if end > most_bytes {
        return false;
    }
    into.extend_from_slice(entry.as_bytes());
    into.extend_from_slice(name.as_bytes());
    into.resize(end, 0);
    true
}

/// Parses any bytes as the session does with what it reads. For fuzzing.
pub(crate) fn fuzz(bytes: &[u8]) {
    match Request::parse(bytes) {
        Ok(Request { header, operation }) => {
            assert!(header.length as usize <= bytes.len());
            let within = |part: &[u8]| {
                bytes.as_ptr_range().start <= part.as_ptr() && part.as_ptr_range().end <= bytes.as_ptr_range().end
            };
            match operation {
                Operation::Write { bytes: part, .. } => assert!(within(part)),
                Operation::Lookup { name } => assert!(within(name) && !name.contains(&0)),
                _ => {}
            }
        }
        Err(Malformed { unique }) => assert_eq!(unique.is_some(), bytes.len() >= size_of::<InHeader>()),
    }
}

#[cfg(test)]
mod tests;
