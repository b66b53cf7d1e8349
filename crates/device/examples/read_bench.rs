//! How fast a device is read through FUSE and loop, beside the same image on a plain loop device, and where the time of a
//! read goes. Prints JSON. Needs root.
//!
//!     cargo run --release -p snowmelt-device --example read_bench [MIB]
// The buffer of direct reads has to be aligned, so it is an array.
#![allow(clippy::unwrap_used, clippy::large_stack_arrays)]

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use snowmelt_chunk::{ChunkId, ChunkSecret, Geometry, Salt, Suite};
use snowmelt_device::{
    ChunkReader, Device, DeviceOptions, Error, LoadRequest, Spent, Stats, Tier, fuse, loop_device, mount,
};

const CHUNK: usize = 512 << 10;
/// Reads of each kind that are timed.
const READS: u64 = 4_000;

/// Encrypted chunks in memory: what a tier that costs nothing would give.
struct SealedChunks {
    suite: Suite,
    chunks: Vec<(ChunkId, ChunkSecret, Vec<u8>)>,
    verify_ns: AtomicU64,
    open_ns: AtomicU64,
}

impl SealedChunks {
    fn new(image: &[u8], suite: Suite) -> Self {
        let salt = Salt::from_bytes([1; 32]);
        let chunks = image.chunks(CHUNK).map(|chunk| {
            let mut ciphertext = vec![0; chunk.len()];
            let sealed = suite.seal(&salt, chunk, &mut ciphertext);
            (sealed.id, sealed.secret, ciphertext)
        });
        Self { suite, chunks: chunks.collect(), verify_ns: AtomicU64::new(0), open_ns: AtomicU64::new(0) }
    }
}

impl ChunkReader for SealedChunks {
    fn geometry(&self) -> Geometry {
        let bytes = self.chunks.iter().map(|(_, _, ciphertext)| ciphertext.len() as u64).sum();
        Geometry { image_size: bytes, chunk_size: CHUNK as u32 }
    }

    fn stored_length(&self, index: u64) -> u32 {
        self.chunks.get(index as usize).map_or(0, |(_, _, ciphertext)| ciphertext.len() as u32)
    }

    fn read_chunk(&self, index: u64, request: &LoadRequest, plaintext: &mut [u8]) -> Result<(), Error> {
        request.set_tier(Tier::Memory);
        let (id, secret, ciphertext) = &self.chunks[index as usize];
        let start = Instant::now();
        let verified = self.suite.id_of(ciphertext) == *id;
        let between = Instant::now();
        let opened = self.suite.open(secret, ciphertext, plaintext).is_ok();
        self.verify_ns.fetch_add((between - start).as_nanos() as u64, Ordering::Relaxed);
        self.open_ns.fetch_add(between.elapsed().as_nanos() as u64, Ordering::Relaxed);
        assert!(verified && opened);
        Ok(())
    }

    fn warm_chunk(&self, _index: u64, _request: &LoadRequest) -> Result<(), Error> {
        Ok(())
    }

    fn spent(&self) -> Spent {
        Spent {
            verifying: Duration::from_nanos(self.verify_ns.load(Ordering::Relaxed)),
            decrypting: Duration::from_nanos(self.open_ns.load(Ordering::Relaxed)),
        }
    }

    fn image(&self) -> &'static str {
        "bench"
    }

    fn chunk_name(&self, index: u64) -> String {
        format!("#{index}")
    }
}

/// Memory that direct I/O accepts.
#[repr(C, align(4096))]
struct Aligned([u8; 128 << 10]);

struct Timing {
    wall: Duration,
    reads: u64,
    bytes: u64,
}

impl Timing {
    fn json(&self) -> Value {
        json!({
            "us_per_read": self.wall.as_secs_f64() * 1e6 / self.reads as f64,
            "mb_per_s": self.bytes as f64 / 1e6 / self.wall.as_secs_f64(),
        })
    }
}

/// Direct reads of `length` bytes at random places within the first `span` bytes.
fn random(path: &Path, span: u64, length: usize) -> Timing {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut buffer = Box::new(Aligned([0; 128 << 10]));
    let start = Instant::now();
    for _ in 0..READS {
        let at = random.random_range(0..span / 4096 - length as u64 / 4096 + 1) * 4096;
        file.read_exact_at(&mut buffer.0[..length], at).unwrap();
    }
    Timing { wall: start.elapsed(), reads: READS, bytes: READS * length as u64 }
}

/// The same by as many readers at once as FUSE has threads at most.
fn side_by_side(path: &Path, span: u64, length: usize) -> Timing {
    const READERS: u64 = 4;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| random(path, span, length));
        }
    });
    let reads = READERS * READS;
    Timing { wall: start.elapsed(), reads, bytes: reads * length as u64 }
}

/// Reads 128 KiB at a time from beginning to end, directly or through the page cache with its read-ahead.
fn sequential(path: &Path, flags: i32) -> Timing {
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).unwrap();
    let mut buffer = Box::new(Aligned([0; 128 << 10]));
    let (mut reads, mut bytes) = (0, 0);
    let start = Instant::now();
    loop {
        let length = file.read(&mut buffer.0).unwrap();
        if length == 0 {
            return Timing { wall: start.elapsed(), reads, bytes };
        }
        reads += 1;
        bytes += length as u64;
    }
}

