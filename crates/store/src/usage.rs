//! What images take: logical, stored, shared, unique; by image and by tenant.

use std::collections::HashMap;

use snowmelt_chunk::ChunkId;

use crate::{Error, ImageName, NameRecord, Store, each_image};

/// What one image takes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    /// Whose it is.
    pub tenant: String,
    /// Its name.
    pub name: ImageName,
    /// Its record.
    pub record: NameRecord,
    /// Bytes of its chunks, each counted once.
    pub stored_bytes: u64,
    /// Bytes of chunks that no other listed image has: what removing it would free in the end.
    pub unique_bytes: u64,
}

/// What the images of one tenant take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantUsage {
    /// Its name.
    pub tenant: String,
    /// How many images.
    pub images: u64,
    /// Bytes of all images' chunks, as if nothing were shared.
    pub logical_bytes: u64,
    /// Bytes of its distinct chunks.
    pub stored_bytes: u64,
    /// Bytes of chunks that no other tenant has.
    pub unique_bytes: u64,
}

/// What images take.
#[derive(Debug, Default)]
pub struct Usage {
    /// Every image, by tenant and name.
    pub images: Vec<ImageUsage>,
    /// Every tenant.
    pub tenants: Vec<TenantUsage>,
    /// Bytes of all images' chunks, as if nothing were shared.
    pub logical_bytes: u64,
    /// Bytes of all distinct chunks.
    pub stored_bytes: u64,
    /// How many distinct chunks.
    pub chunks: u64,
    /// In how many images, and of how many tenants, the chunk is that most images have: so many suffer if it is lost.
    pub most_shared: (u64, u64),
    /// Bytes of chunks that all of `together` have and no other image has: what removing those images would free in the end.
    pub freed_bytes: u64,
    /// Images whose record or manifest is missing or damaged, as `tenant` and name, with what is wrong. They are not in the sums.
    pub damaged: Vec<(String, ImageName, Error)>,
}

/// Reads the manifests of all images of the tenants and counts. Needs no keys. `together` are images that one thinks of removing.
///
/// Chunks are one chunk where they have one id in one root: a chunk that lies in two roots is stored twice.
///
/// # Errors
/// Those of listing and of reading a manifest.
pub fn usage(store: &Store, tenants: &[String], together: &[(String, ImageName)]) -> Result<Usage, Error> {
    struct Seen {
        length: u64,
        images: u32,
        /// Tenants come one after the other, so that the last one that has it is enough to count them.
        tenants: u32,
        last_tenant: usize,
        /// The only image that has it, or none if several have.
        image: Option<usize>,
        /// Whether an image has it that would stay.
        stays: bool,
    }
    let mut seen: HashMap<(String, ChunkId), Seen> = HashMap::new();
    let of_tenant = |tenant: &String| TenantUsage { tenant: tenant.clone(), ..TenantUsage::default() };
    let mut usage = Usage { tenants: tenants.iter().map(of_tenant).collect(), ..Usage::default() };
    each_image(store, tenants, &mut |listed| {
        let (tenant, name) = (&tenants[listed.tenant], listed.name);
        let (record, manifest) = match listed.image {
            Ok(image) => image,
            Err(error) => {
                usage.damaged.push((tenant.clone(), name, error));
                return Ok(());
            }
        };
        let of_tenant = &mut usage.tenants[listed.tenant];
        let index = usage.images.len();
        let goes = together.iter().any(|(other, image)| other == tenant && *image == name);
        let mut distinct: HashMap<ChunkId, u64> = HashMap::new();
        for chunk in manifest.records() {
            distinct.insert(chunk.id, u64::from(chunk.stored_length));
            of_tenant.logical_bytes += u64::from(chunk.stored_length);
        }
        let stored_bytes = distinct.values().sum();
        for (id, length) in distinct {
            let seen = seen.entry((record.root.clone(), id)).or_insert(Seen {
                length,
                images: 0,
                tenants: 0,
                image: Some(index),
                last_tenant: usize::MAX,
                stays: false,
            });
            if seen.last_tenant != listed.tenant {
                seen.last_tenant = listed.tenant;
                seen.tenants += 1;
                of_tenant.stored_bytes += length;
            }
            seen.images += 1;
            seen.image = seen.image.filter(|image| *image == index);
            seen.stays |= !goes;
        }
        of_tenant.images += 1;
        usage.images.push(ImageUsage { tenant: tenant.clone(), name, record, stored_bytes, unique_bytes: 0 });
        Ok(())
    })?;
    usage.logical_bytes = usage.tenants.iter().map(|tenant| tenant.logical_bytes).sum();
    for chunk in seen.values() {
        usage.stored_bytes += chunk.length;
        usage.most_shared = usage.most_shared.max((u64::from(chunk.images), u64::from(chunk.tenants)));
        if let Some(image) = chunk.image {
            usage.images[image].unique_bytes += chunk.length;
        }
        if chunk.tenants == 1 {
            usage.tenants[chunk.last_tenant].unique_bytes += chunk.length;
        }
        if !chunk.stays {
            usage.freed_bytes += chunk.length;
        }
    }
    usage.chunks = seen.len() as u64;
    Ok(usage)
}
