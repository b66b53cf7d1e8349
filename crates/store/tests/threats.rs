//! The threats of docs/security.md, each tried as an attacker would: with the objects of a store in hand, and without the keys.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt as _;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as ObjectResult,
};
use proptest::prelude::*;
use snowmelt_chunk::{
    ChunkId, DataKey, Error as ChunkError, KeyService, KeyUse, LocalKeys, ManifestId, Salt, SaltDomain, Scope, Suite,
    WrappedKey,
};
use snowmelt_image::ImageConfig;
use snowmelt_store::collect::{self, Policy, Retire};
use snowmelt_store::readback::{OpenedImage, Opening, open_image, verify};
use snowmelt_store::{
    BlockSource, Error, ImageMetadata, ImageName, NameRecord, PublishOptions, Published, SeenNames, Sharing, Store,
    StoreOptions, publish,
};

const CHUNK: u32 = 4096;
const SALT_SECRET: [u8; 32] = *b"the salt secret of a deployment!";
/// What nobody but the tenant may see, in content and in the environment of the image.
const CONTENT: &[u8] = b"a secret in a file";
const VARIABLE: &str = "TOKEN=a-secret-in-a-variable";

/// An image, in chunks of a page.
struct Image(Vec<u8>);

impl Image {
    /// One chunk for each text, which it is full of.
    fn of(texts: &[&[u8]]) -> Self {
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
struct World {
    folder: tempfile::TempDir,
    store: Store,
    bucket: Arc<dyn ObjectStore>,
    keys: [LocalKeys; 2],
}

const TENANTS: [&str; 2] = ["alice", "mallory"];

fn options() -> StoreOptions {
    StoreOptions { patience: Duration::ZERO, ..StoreOptions::default() }
}

impl World {
    fn in_memory() -> Self {
        let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Self::with(Store::over_objects(Arc::clone(&bucket), &options()), bucket, tempfile::tempdir().unwrap())
    }

    fn in_a_folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        std::fs::create_dir(&path).unwrap();
        let bucket = Arc::new(LocalFileSystem::new_with_prefix(&path).unwrap());
        Self::with(Store::open(path.to_str().unwrap(), &options()).unwrap(), bucket, folder)
    }

    /// Each attack is tried on both.
    fn both() -> [Self; 2] {
        [Self::in_memory(), Self::in_a_folder()]
    }

    fn with(store: Store, bucket: Arc<dyn ObjectStore>, folder: tempfile::TempDir) -> Self {
        let keys = TENANTS.map(|tenant| LocalKeys::new(folder.path().join("keys").join(tenant)));
        Self { folder, store, bucket, keys }
    }

    fn publish_as(&self, tenant: usize, name: &str, image: &Image, hide_existing: bool) -> Published {
        let sharing =
            Sharing { secret: &SALT_SECRET, scope: Scope::Everyone, zone: String::new(), class: String::new() };
        self.publish_with(&sharing, &self.keys[tenant], TENANTS[tenant], name, image, hide_existing).unwrap()
    }

    fn publish_with(
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

    fn publish(&self, tenant: usize, name: &str, texts: &[&[u8]]) -> Published {
        self.publish_as(tenant, name, &Image::of(texts), false)
    }

    fn open(&self, tenant: usize, name: &str) -> Result<OpenedImage, Error> {
        self.open_seeing(tenant, name, None)
    }

    fn open_seeing(&self, tenant: usize, name: &str, seen: Option<&SeenNames>) -> Result<OpenedImage, Error> {
        let opening = Opening { tenant: TENANTS[tenant], keys: &self.keys[tenant], seen };
        open_image(&self.store, &name.parse().unwrap(), &opening)
    }

    /// What a reader finds wrong with the chunks of an image.
    fn damage(&self, tenant: usize, name: &str) -> Vec<String> {
        let image = self.open(tenant, name).unwrap();
        let verified = verify(&image.store, &image.manifest, 1, &|_| {}).unwrap();
        verified.damage.iter().map(|damage| damage.error.to_string()).collect()
    }

    fn get(&self, path: &str) -> Vec<u8> {
        wait(async { self.bucket.get(&Path::from(path)).await.unwrap().bytes().await.unwrap().to_vec() })
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        wait(self.bucket.put(&Path::from(path), Bytes::copy_from_slice(bytes).into())).unwrap();
    }

    fn delete(&self, path: &str) {
        wait(self.bucket.delete(&Path::from(path))).unwrap();
    }

    /// Everything in the bucket.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let listed: Vec<_> = wait(self.bucket.list(None).try_collect()).unwrap();
        listed.iter().map(|meta| (meta.location.to_string(), self.get(meta.location.as_ref()))).collect()
    }

    /// Makes a name stand for other bytes of a manifest, under the id that they have.
    fn forge(&self, tenant: usize, name: &str, record: &NameRecord, manifest: &[u8]) {
        let id = ManifestId::of(manifest);
        self.put(&format!("roots/{}/manifests/{}/{id}", record.root, TENANTS[tenant]), manifest);
        self.put_record(tenant, name, &NameRecord { manifest: id.to_string(), ..record.clone() });
    }

    fn put_record(&self, tenant: usize, name: &str, record: &NameRecord) {
        self.put(&name_path(tenant, name), &serde_json::to_vec(record).unwrap());
    }

    fn manifest(&self, tenant: usize, published: &Published) -> Vec<u8> {
        self.get(&manifest_path(tenant, published))
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn name_path(tenant: usize, name: &str) -> String {
    format!("names/{}/{name}/latest", TENANTS[tenant])
}

fn manifest_path(tenant: usize, published: &Published) -> String {
    format!("roots/{}/manifests/{}/{}", published.record.root, TENANTS[tenant], published.manifest)
}

fn chunk_path(id: &ChunkId) -> String {
    let id = id.to_string();
    format!("roots/main/chunks/{}/{id}", &id[..2])
}

fn contains(bytes: &[u8], secret: &[u8]) -> bool {
    bytes.windows(secret.len()).any(|part| part == secret)
}

/// Bytes as logs may write them.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let hex: String = secret.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let debug = format!("{secret:?}");
    vec![
        secret.to_vec(),
        hex.to_uppercase().into_bytes(),
        hex.into_bytes(),
        base64::prelude::BASE64_STANDARD_NO_PAD.encode(secret).into_bytes()[..secret.len()].to_vec(),
        base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(secret).into_bytes()[..secret.len()].to_vec(),
        debug.trim_matches(['[', ']']).as_bytes().to_vec(),
    ]
}

// A tenant reads another's data by guessing ids.

#[test]
fn who_guesses_ids_reads_nothing_of_another_tenant() {
    for world in World::both() {
        let alices = world.publish(0, "app", &[CONTENT, b"more"]);
        world.publish(1, "own", &[b"own"]);
        // Mallory knows every id, may read every object, and has her own key.
        assert!(matches!(world.open(1, "app"), Err(Error::NotFound { .. })));
        let name = "app".parse().unwrap();
        let as_alice = Opening { tenant: TENANTS[0], keys: &world.keys[1], seen: None };
        assert!(matches!(open_image(&world.store, &name, &as_alice), Err(Error::Chunk(ChunkError::NoKey { .. }))));
        let manifest = world.store.read_manifest("main", TENANTS[0], &alices.manifest).unwrap();
        for record in manifest.records() {
            let bytes = world.store.read_chunk(&record.id, record.stored_length).unwrap();
            assert!(!contains(&bytes, CONTENT), "chunks are ciphertext");
        }
        // She copies the manifest to herself, as it is and with her name in the place of Alice's.
        let bytes = world.manifest(0, &alices);
        world.forge(1, "stolen", &alices.record, &bytes);
        assert!(matches!(world.open(1, "stolen"), Err(Error::Corrupt { .. })), "it says whose it is");
        world.forge(1, "stolen", &alices.record, &renamed(&bytes, TENANTS[0], TENANTS[1]));
        let refused = world.open(1, "stolen").unwrap_err();
        assert!(
            matches!(refused, Error::Chunk(ChunkError::NoKey { .. } | ChunkError::Unauthentic { .. })),
            "{refused}"
        );
    }
}

/// A manifest that names another tenant.
fn renamed(manifest: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(&manifest[56..][..from.len()], from.as_bytes());
    let mut bytes = manifest[..56].to_vec();
    bytes[40..42].copy_from_slice(&(to.len() as u16).to_le_bytes());
    bytes.extend_from_slice(to.as_bytes());
    bytes.extend_from_slice(&manifest[56 + from.len()..]);
    bytes
}

#[test]
fn another_tenants_manifest_under_ones_own_name_is_refused() {
    for world in World::both() {
        let mallorys = world.publish(1, "trap", &[b"evil"]);
        let alices = world.publish(0, "app", &[CONTENT]);
        // Mallory, who can write to the bucket, gives Alice an image that Mallory has made.
        let bytes = world.manifest(1, &mallorys);
        for bytes in [bytes.clone(), renamed(&bytes, TENANTS[1], TENANTS[0])] {
            world.forge(0, "app", &mallorys.record, &bytes);
            assert!(world.open(0, "app").is_err());
        }
        world.put_record(0, "app", &alices.record);
        assert!(world.open(0, "app").is_ok());
    }
}

// Who reads the bucket without keys.

#[test]
fn the_bucket_without_keys_shows_no_content_and_no_key() {
    for world in World::both() {
        world.publish(0, "app", &[CONTENT, b"more"]);
        let image = world.open(0, "app").unwrap();
        let mut secrets = vec![CONTENT.to_vec(), VARIABLE.into(), SALT_SECRET.to_vec()];
        for record in image.manifest.records() {
            let (_, secret) = image.manifest.chunk(record.slot).unwrap();
            secrets.extend([secret.key.to_vec(), secret.tag.to_vec()]);
        }
        let objects = world.objects();
        assert!(objects.len() >= 4, "{:?}", objects.keys());
        for (path, bytes) in &objects {
            for secret in secrets.iter().flat_map(|secret| spellings(secret)) {
                assert!(!contains(bytes, &secret) && !contains(path.as_bytes(), &secret), "{path}");
            }
        }
    }
}

// A dictionary attack on chunks that can be guessed.

#[test]
fn a_guessed_chunk_is_confirmed_only_with_its_salt() {
    let world = World::in_memory();
    world.publish(0, "app", &[b"password=hunter2\n"]);
    let guess = Image::of(&[b"password=hunter2\n"]).0;
    let is_there = |salt: &Salt| {
        [Suite::Blake3Gcm, Suite::Sha256Ctr].into_iter().any(|suite| {
            let sealed = suite.seal(salt, &guess, &mut vec![0; guess.len()]);
            world.store.has_chunk(&sealed.id, CHUNK).unwrap()
        })
    };
    let domain = SaltDomain { root: "main".into(), epoch: 0, class: String::new(), scope: Scope::Everyone };
    assert!(is_there(&Salt::derive(&SALT_SECRET, &domain)), "who has the salt secret can confirm it, and try others");
    for salt in [
        Salt::from_bytes([0; 32]),
        Salt::derive(&[0; 32], &domain),
        Salt::derive(&SALT_SECRET, &SaltDomain { epoch: 1, ..domain.clone() }),
        Salt::derive(&SALT_SECRET, &SaltDomain { root: "r2".into(), ..domain.clone() }),
        Salt::derive(&SALT_SECRET, &SaltDomain { scope: Scope::Tenant(TENANTS[0].into()), ..domain.clone() }),
    ] {
        assert!(!is_there(&salt));
    }
    let plain = [Suite::Blake3Gcm, Suite::Sha256Ctr].map(|suite| suite.id_of(&guess));
    assert!(plain.iter().all(|id| !world.store.has_chunk(id, CHUNK).unwrap()));
}

#[test]
fn tenants_that_do_not_share_have_no_chunk_in_common() {
    let world = World::in_memory();
    for (number, tenant) in TENANTS.into_iter().enumerate() {
        let (zone, class) = (String::new(), String::new());
        let sharing = Sharing { secret: &SALT_SECRET, scope: Scope::Tenant(tenant.into()), zone, class };
        let image = Image::of(&[b"the same"]);
        let published = world.publish_with(&sharing, &world.keys[number], tenant, "app", &image, false).unwrap();
        assert_eq!(published.new_chunks, 1);
    }
}

// A manifest that was edited.

#[test]
fn every_byte_of_a_manifest_is_guarded() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT, b"more"]);
    let good = world.manifest(0, &published);
    assert!(world.open(0, "app").is_ok());
    // Under the id that the edited bytes have, so that only what is inside can tell.
    for at in 0..good.len() {
        for bit in [0x01, 0x80] {
            let mut edited = good.clone();
            edited[at] ^= bit;
            world.forge(0, "app", &published.record, &edited);
            assert!(world.open(0, "app").is_err(), "byte {at} is not guarded");
        }
    }
    // And under the id of what it was.
    let mut edited = good.clone();
    *edited.last_mut().unwrap() ^= 1;
    world.put(&manifest_path(0, &published), &edited);
    world.put_record(0, "app", &published.record);
    assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })));
    world.put(&manifest_path(0, &published), &good);
    assert!(world.open(0, "app").is_ok());
}

