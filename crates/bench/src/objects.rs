//! Object storage as the cases reach it without snowmelt: the S3 server beside the benchmark, and a count of requests.

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    ClientOptions, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio::runtime::Runtime;

/// Requests that are under way at once, as in snowmelt.
pub(crate) const AT_ONCE: usize = 64;
/// What servers other than AWS check signatures for.
const REGION: &str = "us-east-1";
/// Keys that a server lists, or deletes, in one request.
const PAGE: u64 = 1000;

/// A server that `scripts/test-servers` has started.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

impl Server {
    pub(crate) fn find() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} is not set: scripts/test-servers run -- snowmelt-bench"))
        };
        Ok(Self {
            endpoint: variable("SNOWMELT_TEST_S3")?,
            bucket: variable("SNOWMELT_TEST_BUCKET")?,
            access_key: variable("SNOWMELT_TEST_S3_ACCESS_KEY")?,
            secret_key: variable("SNOWMELT_TEST_S3_SECRET_KEY")?,
        })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> Result<SocketAddr> {
        Ok(self.endpoint.trim_start_matches("http://").trim_end_matches('/').parse()?)
    }

    /// Makes a snowmelt command work on a store there; through a proxy, where its address is given.
    pub(crate) fn serve(&self, command: &mut Command, folder: &str, proxy: Option<SocketAddr>) {
        let endpoint = proxy.map_or_else(|| self.endpoint.clone(), |address| format!("http://{address}"));
        command
            .env("AWS_ACCESS_KEY_ID", &self.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.secret_key)
            .env("AWS_REGION", REGION)
            .env("SNOWMELT_STORE", format!("s3://{}/{folder}", self.bucket))
            .env("SNOWMELT_S3_ENDPOINT", endpoint)
            .arg("--allow-http");
    }

    pub(crate) fn open(&self) -> Result<AmazonS3> {
        Ok(AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_bucket_name(&self.bucket)
            .with_region(REGION)
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(&self.secret_key)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .build()?)
    }
}

/// Where requests of this program itself run.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Puts objects, many at once.
pub(crate) async fn put_all(
    objects: &dyn ObjectStore,
    at_once: usize,
    all: impl Iterator<Item = (Path, Bytes)>,
) -> Result<()> {
    futures::stream::iter(all.map(Ok::<_, object_store::Error>))
        .try_for_each_concurrent(at_once, |(path, bytes)| async move {
            objects.put(&path, PutPayload::from(bytes)).await.map(drop)
        })
        .await?;
    Ok(())
}

/// Removes everything below a path.
pub(crate) async fn remove_all(objects: &dyn ObjectStore, path: &Path) -> Result<()> {
    let paths = objects.list(Some(path)).map_ok(|found| found.location).boxed();
    let paths: Vec<_> = paths.collect().await;
    objects.delete_stream(futures::stream::iter(paths).boxed()).try_for_each(|_| async { Ok(()) }).await?;
    Ok(())
}

/// Requests by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Requests {
    pub(crate) get: u64,
    pub(crate) put: u64,
    pub(crate) list: u64,
    pub(crate) copy: u64,
    /// Each of up to a thousand objects.
    pub(crate) delete: u64,
}

impl Requests {
    pub(crate) fn total(self) -> u64 {
        self.get + self.put + self.list + self.copy + self.delete
    }
}

#[derive(Debug, Default)]
struct Counts {
    get: AtomicU64,
    put: AtomicU64,
    list: AtomicU64,
    copy: AtomicU64,
    delete: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts requests as S3 would: lists and deletions by a thousand, everything else one by one; HEAD is a GET.
#[derive(Debug)]
pub(crate) struct Counted {
    inner: Arc<dyn ObjectStore>,
    counts: Arc<Counts>,
}

impl Counted {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self { inner, counts: Arc::default() })
    }

    /// Requests since the last call.
    pub(crate) fn take(&self) -> Requests {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Requests {
            get: take(&self.counts.get),
            put: take(&self.counts.put),
            list: take(&self.counts.list),
            copy: take(&self.counts.copy),
            delete: take(&self.counts.delete),
        }
    }

    fn listed(
        &self,
        prefix: Option<&Path>,
        after: Option<&Path>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let counts = Arc::clone(&self.counts);
        let found = match after {
            Some(after) => self.inner.list_with_offset(prefix, after),
            None => self.inner.list(prefix),
        };
        count(&counts.list);
        let mut number = 0_u64;
        found
            .inspect_ok(move |_| {
                // The first of every further page.
                if number > 0 && number.is_multiple_of(PAGE) {
                    count(&counts.list);
                }
                number += 1;
            })
            .boxed()
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counted({})", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Counted {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        count(&self.counts.put);
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        count(&self.counts.put);
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        count(&self.counts.get);
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let counts = Arc::clone(&self.counts);
        let mut number = 0_u64;
        let counted = locations
            .inspect_ok(move |_| {
                if number.is_multiple_of(PAGE) {
                    count(&counts.delete);
                }
                number += 1;
            })
            .boxed();
        self.inner.delete_stream(counted)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.listed(prefix, None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.listed(prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        count(&self.counts.list);
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        count(&self.counts.copy);
        self.inner.copy_opts(from, to, options).await
    }
}
