//! Where tests run. `SNOWMELT_TEST_STORE` says it: `file`, as it is when unset, for stores in folders with keys in files; `s3`, for a
//! bucket on the server that `scripts/test-servers run` starts, with keys in the KMS that it starts too; or `cluster`, for the same on a
//! machine with a worker (see [`machine`](crate::machine)), in a zone with the nodes that `scripts/cluster nodes` starts.
//!
//! The same tests run everywhere, so they look into a store by the functions here. What does not apply everywhere is listed here.

use std::path::Path as FilePath;
use std::sync::{Arc, OnceLock};

use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::world::tool;

/// Tests that say nothing about a bucket, and why. Each begins with [`only_on_files`]. A name that ends with `::` is that of a module.
const ONLY_ON_FILES: [(&str, &str); 15] = [
    ("functions::clients::", CALLERS),
    ("functions::commands::", CALLERS),
    ("functions::page::", CALLERS),
    ("functions::runtimes::", "it is about what is in a sandbox: the others start sandboxes on a cluster, too"),
    ("functions::terraform::", CALLERS),
    ("functions::terraform_access::", CALLERS),
    ("functions::urls::", CALLERS),
    ("functions::watching::", CALLERS),
    (
        "functions::faults::killing_service_hosts_agents_and_sandboxes_loses_no_event_and_leaves_nothing",
        "it kills agents that no worker has; where one has them, another test does",
    ),
    (
        "functions::faults::a_mixed_trace_leaves_nothing_growing",
        "it is about the service: chunks are read at starts only",
    ),
    (
        "functions::network::functions_reach_what_they_may_and_never_the_machine",
        "its service is in a network of its own, where no server is",
    ),
    ("commands::keys_are_made_once_and_only_their_owner_reads_them", "keys in KMS are no files"),
    ("keys_and_salts::images_open_without_the_old_key_after_its_rotation", "it removes the file of a key"),
    ("worker::tenants_share_a_worker_and_no_keys", "it removes the file of a key"),
    ("mistakes::stores_that_can_only_be_read", "it puts a plain web server over a store's folder"),
];

/// Tests that on a cluster do without a part of it, and why. What they are about holds there as anywhere.
const PARTLY_ON_CLUSTER: [(&str, &str); 3] = [
    (
        "access::what_cannot_be_loaded_or_shown_is_said",
        "a worker has budgets of its own: cache_size bounds sandboxes without one",
    ),
    (
        "damage::a_damaged_cache_heals_from_the_store",
        "it asks for what only this machine still has: a zone would have it too",
    ),
    ("object_storage::a_clock_that_is_off", "it is off for one command: a worker has the machine's"),
];

const CALLERS: &str = "it is about who calls: the others invoke functions on a cluster, too";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    File,
    S3,
    Cluster,
}

fn setting() -> Setting {
    match std::env::var("SNOWMELT_TEST_STORE").as_deref() {
        Err(_) | Ok("" | "file") => Setting::File,
        Ok("s3") => Setting::S3,
        Ok("cluster") => Setting::Cluster,
        Ok(other) => panic!("SNOWMELT_TEST_STORE is {other:?}: file, s3 or cluster"),
    }
}

/// Whether stores are on S3.
pub fn is_s3() -> bool {
    setting() != Setting::File
}

/// The nodes of the zone that machines are in; nothing where there is none.
pub fn cache_nodes() -> Option<String> {
    (setting() == Setting::Cluster).then(|| {
        let nodes = std::env::var("SNOWMELT_TEST_CACHE_NODES");
        nodes.expect("SNOWMELT_TEST_STORE=cluster takes nodes: scripts/cluster nodes -- cargo test …")
    })
}

/// Whether the test of this name is in the list and has nothing to do.
pub fn has_nothing_to_do(name: &str) -> bool {
    let (_, why) = ONLY_ON_FILES
        .iter()
        .find(|(listed, _)| *listed == name || listed.ends_with("::") && name.starts_with(listed))
        .expect("it is in ONLY_ON_FILES");
    if is_s3() {
        println!("DOES NOT APPLY TO S3: {name}: {why}");
    }
    is_s3()
}

pub fn assert_is_partly_on_cluster(name: &str) {
    assert!(PARTLY_ON_CLUSTER.iter().any(|(listed, _)| *listed == name), "{name} is in PARTLY_ON_CLUSTER");
}