#[test]
fn a_key_wrapped_for_another_manifest_opens_no_other() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    let other = world.publish(0, "other", &[b"more"]);
    let (good, donor) = (world.manifest(0, &published), world.manifest(0, &other));
    // The wrapped keys of both are as long, and stand at the same place.
    let start = 56 + TENANTS[0].len() + "local:0123456789abcdef".len();
    let mut edited = good.clone();
    edited[start..start + 60].copy_from_slice(&donor[start..start + 60]);
    assert_ne!(edited, good);
    world.forge(0, "app", &published.record, &edited);
    let refused = world.open(0, "app").unwrap_err();
    assert!(matches!(refused, Error::Chunk(ChunkError::Unauthentic { .. })), "{refused}");
}

// Chunks that were swapped, poisoned, or made to collide.

#[test]
fn swapped_chunks_are_refused() {
    for world in World::both() {
        let published = world.publish(0, "app", &[CONTENT, b"more"]);
        let manifest = world.store.read_manifest("main", TENANTS[0], &published.manifest).unwrap();
        let paths: Vec<_> = manifest.records().map(|record| chunk_path(&record.id)).collect();
        let (first, second) = (world.get(&paths[0]), world.get(&paths[1]));
        world.put(&paths[0], &second);
        world.put(&paths[1], &first);
        let damage = world.damage(0, "app");
        assert!(damage.len() == 2 && damage.iter().all(|it| it.contains("not those that its id names")), "{damage:?}");
        world.put(&paths[0], &first);
        world.put(&paths[1], &second);
        assert!(world.damage(0, "app").is_empty());
        // In the manifest, the ids of the two records.
        let mut edited = manifest.as_bytes().to_vec();
        let at = edited.windows(32).position(|part| part == manifest.records().next().unwrap().id.0).unwrap();
        let (one, two) = edited[at..at + 72].split_at_mut(40);
        one[..32].swap_with_slice(&mut two[..32]);
        world.forge(0, "app", &published.record, &edited);
        assert!(matches!(world.open(0, "app"), Err(Error::Chunk(ChunkError::Unauthentic { .. }))));
    }
}

