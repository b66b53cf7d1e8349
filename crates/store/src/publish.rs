//! Publishing: an image's bytes become chunks, a manifest and a name.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use snowmelt_chunk::{
    ChunkId, ChunkRecord, ChunkSecret, Geometry, KeyService, KeyUse, Manifest, ManifestBuilder, ManifestId, PAGE_SIZE,
    Salt, Scope, Suite,
};

use crate::buffers::AlignedBuffer;
use crate::intents::OwnIntent;
use crate::readback::read_ciphertext;
use crate::records::{ImageMetadata, NameBinding, NameRecord, SaltLabel};
use crate::salts::Sharing;
use crate::store::{PutOutcome, Store};
use crate::{Error, ImageName};

/// A block image that can be read at any place from many threads.
pub trait BlockSource: Sync {
    /// Bytes of the image, a multiple of 4096.
    fn size_bytes(&self) -> u64;
    /// Bytes of a chunk that its layout was made for.
    fn chunk_size(&self) -> u32;
    /// Whether the byte range is known to hold only zeros, so that it need not be read.
    fn is_hole(&self, range: Range<u64>) -> bool;
    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// Whatever keeps it from reading; publishing then stops.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

impl BlockSource for snowmelt_image::FlatImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn chunk_size(&self) -> u32 {
        self.chunk_size()
    }

    fn is_hole(&self, range: Range<u64>) -> bool {
        self.is_hole(range)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read_at(offset, buf)?)
    }
}

/// How to publish.
#[derive(Clone, Copy)]
pub struct PublishOptions<'a> {
    /// Who will own name and manifest.
    pub tenant: &'a str,
    /// What the image will be called.
    pub name: &'a ImageName,
    /// Where the image comes from, for its record.
    pub source: &'a str,
    /// How chunks are encrypted.
    pub suite: Suite,
    /// With whom chunks are shared.
    pub sharing: &'a Sharing<'a>,
    /// Seals the manifest.
    pub keys: &'a dyn KeyService,
    /// Whether every chunk is put, those that are there too: then how long publishing takes, and what it says, does not tell whether
    /// somebody else has a chunk.
    pub hide_existing: bool,
    /// Whether chunks that are there already are read back, and replaced where they are damaged.
    pub repair: bool,
    /// How many chunks are worked on at once.
    pub threads: usize,
    /// Told about every chunk, from several threads.
    pub progress: Option<&'a (dyn Fn(PublishProgress) + Sync)>,
}

/// What publishing reports while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishProgress {
    /// Bytes of the image that are done, holes included.
    pub done_bytes: u64,
    /// Bytes of the image.
    pub total_bytes: u64,
}

/// What publishing did.
#[derive(Clone, Debug)]
pub struct Published {
    /// The manifest's id.
    pub manifest: ManifestId,
    /// The name's record as it was put.
    pub record: NameRecord,
    /// Chunks that were not in the store before, and their bytes.
    pub new_chunks: u64,
    /// Bytes of those chunks.
    pub new_bytes: u64,
    /// Different chunks of the image.
    pub distinct_chunks: u64,
    /// Bytes of those chunks.
    pub distinct_bytes: u64,
    /// Chunks that were there and damaged, and are whole now.
    pub repaired_chunks: u64,
    /// Bytes of the image's manifest.
    pub manifest_bytes: u64,
    /// How long chunks took to be read, encrypted and put.
    pub chunks_time: Duration,
}

/// Publishes an image: chunks first, then the manifest, the name last.
///
/// The steps and their order are those of the protocol that tests/collection_model checks: an intent before anything, so that who
/// retires the root knows of this publisher; the name's version is read before the root is checked, and swapped after. Two publishes of
/// one image at once are both right: chunks and manifests are named by their bytes, and the last name wins.
///
/// # Errors
/// Those of the source, the keys and the store. What was put before stays, and nobody refers to it.
pub fn publish(
    source: &dyn BlockSource,
    metadata: &ImageMetadata,
    store: &Store,
    options: &PublishOptions<'_>,
) -> Result<Published, Error> {
    // Asked before the work, so that a tenant whose key is broken learns it now.
    let image = options.name.to_string();
    options.keys.generate_data_key(&KeyUse { tenant: options.tenant, image: &image })?;
    let mut tries = 0;
    loop {
        let (root, salt) = store.open_root(store.asked_root())?;
        tries += 1;
        match publish_to(source, metadata, &store.at_root(&root)?, salt.epoch, options) {
            Err(Error::RootClosed { .. }) if store.asked_root().is_none() && tries < MOST_ROOTS => {
                tracing::warn!(root, "its root was retired while the image was published: publishing it again");
            }
            result => return result,
        }
    }
}

/// Roots that are tried: they are retired once in weeks.
const MOST_ROOTS: usize = 3;

