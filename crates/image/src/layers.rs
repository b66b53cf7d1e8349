//! Reads an image's layers: several at a time, each once, entries to memory and contents to a spool.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::error::Error;
use crate::flatten::Progress;
use crate::layer_reader::decompress;
use crate::merge::{LayerEntry, MergedTree};
use crate::read_ahead::ReadAhead;
use crate::sources::Source;
use crate::spool::{Content, Spool, SpoolWriter};
use crate::tar_entries::{EntryError, EntryKind, Piece, Problem, TarReader};

/// Entries of one layer that are read before it counts as an attack: memory for them is the only memory that grows.
const MAX_ENTRIES: usize = 16_000_000;
/// How much of a layer is read on after an error, to learn whether the layer was damaged.
const MAX_DRAIN_BYTES: u64 = 8 << 30;

type ProgressSink<'a> = Option<&'a (dyn Fn(Progress) + Sync)>;

/// A layer's entries in order, and the spool that holds their contents.
#[derive(Debug)]
pub(crate) struct ReadLayer {
    pub(crate) entries: Vec<LayerEntry>,
    pub(crate) spool: Spool,
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
            let result = read_layer(source, index, directory, progress);
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

fn read_layer(
    source: &dyn Source,
    index: usize,
    directory: &Path,
    progress: ProgressSink<'_>,
) -> Result<ReadLayer, Error> {
    let descriptor = &source.layers()[index];
    let subject = format!("layer {index} ({})", descriptor.digest);
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
            Ok(Some(_)) if entries.len() == MAX_ENTRIES => {
                break Err(reader.error(Problem::unsupported(format!("a layer of more than {MAX_ENTRIES} entries"))));
            }
            Ok(Some(entry)) => entries.push(entry),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    report();
    result.map_err(|error| explain(&subject, error, reader.into_inner()))?;
    entries.shrink_to_fit();
    Ok(ReadLayer { entries, spool: spool.finish().map_err(write_error)? })
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
    tree.finish();
}