#[test]
fn a_poisoned_chunk_is_refused_and_can_be_replaced() {
    for world in World::both() {
        let published = world.publish(0, "app", &[CONTENT]);
        let manifest = world.store.read_manifest("main", TENANTS[0], &published.manifest).unwrap();
        let record = manifest.records().next().unwrap();
        let good = world.get(&chunk_path(&record.id));
        let mut bit = good.clone();
        bit[100] ^= 4;
        let mut longer = good.clone();
        longer.push(0);
        for poison in [vec![0; good.len()], bit, Vec::new(), good[..100].to_vec(), longer, vec![0; 1 << 20]] {
            world.put(&chunk_path(&record.id), &poison);
            assert_eq!(world.damage(0, "app").len(), 1, "{} bytes", poison.len());
        }
        // Who hides what exists, or repairs, puts every chunk: poison does not outlive the next publish.
        world.publish_as(0, "app", &Image::of(&[CONTENT]), true);
        assert!(world.damage(0, "app").is_empty());
    }
}

// An older manifest, or another image's, under a name.

#[test]
fn a_name_rolled_back_is_noticed_by_who_has_seen_a_newer_one() {
    for world in World::both() {
        let seen = SeenNames::new(&world.folder.path().join("cache"));
        let old = world.publish(0, "app", &[b"vulnerable"]);
        let old_record = world.get(&name_path(0, "app"));
        let new = world.publish(0, "app", &[b"mended"]);
        assert_eq!(world.open_seeing(0, "app", Some(&seen)).unwrap().manifest.id(), new.manifest);
        world.put(&name_path(0, "app"), &old_record);
        let refused = world.open_seeing(0, "app", Some(&seen)).unwrap_err();
        assert!(matches!(refused, Error::RolledBack { .. }), "{refused}");
        // The old manifest cannot be given the new one's number, or time.
        for forged in [
            NameRecord { generation: 3, ..old.record.clone() },
            NameRecord { published_at: old.record.published_at + 100, ..old.record.clone() },
            NameRecord { generation: 3, published_at: old.record.published_at + 100, ..old.record.clone() },
            NameRecord { manifest: old.manifest.to_string(), ..new.record.clone() },
        ] {
            world.put_record(0, "app", &forged);
            assert!(world.open_seeing(0, "app", Some(&seen)).is_err(), "{forged:?}");
        }
        // Who has seen nothing cannot tell.
        world.put(&name_path(0, "app"), &old_record);
        assert_eq!(world.open(0, "app").unwrap().manifest.id(), old.manifest);
    }
}

