//! Reads an image's layers: several at a time, each once, entries to memory and contents to a spool.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::dropped::Dropped;
use crate::error::Error;
use crate::flatten::Progress;
use crate::layer_reader::decompress;
use crate::merge::{LayerEntry, MergedTree};
use crate::read_ahead::ReadAhead;
use crate::sources::Source;
use crate::spool::{Content, Spool, SpoolWriter};
use crate::tar_entries::{EntryError, EntryKind, Piece, Problem, TarReader};

/// Entries of an image that are read before it counts as an attack: memory for them is the only memory that grows.
const MAX_ENTRIES: u64 = 16_000_000;
/// Bytes of names, link targets, extended attributes and sparse maps in all of them together, for the same reason: a few
/// MiB of compressed layer can hold any number of them. A million files with paths of 100 bytes have a tenth of this.
const MAX_METADATA_BYTES: u64 = 1 << 30;
/// How much of a layer is read on after an error, to learn whether the layer was damaged.
const MAX_DRAIN_BYTES: u64 = 8 << 30;

type ProgressSink<'a> = Option<&'a (dyn Fn(Progress) + Sync)>;

/// A layer's entries in order, and the spool that holds their contents.
#[derive(Debug)]
pub(crate) struct ReadLayer {
    pub(crate) entries: Vec<LayerEntry>,
    pub(crate) spool: Spool,
    pub(crate) dropped: Dropped,
}

/// What entries of all layers may take in memory. They are counted however they are spread over layers, which are read at
/// the same time.
struct Budget {
    entries: AtomicU64,
    bytes: AtomicU64,
    max_entries: u64,
    max_bytes: u64,
}

impl Budget {
    fn new(max_entries: u64, max_bytes: u64) -> Budget {
        Budget { entries: AtomicU64::new(0), bytes: AtomicU64::new(0), max_entries, max_bytes }
    }

    fn take(&self, entry: &LayerEntry) -> Result<(), Problem> {
        let Budget { max_entries, max_bytes, .. } = self;
        if self.entries.fetch_add(1, Ordering::Relaxed) >= *max_entries {
            return Err(Problem::unsupported(format!("with it the image has more than {max_entries} entries")));
        }
        let bytes = entry.metadata_bytes();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > *max_bytes {
            return Err(Problem::unsupported(format!(
                "with it the names, link targets and extended attributes of the image's layers take more than {max_bytes} bytes"
            )));
        }
        Ok(())
    }
}

/// Reads all layers, with as many threads as there are processors. The error is that of the lowest layer that has one.
pub(crate) fn read_all(
    source: &dyn Source,
    directory: &Path,
    progress: ProgressSink<'_>,
) -> Result<Vec<ReadLayer>, Error> {
    let count = source.layers().len();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(count);
    read_with(source, directory, progress, threads)
}

/// As [`read_all`], with the number of threads given.
pub(crate) fn read_with(
    source: &dyn Source,
    directory: &Path,
    progress: ProgressSink<'_>,
    threads: usize,
) -> Result<Vec<ReadLayer>, Error> {
    read_within(source, directory, progress, threads, &Budget::new(MAX_ENTRIES, MAX_METADATA_BYTES))
}

fn read_within(
    source: &dyn Source,
    directory: &Path,
    progress: ProgressSink<'_>,
    threads: usize,
    budget: &Budget,
) -> Result<Vec<ReadLayer>, Error> {
    let count = source.layers().len();
    let results: Vec<Mutex<Option<Result<ReadLayer, Error>>>> = (0..count).map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        // Layers are taken in order, so all below a failed one are read or being read.
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let result = read_layer(source, index, directory, progress, budget);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            *results[index].lock().expect("no thread panics while it holds a result") = Some(result);
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let results = results.into_iter().map_while(|slot| slot.into_inner().expect("no thread panicked"));
    results.collect()
}

/// How errors name a layer.
pub(crate) fn layer_subject(source: &dyn Source, index: usize) -> String {
    source
        .layers()
        .get(index)
        .map_or_else(|| format!("layer {index}"), |layer| format!("layer {index} ({})", layer.digest))
}

