//! Reading the manifests of all images: what counts, scrubs and looks at keys begins with. Needs no keys.

use snowmelt_chunk::Manifest;

use crate::{Error, ImageName, NameRecord, Store};

/// Manifests that are read at once where each is a request, and that are in memory together.
const AT_ONCE: usize = 16;

/// An image as it was listed.
#[derive(Debug)]
pub struct ListedImage {
    /// Whose it is: which of the tenants that were asked for.
    pub tenant: usize,
    /// Its name.
    pub name: ImageName,
    /// What the name stands for; [`Error::Corrupt`], [`Error::NotFound`] or [`Error::Chunk`] where record or manifest are damaged or
    /// missing.
    pub image: Result<(NameRecord, Manifest), Error>,
}

/// Calls `each` for every image of the tenants, by tenant and name.
///
/// # Errors
/// Those of listing, [`Error::Unavailable`], [`Error::Refused`] and [`Error::Io`] of reading, and those of `each`.
pub fn each_image(
    store: &Store,
    tenants: &[String],
    each: &mut dyn FnMut(ListedImage) -> Result<(), Error>,
) -> Result<(), Error> {
    let at_once = if store.is_local() { 1 } else { AT_ONCE };
    for (index, tenant) in tenants.iter().enumerate() {
        let read = |record: Result<NameRecord, Error>| {
            let record = record?;
            let manifest = store.read_manifest(&record.root, tenant, &record.manifest_id()?)?;
            Ok((record, manifest))
        };
        let mut names = store.list_names(tenant)?.into_iter();
        loop {
            let batch: Vec<_> = names.by_ref().take(at_once).collect();
            if batch.is_empty() {
                break;
            }
            let images: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    batch.into_iter().map(|(name, record)| (name, scope.spawn(|| read(record)))).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                threads.into_iter().map(|(name, thread)| (name, join(thread))).collect()
            });
            for (name, image) in images {
                match image {
                    Err(error @ (Error::Unavailable { .. } | Error::Refused { .. } | Error::Io { .. })) => {
                        return Err(error);
                    }
                    image => each(ListedImage { tenant: index, name, image })?,
                }
            }
        }
    }
    Ok(())
}