#[test]
fn a_name_rolled_back_behind_a_new_count_is_noticed() {
    let world = World::in_memory();
    let seen = SeenNames::new(&world.folder.path().join("cache"));
    for text in [b"1", b"2", b"3"] {
        world.publish(0, "app", &[text]);
    }
    let old_record = world.get(&name_path(0, "app"));
    assert_eq!(world.open_seeing(0, "app", Some(&seen)).unwrap().record.generation, 3);
    // The attacker removes the record, so that the next publish counts from 1; then puts the old one back, whose number is higher.
    world.delete(&name_path(0, "app"));
    std::thread::sleep(Duration::from_millis(1100));
    world.publish(0, "app", &[b"mended"]);
    assert_eq!(world.open_seeing(0, "app", Some(&seen)).unwrap().record.generation, 1);
    world.put(&name_path(0, "app"), &old_record);
    let refused = world.open_seeing(0, "app", Some(&seen)).unwrap_err();
    assert!(matches!(refused, Error::RolledBack { .. }), "{refused}");
}

#[test]
fn a_name_pointed_at_another_image_is_refused() {
    for world in World::both() {
        let app = world.publish(0, "app", &[CONTENT]);
        let test = world.publish(0, "test", &[b"for tests"]);
        world.put_record(0, "app", &test.record);
        let refused = world.open(0, "app").unwrap_err();
        assert!(matches!(&refused, Error::Corrupt { .. }), "{refused}");
        assert!(refused.to_string().contains("test:latest"), "{refused}");
        for forged in [
            NameRecord { manifest: test.manifest.to_string(), ..app.record.clone() },
            NameRecord { image_size: 0, ..app.record.clone() },
            NameRecord { chunk_count: 9, ..app.record.clone() },
            NameRecord { root: "another".into(), ..app.record.clone() },
        ] {
            world.put_record(0, "app", &forged);
            assert!(world.open(0, "app").is_err(), "{forged:?}");
        }
    }
}

// Whether somebody has a chunk, from what publishing does.

