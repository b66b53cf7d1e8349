//! What collection costs: time and requests, in a large store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::limit::LimitStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _};
use snowmelt_chunk::{ChunkId, ChunkRecord, Geometry, LocalKeys, ManifestBuilder, PAGE_SIZE, Salt, Sealed, Suite};
use snowmelt_store::{DEFAULT_ROOT, ImageName, NameRecord, Store, StoreOptions, collect, usage};

use crate::Bench;
use crate::objects::{self, AT_ONCE, Counted, Requests, Server};
use crate::report::{Section, ratio, seconds};

const TENANTS: usize = 10;
/// Chunks that only one image has.
const OWN: usize = 30;
/// Chunks that an image is the first to have and that others may share.
const FIRST: usize = 70;
/// Chunks that other images have too, few of them often.
const SHARED: usize = 30;
/// Of a hundred live chunks, so many more are named by nobody.
const GARBAGE_PERCENT: usize = 20;
/// As the collector does it.
const THREADS: usize = 8;
const THREADS_IN_FOLDER: usize = 2;

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let runtime = objects::runtime()?;
    let (large, small) = (Plan { images: 1000 }, Plan { images: 100 });

    let counted = Counted::new(Arc::new(InMemory::new()));
    runtime.block_on(objects::put_all(&*counted, AT_ONCE, large.objects(bench)?))?;
    counted.take();
    let store = Store::over_objects(Arc::clone(&counted) as Arc<dyn ObjectStore>, &StoreOptions::default());
    let in_memory = steps(&store, &large, THREADS, &|| counted.take())?;
    drop((store, counted));

    let folder = bench.path("collected");
    std::fs::create_dir_all(&folder)?;
    large.fill_folder(&folder, bench)?;
    let store = Store::open(&folder.display().to_string(), &StoreOptions::default())?;
    let in_folder = steps(&store, &large, THREADS_IN_FOLDER, &Requests::default)?;
    drop(store);
    std::fs::remove_dir_all(&folder)?;

    let s3 = Server::find()?.open()?;
    let limited = LimitStore::new(s3, AT_ONCE);
    let counted = Counted::new(Arc::new(PrefixStore::new(limited, "collected")));
    runtime.block_on(objects::put_all(&*counted, AT_ONCE, small.objects(bench)?))?;
    counted.take();
    let plain = runtime.block_on(copy_plainly(&*counted, small.chunks()))?;
    counted.take();
    let store = Store::over_objects(Arc::clone(&counted) as Arc<dyn ObjectStore>, &StoreOptions::default());
    let in_s3 = steps(&store, &small, THREADS, &|| counted.take())?;

    Ok(vec![counts(&large, &in_memory), times(&small, &[&in_memory, &in_folder, &in_s3], plain)])
}

/// A store as it is made.
struct Plan {
    images: usize,
}

impl Plan {
    /// Distinct live chunks.
    fn chunks(&self) -> usize {
        self.images * (OWN + FIRST)
    }

    fn garbage(&self) -> usize {
        self.chunks() * GARBAGE_PERCENT / 100
    }

    /// The chunks of an image, by number.
    fn chunks_of(&self, image: usize) -> Vec<usize> {
        let first = |image: usize| self.images * OWN + image * FIRST;
        let mut seen: HashSet<usize> = HashSet::new();
        let own = image * OWN..(image + 1) * OWN;
        let mut chunks: Vec<_> = own.chain(first(image)..first(image + 1)).collect();
        seen.extend(&chunks);
        // Skewed: half of them are among an eighth of what there is to share.
        let mut random = Random(image as u64);
        while chunks.len() < OWN + FIRST + SHARED {
            let share = random.next().powi(3);
            let chunk = first(0) + (share * (self.images * FIRST) as f64) as usize;
            if seen.insert(chunk) {
                chunks.push(chunk);
            }
        }
        chunks
    }

    /// Chunks, manifests and names, where a publisher would have put them.
    fn objects(&self, bench: &Bench) -> Result<impl Iterator<Item = (Path, Bytes)>> {
        let sealed: Vec<Sealed> = (0..self.chunks() + self.garbage()).map(|number| seal(number).0).collect();
        let keys = LocalKeys::new(bench.path("collect-keys"));
        let mut others = Vec::new();
        for image in 0..self.images {
            let tenant = format!("tenant-{}", image % TENANTS);
            let name: ImageName = format!("image-{image}:latest").parse()?;
            let chunks = self.chunks_of(image);
            let image_size = chunks.len() as u64 * u64::from(PAGE_SIZE);
            let geometry = Geometry { image_size, chunk_size: PAGE_SIZE };
            let mut builder = ManifestBuilder::new(Suite::default(), geometry)?;
            for (slot, chunk) in (0..).zip(&chunks) {
                let Sealed { id, secret } = sealed[*chunk].clone();
                builder.push(ChunkRecord { slot, stored_length: PAGE_SIZE, id }, secret);
            }
            let manifest = builder.seal(&tenant, &name.to_string(), b"{}", &keys)?;
            let record = NameRecord {
                version: 1,
                manifest: manifest.id().to_string(),
                root: DEFAULT_ROOT.into(),
                generation: 1,
                published_at: 0,
                source: "oci:made/by/the/benchmark".into(),
                image_size,
                stored_bytes: manifest.stored_bytes(),
                chunk_count: manifest.chunk_count() as u64,
                fence: 0,
                salt: None,
            };
            let path = format!("roots/{DEFAULT_ROOT}/manifests/{tenant}/{}", manifest.id());
            others.push((path.into(), Bytes::copy_from_slice(manifest.as_bytes())));
            let path = format!("names/{tenant}/{}/{}", name.name(), name.tag());
            others.push((path.into(), serde_json::to_vec_pretty(&record)?.into()));
        }
        let chunks = (0..).zip(sealed).map(|(number, sealed)| (chunk_path(&sealed.id), seal(number).1));
        Ok(chunks.chain(others))
    }