fn publish_to(
    source: &dyn BlockSource,
    metadata: &ImageMetadata,
    store: &Store,
    epoch: u32,
    options: &PublishOptions<'_>,
) -> Result<Published, Error> {
    let geometry = Geometry { image_size: source.size_bytes(), chunk_size: source.chunk_size() };
    let mut builder = ManifestBuilder::new(options.suite, geometry)?;
    let domain = options.sharing.domain(store.root(), epoch);
    let salt = options.sharing.salt(store.root(), epoch);
    let mut intent = OwnIntent::put(store, store.root(), options.tenant, options.name)?;
    store.remove_abandoned_drafts();
    let started = Instant::now();
    // `PutChunks`
    let job = Job {
        source,
        store,
        options,
        salt: &salt,
        // Not listed where nothing may depend on what is there: how many pages there are would show.
        known: if options.hide_existing { None } else { store.known_chunks(geometry.slot_count())? },
        geometry,
        next_slot: AtomicU64::new(0),
        done_bytes: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        outcome: Mutex::new(Outcome::default()),
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| job.work());
        }
    });
    let outcome = job.outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(error) = outcome.error {
        return Err(error);
    }
    let mut distinct = HashMap::new();
    for (record, secret) in outcome.chunks {
        distinct.insert(record.id, u64::from(record.stored_length));
        builder.push(record, secret);
    }
    store.sync()?;
    let chunks_time = started.elapsed();
    let scope = match &domain.scope {
        Scope::Everyone => "everyone".to_owned(),
        Scope::Tenant(_) => "tenant".to_owned(),
        Scope::Layer(layer) => format!("layer:{layer}"),
    };
    let committed = commit(store, &mut intent, options.tenant, options.name, &mut |binding| {
        let manifest = builder.seal(options.tenant, &binding.name, &metadata.encode(binding), options.keys)?;
        let record = NameRecord {
            version: 1,
            manifest: manifest.id().to_string(),
            root: store.root().into(),
            generation: binding.generation,
            published_at: binding.published_at,
            source: options.source.into(),
            image_size: geometry.image_size,
            stored_bytes: manifest.stored_bytes(),
            chunk_count: manifest.chunk_count() as u64,
            fence: 0,
            salt: Some(SaltLabel { epoch, class: domain.class.clone(), scope: scope.clone() }),
        };
        Ok((manifest, record))
    })?;
    Ok(Published {
        manifest: committed.manifest.id(),
        record: committed.record,
        new_chunks: outcome.new_chunks,
        new_bytes: outcome.new_bytes,
        distinct_chunks: distinct.len() as u64,
        distinct_bytes: distinct.values().sum(),
        repaired_chunks: outcome.repaired.len() as u64,
        manifest_bytes: committed.manifest.as_bytes().len() as u64,
        chunks_time,
    })
}

/// What a name was made to stand for.
pub(crate) struct Committed {
    pub(crate) manifest: Manifest,
    pub(crate) record: NameRecord,
}

/// Makes a manifest, and the record of a name for it, that carry what they are to be bound to.
pub(crate) type Seal<'a> = dyn FnMut(&NameBinding) -> Result<(Manifest, NameRecord), Error> + 'a;

/// Makes a name stand for a manifest that `seal` makes for a generation: the last steps of every publish. The caller has put the
/// `intent`, and the manifest's chunks are in the store's root.
///
/// # Errors
/// [`Error::RootClosed`] where the root is not active any more, [`Error::Busy`], those of `seal` and of the store.
pub(crate) fn commit(
    store: &Store,
    intent: &mut OwnIntent,
    tenant: &str,
    name: &ImageName,
    seal: &mut Seal<'_>,
) -> Result<Committed, Error> {
    let mut expected = store.read_entry(tenant, name)?.0.generation();
    for _ in 0..MOST_SWAPS {
        let binding = NameBinding {
            name: name.to_string(),
            generation: expected + 1,
            published_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        };
        let (manifest, record) = seal(&binding)?;
        // `PutManifest`
        store.put_manifest(&manifest)?;
        // `ReadName`, and only then `CheckRoot`: a collector that retires the root in between fences the name.
        let (entry, version) = store.read_entry(tenant, name)?;
        if !store.check_root_is_active(store.root())? {
            return Err(Error::RootClosed { root: store.root().into() });
        }
        // `CommitName`
        if entry.generation() == expected && intent.watch(store.swap_name(tenant, name, &record, &version))? {
            return Ok(Committed { manifest, record });
        }
        expected = store.read_entry(tenant, name)?.0.generation();
    }
    Err(Error::Busy { subject: format!("image {name} of tenant {tenant:?}") })
}

/// How often a name is tried while others publish it too.
const MOST_SWAPS: usize = 50;

#[derive(Default)]
struct Outcome {
    chunks: Vec<(ChunkRecord, ChunkSecret)>,
    new_chunks: u64,
    new_bytes: u64,
    /// By id: several places of the image may have one chunk, and be at it at once.
    repaired: HashSet<ChunkId>,
    /// The first error; workers stop when there is one.
    error: Option<Error>,
}