#[derive(Debug)]
struct Counting {
    inner: InMemory,
    /// What was asked for, each with its kind and folder: chunks' ids are left out.
    requests: Mutex<Vec<String>>,
}

impl Counting {
    fn note(&self, kind: &str, path: &str) {
        let what = path.split('/').map(|part| if part.len() > 30 { "*" } else { part }).collect::<Vec<_>>();
        let what = if path.contains("/chunks/") { what[..3].join("/") } else { what.join("/") };
        self.requests.lock().unwrap().push(format!("{kind} {what}"));
    }
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counting")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> ObjectResult<PutResult> {
        let mode = std::mem::discriminant(&options.mode);
        self.note(&format!("put {} {mode:?}", payload.content_length()), location.as_ref());
        self.inner.put_opts(location, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> ObjectResult<Box<dyn MultipartUpload>> {
        self.note("multipart", location.as_ref());
        self.inner.put_multipart_opts(location, options).await
    }
    async fn get_opts(&self, location: &Path, options: GetOptions) -> ObjectResult<GetResult> {
        self.note(if options.head { "head" } else { "get" }, location.as_ref());
        self.inner.get_opts(location, options).await
    }
    fn delete_stream(
        &self,
        locations: BoxStream<'static, ObjectResult<Path>>,
    ) -> BoxStream<'static, ObjectResult<Path>> {
        self.note("delete", "");
        self.inner.delete_stream(locations)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, ObjectResult<ObjectMeta>> {
        self.note("list", prefix.map_or("", |path| path.as_ref()));
        self.inner.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> ObjectResult<ListResult> {
        self.note("list", prefix.map_or("", |path| path.as_ref()));
        self.inner.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> ObjectResult<()> {
        self.note("copy", from.as_ref());
        self.inner.copy_opts(from, to, options).await
    }
}

/// What publishing an image asks of a store in which Alice has published another, and what it says.
fn publishing(alices: &[&[u8]], hide_existing: bool) -> (Vec<String>, (u64, u64)) {
    let counting = Arc::new(Counting { inner: InMemory::new(), requests: Mutex::default() });
    let bucket: Arc<dyn ObjectStore> = Arc::clone(&counting) as _;
    let store = Store::over_objects(Arc::clone(&bucket), &options());
    let world = World::with(store, bucket, tempfile::tempdir().unwrap());
    world.publish(0, "app", alices);
    counting.requests.lock().unwrap().clear();
    let image = Image::of(&[b"guess 1", b"guess 2", b"guess 3", b"guess 3"]);
    let published = world.publish_as(1, "probe", &image, hide_existing);
    let requests = counting.requests.lock().unwrap().clone();
    // What is not the chunks' own: when it was published is a number of digits that may differ.
    let requests = requests.into_iter().filter(|request| !request.starts_with("put 4") || request.contains("chunks"));
    (requests.collect(), (published.new_chunks, published.new_bytes))
}

#[test]
fn publishing_can_hide_whether_somebody_has_a_chunk() {
    let (nothing, something): (&[&[u8]], &[&[u8]]) = (&[b"x", b"y"], &[b"guess 1", b"guess 3"]);
    assert_ne!(publishing(nothing, false), publishing(something, false), "what is to be hidden");
    let hidden = publishing(nothing, true);
    assert_eq!(hidden, publishing(something, true));
    assert!(!hidden.0.iter().any(|request| request.contains("chunks") && !request.starts_with("put")), "{hidden:?}");
    assert_eq!(hidden.0.iter().filter(|request| request.contains("chunks")).count(), 4);
    // Nor does it depend on how much others have.
    let many: Vec<_> = (0_u32..3000).map(u32::to_le_bytes).collect();
    let many: Vec<&[u8]> = many.iter().map(<[u8; 4]>::as_slice).collect();
    assert_eq!(hidden, publishing(&many, true));
}

// The salt secret in the store.

/// A key service that does what those over the network do: what it wraps is bound to key, tenant and image.
#[derive(Clone, Debug)]
struct Kms {
    key_id: &'static str,
    wrapped: Arc<Mutex<Wrapped>>,
}

/// By wrapped key: under which key, for which tenant and image, and which data key it is.
type Wrapped = HashMap<Vec<u8>, (&'static str, String, String, [u8; 32])>;

impl Kms {
    fn new(key_id: &'static str) -> Self {
        Self { key_id, wrapped: Arc::default() }
    }

    /// Another key of the same service.
    fn with(&self, key_id: &'static str) -> Self {
        Self { key_id, ..self.clone() }
    }
}

impl KeyService for Kms {
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), ChunkError> {
        let (key, name) = (DataKey::random()?, DataKey::random()?);
        let entry = (self.key_id, use_.tenant.to_owned(), use_.image.to_owned(), *key.expose());
        self.wrapped.lock().unwrap().insert(name.expose().to_vec(), entry);
        Ok((key, WrappedKey { key_id: format!("kms:{}", self.key_id), bytes: name.expose().to_vec() }))
    }

    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, ChunkError> {
        let found = self.wrapped.lock().unwrap().get(&wrapped.bytes).cloned();
        match found {
            Some((key_id, tenant, image, key))
                if (key_id, tenant.as_str(), image.as_str()) == (self.key_id, use_.tenant, use_.image) =>
            {
                Ok(DataKey::from_bytes(&zeroize::Zeroizing::new(key)))
            }
            _ => Err(ChunkError::Unauthentic { tenant: use_.tenant.into() }),
        }
    }

    fn owns(&self, key_id: &str) -> bool {
        key_id.starts_with("kms:")
    }

    fn describe(&self) -> String {
        format!("kms:{}", self.key_id)
    }
}

#[test]
fn a_salt_secret_of_somebody_else_is_refused() {
    use base64::Engine as _;
    let world = World::in_memory();
    let kms = Kms::new("deployment");
    let secret = world.store.salt_secret(&kms).unwrap();
    let path = "salt/secret";
    let good = world.get(path);
    assert!(spellings(&*secret).iter().all(|secret| !contains(&good, secret)));
    let put = |wrapped: &WrappedKey| {
        let wrapped_bytes = base64::prelude::BASE64_STANDARD.encode(&wrapped.bytes);
        let record = serde_json::json!({ "version": 1, "key_id": wrapped.key_id, "wrapped": wrapped_bytes });
        world.put(path, &serde_json::to_vec(&record).unwrap());
    };
    // Wrapped under a key of the attacker, which may say that it is the deployment's; and a data key of a manifest that she may open.
    let use_ = KeyUse { tenant: "-", image: "salt secret" };
    let (_, mut wrapped) = kms.with("mallory").generate_data_key(&use_).unwrap();
    put(&wrapped);
    assert!(world.store.salt_secret(&kms).is_err());
    wrapped.key_id = "kms:deployment".into();
    put(&wrapped);
    assert!(world.store.salt_secret(&kms).is_err());
    let (_, wrapped) = kms.generate_data_key(&KeyUse { tenant: TENANTS[1], image: "salt secret" }).unwrap();
    put(&wrapped);
    assert!(world.store.salt_secret(&kms).is_err());
    for bytes in [&b""[..], b"{}", b"null", &vec![b'['; 100_000], &vec![b' '; 300 << 10]] {
        world.put(path, bytes);
        assert!(world.store.salt_secret(&kms).is_err());
    }
    world.put(path, &good);
    assert_eq!(*world.store.salt_secret(&kms).unwrap(), *secret);
    // Where it is removed another is made: less is shared from then on, and nothing is given away.
    world.delete(path);
    assert_ne!(*world.store.salt_secret(&kms).unwrap(), *secret);
    // Keys in files do not wrap it: no tenant has its name.
    world.delete(path);
    assert!(world.store.salt_secret(&world.keys[0]).is_err());
}

// Key material in logs, core files, swap.

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_log_shows_a_secret() {
    let captured = Captured::default();
    let writer = captured.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    tracing::trace!("it is captured");
    let mut secrets = vec![SALT_SECRET.to_vec(), CONTENT.to_vec(), VARIABLE.into()];
    for world in World::both() {
        let seen = SeenNames::new(&world.folder.path().join("cache"));
        let published = world.publish(0, "app", &[CONTENT, b"more"]);
        let image = world.open_seeing(0, "app", Some(&seen)).unwrap();
        verify(&image.store, &image.manifest, 2, &|_| {}).unwrap();
        for record in image.manifest.records() {
            secrets.push(image.manifest.chunk(record.slot).unwrap().1.key.to_vec());
        }
        let file = std::fs::read_to_string(world.folder.path().join("keys/alice/alice.key")).unwrap();
        secrets.push(file.trim().parse::<ChunkId>().unwrap().0.to_vec());
        tracing::trace!(?image, ?published, store = ?world.store, keys = ?world.keys, "shown on purpose");
        world.put(&chunk_path(&image.manifest.records()[0].id), b"damaged");
        let damage = verify(&image.store, &image.manifest, 2, &|_| {}).unwrap();
        tracing::error!(?damage);
        tracing::error!(refused = ?world.open(1, "app").unwrap_err());
        let sharing = Sharing { secret: &SALT_SECRET, scope: Scope::Everyone, zone: "z".into(), class: String::new() };
        tracing::trace!(?sharing);
    }
    let log = captured.0.lock().unwrap().clone();
    assert!(contains(&log, b"it is captured") && contains(&log, b"shown on purpose"));
    for secret in secrets {
        for spelling in spellings(&secret) {
            assert!(!contains(&log, &spelling), "{}", String::from_utf8_lossy(&spelling));
        }
    }
}

#[test]
fn what_an_open_image_holds_is_neither_swapped_nor_dumped() {
    let world = World::in_memory();
    world.publish(0, "app", &[CONTENT]);
    let image = world.open(0, "app").unwrap();
    let address = image.manifest.metadata().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = false;
    let flags = maps.lines().find_map(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let numbers = range.map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
        if let Some((Ok(start), Ok(end))) = numbers {
            found = (start..end).contains(&address);
        }
        line.strip_prefix("VmFlags:").filter(|_| found)
    });
    let flags: Vec<_> = flags.unwrap().split_whitespace().collect();
    assert!(flags.contains(&"dd"), "it would be in a core file: {flags:?}");
    assert!(flags.contains(&"lo"), "it could be swapped: {flags:?}");
}

// Objects that are made to break who reads them.

#[test]
fn huge_objects_are_not_read_whole() {
    for world in World::both() {
        world.publish(0, "app", &[CONTENT]);
        let huge = vec![b' '; 64 << 20];
        for path in [name_path(0, "app"), "gc/state".into()] {
            let good = world.get(&path);
            world.put(&path, &huge);
            let started = Instant::now();
            let refused = if path == "gc/state" { world.store.read_state().err() } else { world.open(0, "app").err() };
            assert!(matches!(refused, Some(Error::Corrupt { .. })), "{refused:?}");
            assert!(started.elapsed() < Duration::from_secs(10));
            world.put(&path, &good);
        }
        assert!(world.open(0, "app").is_ok());
    }
}

#[test]
fn numbers_that_would_overflow_stop_nobody() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    for number in [u64::MAX, i64::MAX as u64, (1 << 53) + 1] {
        for forged in [
            NameRecord { generation: number, ..published.record.clone() },
            NameRecord { fence: number, ..published.record.clone() },
            NameRecord { published_at: number, ..published.record.clone() },
            NameRecord { stored_bytes: number, ..published.record.clone() },
        ] {
            world.put_record(0, "app", &forged);
            assert!(world.open(0, "app").is_err());
            collect::status(&world.store, false).unwrap();
            world.publish(0, "app", &[CONTENT]);
            assert!(world.open(0, "app").is_ok(), "publishing again mends it");
        }
        let tombstone = format!("{{\"version\":2,\"removed\":true,\"generation\":{number},\"removed_at\":{number}}}");
        world.put(&name_path(0, "app"), tombstone.as_bytes());
        world.publish(0, "app", &[CONTENT]);
        assert!(world.open(0, "app").is_ok());
        let state = world.get("gc/state");
        for field in ["sequence", "since"] {
            let mut forged: serde_json::Value = serde_json::from_slice(&state).unwrap();
            match field {
                "since" => forged["roots"]["main"]["since"] = number.into(),
                field => forged[field] = number.into(),
            }
            world.put("gc/state", forged.to_string().as_bytes());
            let refused = collect::run(&world.store, &Policy::default(), &|_| {}).unwrap_err();
            assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
        }
        world.put("gc/state", &state);
    }
}

#[test]
fn deeply_nested_json_is_refused() {
    let world = World::in_memory();
    world.publish(0, "app", &[CONTENT]);
    for bomb in ["[".repeat(60_000), "{\"a\":".repeat(12_000), format!("{{\"version\":1,\"x\":{}", "[".repeat(60_000))]
    {
        world.put(&name_path(0, "app"), bomb.as_bytes());
        assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })));
        world.put("gc/state", bomb.as_bytes());
        assert!(matches!(world.store.read_state(), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn a_record_without_names_of_fields_is_none() {
    // It would have the length of a tombstone, which collection does not read.
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    let record =
        format!("[1,\"{}\",\"main\",1,{},\"\",4096,4096,1]", published.manifest, published.record.published_at);
    world.put(&name_path(0, "app"), record.as_bytes());
    assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })));
}

