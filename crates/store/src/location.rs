//! From a URL to object storage: which backend, how it is reached, whose credentials.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::limit::LimitStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::Error;
use crate::store::StoreOptions;

/// How many requests one process has under way at once, however many threads ask.
const MOST_REQUESTS: usize = 64;

/// How S3-compatible storage is reached. What is not set comes from the environment (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`,
/// `AWS_REGION`, …) and the AWS configuration files, as for every AWS tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct S3Options {
    /// Where the server is, such as `https://minio.example.com:9000`; AWS where it is not set.
    pub endpoint: Option<String>,
    /// The bucket's region; `us-east-1` where nothing says so and an endpoint is set.
    pub region: Option<String>,
    /// Whether the bucket is part of the path rather than of the host's name. By default so where an endpoint is set.
    pub path_style: Option<bool>,
}

/// What URLs of stores begin with.
const SCHEMES: [&str; 6] = ["file", "s3", "gs", "az", "https", "http"];

/// Where objects are.
pub(crate) struct Location {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The folder, where the store is one of this machine.
    pub(crate) folder: Option<PathBuf>,
    /// Whether it takes objects and lists them: plain web servers do neither.
    pub(crate) is_object_storage: bool,
}

impl Location {
    /// Finds out what a URL names. Nothing is asked of a server yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for URLs that cannot be used.
    pub(crate) fn of(url: &str, options: &StoreOptions) -> Result<Self, Error> {
        let invalid = |why: String| Error::Invalid(format!("the store {url:?} cannot be used: {why}"));
        if let Some(folder) = folder_of(url).map_err(invalid)? {
            let objects = LocalFileSystem::new().with_fsync(true);
            return Ok(Self { objects: Arc::new(objects), folder: Some(folder), is_object_storage: true });
        }
        let parsed = Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        let client = ClientOptions::new()
            .with_connect_timeout(Duration::from_secs(5))
            .with_timeout(options.request_timeout)
            .with_allow_http(options.allow_http);
        // Requests are tried again in one place, `retry`, and not below it.
        let no_retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let reason = |error: object_store::Error| invalid(error.to_string());
        let remote = |objects: Box<dyn ObjectStore>| {
            let prefix = Path::from_url_path(parsed.path()).map_err(|error| invalid(error.to_string()))?;
            let limited = LimitStore::new(objects, MOST_REQUESTS);
            let objects: Arc<dyn ObjectStore> =
                if prefix.is_root() { Arc::new(limited) } else { Arc::new(PrefixStore::new(limited, prefix)) };
            Ok(Self { objects, folder: None, is_object_storage: true })
        };
        let bucket = || {
            if parsed.query().is_some() || parsed.fragment().is_some() {
                return Err(invalid("a bucket's URL has no ? or #".into()));
            }
            let named = parsed.host_str().filter(|name| !name.is_empty());
            named.ok_or_else(|| invalid("it names no bucket: use such as s3://bucket/prefix".into()))
        };
        match parsed.scheme() {
            "s3" => {
                let builder = s3(bucket()?, options).map_err(invalid)?;
                let built = builder.with_client_options(client).with_retry(no_retry).build();
                remote(Box::new(built.map_err(reason)?))
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket()?);
                let built = builder.with_client_options(client).with_retry(no_retry).build();
                remote(Box::new(built.map_err(reason)?))
            }
            "az" => {
                let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket()?);
                let built = builder
                    .with_client_options(client)
                    .with_allow_http(options.allow_http)
                    .with_retry(no_retry)
                    .build();
                remote(Box::new(built.map_err(reason)?))
            }
            "https" | "http" => {
                if parsed.scheme() == "http" && !options.allow_http {
                    return Err(invalid("it is plain HTTP: use https, or allow it with --allow-http".into()));
                }
                let built = HttpBuilder::new()
                    .with_url(url)
                    // A web server may redirect to plain HTTP; what may not is said by the URL.
                    .with_client_options(client.with_allow_http(true))
                    .with_retry(no_retry)
                    .build();
                let objects = LimitStore::new(built.map_err(reason)?, MOST_REQUESTS);
                Ok(Self { objects: Arc::new(objects), folder: None, is_object_storage: false })
            }
            scheme => Err(invalid(format!(
                "no store is reached by {scheme}: use file:///folder, s3://bucket/prefix, gs://…, az://… or https://…"
            ))),
        }
    }
}

fn s3(bucket: &str, options: &StoreOptions) -> Result<AmazonS3Builder, String> {
    let settings = crate::aws::settings(&options.s3);
    if let Some(endpoint) = &settings.endpoint {
        match Url::parse(endpoint).map(|url| url.scheme().to_owned()).as_deref() {
            Ok("https") => {}
            Ok("http") if options.allow_http => {}
            Ok("http") => {
                return Err(format!("its endpoint {endpoint} is plain HTTP: use https, or allow it with --allow-http"));
            }
            _ => return Err(format!("its endpoint {endpoint:?} is no https:// URL")),
        }
    }
    let region = match (settings.region, &settings.endpoint) {
        (Some(region), _) => region,
        // Servers other than AWS have no regions, and check the signature for this one.
        (None, Some(_)) => "us-east-1".into(),
        (None, None) => return Err("its region is not known: set AWS_REGION or `s3_region`".into()),
    };
    let path_style = options.s3.path_style.unwrap_or(settings.endpoint.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_allow_http(options.allow_http)
        .with_virtual_hosted_style_request(!path_style)
        .with_credentials(settings.credentials);
    if let Some(endpoint) = settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    Ok(builder)
}

/// The folder that a URL names, absolute; `None` where it names a server.
fn folder_of(url: &str) -> Result<Option<PathBuf>, String> {
    let path = if let Some(path) = url.strip_prefix("file://") {
        if !path.starts_with('/') {
            return Err("a file URL has three slashes: file:///folder".into());
        }
        Url::parse(url)
            .map_err(|error| error.to_string())?
            .to_file_path()
            .map_err(|()| "it does not name a folder of this machine".to_string())?
    } else if url.contains("://") {
        return Ok(None);
    } else if url.is_empty() {
        return Err("it is empty".into());
    } else if let Some((scheme, rest)) = url.split_once(':')
        && SCHEMES.contains(&scheme)
    {
        // Taken for a folder, it would be made and filled without a word.
        let rest = rest.trim_start_matches('/');
        return Err(format!("after {scheme}: come two slashes, {scheme}://{rest}; a folder of that name is ./{url}"));
    } else {
        std::path::absolute(FilePath::new(url)).map_err(|error| error.to_string())?
    };
    if path.to_str().is_none() {
        return Err("its path is not UTF-8".into());
    }
    if path.exists() && !path.is_dir() {
        return Err(format!("{} is not a folder", path.display()));
    }
    Ok(Some(path))
}