struct Job<'a> {
    source: &'a dyn BlockSource,
    store: &'a Store,
    options: &'a PublishOptions<'a>,
    salt: &'a Salt,
    /// Chunks that the store is known to have; `None` where each is asked for.
    known: Option<HashSet<ChunkId>>,
    geometry: Geometry,
    next_slot: AtomicU64,
    done_bytes: AtomicU64,
    stop: AtomicBool,
    outcome: Mutex<Outcome>,
}

impl Job<'_> {
    fn work(&self) {
        let size = self.geometry.chunk_size as usize;
        let (mut plaintext, mut ciphertext) = (AlignedBuffer::new(size), AlignedBuffer::new(size));
        while !self.stop.load(Ordering::Relaxed) {
            let slot = self.next_slot.fetch_add(1, Ordering::Relaxed);
            if slot >= self.geometry.slot_count() {
                return;
            }
            let done = self.slot(slot as u32, plaintext.as_mut(), &mut ciphertext);
            let mut outcome = self.outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match done {
                Ok(Some((record, secret, put))) => {
                    match put {
                        PutOutcome::New => {
                            outcome.new_chunks += 1;
                            outcome.new_bytes += u64::from(record.stored_length);
                        }
                        PutOutcome::Repaired => drop(outcome.repaired.insert(record.id)),
                        PutOutcome::AlreadyThere => {}
                    }
                    outcome.chunks.push((record, secret));
                }
                Ok(None) => {}
                Err(error) => {
                    outcome.error.get_or_insert(error);
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            drop(outcome);
            let length = u64::from(self.geometry.slot_length(slot as u32));
            let done_bytes = self.done_bytes.fetch_add(length, Ordering::Relaxed) + length;
            if let Some(report) = self.options.progress {
                report(PublishProgress { done_bytes, total_bytes: self.geometry.image_size });
            }
        }
    }

    /// Reads, encrypts and puts one chunk; `None` for a hole.
    fn slot(
        &self,
        slot: u32,
        plaintext: &mut [u8],
        ciphertext: &mut AlignedBuffer,
    ) -> Result<Option<(ChunkRecord, ChunkSecret, PutOutcome)>, Error> {
        let offset = u64::from(slot) * u64::from(self.geometry.chunk_size);
        let length = self.geometry.slot_length(slot) as usize;
        if self.source.is_hole(offset..offset + length as u64) {
            return Ok(None);
        }
        let plaintext = &mut plaintext[..length];
        self.source.read_at(offset, plaintext).map_err(Error::Source)?;
        let stored_length = trimmed_length(plaintext);
        if stored_length == 0 {
            return Ok(None);
        }
        let sealed =
            self.options.suite.seal(self.salt, &plaintext[..stored_length], &mut ciphertext.as_mut()[..stored_length]);
        let bytes = &ciphertext.as_ref()[..stored_length];
        let mut put = match &self.known {
            _ if self.options.hide_existing => {
                self.store.replace_chunk(&sealed.id, bytes)?;
                PutOutcome::New
            }
            Some(known) if known.contains(&sealed.id) => PutOutcome::AlreadyThere,
            Some(_) => self.store.put_new_chunk(&sealed.id, bytes)?,
            None => self.store.put_chunk(&sealed.id, bytes)?,
        };
        if self.options.repair && put == PutOutcome::AlreadyThere {
            let record = ChunkRecord { slot, stored_length: stored_length as u32, id: sealed.id };
            match read_ciphertext(self.store, self.options.suite, &record) {
                Ok(_) => {}
                Err(Error::NotFound { .. } | Error::Corrupt { .. } | Error::Io { .. }) => {
                    self.store.replace_chunk(&sealed.id, &ciphertext.as_ref()[..stored_length])?;
                    put = PutOutcome::Repaired;
                }
                Err(error) => return Err(error),
            }
        }
        let record = ChunkRecord { slot, stored_length: stored_length as u32, id: sealed.id };
        Ok(Some((record, sealed.secret, put)))
    }
}

/// The length without trailing pages of zeros.
fn trimmed_length(bytes: &[u8]) -> usize {
    let page = PAGE_SIZE as usize;
    bytes
        .chunks(page)
        .rposition(|page| page.iter().any(|byte| *byte != 0))
        .map_or(0, |last| ((last + 1) * page).min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_zero_pages_are_not_stored() {
        let mut bytes = vec![0; 5 * 4096];
        assert_eq!(trimmed_length(&bytes), 0);
        bytes[4096] = 1;
        assert_eq!(trimmed_length(&bytes), 2 * 4096);
        bytes[5 * 4096 - 1] = 1;
        assert_eq!(trimmed_length(&bytes), 5 * 4096);
    }
}