#[test]
fn what_is_listed_leads_nowhere_else() {
    let world = World::in_a_folder();
    world.publish(0, "app", &[CONTENT]);
    let good = world.get(&name_path(0, "app"));
    for root in ["../../keys", "..", "/etc", "a/b", "", "\u{0}", "A", &"r".repeat(65)] {
        let mut record: serde_json::Value = serde_json::from_slice(&good).unwrap();
        record["root"] = root.into();
        world.put(&name_path(0, "app"), record.to_string().as_bytes());
        assert!(matches!(world.open(0, "app"), Err(Error::Corrupt { .. })), "{root:?}");
    }
    world.put(&name_path(0, "app"), &good);
    collect::rotate(&world.store, None, Retire::All).unwrap();
    // Leases and intents with names that are none.
    let leases = world.folder.path().join("store/roots/main/leases");
    for path in ["A/0/1-5", "mallory/00/1-5", "mallory/..x/1-", "x", &format!("mallory/{}/1", "0".repeat(64))] {
        let path = leases.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }
    assert_eq!(world.store.list_leases("main").unwrap(), []);
    for (tenant, name) in [("MALLORY", "app"), ("mallory", "../../alice/app"), ("mallory", "a/../b"), ("mallory", "")] {
        let body = serde_json::json!({ "name": name, "by": "\u{1b}[2J" }).to_string();
        world.put(&format!("roots/main/intents/{tenant}/{}", name.len()), body.as_bytes());
    }
    let before: Vec<_> = world.objects().into_keys().filter(|path| path.starts_with("names/")).collect();
    let migrated = collect::migrate(&world.store, "main", 1, &|_| {}).unwrap();
    assert_eq!(migrated.failed.len(), 4, "{migrated:?}");
    let after: Vec<_> = world.objects().into_keys().filter(|path| path.starts_with("names/")).collect();
    assert_eq!(before, after, "nothing was fenced that nobody could publish");
}

