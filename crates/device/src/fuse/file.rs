//! The file system: one file, which is the device.

use std::sync::Arc;
use std::time::Duration;

use super::protocol::{
    AttrOut, Attributes, EntryOut, OPEN_DIRECT_IO, OPEN_NO_FLUSH, OPEN_PARALLEL_DIRECT_WRITES, OpenOut, Operation,
    Request, StatfsOut, WriteOut, push_entry,
};
use super::reply::Reply;
use crate::{Device, Error};

/// The file's name where the mount's root has to be a directory.
pub(super) const FILE_NAME: &str = "device";
/// The number of the mount's root.
const ROOT: u64 = 1;
/// Attributes never change.
const TTL: Duration = Duration::from_hours(24);
/// A directory's entries have to fit; that of the kernel is one page, and there are three of them.
const MOST_DIRECTORY_BYTES: usize = 4096;

/// What is served.
pub(super) struct DeviceFile {
    pub(super) device: Arc<Device>,
    pub(super) is_directory: bool,
}

impl DeviceFile {
    /// Answers, now or later on another thread.
    pub(super) fn answer(&self, request: &Request<'_>, reply: Reply) {
        let node = request.header.node;
        match request.operation {
            Operation::Lookup { name } => self.look_up(node, name, reply),
            Operation::GetAttributes => match self.attributes(node) {
                Some(attributes) => {
                    reply.structure(&AttrOut { valid_s: TTL.as_secs(), attributes, ..AttrOut::default() });
                }
                None => reply.error(libc::ENOENT),
            },
            // The file system on top caches pages: caching them here as well would take the memory twice. And who closes the
            // file, or has it closed by ending or by executing a program, must not wait for an answer: it may be the process
            // that is to start a successor, or that successor itself before it is executed.
            Operation::Open => {
                let flags = OPEN_DIRECT_IO | OPEN_NO_FLUSH | OPEN_PARALLEL_DIRECT_WRITES;
                reply.structure(&OpenOut { flags, ..OpenOut::default() });
            }
            Operation::OpenDirectory => reply.structure(&OpenOut::default()),
            Operation::Read { offset, size } => self.read(offset, size, reply),
            Operation::Write { offset, bytes } => self.write(offset, bytes, reply),
            Operation::Allocate { offset, length, mode } => self.allocate(offset, length, mode, reply),
            Operation::ReadDirectory { offset, size } => self.read_directory(offset, size, reply),
            Operation::StatFileSystem => {
                reply.structure(&StatfsOut { block_size: 512, longest_name: 255, ..StatfsOut::default() });
            }
            Operation::Release | Operation::Destroy => reply.ok(),
            Operation::Unanswered => reply.none(),
            // Among them flush and fsync, which the kernel asks once and, told that they are not there, never again: nothing
            // has to be flushed. A second INIT is none of what it asks either.
            Operation::Init { .. } | Operation::Other => reply.error(libc::ENOSYS),
        }
    }

    /// The number of the file.
    fn file_node(&self) -> u64 {
        if self.is_directory { 2 } else { ROOT }
    }

    fn attributes(&self, node: u64) -> Option<Attributes> {
        let is_file = node == self.file_node();
        if !is_file && node != ROOT {
            return None;
        }
        let size = if is_file { self.device.size_bytes() } else { 0 };
        let mode = match (is_file, self.device.is_writable()) {
            (false, _) => libc::S_IFDIR | 0o500,
            (true, true) => libc::S_IFREG | 0o600,
            (true, false) => libc::S_IFREG | 0o400,
        };
        Some(Attributes {
            inode: node,
            size,
            blocks: size / 512,
            mode,
            links: 1,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            block_size: 4096,
            ..Attributes::default()
        })
    }

    fn look_up(&self, parent: u64, name: &[u8], reply: Reply) {
        let node = self.file_node();
        match self.attributes(node) {
            Some(attributes) if self.is_directory && parent == ROOT && name == FILE_NAME.as_bytes() => {
                let (entry_valid_s, attributes_valid_s) = (TTL.as_secs(), TTL.as_secs());
                reply.structure(&EntryOut {
                    node,
                    entry_valid_s,
                    attributes_valid_s,
                    attributes,
                    ..EntryOut::default()
                });
            }
            _ => reply.error(libc::ENOENT),
        }
    }

    fn read(&self, offset: u64, size: u32, reply: Reply) {
        // A read past the end is short, as that of any file.
        let left = self.device.size_bytes().saturating_sub(offset);
        let length = u64::from(size).min(left) as usize;
        self.device.read_with(offset.min(self.device.size_bytes()), length, move |result| match result {
            Ok(bytes) => reply.bytes(bytes),
            Err(error) => reply.error(error.errno()),
        });
    }

    fn write(&self, offset: u64, bytes: &[u8], reply: Reply) {
        let answer = |result: Result<(), Error>, length: usize, reply: Reply| match result {
            Ok(()) => reply.structure(&WriteOut { size: length as u32, padding: 0 }),
            Err(error) => reply.error(error.errno()),
        };
        if Device::writes_at_once(offset, bytes.len()) {
            return answer(self.device.write_at(offset, bytes), bytes.len(), reply);
        }
        // Seldom: file systems write blocks. It may need a chunk, so it must not keep this thread.
        let (device, bytes) = (Arc::clone(&self.device), bytes.to_vec());
        let spawned = std::thread::Builder::new()
            .name("fuse-write".into())
            .spawn(move || answer(device.write_at(offset, &bytes), bytes.len(), reply));
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to write with");
        }
    }

    /// Holes and zeros only, and only whole pages, so that no chunk is needed.
    fn allocate(&self, offset: u64, length: u64, mode: i32, reply: Reply) {
        let (zero, punch) = (libc::FALLOC_FL_ZERO_RANGE, libc::FALLOC_FL_PUNCH_HOLE);
        if mode & !(libc::FALLOC_FL_KEEP_SIZE | zero | punch) != 0 || mode & (zero | punch) == 0 {
            return reply.error(libc::EOPNOTSUPP);
        }
        let Some(start) = offset.checked_next_multiple_of(4096) else { return reply.error(libc::EINVAL) };
        let end = offset.saturating_add(length).min(self.device.size_bytes()) / 4096 * 4096;
        if mode & zero != 0 && (start, end) != (offset, offset.saturating_add(length)) {
            return reply.error(libc::EOPNOTSUPP);
        }
        match self.device.write_zeroes(start.min(end), end.saturating_sub(start)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.errno()),
        }
    }

    fn read_directory(&self, offset: u64, size: u32, reply: Reply) {
        // linux/dirent.h
        let entries =
            [(ROOT, libc::DT_DIR, "."), (ROOT, libc::DT_DIR, ".."), (self.file_node(), libc::DT_REG, FILE_NAME)];
        let mut bytes = Vec::new();
        let most = (size as usize).min(MOST_DIRECTORY_BYTES);
        for (next, (node, kind, name)) in (1..).zip(entries).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if !push_entry(&mut bytes, most, node, next, u32::from(kind), name) {
                break;
            }
        }
        reply.bytes(&bytes);
    }
}
