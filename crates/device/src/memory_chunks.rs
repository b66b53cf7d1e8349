//! An image in memory, with faults on request: what tests and benchmarks of everything above the tiers read from.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use snowmelt_chunk::Geometry;

use crate::Error;
use crate::reader::{ChunkReader, LoadRequest, Tier};

/// What is wrong with a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It does not verify.
    Corrupt,
    /// It is nowhere.
    Missing,
    /// Its tier does not answer.
    Unavailable,
    /// It is not answered until the fault is changed or taken away.
    Slow,
    /// The reader panics.
    Panic,
}

/// The chunks of an image, in memory.
#[derive(Debug)]
pub struct MemoryChunks {
    image: Vec<u8>,
    geometry: Geometry,
    stored: Vec<u32>,
    faults: Mutex<HashMap<u64, Fault>>,
    changed: Condvar,
    reads: AtomicU64,
    began: Mutex<Vec<u64>>,
    warmed: Mutex<HashSet<u64>>,
}

impl MemoryChunks {
    /// An image, padded with zeros to whole pages, in chunks of `chunk_size` bytes (a power of two, at least 4096). Chunks
    /// that are all zeros are holes, and trailing zero pages are not stored, as in a published image.
    pub fn new(mut image: Vec<u8>, chunk_size: u32) -> Self {
        image.resize(image.len().next_multiple_of(4096), 0);
        let stored = image
            .chunks(chunk_size as usize)
            .map(|chunk| {
                let used = chunk.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                used.next_multiple_of(4096) as u32
            })
            .collect();
        let geometry = Geometry { image_size: image.len() as u64, chunk_size };
        Self {
            image,
            geometry,
            stored,
            faults: Mutex::default(),
            changed: Condvar::new(),
            reads: AtomicU64::new(0),
            began: Mutex::default(),
            warmed: Mutex::default(),
        }
    }

    /// Gives the chunk a fault, or takes it away.
    pub fn set_fault(&self, index: u64, fault: Option<Fault>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            Some(fault) => faults.insert(index, fault),
            None => faults.remove(&index),
        };
        self.changed.notify_all();
    }

    /// How often a chunk was asked for, also to be brought near.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Acquire)
    }

    /// Blocks until chunks have been asked for that often.
    pub fn await_reads(&self, count: u64) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        while self.reads() < count {
            faults = self.changed.wait(faults).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The chunks that were asked for, in order.
    pub fn order(&self) -> Vec<u64> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is asked for a chunk: waits and fails as its fault says.
    fn ask(&self, index: u64) -> Result<(), Error> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner).push(index);
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        self.reads.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_all();
        while faults.get(&index) == Some(&Fault::Slow) {
            faults = self.changed.wait(faults).unwrap_or_else(PoisonError::into_inner);
        }
        let fault = faults.get(&index).copied();
        drop(faults);
        let (operation, subject, source) = ("read", self.subject(index), None);
        match fault {
            None => Ok(()),
            Some(Fault::Panic) => panic!("a fault was asked for"),
            Some(Fault::Corrupt) => Err(Error::Corrupt { operation, subject, source }),
            Some(Fault::Missing) => Err(Error::NotFound { operation, subject, source }),
            Some(_) => Err(Error::Unavailable { operation, subject, source }),
        }
    }

    fn subject(&self, index: u64) -> String {
        format!("chunk {} of image {} in {}", self.chunk_name(index), self.image(), Tier::Memory)
    }
}

impl ChunkReader for MemoryChunks {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn stored_length(&self, index: u64) -> u32 {
        usize::try_from(index).ok().and_then(|index| self.stored.get(index)).copied().unwrap_or(0)
    }

    fn read_chunk(&self, index: u64, request: &LoadRequest, plaintext: &mut [u8]) -> Result<(), Error> {
        request.set_tier(Tier::Memory);
        let asked = self.ask(index);
        if asked.is_ok() {
            let start = index as usize * self.geometry.chunk_size as usize;
            plaintext.copy_from_slice(&self.image[start..start + plaintext.len()]);
        } else {
            // What a reader leaves behind when it fails must never be seen.
            plaintext.fill(0xee);
        }
        asked
    }

    fn warm_chunk(&self, index: u64, request: &LoadRequest) -> Result<(), Error> {
        // The zone has every second one.
        request.set_tier(if index % 2 == 1 { Tier::Zone } else { Tier::Origin });
        self.ask(index)?;
        self.warmed.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
        Ok(())
    }

    fn are_near(&self, indices: &[u64]) -> Vec<bool> {
        let warmed = self.warmed.lock().unwrap_or_else(PoisonError::into_inner);
        indices.iter().map(|index| warmed.contains(index)).collect()
    }

    fn image(&self) -> &'static str {
        "memory"
    }

    fn chunk_name(&self, index: u64) -> String {
        format!("#{index}")
    }
}