#[test]
fn one_lease_does_not_keep_a_root_for_ever() {
    let world = World::in_memory();
    let published = world.publish(0, "app", &[CONTENT]);
    for lifetime in [u64::from(u32::MAX), u64::MAX] {
        world.put(&format!("roots/main/leases/mallory/{}/0-{lifetime}", published.manifest), b"");
    }
    let leases = world.store.list_leases("main").unwrap();
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|lease| lease.lifetime <= Duration::from_hours(7 * 24)), "{leases:?}");
}

#[cfg(unix)]
#[test]
fn sweeping_a_folder_follows_no_link_out_of_it() {
    let world = World::in_a_folder();
    world.publish(0, "app", &[CONTENT]);
    let outside = world.folder.path().join("home");
    std::fs::create_dir_all(outside.join("documents")).unwrap();
    std::fs::write(outside.join("documents/thesis"), b"years of work").unwrap();
    let root = world.folder.path().join("store/roots/main");
    std::os::unix::fs::symlink(&outside, root.join("chunks/link")).unwrap();
    std::os::unix::fs::symlink(outside.join("documents/thesis"), root.join("chunks/file")).unwrap();
    std::os::unix::fs::symlink(&root, root.join("circle")).unwrap();
    delete_root(&world);
    assert!(collect::sweep(&world.store, "main", &|_| {}).unwrap() > 0);
    assert!(!root.exists());
    assert_eq!(std::fs::read(outside.join("documents/thesis")).unwrap(), b"years of work");
}