    /// The same as files, without the care that a store takes.
    fn fill_folder(&self, folder: &std::path::Path, bench: &Bench) -> Result<()> {
        let mut made = HashSet::new();
        for (path, bytes) in self.objects(bench)? {
            let file = folder.join(path.as_ref());
            let parent = file.parent().context("objects lie in folders")?;
            if !made.contains(parent) {
                std::fs::create_dir_all(parent)?;
                made.insert(parent.to_owned());
            }
            std::fs::write(&file, bytes)?;
        }
        // Writing it back must not be part of what is measured.
        nix::unistd::sync();
        Ok(())
    }
}

/// Numbers in 0..1 by chance, the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64 * 0.999_999
    }
}

/// A chunk of one page, and its ciphertext.
fn seal(number: usize) -> (Sealed, Bytes) {
    let mut page = vec![0; PAGE_SIZE as usize];
    page[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    let mut ciphertext = page.clone();
    let sealed = Suite::default().seal(&Salt::from_bytes([1; 32]), &page, &mut ciphertext);
    (sealed, ciphertext.into())
}

fn chunk_path(id: &ChunkId) -> Path {
    let id = id.to_string();
    format!("roots/{DEFAULT_ROOT}/chunks/{}/{id}", &id[..2]).into()
}

/// As many copies as migrating needs at least, as many at once as snowmelt makes.
async fn copy_plainly(objects: &dyn ObjectStore, number: usize) -> Result<Duration> {
    let started = Instant::now();
    futures::stream::iter((0..number).map(Ok::<_, object_store::Error>))
        .try_for_each_concurrent(AT_ONCE, |number| async move {
            let from = chunk_path(&seal(number).0.id);
            objects.copy(&from, &Path::from(format!("plain/{:02x}/{number:064}", number % 256))).await
        })
        .await?;
    let took = started.elapsed();
    objects::remove_all(objects, &"plain".into()).await?;
    Ok(took)
}

/// A step of collection as it was measured.
struct Step {
    name: &'static str,
    took: Duration,
    requests: Requests,
    /// The least number of requests, and why.
    least: u64,
    why: &'static str,
}

/// All steps, once: what was collected is gone afterwards.
fn steps(store: &Store, plan: &Plan, threads: usize, requests: &dyn Fn() -> Requests) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let (images, chunks) = (plan.images as u64, plan.chunks() as u64);
    let all = chunks + plan.garbage() as u64;
    let pages = |number: u64| number.div_ceil(1000);
    let mut step = |name, least, why, run: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        requests();
        let started = Instant::now();
        run()?;
        steps.push(Step { name, took: started.elapsed(), requests: requests(), least, why });
        Ok(())
    };
    // All but `usage` need names only.
    let names = images + TENANTS as u64;
    step("usage", names + images, "a GET for each name and each manifest", &mut || {
        let found = usage(store, &store.list_tenants()?, &[])?;
        ensure!(found.chunks == chunks && found.damaged.is_empty(), "{} chunks: {:?}", found.chunks, found.damaged);
        Ok(())
    })?;
    step("status", names, "a GET for each name", &mut || {
        let found = collect::status(store, false)?;
        ensure!(found.roots[0].images == images, "{found:?}");
        Ok(())
    })?;
    step("status, chunks counted", names + pages(all), "that, and a LIST for each 1,000 chunks", &mut || {
        let found = collect::status(store, true)?;
        ensure!(found.roots[0].chunks.is_some_and(|(number, _)| number == all), "{found:?}");
        Ok(())
    })?;
    step("rotate", 2, "reading the state and swapping it", &mut || {
        collect::rotate(store, None, collect::Retire::All).map(drop).map_err(Into::into)
    })?;
    let least = names + images * 3 + chunks;
    step(
        "migrate",
        least,
        "a COPY for each live chunk; of each image GET name, GET and PUT manifest, PUT name",
        &mut || {
            let done = collect::migrate(store, DEFAULT_ROOT, threads, &|_| {})?;
            ensure!(done.names == images && done.failed.is_empty(), "{done:?}");
            Ok(())
        },
    )?;
    step("migrate again", names, "a GET for each name", &mut || {
        let done = collect::migrate(store, DEFAULT_ROOT, threads, &|_| {})?;
        ensure!(done.manifests == 0 && done.failed.is_empty(), "{done:?}");
        Ok(())
    })?;
    step("expire", names, "a GET for each name", &mut || {
        let blockers = collect::expire(store, DEFAULT_ROOT, Duration::ZERO)?;
        ensure!(blockers.is_empty(), "{blockers}");
        Ok(())
    })?;
    step("delete", names, "a GET for each name", &mut || {
        let blockers = collect::delete(store, DEFAULT_ROOT, Duration::ZERO)?;
        ensure!(blockers.is_empty(), "{blockers}");
        Ok(())
    })?;
    step("sweep", 2 * pages(all + images), "a LIST and a DELETE for each 1,000 objects", &mut || {
        let removed = collect::sweep(store, DEFAULT_ROOT, &|_| {})?;
        ensure!(removed == all + images, "{removed} objects were removed");
        Ok(())
    })?;
    Ok(steps)
}

