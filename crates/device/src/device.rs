//! Reads and writes of a block device over chunks and an overlay.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use snowmelt_cache::Tiers;
use snowmelt_chunk::OpenedManifest;

use crate::access_log::Access;
use crate::buffers::ChunkBuffer;
use crate::loader::{Found, Loaded, Loader};
use crate::options::DeviceOptions;
use crate::overlay::{Overlay, PAGE};
use crate::reader::ChunkReader;
use crate::stats::{Counters, Stats};
use crate::{Error, ImageChunks};

/// A block device whose content is loaded when it is read. All methods may be called from many threads.
pub struct Device {
    pub(crate) loader: Loader,
    pub(crate) overlay: Option<Overlay>,
    drops_writes: AtomicBool,
    size: u64,
    pub(crate) chunk_size: u64,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("image", &self.image()).field("size", &self.size).finish_non_exhaustive()
    }
}

/// The part of a read that lies in one chunk.
struct Part {
    chunk: u64,
    /// Bytes of the device.
    range: Range<u64>,
    /// `None` where the image has nothing, or nothing that shows through the overlay.
    content: Option<Arc<ChunkBuffer>>,
}

/// A read that waits for chunks.
struct Waiting {
    parts: Mutex<(Vec<Part>, Option<Error>)>,
    missing: AtomicUsize,
    done: Mutex<Option<PartsDone>>,
}

type PartsDone = Box<dyn FnOnce(Result<Vec<Part>, Error>) + Send>;

impl Waiting {
    fn arrive(&self, part: usize, loaded: Loaded) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(chunk) => parts.0[part].content = Some(chunk),
            Err(error) => parts.1 = Some(error),
        }
        drop(parts);
        self.count_down();
    }

    fn count_down(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let (parts, error) = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        done.expect("the count reaches zero once")(error.map_or(Ok(parts), Err));
    }
}