fn read_layer(
    source: &dyn Source,
    index: usize,
    directory: &Path,
    progress: ProgressSink<'_>,
    budget: &Budget,
) -> Result<ReadLayer, Error> {
    let descriptor = &source.layers()[index];
    let subject = layer_subject(source, index);
    let write_error = |error| Error::io("store contents of layers in", directory, error);
    let number = u32::try_from(index).map_err(|_| Error::invalid(&subject, "more layers than can be counted"))?;
    let mut spool = SpoolWriter::create(directory, number).map_err(write_error)?;
    let mut entries = Vec::new();

    let read = Arc::new(AtomicU64::new(0));
    let counted = Counted { input: source.open_layer(index)?, read: Arc::clone(&read) };
    let unpacked = decompress(Box::new(counted), descriptor)?;
    let input = ReadAhead::new(unpacked).map_err(|error| Error::io("start a thread for", directory, error))?;
    let mut reported = 0;
    let mut report = || {
        let now = read.load(Ordering::Relaxed);
        if let (Some(progress), true) = (progress, now > reported) {
            progress(Progress::LayerBytes { read: now - reported });
            reported = now;
        }
    };
    let mut reader = TarReader::new(input);
    let result = loop {
        report();
        match read_entry(&mut reader, &mut spool, &mut report, &write_error) {
            Ok(Some(entry)) => match budget.take(&entry) {
                Ok(()) => entries.push(entry),
                Err(problem) => break Err(reader.error(problem)),
            },
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    report();
    let dropped = reader.take_dropped();
    result.map_err(|error| explain(&subject, error, reader.into_inner()))?;
    entries.shrink_to_fit();
    Ok(ReadLayer { entries, spool: spool.finish().map_err(write_error)?, dropped })
}

/// One entry, its content stored. `report` is called while a long content passes.
fn read_entry(
    reader: &mut TarReader<ReadAhead>,
    spool: &mut SpoolWriter,
    report: &mut dyn FnMut(),
    write_error: &dyn Fn(io::Error) -> Error,
) -> Result<Option<LayerEntry>, EntryError> {
    let Some(entry) = reader.next_entry()? else {
        return Ok(None);
    };
    let mut content: Option<Content> = None;
    if matches!(entry.kind, EntryKind::File { .. }) {
        let mut writer = spool.content();
        // Readers and the spool both fail with `io::Error`; the spool's says what it is.
        reader.copy_body(&mut |piece| {
            report();
            let written = match piece {
                Piece::Data(data) => writer.write(data),
                Piece::Zeros(count) => writer.zeros(count),
            };
            written.map_err(|error| write_error(error).into())
        })?;
        let finished = writer.finish().map_err(|error| write_error(error).into());
        content = Some(finished.map_err(|error: io::Error| reader.error(Problem::Io(error)))?);
    }
    Ok(Some(LayerEntry { entry, content }))
}

/// Names layer and entry. A layer that was damaged on its way seldom still is an archive: if the rest of it shows that
/// its digest is wrong, that is the better message.
fn explain(subject: &str, error: EntryError, rest: ReadAhead) -> Error {
    let subject_entry = format!("{subject}, entry {}", error.entry);
    let (reason, is_format) = match error.problem {
        Problem::Io(error) => return Error::from_read(&subject_entry, error),
        Problem::Malformed(reason) => (reason, true),
        Problem::Unsupported(reason) => (reason, false),
    };
    if let Err(error) = io::copy(&mut rest.take(MAX_DRAIN_BYTES), &mut io::sink()) {
        return Error::from_read(subject, error);
    }
    if is_format { Error::corrupt(subject_entry, reason) } else { Error::invalid(subject_entry, reason) }
}

/// Counts the bytes that were read, for progress.
struct Counted {
    input: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// Reads `data` as a layer and merges it, contents dropped. For fuzzing.
pub(crate) fn fuzz(data: &[u8]) {
    let mut reader = TarReader::new(data);
    let mut tree = MergedTree::new();
    tree.begin_layer();
    let empty = Content { spool: 0, offset: 0, size: 0, ranges: Box::default(), digest: [0; 32] };
    while let Ok(Some(entry)) = reader.next_entry() {
        let copied = reader.copy_body(&mut |_piece| Ok(()));
        if copied.is_err() || tree.apply(LayerEntry { entry, content: Some(empty.clone()) }).is_err() {
            return;
        }
    }
    let _ = tree.finish();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;
    use crate::testing::{Item, MemorySource};

    fn read(source: &MemorySource, budget: &Budget) -> Result<Vec<ReadLayer>, Error> {
        read_within(source, tempfile::tempdir().unwrap().path(), None, 1, budget)
    }

    /// A layer's memory was bounded by its number of entries alone, each of which may bring attributes of many KiB.
    #[test]
    fn memory_for_entries_is_bounded_over_all_layers() {
        let item = |name: &str| Item::file(name, "").with_pax("SCHILY.xattr.user.x", vec![b'x'; 1000]);
        let source = MemorySource::of(&[&[item("a"), item("b")], &[item("c")]]);
        let each = 1 + 1000 + "user.x".len() as u64;
        assert!(read(&source, &Budget::new(3, 3 * each)).is_ok());
        let error = read(&source, &Budget::new(3, 3 * each - 1)).unwrap_err().to_string();
        assert!(
            error.starts_with("layer 1 (sha256:") && error.contains(", entry c cannot be used: with it"),
            "{error}"
        );
        assert!(error.contains("more than 3020 bytes"), "{error}");
        let error = read(&source, &Budget::new(2, 1 << 20)).unwrap_err().to_string();
        assert!(error.ends_with("entry c cannot be used: with it the image has more than 2 entries"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_counted_by_layer() {
        let mac = Item::file("b", "").with_pax("SCHILY.xattr.com.apple.quarantine", "0081;x");
        let layers = read(&MemorySource::of(&[&[Item::file("a", "")], &[mac]]), &Budget::new(9, 99)).unwrap();
        assert_eq!(layers[0].dropped, Dropped::default());
        assert!(layers[1].dropped.xattrs_text().unwrap().ends_with("the first com.apple.quarantine of b"));
    }
}
