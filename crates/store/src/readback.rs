//! Reading whole images back: opening, verifying, exporting.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use snowmelt_chunk::{ChunkRecord, ChunkSecret, DataKey, KeyService, KeyUse, Manifest, OpenedManifest, Suite};

use crate::local::link_unnamed;
use crate::records::{ImageMetadata, NameBinding, NameRecord};
use crate::retry::retrying;
use crate::seen::SeenNames;
use crate::{Error, ImageName, Store};

/// An image that can be read: its record, manifest and metadata.
#[derive(Debug)]
pub struct OpenedImage {
    /// What the name stands for.
    pub record: NameRecord,
    /// The id of the key that its data key is wrapped under.
    pub key_id: String,
    /// The manifest with its keys.
    pub manifest: OpenedManifest,
    /// How the image runs.
    pub metadata: ImageMetadata,
    /// The store, at the root that the image's chunks are in.
    pub store: Store,
}

impl OpenedImage {
    /// The same image sealed again for another name, tenant, key or root, whose chunks are there.
    ///
    /// # Errors
    /// Those of the keys.
    pub(crate) fn reseal(
        &self,
        tenant: &str,
        binding: &NameBinding,
        root: &str,
        keys: &dyn KeyService,
    ) -> Result<(Manifest, NameRecord), Error> {
        let use_ = KeyUse { tenant, image: &binding.name };
        let manifest = self.manifest.reseal(&use_, &self.metadata.encode(binding), keys)?;
        let record = NameRecord {
            manifest: manifest.id().to_string(),
            root: root.into(),
            generation: binding.generation,
            published_at: binding.published_at,
            fence: 0,
            ..self.record.clone()
        };
        Ok((manifest, record))
    }
}

/// How images are opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// Whose images.
    pub tenant: &'a str,
    /// Who unwraps the data key.
    pub keys: &'a dyn KeyService,
    /// What this machine has seen names stand for, if it remembers.
    pub seen: Option<&'a SeenNames>,
}

/// Finds an image by name and opens its manifest. Two requests to the store.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Chunk`] without the tenant's key, [`Error::Corrupt`], [`Error::RolledBack`],
/// [`Error::Unavailable`], [`Error::Refused`].
pub fn open_image(store: &Store, name: &ImageName, opening: &Opening<'_>) -> Result<OpenedImage, Error> {
    open_image_with(store, name, opening, |_| {})
}

/// The same; `named` is told what the name stands for before the manifest is read, so that what else depends on it can be asked
/// for at the same time.
///
/// # Errors
/// As [`open_image`].
pub fn open_image_with(
    store: &Store,
    name: &ImageName,
    opening: &Opening<'_>,
    named: impl FnOnce(&NameRecord),
) -> Result<OpenedImage, Error> {
    let record = store.read_name(opening.tenant, name)?;
    named(&record);
    open_record(store, name, record, opening)
}

/// Opens the image of a record that was read before.
///
/// # Errors
/// As [`open_image`].
pub fn open_record(
    store: &Store,
    name: &ImageName,
    record: NameRecord,
    opening: &Opening<'_>,
) -> Result<OpenedImage, Error> {
    let manifest = store.read_manifest(&record.root, opening.tenant, &record.manifest_id()?)?;
    open_manifest(store, name, record, &manifest, opening)
}

/// Opens the manifest that a record names, and checks that the two agree.
pub(crate) fn open_manifest(
    store: &Store,
    name: &ImageName,
    record: NameRecord,
    manifest: &Manifest,
    opening: &Opening<'_>,
) -> Result<OpenedImage, Error> {
    let key_id = manifest.key_id().to_owned();
    let data_key = manifest.data_key(opening.keys, &name.to_string())?;
    let (manifest, metadata) = open_with_key(name, &record, manifest, &data_key)?;
    if let Some(seen) = opening.seen {
        seen.check(store, opening.tenant, name, &record)?;
    }
    let store = store.at_root(&record.root)?;
    Ok(OpenedImage { record, key_id, manifest, metadata, store })
}

/// Opens the manifest that a record names with its key, and checks that the two agree. Nothing is asked of anybody.
///
/// # Errors
/// [`Error::Corrupt`] where they do not agree, [`Error::Chunk`] where the key does not open it.
pub fn open_with_key(
    name: &ImageName,
    record: &NameRecord,
    manifest: &Manifest,
    data_key: &DataKey,
) -> Result<(OpenedManifest, ImageMetadata), Error> {
    let does_not_agree =
        |what: &str| Error::corrupt(format!("the record of {name}"), format!("{what}: publish it again"));
    if record.image_size != manifest.geometry().image_size || record.chunk_count != manifest.chunk_count() as u64 {
        return Err(does_not_agree("it does not agree with the manifest that it names"));
    }
    let manifest = manifest.open_with(data_key)?;
    let metadata = ImageMetadata::of(&manifest)?;
    // The record is in the clear, what is sealed is not. Images that were published before this was sealed have none.
    if let Some(binding) = &metadata.binding {
        if binding.name != name.to_string() {
            return Err(does_not_agree(&format!("it names the manifest of {}", binding.name)));
        }
        if (binding.generation, binding.published_at) != (record.generation, record.published_at) {
            return Err(does_not_agree("it has another generation or time than its manifest"));
        }
    }
    Ok((manifest, metadata))
}

