//! A store with two tenants, on a folder and in memory, and what an attacker does to its objects.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use snowmelt_chunk::{ChunkId, KeyService, LocalKeys, ManifestId, Scope, Suite};
use snowmelt_image::ImageConfig;
use snowmelt_store::readback::{OpenedImage, Opening, open_image, verify};
use snowmelt_store::{
    BlockSource, Error, ImageMetadata, ImageName, NameRecord, PublishOptions, Published, SeenNames, Sharing, Store,
    StoreOptions, publish,
};

pub(crate) const CHUNK: u32 = 4096;
pub(crate) const SALT_SECRET: [u8; 32] = *b"the salt secret of a deployment!";
/// What nobody but the tenant may see, in content and in the environment of the image.
pub(crate) const CONTENT: &[u8] = b"a secret in a file";
pub(crate) const VARIABLE: &str = "TOKEN=a-secret-in-a-variable";

/// An image, in chunks of a page.
pub(crate) struct Image(pub(crate) Vec<u8>);

impl Image {
    /// One chunk for each text, which it is full of.
    pub(crate) fn of(texts: &[&[u8]]) -> Self {
        let chunk = |text: &[u8]| text.iter().copied().cycle().take(CHUNK as usize).collect::<Vec<_>>();
        Self(texts.iter().flat_map(|text| chunk(text)).collect())
    }
}

impl BlockSource for Image {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn chunk_size(&self) -> u32 {
        CHUNK
    }
    fn is_hole(&self, _: Range<u64>) -> bool {
        false
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
}

/// A store, the keys of two tenants that cannot read each other's, and the bucket as who may do anything with it sees it.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) bucket: Arc<dyn ObjectStore>,
    pub(crate) keys: [LocalKeys; 2],
}

pub(crate) const TENANTS: [&str; 2] = ["alice", "mallory"];

pub(crate) fn options() -> StoreOptions {
    StoreOptions { patience: Duration::ZERO, ..StoreOptions::default() }
}

impl World {
    pub(crate) fn in_memory() -> Self {
        let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Self::with(Store::over_objects(Arc::clone(&bucket), &options()), bucket, tempfile::tempdir().unwrap())
    }

    pub(crate) fn in_a_folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        std::fs::create_dir(&path).unwrap();
        let bucket = Arc::new(LocalFileSystem::new_with_prefix(&path).unwrap());
        Self::with(Store::open(path.to_str().unwrap(), &options()).unwrap(), bucket, folder)
    }

    /// Each attack is tried on both.
    pub(crate) fn both() -> [Self; 2] {
        [Self::in_memory(), Self::in_a_folder()]
    }

    pub(crate) fn with(store: Store, bucket: Arc<dyn ObjectStore>, folder: tempfile::TempDir) -> Self {
        let keys = TENANTS.map(|tenant| LocalKeys::new(folder.path().join("keys").join(tenant)));
        Self { folder, store, bucket, keys }
    }

    pub(crate) fn publish_as(&self, tenant: usize, name: &str, image: &Image, hide_existing: bool) -> Published {
        let sharing =
            Sharing { secret: &SALT_SECRET, scope: Scope::Everyone, zone: String::new(), class: String::new() };
        self.publish_with(&sharing, &self.keys[tenant], TENANTS[tenant], name, image, hide_existing).unwrap()
    }

    pub(crate) fn publish_with(
        &self,
        sharing: &Sharing<'_>,
        keys: &dyn KeyService,
        tenant: &str,
        name: &str,
        image: &Image,
        hide_existing: bool,
    ) -> Result<Published, Error> {
        let config = ImageConfig { env: vec![VARIABLE.into()], ..ImageConfig::default() };
        let metadata = ImageMetadata { config, source_digest: None, content_bytes: 1, binding: None };
        let name: ImageName = name.parse().unwrap();
        let options = PublishOptions {
            tenant,
            name: &name,
            source: "test",
            suite: Suite::default(),
            sharing,
            keys,
            hide_existing,
            repair: false,
            threads: 1,
            progress: None,
        };
        publish(image, &metadata, &self.store, &options)
    }

    pub(crate) fn publish(&self, tenant: usize, name: &str, texts: &[&[u8]]) -> Published {
        self.publish_as(tenant, name, &Image::of(texts), false)
    }

    pub(crate) fn open(&self, tenant: usize, name: &str) -> Result<OpenedImage, Error> {
        self.open_seeing(tenant, name, None)
    }

    pub(crate) fn open_seeing(
        &self,
        tenant: usize,
        name: &str,
        seen: Option<&SeenNames>,
    ) -> Result<OpenedImage, Error> {
        let opening = Opening { tenant: TENANTS[tenant], keys: &self.keys[tenant], seen };
        open_image(&self.store, &name.parse().unwrap(), &opening)
    }

    /// What a reader finds wrong with the chunks of an image.
    pub(crate) fn damage(&self, tenant: usize, name: &str) -> Vec<String> {
        let image = self.open(tenant, name).unwrap();
        let verified = verify(&image.store, &image.manifest, 1, &|_| {}).unwrap();
        verified.damage.iter().map(|damage| damage.error.to_string()).collect()
    }

    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        wait(async { self.bucket.get(&Path::from(path)).await.unwrap().bytes().await.unwrap().to_vec() })
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        wait(self.bucket.put(&Path::from(path), Bytes::copy_from_slice(bytes).into())).unwrap();
    }

    pub(crate) fn delete(&self, path: &str) {
        wait(self.bucket.delete(&Path::from(path))).unwrap();
    }

    /// Everything in the bucket.
    pub(crate) fn objects_below(&self, folder: &str) -> Vec<Path> {
        wait(self.bucket.list(Some(&Path::from(folder))).map_ok(|meta| meta.location).try_collect()).unwrap()
    }

    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let listed: Vec<_> = wait(self.bucket.list(None).try_collect()).unwrap();
        listed.iter().map(|meta| (meta.location.to_string(), self.get(meta.location.as_ref()))).collect()
    }

    /// Makes a name stand for other bytes of a manifest, under the id that they have.
    pub(crate) fn forge(&self, tenant: usize, name: &str, record: &NameRecord, manifest: &[u8]) {
        let id = ManifestId::of(manifest);
        self.put(&format!("roots/{}/manifests/{}/{id}", record.root, TENANTS[tenant]), manifest);
        self.put_record(tenant, name, &NameRecord { manifest: id.to_string(), ..record.clone() });
    }

    pub(crate) fn put_record(&self, tenant: usize, name: &str, record: &NameRecord) {
        self.put(&name_path(tenant, name), &serde_json::to_vec(record).unwrap());
    }

    pub(crate) fn manifest(&self, tenant: usize, published: &Published) -> Vec<u8> {
        self.get(&manifest_path(tenant, published))
    }
}

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(crate) fn name_path(tenant: usize, name: &str) -> String {
    format!("names/{}/{name}/latest", TENANTS[tenant])
}

pub(crate) fn manifest_path(tenant: usize, published: &Published) -> String {
    format!("roots/{}/manifests/{}/{}", published.record.root, TENANTS[tenant], published.manifest)
}

pub(crate) fn chunk_path(id: &ChunkId) -> String {
    let id = id.to_string();
    format!("roots/main/chunks/{}/{id}", &id[..2])
}

pub(crate) fn contains(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|part| part == secret)
}