/// The name of a test from that of a closure in it.
pub fn test_of(closure: &'static str) -> &'static str {
    closure.split_once("::").unwrap().1.trim_end_matches("::{{closure}}")
}

/// The name of the test that this is in.
macro_rules! this_test {
    () => {
        crate::stores::test_of(std::any::type_name_of_val(&|| ()))
    };
}
pub(crate) use this_test;

/// Ends a test of [`ONLY_ON_FILES`] where stores are on S3.
macro_rules! only_on_files {
    () => {
        if crate::stores::has_nothing_to_do(crate::stores::this_test!()) {
            return;
        }
    };
}
pub(crate) use only_on_files;

/// Says what this run does not show. To the stream itself: what tests print is not seen when they pass.
#[test]
fn what_does_not_apply() {
    use std::io::Write as _;
    if is_s3() {
        for (name, why) in ONLY_ON_FILES {
            writeln!(std::io::stderr(), "not on S3: {name}: {why}").unwrap();
        }
    }
    if setting() == Setting::Cluster {
        for (name, why) in PARTLY_ON_CLUSTER {
            writeln!(std::io::stderr(), "not wholly on the cluster: {name}: {why}").unwrap();
        }
    }
}

/// The servers that `scripts/test-servers run` starts.
pub struct Servers {
    pub s3: String,
    /// All tests share it; each store has a prefix of its own.
    pub bucket: String,
    pub access_key: String,
    pub secret_key: String,
    pub kms: String,
}

const REGION: &str = "us-east-1";
/// `{tenant}` in it makes it a key for each tenant.
pub const KEYS: &str = "awskms:alias/snowmelt-tests-{tenant}";
/// What it stands for in tests: each has a key.
const TENANTS: [&str; 2] = ["default", "other"];
/// The salt secret has one too.
const SALT_KEY: &str = "awskms:alias/snowmelt-tests-salt";

/// The servers, with bucket and keys in them; nothing where no server runs.
pub fn servers() -> Option<&'static Servers> {
    static SERVERS: OnceLock<Option<Servers>> = OnceLock::new();
    let found = SERVERS.get_or_init(|| {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let servers = Servers {
            s3: variable("SNOWMELT_TEST_S3")?,
            bucket: variable("SNOWMELT_TEST_BUCKET")?,
            access_key: variable("SNOWMELT_TEST_S3_ACCESS_KEY")?,
            secret_key: variable("SNOWMELT_TEST_S3_SECRET_KEY")?,
            kms: variable("SNOWMELT_TEST_KMS")?,
        };
        // Every test's process comes here: what is there already is as good.
        let of_tenants = TENANTS.map(|tenant| KEYS.replace("{tenant}", tenant));
        for key in of_tenants.iter().map(String::as_str).chain([SALT_KEY]) {
            let alias = key.strip_prefix("awskms:").unwrap();
            if !servers.kms("DescribeKey", &format!("{{\"KeyId\": \"{alias}\"}}")).contains("\"Arn\"") {
                servers.make_key(alias);
            }
        }
        Some(servers)
    });
    found.as_ref()
}

impl Servers {
    /// What every command needs to know to reach them.
    pub fn variables(&self) -> Vec<(String, String)> {
        [
            ("AWS_ACCESS_KEY_ID", self.access_key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", &self.secret_key),
            ("AWS_REGION", REGION),
            ("AWS_ENDPOINT_URL_S3", &self.s3),
            ("AWS_ENDPOINT_URL_KMS", &self.kms),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("SNOWMELT_ALLOW_HTTP", "true"),
            ("SNOWMELT_KEYS", KEYS),
            ("SNOWMELT_SALT_KEY", SALT_KEY),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn curl(&self, service: &str, arguments: &[&str]) -> String {
        let (signature, user) =
            (format!("aws:amz:{REGION}:{service}"), format!("{}:{}", self.access_key, self.secret_key));
        tool("curl", &[&["-sS", "--noproxy", "*", "--aws-sigv4", &signature, "--user", &user], arguments].concat())
    }

    /// Asks KMS, as its users would by `aws kms`.
    pub fn kms(&self, action: &str, body: &str) -> String {
        let target = format!("X-Amz-Target: TrentService.{action}");
        let headers = ["-H", &target, "-H", "Content-Type: application/x-amz-json-1.1", "-d", body, &self.kms];
        self.curl("kms", &headers)
    }

    /// Makes a key with that alias; gives its id. Another process may have made the alias meanwhile, which then stays.
    pub fn make_key(&self, alias: &str) -> String {
        let made: serde_json::Value = serde_json::from_str(&self.kms("CreateKey", "{}")).unwrap();
        let id = made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
        let said = self.kms("CreateAlias", &format!("{{\"AliasName\": \"{alias}\", \"TargetKeyId\": \"{id}\"}}"));
        assert!(["", "null"].contains(&said.trim()) || said.contains("AlreadyExists"), "{said}");
        id
    }
}

/// A store from outside: objects by their paths in it.
pub struct Objects {
    objects: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Runtime,
}

impl Objects {
    pub fn of_folder(folder: &FilePath) -> Self {
        let prefix = Path::from_absolute_path(folder).unwrap();
        Self::new(PrefixStore::new(object_store::local::LocalFileSystem::new(), prefix))
    }

    pub fn of_bucket(servers: &Servers, prefix: &str) -> Self {
        let bucket = object_store::aws::AmazonS3Builder::new()
            .with_bucket_name(&servers.bucket)
            .with_region(REGION)
            .with_endpoint(&servers.s3)
            .with_allow_http(true)
            .with_access_key_id(&servers.access_key)
            .with_secret_access_key(&servers.secret_key)
            .build()
            .unwrap();
        Self::new(PrefixStore::new(bucket, prefix.to_owned()))
    }

    fn new(objects: impl ObjectStore) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { objects: Arc::new(objects), runtime }
    }

    /// Every object's path, and its length.
    pub fn list(&self) -> Vec<(String, u64)> {
        use futures::TryStreamExt as _;
        let listed: Vec<_> = self.runtime.block_on(self.objects.list(None).try_collect()).unwrap();
        let mut all: Vec<_> = listed.into_iter().map(|object| (object.location.to_string(), object.size)).collect();
        all.sort();
        all
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        let read = async { self.objects.get(&Path::from(path)).await?.bytes().await };
        self.runtime.block_on(read).unwrap_or_else(|error| panic!("{path}: {error}")).to_vec()
    }

    /// Replaces an object, or makes it.
    pub fn write(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        let payload = object_store::PutPayload::from(bytes.into());
        self.runtime.block_on(self.objects.put(&Path::from(path), payload)).unwrap();
    }

    pub fn remove(&self, path: &str) {
        self.runtime.block_on(self.objects.delete(&Path::from(path))).unwrap();
    }
}