/// What is wrong with one chunk of an image.
#[derive(Debug)]
pub struct Damage {
    /// Which chunk.
    pub record: ChunkRecord,
    /// What is wrong: [`Error::NotFound`] or [`Error::Corrupt`].
    pub error: Error,
}

/// What verifying found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Chunks that were read.
    pub chunks: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is missing or damaged, by slot.
    pub damage: Vec<Damage>,
}

/// Reads every chunk of an image and checks length, id and tag. `progress` is told the bytes read so far.
///
/// # Errors
/// [`Error::Unavailable`] and [`Error::Io`]: whether the image is whole is then not known.
pub fn verify(
    store: &Store,
    manifest: &OpenedManifest,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Verified, Error> {
    let damage = Mutex::new(Vec::new());
    let bytes = AtomicU64::new(0);
    each_chunk(manifest, threads, &|record, secret, plaintext| {
        match read_chunk(store, manifest, record, secret, plaintext) {
            Ok(()) => {}
            Err(error @ (Error::NotFound { .. } | Error::Corrupt { .. })) => {
                damage
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(Damage { record: *record, error });
            }
            Err(error) => return Err(error),
        }
        let length = u64::from(record.stored_length);
        progress(bytes.fetch_add(length, Ordering::Relaxed) + length);
        Ok(())
    })?;
    let mut damage = damage.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    damage.sort_by_key(|damage| damage.record.slot);
    Ok(Verified { chunks: manifest.records().len() as u64, bytes: bytes.into_inner(), damage })
}

/// Writes the whole block image to `path`, which must not exist. Holes stay holes. The file has its name only once it is whole
/// and on the disk: whatever ends it before leaves nothing.
///
/// # Errors
/// [`Error::Corrupt`] and [`Error::NotFound`] for damaged chunks, [`Error::Unavailable`], [`Error::Io`].
pub fn export(
    store: &Store,
    manifest: &OpenedManifest,
    path: &Path,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let io = |operation| Error::io(operation, path);
    if path.symlink_metadata().is_ok() {
        let exists = "it exists already: remove it, or choose another name";
        return Err(io("make")(std::io::Error::new(std::io::ErrorKind::AlreadyExists, exists)));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Without a name, so that not even SIGKILL leaves it; where the file system cannot do that, with one that says whose it is.
    let unnamed = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(folder);
    let (file, draft) = if let Ok(file) = unnamed {
        (file, None)
    } else {
        let draft = tempfile::Builder::new().prefix(".snowmelt-export-").tempfile_in(folder).map_err(io("make"))?;
        (draft.reopen().map_err(io("open"))?, Some(draft))
    };
    file.set_len(manifest.geometry().image_size).map_err(io("extend"))?;
    let bytes = AtomicU64::new(0);
    each_chunk(manifest, threads, &|record, secret, plaintext| {
        read_chunk(store, manifest, record, secret, plaintext)?;
        let offset = u64::from(record.slot) * u64::from(manifest.geometry().chunk_size);
        file.write_all_at(plaintext, offset).map_err(io("write"))?;
        let length = u64::from(record.stored_length);
        progress(bytes.fetch_add(length, Ordering::Relaxed) + length);
        Ok(())
    })?;
    file.sync_all().map_err(io("sync"))?;
    match draft {
        Some(draft) => draft.persist_noclobber(path).map(drop).map_err(|error| io("name")(error.error)),
        None => link_unnamed(&file, path).map_err(io("name")),
    }
}

/// Reads one chunk, verifies it by its id and decrypts it.
fn read_chunk(
    store: &Store,
    manifest: &OpenedManifest,
    record: &ChunkRecord,
    secret: &ChunkSecret,
    plaintext: &mut [u8],
) -> Result<(), Error> {
    let ciphertext = read_ciphertext(store, manifest.suite(), record)?;
    manifest
        .suite()
        .open(secret, &ciphertext, plaintext)
        .map_err(|_| Error::corrupt(format!("chunk {}", record.id), "its tag does not match"))
}

/// Reads one chunk's ciphertext and verifies it by its id. Needs no key.
pub(crate) fn read_ciphertext(store: &Store, suite: Suite, record: &ChunkRecord) -> Result<Bytes, Error> {
    let ciphertext = retrying(store.patience(), || store.read_chunk(&record.id, record.stored_length))?;
    if suite.id_of(&ciphertext) != record.id {
        return Err(Error::corrupt(format!("chunk {}", record.id), "its bytes are not those that its id names"));
    }
    Ok(ciphertext)
}

/// What is done with a chunk: its record, what opens it, and a buffer of its stored length.
type ChunkAction<'a> = dyn Fn(&ChunkRecord, &ChunkSecret, &mut [u8]) -> Result<(), Error> + Sync + 'a;

/// Calls `action` for every chunk, with a buffer of its stored length, from several threads; stops at the first error.
fn each_chunk(manifest: &OpenedManifest, threads: usize, action: &ChunkAction<'_>) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut buffer = vec![0; manifest.geometry().chunk_size as usize];
                while let Some(record) = manifest.records().get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (record, secret) = manifest.chunk(record.slot).expect("a record is of a chunk");
                    if let Err(error) = action(record, &secret, &mut buffer[..record.stored_length as usize]) {
                        next.store(manifest.records().len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}
