//! Which chunks are live: in the manifests that names stand for, and those that sandboxes use.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use snowmelt_chunk::{ChunkId, ManifestId};
use snowmelt_store::{Error, NameRecord, Store};

/// A chunk that is live.
struct Chunk {
    bytes: u64,
    images: u64,
    tenants: u64,
    last_tenant: u32,
}

/// What is live in a store.
#[derive(Default)]
pub(crate) struct Live {
    /// By root, then by chunk.
    roots: HashMap<String, HashMap<ChunkId, Chunk>>,
    /// The records of all images, with their tenants.
    pub(crate) images: Vec<(String, NameRecord)>,
}

impl Live {
    /// Reads all manifests of the tenants. What is damaged is logged and left out.
    pub(crate) fn read(store: &Store, tenants: &[String]) -> Result<Self> {
        let mut live = Self::default();
        let mut seen: HashSet<(String, String, ManifestId)> = HashSet::new();
        for (index, tenant) in tenants.iter().enumerate() {
            for (name, record) in store.list_names(tenant)? {
                let record = match record {
                    Ok(record) => record,
                    Err(error) => {
                        tracing::warn!("{tenant}/{name} is not counted: {error}");
                        continue;
                    }
                };
                let manifest = record.manifest_id()?;
                live.add(store, &record.root, tenant, &manifest, index as u32)?;
                seen.insert((record.root.clone(), tenant.clone(), manifest));
                live.images.push((tenant.clone(), record));
            }
        }
        let now = store.now()?;
        for root in store.read_state()?.roots.keys() {
            for lease in store.list_leases(root)?.into_iter().filter(|lease| lease.is_live(now)) {
                let Some(index) = tenants.iter().position(|tenant| *tenant == lease.tenant) else { continue };
                if seen.insert((root.clone(), lease.tenant.clone(), lease.manifest)) {
                    live.add(store, root, &lease.tenant, &lease.manifest, index as u32)?;
                }
            }
        }
        Ok(live)
    }

    fn add(&mut self, store: &Store, root: &str, tenant: &str, id: &ManifestId, index: u32) -> Result<()> {
        let manifest = match store.read_manifest(root, tenant, id) {
            Ok(manifest) => manifest,
            Err(error @ (Error::NotFound { .. } | Error::Corrupt { .. } | Error::Chunk(_))) => {
                tracing::warn!("an image of tenant {tenant} is not counted: {error}");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let chunks = self.roots.entry(root.to_owned()).or_default();
        let mut distinct = HashSet::new();
        for record in manifest.records() {
            if !distinct.insert(record.id) {
                continue;
            }
            let bytes = u64::from(record.stored_length);
            let chunk = chunks.entry(record.id).or_insert(Chunk { bytes, images: 0, tenants: 0, last_tenant: 0 });
            chunk.images += 1;
            if chunk.tenants == 0 || chunk.last_tenant != index {
                chunk.tenants += 1;
                chunk.last_tenant = index;
            }
        }
        Ok(())
    }

    /// Bytes of a root's live chunks.
    pub(crate) fn bytes_in(&self, root: &str) -> u64 {
        self.roots.get(root).map_or(0, |chunks| chunks.values().map(|chunk| chunk.bytes).sum())
    }

    /// Live chunks and their bytes.
    pub(crate) fn all(&self) -> (u64, u64) {
        let chunks = || self.roots.values().flat_map(HashMap::values);
        (chunks().count() as u64, chunks().map(|chunk| chunk.bytes).sum())
    }

    /// In how many images, and of how many tenants, the chunk is that most images have.
    pub(crate) fn most_shared(&self) -> (u64, u64) {
        let chunks = self.roots.values().flat_map(HashMap::values);
        chunks.map(|chunk| (chunk.images, chunk.tenants)).max().unwrap_or_default()
    }
}