/// What the store is, in words.
fn described(plan: &Plan) -> String {
    format!(
        "{} images of {TENANTS} tenants, {} chunks each: {OWN} that only it has, {FIRST} that it is the first to have, \
         {SHARED} of others, few of them often. That makes {} distinct chunks, and there are {} more that nobody names. \
         Chunks have 4 KiB, since requests are what costs.",
        plan.images,
        OWN + FIRST + SHARED,
        plan.chunks(),
        plan.garbage()
    )
}

fn counts(plan: &Plan, steps: &[Step]) -> Section {
    let mut section = Section::new(
        "Requests of a collection",
        format!(
            "{} Counted as S3 counts them: lists and deletions by 1,000 keys, HEAD as GET. `least` is what any \
             collector that reads names and manifests needs.",
            described(plan)
        ),
        &[
            "step",
            "GET",
            "PUT",
            "LIST",
            "COPY",
            "DELETE",
            "all",
            "per live chunk",
            "least",
            "times the least",
            "least is",
        ],
    );
    let mut whole = (Requests::default(), 0);
    for step in steps {
        let requests = step.requests;
        section.row(row(step.name, requests, plan, step.least, step.why));
        if ["rotate", "migrate", "expire", "delete", "sweep"].contains(&step.name) {
            whole.0 = Requests {
                get: whole.0.get + requests.get,
                put: whole.0.put + requests.put,
                list: whole.0.list + requests.list,
                copy: whole.0.copy + requests.copy,
                delete: whole.0.delete + requests.delete,
            };
            whole.1 += step.least;
        }
    }
    section.row(row("rotate to sweep", whole.0, plan, whole.1, "all of them, each once"));
    section
}

fn row(name: &str, requests: Requests, plan: &Plan, least: u64, why: &str) -> Vec<String> {
    let total = requests.total();
    let mut cells = vec![name.to_owned()];
    let kinds = [requests.get, requests.put, requests.list, requests.copy, requests.delete, total];
    cells.extend(kinds.map(|number| number.to_string()));
    cells.push(format!("{:.3}", total as f64 / plan.chunks() as f64));
    cells.push(least.to_string());
    cells.push(format!("{:.2}x", total as f64 / least as f64));
    cells.push(why.to_owned());
    cells
}

fn times(small: &Plan, all: &[&[Step]; 3], plain: Duration) -> Section {
    let mut section = Section::new(
        "Time of a collection",
        format!(
            "Once each, in the order of the rows. In memory and in a folder: the store above. SeaweedFS on this machine: \
             a tenth of it, {} images and {} chunks, since filling and emptying it takes minutes. In memory no request \
             waits, so that is what snowmelt itself needs; a folder links files rather than copying them. {THREADS} \
             images are migrated at once, {THREADS_IN_FOLDER} in a folder. The limit of migrating on SeaweedFS: the same \
             number of COPY requests alone, {AT_ONCE} at once.",
            small.images,
            small.chunks()
        ),
        &["step", "in memory", "in a folder", "SeaweedFS, a tenth", "requests there", "requests/s there"],
    );
    let [in_memory, in_folder, in_s3] = all;
    for ((memory, folder), s3) in in_memory.iter().zip(*in_folder).zip(*in_s3) {
        let took = s3.took.as_secs_f64();
        section.row([
            s3.name.to_owned(),
            seconds(memory.took.as_secs_f64()),
            seconds(folder.took.as_secs_f64()),
            seconds(took),
            s3.requests.total().to_string(),
            format!("{:.0}", s3.requests.total() as f64 / took),
        ]);
        if s3.name == "migrate" {
            let plain = plain.as_secs_f64();
            section.row([
                format!("COPY alone (migrate takes {})", ratio(took, plain)),
                String::new(),
                String::new(),
                seconds(plain),
                small.chunks().to_string(),
                format!("{:.0}", small.chunks() as f64 / plain),
            ]);
        }
    }
    section
}
