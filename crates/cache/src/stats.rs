use std::sync::atomic::{AtomicU64, Ordering};

/// What was read from where, since the [`Tiers`](crate::Tiers) were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Chunks read from the cache on disk.
    pub disk_chunks: u64,
    /// Their bytes.
    pub disk_bytes: u64,
    /// Chunks read from the origin.
    pub origin_chunks: u64,
    /// Their bytes.
    pub origin_bytes: u64,
    /// Nanoseconds that requests to the origin took, summed over requests.
    pub origin_nanoseconds: u64,
    /// Nanoseconds of verifying ids.
    pub verify_nanoseconds: u64,
    /// Nanoseconds of decrypting.
    pub decrypt_nanoseconds: u64,
    /// Copies that were damaged, whichever tier had them.
    pub damaged_chunks: u64,
    /// Chunks that were not kept on disk, since it was full or too slow.
    pub unkept_chunks: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) disk_chunks: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
    pub(crate) origin_chunks: AtomicU64,
    pub(crate) origin_bytes: AtomicU64,
    pub(crate) origin_nanoseconds: AtomicU64,
    pub(crate) verify_nanoseconds: AtomicU64,
    pub(crate) decrypt_nanoseconds: AtomicU64,
    pub(crate) damaged_chunks: AtomicU64,
    pub(crate) unkept_chunks: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> TierStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TierStats {
            disk_chunks: get(&self.disk_chunks),
            disk_bytes: get(&self.disk_bytes),
            origin_chunks: get(&self.origin_chunks),
            origin_bytes: get(&self.origin_bytes),
            origin_nanoseconds: get(&self.origin_nanoseconds),
            verify_nanoseconds: get(&self.verify_nanoseconds),
            decrypt_nanoseconds: get(&self.decrypt_nanoseconds),
            damaged_chunks: get(&self.damaged_chunks),
            unkept_chunks: get(&self.unkept_chunks),
        }
    }
}
