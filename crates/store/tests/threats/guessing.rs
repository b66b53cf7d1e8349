//! Who guesses what is in a chunk, and who finds out what others have by publishing it.

use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result as ObjectResult,
};
use snowmelt_chunk::{Salt, SaltDomain, Scope, Suite};
use snowmelt_store::{Sharing, Store};

use crate::world::*;

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
