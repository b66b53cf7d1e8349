//! Copying an image from one store to another: only the chunks that are missing there.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use snowmelt_chunk::KeyService;

use crate::intents::OwnIntent;
use crate::publish::commit;
use crate::readback::{OpenedImage, read_ciphertext};
use crate::records::NameRecord;
use crate::{Error, ImageName, PutOutcome, Store};

/// Where an image is copied to.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions<'a> {
    /// The store.
    pub to: &'a Store,
    /// Who will own it there.
    pub tenant: &'a str,
    /// What it will be called there.
    pub name: &'a ImageName,
    /// Seals its manifest there.
    pub keys: &'a dyn KeyService,
    /// How many chunks are copied at once.
    pub threads: usize,
}

/// What copying did.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The name's record as it was put.
    pub record: NameRecord,
    /// Chunks that were not there before.
    pub new_chunks: u64,
    /// Bytes of those chunks.
    pub new_bytes: u64,
    /// Different chunks of the image.
    pub distinct_chunks: u64,
    /// Bytes of those chunks.
    pub distinct_bytes: u64,
}

/// Copies an image. Chunks stay encrypted as they are and are checked by their ids on the way; the manifest is sealed anew, for its
/// name, its tenant and its keys there.
///
/// # Errors
/// Those of both stores and of the keys; [`Error::Corrupt`] for a damaged chunk. What was put before stays, and nobody refers to it.
pub fn copy(image: &OpenedImage, options: &CopyOptions<'_>, progress: &(dyn Fn(u64) + Sync)) -> Result<Copied, Error> {
    let (root, _) = options.to.open_root(options.to.asked_root())?;
    let to = options.to.at_root(&root)?;
    let mut intent = OwnIntent::put(&to, &root, options.tenant, options.name)?;
    let mut seen = HashSet::new();
    let mut distinct = Vec::new();
    for record in image.manifest.records() {
        if seen.insert(record.id) {
            distinct.push(*record);
        }
    }
    let known = to.known_chunks(distinct.len() as u64)?;
    let suite = image.manifest.suite();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let (new_chunks, new_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(None);
    let one = |record: &snowmelt_chunk::ChunkRecord| {
        let is_there = match &known {
            Some(known) => known.contains(&record.id),
            None => to.has_chunk(&record.id, record.stored_length)?,
        };
        if !is_there {
            let ciphertext = read_ciphertext(&image.store, suite, record)?;
            if to.put_new_chunk(&record.id, &ciphertext)? == PutOutcome::New {
                new_chunks.fetch_add(1, Ordering::Relaxed);
                new_bytes.fetch_add(u64::from(record.stored_length), Ordering::Relaxed);
            }
        }
        let length = u64::from(record.stored_length);
        progress(done.fetch_add(length, Ordering::Relaxed) + length);
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                while let Some(record) = distinct.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = one(record) {
                        next.store(distinct.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    to.sync()?;
    let committed = commit(&to, &mut intent, options.tenant, options.name, &mut |binding| {
        image.reseal(options.tenant, binding, &root, options.keys)
    })?;
    Ok(Copied {
        record: committed.record,
        new_chunks: new_chunks.into_inner(),
        new_bytes: new_bytes.into_inner(),
        distinct_chunks: distinct.len() as u64,
        distinct_bytes: done.into_inner(),
    })
}