/// Where a read's time went, in microseconds per read of the device. Loads run beside one another and ahead of reads, so
/// their times may add up to more than the reads'.
fn split(before: &Stats, after: &Stats, wall: Duration) -> Value {
    let reads = (after.reads - before.reads).max(1) as f64;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / reads;
    let serve = after.serve_time.saturating_sub(before.serve_time);
    json!({
        "device_reads": after.reads - before.reads,
        "loads": after.total_loads() - before.total_loads(),
        "kernel_us": each(wall.saturating_sub(serve)),
        "serve_us": each(serve),
        "queue_us": each(after.queue_time.saturating_sub(before.queue_time)),
        "fetch_us": each(after.fetch_time.saturating_sub(before.fetch_time)),
        "verify_us": each(after.verify_time.saturating_sub(before.verify_time)),
        "decrypt_us": each(after.decrypt_time.saturating_sub(before.decrypt_time)),
        "copy_us": each(after.copy_time.saturating_sub(before.copy_time)),
    })
}

fn measure(path: &Path, size: u64, device: Option<&Device>) -> Value {
    let cases: [(&str, &dyn Fn() -> Timing); 7] = [
        ("sequential_128k_direct", &|| sequential(path, libc::O_DIRECT)),
        ("sequential_128k_page_cache", &|| sequential(path, 0)),
        ("random_4k_resident_first", &|| random(path, 16 << 20, 4096)),
        ("random_4k_resident", &|| random(path, 16 << 20, 4096)),
        ("random_4k_resident_side_by_side", &|| side_by_side(path, 16 << 20, 4096)),
        ("random_128k_resident", &|| random(path, 16 << 20, 128 << 10)),
        ("random_4k_everywhere", &|| random(path, size, 4096)),
    ];
    let mut found = serde_json::Map::new();
    for (name, case) in cases {
        let before = device.map(Device::stats);
        let timing = case();
        let mut value = timing.json();
        if let (Some(device), Some(before)) = (device, before) {
            value["split"] = split(&before, &device.stats(), timing.wall);
        }
        found.insert(name.into(), value);
    }
    Value::Object(found)
}

fn plain(image: &Path, size: u64) -> Value {
    let attached = Command::new("losetup").args(["--show", "-f", "-r"]).arg(image).output().unwrap();
    assert!(attached.status.success());
    let path = String::from_utf8(attached.stdout).unwrap();
    let path = Path::new(path.trim());
    File::open(image).unwrap().read_to_end(&mut Vec::new()).unwrap();
    let measured = measure(path, size, None);
    assert!(Command::new("losetup").arg("-d").arg(path).status().unwrap().success());
    measured
}

/// Mounts often, and gives the median time of each step in microseconds.
fn mount_steps(chunks: &Arc<SealedChunks>, folder: &Path) -> Value {
    const TIMES: usize = 21;
    let target = folder.join("mnt");
    fs::create_dir_all(&target).unwrap();
    let mut steps: Vec<(&str, Vec<f64>)> =
        ["device", "fuse", "loop", "ext4", "unmount", "detach", "fuse_unmount"].map(|name| (name, Vec::new())).into();
    for _ in 0..TIMES {
        let mut last = Instant::now();
        let mut step = 0;
        let mut note = || {
            steps[step].1.push(last.elapsed().as_secs_f64() * 1e6);
            step += 1;
            last = Instant::now();
        };
        let device = Arc::new(Device::with_reader(Arc::clone(chunks) as _, DeviceOptions::default()).unwrap());
        note();
        let export = fuse::serve(Arc::clone(&device), &folder.join("mounted")).unwrap();
        note();
        let attached = loop_device::attach(export.file(), true, device.size_bytes()).unwrap();
        note();
        mount::mount_ext4(&attached, &target, true).unwrap();
        note();
        mount::unmount(&target).unwrap();
        note();
        drop(attached);
        note();
        export.unmount().unwrap();
        note();
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Value::Object(steps.iter_mut().map(|(name, times)| ((*name).to_owned(), json!(median(times)))).collect())
}

fn main() {
    let mib: u64 = std::env::args().nth(1).map_or(256, |text| text.parse().expect("a number of MiB"));
    let size = mib << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let mut content = vec![0; (size - size / 8) as usize];
    ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut content);
    fs::write(tree.join("large"), &content).unwrap();
    drop(content);
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-b", "4096", "-O", "^has_journal", "-d"])
        .args([&tree, &path])
        .status()
        .unwrap();
    assert!(made.success());
    fs::remove_file(tree.join("large")).unwrap();
    let image = fs::read(&path).unwrap();

    let mut result = json!({ "image_mib": mib, "plain_loop": plain(&path, size) });
    for suite in [Suite::Blake3Gcm, Suite::Sha256Ctr] {
        let chunks = Arc::new(SealedChunks::new(&image, suite));
        let device = Arc::new(Device::with_reader(Arc::clone(&chunks) as _, DeviceOptions::default()).unwrap());
        let export = fuse::serve(Arc::clone(&device), &folder.path().join("device")).unwrap();
        let attached = loop_device::attach(export.file(), true, size).unwrap();
        let mut measured = measure(attached.path(), size, Some(&device));
        drop(attached);
        export.unmount().unwrap();
        measured["mount_us"] = mount_steps(&chunks, folder.path());
        result[suite.to_string()] = measured;
    }
    println!("{}", serde_json::to_string_pretty(&result).unwrap());
}
