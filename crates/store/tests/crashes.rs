//! Any history of publishing, removing, running and collecting, by several processes at once, each of which may die at any request:
//! every image that is listed is whole, what was published stays, what is in use is readable, and garbage goes in the end.
//!
//! The requests of all processes are put in one order by a seed, so that a failure can be repeated: it prints its seed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, dead_code)]

#[path = "support/faulty_objects.rs"]
mod faulty_objects;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use faulty_objects::{Faults, FaultyObjects, Turns};
use futures::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::memory::InMemory;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use snowmelt_chunk::{LocalKeys, ManifestId, Scope, Suite};
use snowmelt_image::ImageConfig;
use snowmelt_store::collect::{self, Retire};
use snowmelt_store::readback::{Opening, open_image, verify};
use snowmelt_store::{
    BlockSource, CopyOptions, Error, ImageLease, ImageMetadata, ImageName, PublishOptions, RootState, Sharing, Store,
    StoreOptions, publish, rewrap,
};

const CHUNK: u32 = 4096;
const TENANTS: [&str; 2] = ["a", "b"];
const NAMES: [&str; 2] = ["x:1", "y:1"];

/// Chunks out of a small pool, so that images share some.
struct Image(Vec<u8>);

impl BlockSource for Image {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64 * u64::from(CHUNK)
    }
    fn chunk_size(&self) -> u32 {
        CHUNK
    }
    fn is_hole(&self, _: Range<u64>) -> bool {
        false
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        buf.fill(self.0[(offset / u64::from(CHUNK)) as usize]);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Action {
    Publish {
        tenant: &'static str,
        name: &'static str,
        image: Vec<u8>,
    },
    Remove {
        tenant: &'static str,
        name: &'static str,
    },
    Copy {
        from: &'static str,
        name: &'static str,
    },
    Rewrap {
        tenant: &'static str,
        name: &'static str,
    },
    Rotate {
        add_only: bool,
    },
    Migrate {
        root: String,
    },
    Expire {
        root: String,
    },
    Delete {
        root: String,
    },
    /// All steps, one after the other.
    Collect,
    Start {
        tenant: &'static str,
        name: &'static str,
    },
    Renew {
        sandbox: usize,
    },
    Stop {
        sandbox: usize,
    },
}

struct Sandbox {
    lease: Option<ImageLease>,
    /// Where it reads from, and whether it has had a lease there in time.
    store: Store,
    manifest: ManifestId,
    tenant: &'static str,
    leased: bool,
}

struct World {
    objects: Arc<InMemory>,
    folder: tempfile::TempDir,
    random: ChaCha8Rng,
    sandboxes: Vec<Sandbox>,
    /// Names that a publish said it has put, and that nothing tried to remove or replace since.
    published: BTreeMap<(&'static str, &'static str), String>,
}

fn options() -> StoreOptions {
    // One try: what is tried again is for another test.
    StoreOptions { patience: Duration::ZERO, ..StoreOptions::default() }
}

fn process(objects: &Arc<InMemory>, faults: Faults) -> Store {
    Store::over_objects(FaultyObjects::new(objects, faults), &options())
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            objects: Arc::new(InMemory::new()),
            folder: tempfile::tempdir().unwrap(),
            random: ChaCha8Rng::seed_from_u64(seed),
            sandboxes: Vec::new(),
            published: BTreeMap::new(),
        }
    }

    /// An observer that sees everything and never fails.
    fn store(&self) -> Store {
        process(&self.objects, Faults::none(0))
    }

    fn keys(&self) -> LocalKeys {
        LocalKeys::new(self.folder.path())
    }

    fn choose_action(&mut self) -> Action {
        let state = self.store().read_state().unwrap();
        let random = &mut self.random;
        let tenant = TENANTS[random.random_range(0..TENANTS.len())];
        let name = NAMES[random.random_range(0..NAMES.len())];
        let mut root_in = |wanted| {
            let roots = state.roots_in(wanted);
            (!roots.is_empty()).then(|| roots[random.random_range(0..roots.len())].clone())
        };
        let (retired, expired) = (root_in(RootState::Retired), root_in(RootState::Expired));
        let sandbox = random.random_range(0..self.sandboxes.len().max(1));
        match random.random_range(0..100) {
            0..28 => {
                let image = (0..random.random_range(1..4)).map(|_| random.random_range(1..6)).collect();
                Action::Publish { tenant, name, image }
            }
            28..33 => Action::Remove { tenant, name },
            33..37 => Action::Copy { from: tenant, name },
            37..40 => Action::Rewrap { tenant, name },
            40..48 => Action::Rotate { add_only: random.random_range(0..4) == 0 },
            48..56 => Action::Collect,
            56..65 if retired.is_some() => Action::Migrate { root: retired.unwrap() },
            65..75 if retired.is_some() => Action::Expire { root: retired.unwrap() },
            75..85 if expired.is_some() => Action::Delete { root: expired.unwrap() },
            85..92 => Action::Start { tenant, name },
            92..98 if !self.sandboxes.is_empty() => Action::Renew { sandbox },
            98..100 if !self.sandboxes.is_empty() => Action::Stop { sandbox },
            _ => Action::Publish { tenant, name, image: vec![random.random_range(1..6)] },
        }
    }

    /// Some processes at once, each with an action of its own, some of which die.
    fn round(&mut self) {
        let count = self.random.random_range(1..=3);
        let turns = Turns::new(self.random.random(), count);
        let mut work = Vec::new();
        for number in 0..count {
            let action = self.choose_action();
            let crash = (self.random.random_range(0..3) == 0)
                .then(|| (self.random.random_range(1..30), self.random.random_range(0..2) == 0));
            let faults = Faults::process(self.random.random(), crash, Arc::clone(&turns), number);
            work.push((action, process(&self.objects, faults)));
        }
        for (action, _) in &work {
            // Whatever comes of it.
            if let Action::Publish { tenant, name, .. }
            | Action::Remove { tenant, name }
            | Action::Rewrap { tenant, name } = action
            {
                self.published.remove(&(*tenant, *name));
            }
            if let Action::Copy { name, .. } = action {
                self.published.remove(&("b", *name));
            }
        }
        let keys = self.keys();
        let mut leases: Vec<_> = work
            .iter()
            .map(|(action, _)| match action {
                Action::Renew { sandbox } | Action::Stop { sandbox } => self.sandboxes[*sandbox].lease.take(),
                _ => None,
            })
            .collect();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = work
                .iter()
                .zip(leases.drain(..))
                .enumerate()
                .map(|(number, ((action, store), lease))| {
                    let (turns, keys) = (&turns, &keys);
                    scope.spawn(move || {
                        let _ended = Ended { turns, number };
                        act(action, store, keys, lease)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut changed: Vec<_> = Vec::new();
        for ((action, _), result) in work.iter().zip(results) {
            match (action, result) {
                (Action::Publish { tenant, name, .. }, Ok(Outcome::Published(manifest))) => {
                    changed.push(((*tenant, *name), manifest));
                }
                (Action::Start { tenant, .. }, Ok(Outcome::Started(manifest, store))) => {
                    let store = self.store().at_root(store.root()).unwrap();
                    let lease = ImageLease::new(&store, tenant, manifest, Duration::from_hours(1), "test");
                    self.sandboxes.push(Sandbox { lease: Some(lease), store, manifest, tenant, leased: false });
                }
                (Action::Renew { sandbox }, Ok(Outcome::Renewed(lease, moved, in_time))) => {
                    let observer = self.store();
                    let sandbox = &mut self.sandboxes[*sandbox];
                    sandbox.lease = Some(*lease);
                    if let Some(moved) = moved {
                        sandbox.store = observer.at_root(moved.root()).unwrap();
                    }
                    sandbox.leased |= in_time;
                }
                _ => {}
            }
        }
        // Sandboxes whose process died are gone.
        for ((tenant, name), manifest) in &changed {
            let others = work.iter().filter(|(action, _)| match action {
                Action::Publish { tenant: t, name: n, .. }
                | Action::Remove { tenant: t, name: n }
                | Action::Rewrap { tenant: t, name: n } => (t, n) == (tenant, name),
                Action::Copy { name: n, .. } => (&"b", n) == (tenant, name),
                _ => false,
            });
            if others.count() == 1 {
                self.published.insert((*tenant, *name), manifest.clone());
            }
        }
        self.sandboxes.retain(|sandbox| sandbox.lease.is_some());
    }

    fn check(&self) {
        let store = self.store();
        let keys = self.keys();
        for tenant in store.list_tenants().unwrap() {
            for (name, record) in store.list_names(&tenant).unwrap() {
                record.unwrap();
                let opening = Opening { tenant: &tenant, keys: &keys, seen: None };
                let image = open_image(&store, &name, &opening).unwrap();
                let verified = verify(&image.store, &image.manifest, 1, &|_| {}).unwrap();
                assert!(verified.damage.is_empty(), "{tenant}/{name}: {:?}", verified.damage);
            }
        }
        for ((tenant, name), manifest) in &self.published {
            let record = store.read_name(tenant, &name.parse().unwrap()).unwrap();
            assert_eq!(record.manifest, *manifest, "{tenant}/{name} is not what was published last");
        }
        for sandbox in self.sandboxes.iter().filter(|sandbox| sandbox.leased) {
            let at = sandbox.store.root();
            let manifest = store.read_manifest(at, sandbox.tenant, &sandbox.manifest).unwrap();
            for record in manifest.records() {
                sandbox.store.read_chunk(&record.id, record.stored_length).unwrap();
            }
        }
    }

    /// Once nobody uses anything but what is named, all roots but the active ones go, with everything in them.
    fn finish(&mut self) {
        let store = self.store();
        self.sandboxes.clear();
        // They would count for an hour.
        let leases: Vec<_> = self.list("roots").into_iter().filter(|path| path.contains("/leases/")).collect();
        for path in leases {
            futures::executor::block_on(object_store::ObjectStoreExt::delete(&*self.objects, &path.as_str().into()))
                .unwrap();
        }
        collect::rotate(&store, None, Retire::All).unwrap();
        for root in store.read_state().unwrap().roots_in(RootState::Retired) {
            let migrated = collect::migrate(&store, &root, 1, &|_| {}).unwrap();
            assert!(migrated.failed.is_empty(), "{:?}", migrated.failed);
            let blockers = collect::expire(&store, &root, Duration::ZERO).unwrap();
            assert!(blockers.is_empty(), "{root}: {blockers}");
        }
        for root in store.read_state().unwrap().roots_in(RootState::Expired) {
            collect::clear_alarms(&store, &root).unwrap();
            assert!(collect::delete(&store, &root, Duration::ZERO).unwrap().is_empty());
        }
        for root in store.read_state().unwrap().roots_in(RootState::Deleted) {
            collect::sweep(&store, &root, &|_| {}).unwrap();
            assert_eq!(self.list(&format!("roots/{root}")), Vec::<String>::new());
        }
        self.check();
    }

    fn list(&self, folder: &str) -> Vec<String> {
        let listed = self.objects.list(Some(&folder.into())).try_collect::<Vec<_>>();
        futures::executor::block_on(listed).unwrap().into_iter().map(|meta| meta.location.to_string()).collect()
    }
}

/// Lets the others go on, whatever ends a process.
struct Ended<'a> {
    turns: &'a Turns,
    number: usize,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.turns.end(self.number);
    }
}

enum Outcome {
    Published(String),
    Started(ManifestId, Store),
    Renewed(Box<ImageLease>, Option<Store>, bool),
    Nothing,
}

fn act(action: &Action, store: &Store, keys: &LocalKeys, lease: Option<ImageLease>) -> Result<Outcome, Error> {
    let parse = |name: &str| name.parse::<ImageName>().unwrap();
    let sharing = Sharing { secret: &[7; 32], scope: Scope::Everyone, zone: String::new(), class: String::new() };
    Ok(match action {
        Action::Publish { tenant, name, image } => {
            let metadata =
                ImageMetadata { config: ImageConfig::default(), source_digest: None, content_bytes: 1, binding: None };
            let options = PublishOptions {
                tenant,
                name: &parse(name),
                source: "test",
                suite: Suite::default(),
                sharing: &sharing,
                keys,
                repair: false,
                hide_existing: false,
                threads: 1,
                progress: None,
            };
            Outcome::Published(publish(&Image(image.clone()), &metadata, store, &options)?.manifest.to_string())
        }
        Action::Remove { tenant, name } => {
            store.remove_name(tenant, &parse(name))?;
            Outcome::Nothing
        }
        Action::Copy { from, name } => {
            let name = parse(name);
            let image = open_image(store, &name, &Opening { tenant: from, keys, seen: None })?;
            let options = CopyOptions { to: store, tenant: "b", name: &name, keys, threads: 1 };
            snowmelt_store::copy(&image, &options, &|_| {})?;
            Outcome::Nothing
        }
        Action::Rewrap { tenant, name } => {
            rewrap(store, tenant, &parse(name), keys, &|_| false)?;
            Outcome::Nothing
        }
        Action::Rotate { add_only } => {
            collect::rotate(store, None, if *add_only { Retire::None } else { Retire::All })?;
            Outcome::Nothing
        }
        Action::Migrate { root } => {
            let migrated = collect::migrate(store, root, 1, &|_| {})?;
            for (name, error) in migrated.failed {
                assert!(matches!(error, Error::RootClosed { .. } | Error::Busy { .. }), "{name}: {error}");
            }
            Outcome::Nothing
        }
        Action::Expire { root } => {
            collect::expire(store, root, Duration::ZERO)?;
            Outcome::Nothing
        }
        Action::Delete { root } => {
            if collect::delete(store, root, Duration::ZERO)?.is_empty() {
                collect::sweep(store, root, &|_| {})?;
            }
            Outcome::Nothing
        }
        Action::Collect => {
            collect::rotate(store, None, Retire::All)?;
            for root in store.read_state()?.roots_in(RootState::Retired) {
                collect::migrate(store, &root, 1, &|_| {})?;
                collect::expire(store, &root, Duration::ZERO)?;
            }
            for root in store.read_state()?.roots_in(RootState::Expired) {
                if collect::delete(store, &root, Duration::ZERO)?.is_empty() {
                    collect::sweep(store, &root, &|_| {})?;
                }
            }
            Outcome::Nothing
        }
        Action::Start { tenant, name } => {
            let image = open_image(store, &parse(name), &Opening { tenant, keys, seen: None })?;
            Outcome::Started(image.manifest.id(), image.store)
        }
        Action::Renew { .. } => {
            // Another process has it in this round.
            let Some(mut lease) = lease else { return Ok(Outcome::Nothing) };
            let moved = lease.keep_in(store)?;
            // A root may have expired before its first lease: ages are zero here, so nothing is promised then.
            let at = moved.as_ref().map_or_else(|| lease.root().to_owned(), |store| store.root().to_owned());
            let state = store.read_state()?.state_of(&at);
            Outcome::Renewed(Box::new(lease), moved, matches!(state, Some(RootState::Active)))
        }
        Action::Stop { .. } => Outcome::Nothing,
    })
}

fn history(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..world.random.random_range(3..14) {
        world.round();
        world.check();
    }
    world.finish();
}

#[test]
fn any_history_with_crashes_leaves_every_listed_image_whole() {
    let seeds: Vec<u64> = match std::env::var("SNOWMELT_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..std::env::var("SNOWMELT_SEEDS").map_or(800, |count| count.parse().unwrap())).collect(),
    };
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    if let Err(panic) = std::panic::catch_unwind(|| history(*seed)) {
                        eprintln!("the history failed: repeat it with SNOWMELT_SEED={seed}");
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}
