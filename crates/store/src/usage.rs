//! What images take: logical, stored, shared, unique.

use std::collections::HashMap;

use snowmelt_chunk::ChunkId;

use crate::{Error, ImageName, NameRecord, Store};

/// What one image takes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// Its name.
    pub name: ImageName,
    /// Its record.
    pub record: NameRecord,
    /// Bytes of its chunks, each counted once.
    pub stored_bytes: u64,
    /// Bytes of chunks that no other listed image has: what removing it would free in the end.
    pub unique_bytes: u64,
}

/// What all images of a tenant take.
#[derive(Debug, Default)]
pub struct Usage {
    /// Every image.
    pub images: Vec<ImageUsage>,
    /// Bytes of all images' chunks, as if nothing were shared.
    pub logical_bytes: u64,
    /// Bytes of all distinct chunks.
    pub stored_bytes: u64,
    /// How many distinct chunks.
    pub chunks: u64,
    /// Images whose record or manifest is missing or damaged, with what is wrong. They are not in the sums.
    pub damaged: Vec<(ImageName, Error)>,
}

/// Reads the manifests of all images of a tenant and counts. Needs no keys.
///
/// # Errors
/// Those of listing and of reading a manifest.
pub fn usage(store: &Store, tenant: &str) -> Result<Usage, Error> {
    struct Seen {
        length: u64,
        /// The only image that has it, or none if several have.
        owner: Option<usize>,
    }
    let mut seen: HashMap<ChunkId, Seen> = HashMap::new();
    let (mut names, mut totals) = (Vec::new(), Vec::new());
    let mut usage = Usage::default();
    for (name, record) in store.list_names(tenant)? {
        let read = record.and_then(|record| {
            let manifest = store.read_manifest(&record.root, tenant, &record.manifest_id()?)?;
            Ok((record, manifest))
        });
        let (record, manifest) = match read {
            Ok(read) => read,
            Err(error @ (Error::Corrupt { .. } | Error::NotFound { .. } | Error::Chunk(_))) => {
                usage.damaged.push((name, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        let index = names.len();
        names.push((name, record));
        let mut distinct: HashMap<ChunkId, u64> = HashMap::new();
        for chunk in manifest.records() {
            distinct.insert(chunk.id, u64::from(chunk.stored_length));
            usage.logical_bytes += u64::from(chunk.stored_length);
        }
        totals.push(distinct.values().sum::<u64>());
        for (id, length) in distinct {
            seen.entry(id).and_modify(|seen| seen.owner = None).or_insert(Seen { length, owner: Some(index) });
        }
    }
    let mut unique = vec![0; names.len()];
    for chunk in seen.values() {
        usage.stored_bytes += chunk.length;
        if let Some(owner) = chunk.owner {
            unique[owner] += chunk.length;
        }
    }
    usage.chunks = seen.len() as u64;
    usage.images = names
        .into_iter()
        .zip(totals)
        .zip(unique)
        .map(|(((name, record), stored_bytes), unique_bytes)| ImageUsage { name, record, stored_bytes, unique_bytes })
        .collect();
    Ok(usage)
}