/// Takes root `main` to its end as a collector does, with what is live in it.
fn delete_root(world: &World) {
    collect::rotate(&world.store, None, Retire::All).unwrap();
    collect::migrate(&world.store, "main", 1, &|_| {}).unwrap();
    assert!(collect::expire(&world.store, "main", Duration::ZERO).unwrap().is_empty());
    assert!(collect::delete(&world.store, "main", Duration::ZERO).unwrap().is_empty());
}

#[cfg(unix)]
#[test]
fn a_pipe_in_a_folder_stops_nobody() {
    let world = World::in_a_folder();
    let published = world.publish(0, "app", &[CONTENT]);
    let path = world.folder.path().join("store").join(name_path(0, "app"));
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(world.open(0, "app").is_err());
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(world.open(0, "app").is_err());
    std::fs::remove_file(&path).unwrap();
    world.put_record(0, "app", &published.record);
    assert!(world.open(0, "app").is_ok());
}

// Who may write gc/state.

#[test]
fn an_edited_state_removes_nothing_that_a_name_stands_for() {
    for world in World::both() {
        world.publish(0, "app", &[CONTENT]);
        let mut state: serde_json::Value = serde_json::from_slice(&world.get("gc/state")).unwrap();
        state["roots"]["main"]["state"] = "deleted".into();
        state["roots"]["main"]["since"] = (1_u64 << 40).into();
        state["roots"]["r9"] = serde_json::json!({ "state": "active", "since": 1 });
        state["active"] = "r9".into();
        world.put("gc/state", state.to_string().as_bytes());
        let refused = collect::sweep(&world.store, "main", &|_| {}).unwrap_err();
        assert!(refused.to_string().contains("alice/app"), "{refused}");
        let refused = collect::run(&world.store, &Policy::default(), &|_| {}).unwrap_err();
        assert!(refused.to_string().contains("nothing is"), "{refused}");
        assert!(world.damage(0, "app").is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn any_bytes_under_a_name_are_an_error_or_a_record(text in "\\PC{0,200}", cut in 0_usize..400, value: u8) {
        let world = World::in_memory();
        let published = NameRecord {
            version: 1, manifest: ManifestId([7; 32]).to_string(), root: "main".into(), generation: 1, published_at: 5,
            source: text.clone(), image_size: 4096, stored_bytes: 0, chunk_count: 0, fence: 0, salt: None,
        };
        let mut bytes = serde_json::to_vec(&published).unwrap();
        world.put(&name_path(0, "app"), &bytes);
        let name = "app".parse().unwrap();
        prop_assert_eq!(world.store.read_name(TENANTS[0], &name).unwrap(), published);
        let at = cut % bytes.len();
        bytes[at] = value;
        world.put(&name_path(0, "app"), &bytes);
        let _ = world.store.read_name(TENANTS[0], &name);
        world.put(&name_path(0, "app"), &bytes[..at]);
        prop_assert!(world.store.read_name(TENANTS[0], &name).is_err());
        world.put(&name_path(0, "app"), text.as_bytes());
        prop_assert!(world.store.read_name(TENANTS[0], &name).is_err());
    }
}
