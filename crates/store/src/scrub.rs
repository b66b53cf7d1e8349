//! Scrubbing: reading everything back, slowly, and saying which images what is damaged belongs to. Needs no keys.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use snowmelt_chunk::{ChunkRecord, Suite};

use crate::readback::read_ciphertext;
use crate::{Error, Store, each_image};

/// How to scrub.
#[derive(Clone, Copy, Debug)]
pub struct ScrubOptions<'a> {
    /// Only this tenant's images; those of all where it is not set.
    pub tenant: Option<&'a str>,
    /// Bytes that are read in a second at most.
    pub bytes_per_second: Option<u64>,
    /// How many chunks are read at once.
    pub threads: usize,
}

/// What scrubbing found.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Images that were looked at.
    pub images: u64,
    /// Chunks that were read, each once.
    pub chunks: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is damaged or missing, by image (`tenant/name:tag`).
    pub damage: BTreeMap<String, Vec<Error>>,
}

/// Reads every manifest, and every chunk that one names once, and checks them by their ids. `progress` is told the bytes read so far and
/// all bytes.
///
/// # Errors
/// [`Error::Unavailable`], [`Error::Refused`] and [`Error::Io`]: whether the rest is whole is then not known.
pub fn scrub(
    store: &Store,
    options: &ScrubOptions<'_>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Scrubbed, Error> {
    let mut scrubbed = Scrubbed::default();
    // By root and chunk: which images have it.
    let mut chunks: BTreeMap<(String, snowmelt_chunk::ChunkId), (ChunkRecord, Suite, Vec<u32>)> = BTreeMap::new();
    let mut images = Vec::new();
    let tenants = match options.tenant {
        Some(tenant) => vec![tenant.to_owned()],
        None => store.list_tenants()?,
    };
    each_image(store, &tenants, &mut |listed| {
        let label = format!("{}/{}", tenants[listed.tenant], listed.name);
        scrubbed.images += 1;
        match listed.image {
            Ok((record, manifest)) => {
                let index = images.len() as u32;
                images.push(label);
                for chunk in manifest.records() {
                    let key = (record.root.clone(), chunk.id);
                    let found = chunks.entry(key).or_insert_with(|| (chunk, manifest.suite(), Vec::new()));
                    if found.2.last() != Some(&index) {
                        found.2.push(index);
                    }
                }
            }
            Err(error) => scrubbed.damage.entry(label).or_default().push(error),
        }
        Ok(())
    })?;
    let total = chunks.values().map(|(record, ..)| u64::from(record.stored_length)).sum();
    let pace = Pace::new(options.bytes_per_second);
    let queue = Mutex::new(chunks.into_iter());
    let results = Mutex::new((scrubbed, None::<Error>));
    let images = &images;
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let next = lock(&queue).next();
                    let Some(((root, id), (record, suite, of))) = next else { return };
                    if lock(&results).1.is_some() {
                        return;
                    }
                    pace.wait(u64::from(record.stored_length));
                    let read = store.at_root(&root).and_then(|store| read_ciphertext(&store, suite, &record));
                    let mut results = lock(&results);
                    results.0.chunks += 1;
                    results.0.bytes += u64::from(record.stored_length);
                    match read {
                        Ok(_) => {}
                        Err(error @ (Error::NotFound { .. } | Error::Corrupt { .. })) => {
                            for image in of {
                                let error = Error::corrupt(format!("chunk {id}"), error.to_string());
                                results.0.damage.entry(images[image as usize].clone()).or_default().push(error);
                            }
                        }
                        Err(error) => drop(results.1.get_or_insert(error)),
                    }
                    progress(results.0.bytes, total);
                }
            });
        }
    });
    let (scrubbed, failed) = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failed.map_or(Ok(scrubbed), Err)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Keeps reads to a bandwidth: each read is given its time, and time that was not used is not saved up.
struct Pace {
    bytes_per_second: Option<u64>,
    next: Mutex<Instant>,
}

impl Pace {
    fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, next: Mutex::new(Instant::now()) }
    }

    fn wait(&self, bytes: u64) {
        let now = Instant::now();
        std::thread::sleep(self.reserve(bytes, now).saturating_duration_since(now));
    }

    /// When so many bytes may be read by who asks now.
    fn reserve(&self, bytes: u64, now: Instant) -> Instant {
        let Some(rate) = self.bytes_per_second.filter(|rate| *rate > 0) else { return now };
        let mut next = lock(&self.next);
        let mine = (*next).max(now);
        *next = mine + Duration::from_secs_f64(bytes as f64 / rate as f64);
        mine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keep_to_the_limit_and_save_nothing_up() {
        let pace = Pace::new(Some(1000));
        let start = Instant::now() + Duration::from_secs(1);
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(pace.reserve(2000, start), start);
        assert_eq!(pace.reserve(1000, start), after(2));
        assert_eq!(pace.reserve(1000, after(1)), after(3));
        // What was not used before is not made up for.
        assert_eq!(pace.reserve(5000, after(60)), after(60));
        assert_eq!(pace.reserve(1, after(60)), after(65));
        assert_eq!(Pace::new(None).reserve(u64::MAX, start), start);
    }
}
