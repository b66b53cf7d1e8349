//! Memory for decrypted chunks, used again and again: the first touch of fresh pages costs more than decrypting into them.
//!
//! Buffers lie side by side in one mapping that the kernel is asked to back with huge pages: one fault for four chunks of
//! 512 KiB rather than 128 for each. What is asked for beyond it comes from the heap.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The size of a huge page on the machines that have them; elsewhere the advice does nothing.
const HUGE_PAGE: usize = 2 << 20;

/// Free buffers, all of one size.
#[derive(Debug)]
pub(crate) struct BufferPool {
    state: Mutex<State>,
    buffer_bytes: usize,
    most_free: usize,
    mapping: Option<Mapping>,
}

#[derive(Debug, Default)]
struct State {
    /// Places in the mapping; the last one given back is the first to be used again, since it is in the processor's cache.
    places: Vec<usize>,
    /// How many places were ever used.
    used_places: usize,
    heap: Vec<Box<[u8]>>,
}

/// Anonymous memory of this process.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
    /// Where the first huge page begins.
    aligned: usize,
    places: usize,
}

// SAFETY: the mapping is memory like any other; who may touch which part of it is ruled by `State::places`.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Room for `places` buffers; `None` where the system gives none.
    #[allow(unsafe_code)]
    fn new(buffer_bytes: usize, places: usize) -> Option<Self> {
        let length = (buffer_bytes.checked_mul(places)?).checked_add(2 * HUGE_PAGE)?.next_multiple_of(HUGE_PAGE);
        // SAFETY: a fresh anonymous mapping at a place of the kernel's choice touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let start = NonNull::new(start.ok()?.cast::<u8>())?;
        let aligned = start.as_ptr().addr().next_multiple_of(HUGE_PAGE) - start.as_ptr().addr();
        // SAFETY: the range lies inside of the mapping, which nobody uses yet. Where the advice is refused, small pages do.
        let _ = std::env::var_os("SNOWMELT_NOHUGE").is_some()
            || unsafe { madvise(start.as_ptr().add(aligned).cast(), length - aligned, Advice::LinuxHugepage) }.is_ok();
        Some(Self { start, length, aligned, places })
    }

    fn place(&self, place: usize, buffer_bytes: usize) -> NonNull<[u8]> {
        debug_assert!(place < self.places, "places are counted from 0");
        let start = self.start.as_ptr().wrapping_add(self.aligned + place * buffer_bytes);
        NonNull::slice_from_raw_parts(NonNull::new(start).expect("a place lies inside of the mapping"), buffer_bytes)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: every buffer holds the pool, and with it this mapping: none is left that points here.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl BufferPool {
    /// Buffers of `buffer_bytes`; at most `most_free` are kept while nobody uses them.
    pub(crate) fn new(buffer_bytes: usize, most_free: usize) -> Arc<Self> {
        let mapping = Mapping::new(buffer_bytes, most_free);
        Arc::new(Self { state: Mutex::default(), buffer_bytes, most_free, mapping })
    }

    /// A buffer of `length` bytes (at most the pool's size) with arbitrary content of this same image.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> ChunkBuffer {
        assert!(length <= self.buffer_bytes, "a chunk is no longer than the chunk size");
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |state: &mut State| {
            let mapping = self.mapping.as_ref().filter(|mapping| state.used_places < mapping.places)?;
            state.used_places += 1;
            debug_assert!(state.used_places <= mapping.places, "as filtered");
            Some(state.used_places - 1)
        };
        let place = state.places.pop().or_else(|| fresh(&mut state));
        let memory = match (place, &self.mapping) {
            (Some(place), Some(mapping)) => Memory::Mapped(place, mapping.place(place, self.buffer_bytes)),
            _ => Memory::Heap(state.heap.pop().unwrap_or_else(|| vec![0; self.buffer_bytes].into_boxed_slice())),
        };
        drop(state);
        ChunkBuffer { memory, length, pool: Arc::clone(self) }
    }
}

#[derive(Debug)]
enum Memory {
    /// A place of the pool's mapping, which nobody else has.
    Mapped(usize, NonNull<[u8]>),
    Heap(Box<[u8]>),
}

/// The stored part of one chunk, decrypted. Goes back to its pool when dropped.
#[derive(Debug)]
pub(crate) struct ChunkBuffer {
    memory: Memory,
    length: usize,
    pool: Arc<BufferPool>,
}

// SAFETY: the buffer owns its place as a box owns its bytes.
#[allow(unsafe_code)]
unsafe impl Send for ChunkBuffer {}
// SAFETY: as above; through a shared reference it is only read.
#[allow(unsafe_code)]
unsafe impl Sync for ChunkBuffer {}

impl ChunkBuffer {
    #[allow(unsafe_code)]
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        let bytes = match &mut self.memory {
            // SAFETY: the place is this buffer's alone until it is dropped, mapped as long as the pool lives, and zeroed or
            // written by an earlier owner, so initialised.
            Memory::Mapped(_, bytes) => unsafe { bytes.as_mut() },
            Memory::Heap(bytes) => bytes,
        };
        &mut bytes[..self.length]
    }
}

impl Deref for ChunkBuffer {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        let bytes = match &self.memory {
            // SAFETY: as in `as_mut`; the shared reference keeps writers out.
            Memory::Mapped(_, bytes) => unsafe { bytes.as_ref() },
            Memory::Heap(bytes) => bytes,
        };
        &bytes[..self.length]
    }
}

impl Drop for ChunkBuffer {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut self.memory {
            Memory::Mapped(place, _) => state.places.push(*place),
            Memory::Heap(bytes) if state.heap.len() < self.pool.most_free => state.heap.push(std::mem::take(bytes)),
            Memory::Heap(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_apart_and_come_back() {
        let pool = BufferPool::new(1000, 3);
        let mut buffers: Vec<_> = (0..10_u8).map(|_| pool.take(1000)).collect();
        for (number, buffer) in buffers.iter_mut().enumerate() {
            buffer.as_mut().fill(number as u8);
        }
        for (number, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|byte| *byte == number as u8), "{number}");
        }
        drop(buffers);
        let state = pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((state.places.len(), state.heap.len()), (3, 3));
    }
}