thread_local! {
    /// Where reads of several parts are put together; kept, since fresh memory is slow.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Device {
    /// A device over a published image, called `options.image_name` or by its manifest's id in messages.
    ///
    /// # Errors
    /// [`Error::Io`] when the overlay cannot be made.
    pub fn new(image: OpenedManifest, tiers: Arc<Tiers>, options: DeviceOptions) -> Result<Self, Error> {
        let name = options.image_name.clone().unwrap_or_else(|| image.id().to_string());
        Self::with_reader(Arc::new(ImageChunks::new(name, image, tiers)), options)
    }

    /// A device over any chunks.
    ///
    /// # Errors
    /// [`Error::Io`] when the overlay cannot be made.
    pub fn with_reader(reader: Arc<dyn ChunkReader>, options: DeviceOptions) -> Result<Self, Error> {
        let overlay = if options.writable {
            let (image, size_bytes) = (reader.image(), reader.geometry().image_size);
            Some(Overlay::new(image, &options.overlay_directory, options.overlay_bytes, size_bytes)?)
        } else {
            None
        };
        Ok(Self::with_overlay(reader, overlay, options))
    }

    pub(crate) fn with_overlay(reader: Arc<dyn ChunkReader>, overlay: Option<Overlay>, options: DeviceOptions) -> Self {
        let geometry = reader.geometry();
        Self {
            loader: Loader::new(reader, options),
            overlay,
            drops_writes: AtomicBool::new(false),
            size: geometry.image_size,
            chunk_size: u64::from(geometry.chunk_size),
        }
    }

    /// Bytes of the device.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Whether it takes writes.
    pub fn is_writable(&self) -> bool {
        self.overlay.is_some()
    }

    /// How messages call the image.
    pub fn image(&self) -> &str {
        self.loader.0.reader.image()
    }

    /// What it did so far.
    pub fn stats(&self) -> Stats {
        let overlay_bytes = self.overlay.as_ref().map_or(0, Overlay::used_bytes);
        let spent = self.loader.0.reader.spent();
        let log = &self.loader.0.log;
        self.counters().read(log.len(), log.in_vain().len() as u64, overlay_bytes, spent)
    }

    /// The chunks that reads needed, in the order of their first need.
    pub fn access_log(&self) -> Vec<Access> {
        self.loader.0.log.entries()
    }

    /// Why the last read failed that did; `None` if all went well.
    pub fn last_failure(&self) -> Option<Error> {
        self.loader.0.lock().last_failure.clone()
    }

    /// From now on writes are taken and forgotten: for when what is on top is about to be unmounted for good, and writes all
    /// that it has not written yet.
    pub fn drop_writes(&self) {
        self.drops_writes.store(true, Ordering::Release);
    }

    /// The chunks and the reads of the start, in their order: reads as bytes of the device.
    pub(crate) fn start_reads(&self) -> (Vec<u64>, Vec<Range<u64>>) {
        self.loader.0.log.start()
    }

    pub(crate) fn prefetched_in_vain(&self) -> Vec<u64> {
        self.loader.0.log.in_vain()
    }

    pub(crate) fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    /// Which of the chunks can be read without waiting for another machine.
    pub fn are_near(&self, indices: &[u64]) -> Vec<bool> {
        self.loader.0.reader.are_near(indices)
    }

    /// Begins to load chunks in this order, in the background. Holes and chunks outside of the image are left out.
    pub fn prefetch(&self, chunks: impl IntoIterator<Item = u64>) {
        self.loader.prefetch(chunks);
    }

    /// Begins to bring chunks near in this order, without opening them, whenever nothing else is to be loaded and no read
    /// waits. Ends with the device.
    pub fn fetch_in_background(&self, chunks: impl IntoIterator<Item = u64>) {
        self.loader.fetch_in_background(chunks);
    }

    /// Brings chunks near in this order, and waits until all are. `progress` is told how many bytes of how many are there.
    ///
    /// # Errors
    /// Those of loading a chunk; one that is unavailable is tried again until the deadline, if the options say so.
    pub fn fetch_all(
        &self,
        chunks: impl IntoIterator<Item = u64>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), Error> {
        self.loader.fetch_all(chunks, progress)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.loader.0.counters
    }

    /// Fills `buf` with the bytes at `offset`. Blocks while chunks are loaded.
    ///
    /// # Errors
    /// Those of loading a chunk, and [`Error::Invalid`] for a range outside of the device.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let start = Instant::now();
        let range = self.check("read", offset, buf.len())?;
        let (sender, receiver) = mpsc::sync_channel(1);
        self.with_parts(range, move |parts| {
            // The receiver is there until it has received.
            let _ = sender.send(parts);
        });
        let parts = receiver.recv().expect("a read is always answered")?;
        let copying = Instant::now();
        let result = self.gather(&parts, offset, buf);
        self.counters().copy_ns.add_since(copying);
        self.counters().serve_ns.add_since(start);
        result
    }

    /// Reads, and gives the bytes to `done`: at once where they are in memory, else later on a thread of the loader. `done`
    /// gets a slice of the chunk itself wherever one chunk has it all.
    pub(crate) fn read_with(
        self: &Arc<Self>,
        offset: u64,
        length: usize,
        done: impl FnOnce(Result<&[u8], Error>) + Send + 'static,
    ) {
        let start = Instant::now();
        let range = match self.check("read", offset, length) {
            Ok(range) => range,
            Err(error) => return done(Err(error)),
        };
        let device = Arc::clone(self);
        self.with_parts(range, move |parts| {
            let counters = device.counters();
            let parts = match parts {
                Ok(parts) => parts,
                Err(error) => return done(Err(error)),
            };
            let copying = Instant::now();
            match device.slice(&parts) {
                Some(bytes) => done(Ok(bytes)),
                None => SCRATCH.with_borrow_mut(|scratch| {
                    if scratch.len() < length {
                        scratch.resize(length, 0);
                    }
                    match device.gather(&parts, offset, &mut scratch[..length]) {
                        Ok(()) => done(Ok(&scratch[..length])),
                        Err(error) => done(Err(error)),
                    }
                }),
            }
            counters.copy_ns.add_since(copying);
            counters.serve_ns.add_since(start);
        });
    }

    /// Writes to the overlay. Blocks for a chunk only where a page is written in part for the first time.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when the overlay is full, [`Error::Invalid`] outside of the device or when it is read-only,
    /// [`Error::Io`] of the overlay's file, and those of loading a chunk.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let range = self.check("write", offset, bytes.len())?;
        let overlay = self.overlay_for("write")?;
        if self.drops_writes.load(Ordering::Acquire) {
            return Ok(());
        }
        self.counters().writes.add(1);
        self.counters().written_bytes.add(bytes.len() as u64);
        let whole = whole_pages(&range);
        if whole.is_empty() {
            // No page is written as a whole: the range lies in one page, or in two neighbours.
            let cut = range.start.next_multiple_of(PAGE).clamp(range.start, range.end);
            let (head, tail) = bytes.split_at((cut - offset) as usize);
            self.write_part(overlay, range.start, head)?;
            return self.write_part(overlay, cut, tail);
        }
        let (head, rest) = bytes.split_at((whole.start * PAGE - offset) as usize);
        let (middle, tail) = rest.split_at(((whole.end - whole.start) * PAGE) as usize);
        self.write_part(overlay, offset, head)?;
        overlay.write_pages(whole.start, middle)?;
        self.write_part(overlay, whole.end * PAGE, tail)
    }

    /// Whether [`Device::write_at`] of this range can be done without waiting for a chunk.
    pub(crate) fn writes_at_once(offset: u64, length: usize) -> bool {
        offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE as usize)
    }

    /// Writes what lies within one page.
    fn write_part(&self, overlay: &Overlay, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let page = offset / PAGE;
        let range = page * PAGE..(page + 1) * PAGE;
        let mut base = None;
        if !overlay.covers(&range) {
            let mut content = [0; PAGE as usize];
            self.read_at(range.start, &mut content)?;
            base = Some(content);
        }
        overlay.write_within(page, (offset - page * PAGE) as usize, bytes, base.as_ref())
    }

    /// Has a range read as zeros and gives its room in the overlay back. Serves discards too, which may read as anything.
    ///
    /// # Errors
    /// As [`Device::write_at`].
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), Error> {
        let range = self.check("write zeros", offset, usize::try_from(length).unwrap_or(usize::MAX))?;
        let overlay = self.overlay_for("write zeros")?;
        self.counters().discards.add(1);
        let zeros = [0; PAGE as usize];
        let whole = whole_pages(&range);
        if whole.is_empty() {
            let cut = range.start.next_multiple_of(PAGE).clamp(range.start, range.end);
            self.write_part(overlay, range.start, &zeros[..(cut - range.start) as usize])?;
            return self.write_part(overlay, cut, &zeros[..(range.end - cut) as usize]);
        }
        self.write_part(overlay, offset, &zeros[..(whole.start * PAGE - offset) as usize])?;
        overlay.zero_pages(whole.clone())?;
        self.write_part(overlay, whole.end * PAGE, &zeros[..(range.end - whole.end * PAGE) as usize])
    }

    /// A range that need not be kept: it reads as zeros from now on.
    ///
    /// # Errors
    /// As [`Device::write_at`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.write_zeroes(offset, length)
    }

    /// Does nothing: the overlay outlives its process at once, and the machine never.
    ///
    /// # Errors
    /// None now.
    pub fn flush(&self) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, operation: &'static str, offset: u64, length: usize) -> Result<Range<u64>, Error> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.size => Ok(offset..end),
            _ => Err(Error::Invalid {
                operation,
                subject: format!(
                    "{length} bytes at {offset} are not within the {} bytes of {}",
                    self.size,
                    self.image()
                ),
            }),
        }
    }

    fn overlay_for(&self, operation: &'static str) -> Result<&Overlay, Error> {
        let subject = || format!("{} was opened read-only", self.image());
        self.overlay.as_ref().ok_or_else(|| Error::Invalid { operation, subject: subject() })
    }

    /// Calls `done` with the chunks that the range needs, at once or when they have been loaded.
    fn with_parts(&self, range: Range<u64>, done: impl FnOnce(Result<Vec<Part>, Error>) + Send + 'static) {
        let counters = self.counters();
        counters.reads.add(1);
        counters.read_bytes.add(range.end - range.start);
        self.loader.0.log.note_read(&range, self.loader.0.options.clock.now());
        let parts = self.parts(&range);
        let mut held: Vec<Option<Arc<ChunkBuffer>>> = Vec::with_capacity(parts.len());
        let mut missing = false;
        for part in &parts {
            let covered = self.overlay.as_ref().is_some_and(|overlay| overlay.covers(&part.range));
            let content = if covered { None } else { self.loader.peek(part.chunk) };
            missing |= content.is_none() && !covered && self.loader.0.reader.stored_length(part.chunk) != 0;
            held.push(content);
        }
        let mut parts = parts;
        for (part, content) in parts.iter_mut().zip(held) {
            part.content = content;
        }
        if !missing {
            counters.reads_from_memory.add(1);
            return done(Ok(parts));
        }
        self.load_parts(parts, Box::new(done));
    }

    /// Has every chunk that is missing loaded, all at once.
    fn load_parts(&self, parts: Vec<Part>, done: PartsDone) {
        let wanted: Vec<(usize, u64)> = parts
            .iter()
            .enumerate()
            .filter(|(_, part)| {
                part.content.is_none() && !self.overlay.as_ref().is_some_and(|overlay| overlay.covers(&part.range))
            })
            .map(|(at, part)| (at, part.chunk))
            .collect();
        let waiting = Arc::new(Waiting {
            parts: Mutex::new((parts, None)),
            // One more than chunks, counted down at the end, so that nothing is done before all have been asked for.
            missing: AtomicUsize::new(wanted.len() + 1),
            done: Mutex::new(Some(done)),
        });
        for (at, chunk) in wanted {
            let found = self.loader.get(chunk, || {
                let waiting = Arc::clone(&waiting);
                Box::new(move |loaded| waiting.arrive(at, loaded))
            });
            match found {
                Found::Here(chunk) => waiting.arrive(at, Ok(chunk)),
                Found::Hole => waiting.count_down(),
                Found::Failed(error) => waiting.arrive(at, Err(error)),
                Found::Later => {}
            }
        }
        waiting.count_down();
    }

    fn parts(&self, range: &Range<u64>) -> Vec<Part> {
        (range.start / self.chunk_size..range.end.div_ceil(self.chunk_size))
            .map(|chunk| {
                let start = chunk * self.chunk_size;
                let part = range.start.max(start)..range.end.min(start + self.chunk_size);
                Part { chunk, range: part, content: None }
            })
            .collect()
    }

    /// The bytes themselves, where one chunk has them all.
    fn slice<'a>(&self, parts: &'a [Part]) -> Option<&'a [u8]> {
        let [part] = parts else { return None };
        if self.overlay.as_ref().is_some_and(|overlay| overlay.touches(&part.range)) {
            return None;
        }
        let start = part.chunk * self.chunk_size;
        part.content.as_ref()?.get((part.range.start - start) as usize..(part.range.end - start) as usize)
    }

    /// Puts the parts of a read together: stored bytes, zeros after them, and over both what was written.
    fn gather(&self, parts: &[Part], offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        for part in parts {
            let into = &mut buf[(part.range.start - offset) as usize..(part.range.end - offset) as usize];
            let from = (part.range.start - part.chunk * self.chunk_size) as usize;
            let stored = part.content.as_ref().and_then(|content| content.get(from..)).unwrap_or(&[]);
            let stored = &stored[..stored.len().min(into.len())];
            into[..stored.len()].copy_from_slice(stored);
            into[stored.len()..].fill(0);
        }
        match &self.overlay {
            Some(overlay) => overlay.read_over(offset, buf),
            None => Ok(()),
        }
    }
}

/// The pages that lie in the range as a whole; empty, not negative, where there are none.
fn whole_pages(range: &Range<u64>) -> Range<u64> {
    let start = range.start.div_ceil(PAGE);
    start..(range.end / PAGE).max(start)
}
