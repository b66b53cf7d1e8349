use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the figures and what counts them out of one list.
macro_rules! figures {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// What was read from where, since what counts it was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct TierStats {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> TierStats {
                TierStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

figures! {
    /// Chunks read from the memory of this machine's worker.
    memory_chunks,
    /// Their bytes.
    memory_bytes,
    /// Chunks read from a cache on this machine's disk.
    disk_chunks,
    /// Their bytes.
    disk_bytes,
    /// Chunks read from the zone's cache.
    zone_chunks,
    /// Their bytes.
    zone_bytes,
    /// Nanoseconds that requests to the zone took, summed over requests, also those that found nothing.
    zone_nanoseconds,
    /// Chunks read from the origin.
    origin_chunks,
    /// Their bytes.
    origin_bytes,
    /// Nanoseconds that requests to the origin took, summed over requests.
    origin_nanoseconds,
    /// Nanoseconds of verifying ids.
    verify_nanoseconds,
    /// Nanoseconds of decrypting.
    decrypt_nanoseconds,
    /// Copies that were damaged, whichever tier had them.
    damaged_chunks,
    /// Chunks that were not kept on disk, since it was full or too slow.
    unkept_chunks,
    /// Chunks from the origin that the zone was not given, since it took others too slowly.
    unshared_chunks,
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}
