//! What is loaded before what: reads, prefetches, the rest. Nothing here takes time; chunks are late until they are let go.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Arc, mpsc};
use std::time::Duration;

use snowmelt_device::{
    Device, DeviceOptions, Error, Fault, ManualClock, MemoryChunks, OnUnavailable, StartLog, Tier, Vain,
};

const CHUNK: u64 = 16 << 10;
const CHUNKS: u64 = 40;

struct Bench {
    chunks: Arc<MemoryChunks>,
    clock: Arc<ManualClock>,
    device: Arc<Device>,
}

fn bench(change: impl FnOnce(&mut DeviceOptions)) -> Bench {
    let image = (0..CHUNKS).flat_map(|chunk| vec![chunk as u8 + 1; CHUNK as usize]).collect();
    let chunks = Arc::new(MemoryChunks::new(image, CHUNK as u32));
    let clock = Arc::new(ManualClock::default());
    let mut options =
        DeviceOptions { read_ahead_chunks: 0, clock: Arc::clone(&clock) as _, ..DeviceOptions::default() };
    change(&mut options);
    let device = Arc::new(Device::with_reader(Arc::clone(&chunks) as _, options).unwrap());
    Bench { chunks, clock, device }
}

impl Bench {
    fn read(&self, chunk: u64) {
        let mut byte = [0];
        self.device.read_at(chunk * CHUNK, &mut byte).unwrap();
        assert_eq!(byte, [chunk as u8 + 1]);
    }

    /// A read on a thread of its own; says when it is answered.
    fn read_later(&self, chunk: u64) -> mpsc::Receiver<u8> {
        let device = Arc::clone(&self.device);
        let (answer, answered) = mpsc::channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            device.read_at(chunk * CHUNK, &mut byte).unwrap();
            let _ = answer.send(byte[0]);
        });
        answered
    }

    fn set_all(&self, fault: Option<Fault>) {
        (0..CHUNKS).for_each(|chunk| self.chunks.set_fault(chunk, fault));
    }
}

/// A slow origin is asked for many chunks at once, up to the limit, in the order of the log.
#[test]
fn prefetches_are_pipelined() {
    let bench = bench(|options| options.most_prefetches = 8);
    bench.set_all(Some(Fault::Slow));
    let order: Vec<u64> = (0..CHUNKS).rev().collect();
    bench.device.prefetch(order.clone());
    bench.chunks.await_reads(8);
    let mut asked = bench.chunks.order();
    asked.sort_unstable();
    assert_eq!(asked, (CHUNKS - 8..CHUNKS).collect::<Vec<_>>(), "the first of the log, and no more than the limit");
    // A read goes first although the prefetches that were asked for are all that may be.
    let answered = bench.read_later(3);
    bench.chunks.await_reads(9);
    assert_eq!(bench.chunks.order()[8], 3);
    bench.chunks.set_fault(3, None);
    assert_eq!(answered.recv().unwrap(), 4);
    bench.set_all(None);
    bench.chunks.await_reads(CHUNKS);
    let mut asked = bench.chunks.order();
    asked.sort_unstable();
    assert_eq!(asked, (0..CHUNKS).collect::<Vec<_>>(), "each once");
}

/// The rest of the image comes when nothing else is to be done, and waits while a read does.
#[test]
fn the_background_comes_last_and_pauses_for_reads() {
    let bench = bench(|options| (options.most_prefetches, options.most_in_background) = (2, 2));
    bench.set_all(Some(Fault::Slow));
    bench.device.prefetch([10, 11, 12]);
    bench.device.fetch_in_background(0..CHUNKS);
    bench.chunks.await_reads(2);
    // While prefetches wait for their turn nothing else begins.
    let mut asked = bench.chunks.order();
    asked.sort_unstable();
    assert_eq!(asked, [10, 11]);
    let answered = bench.read_later(30);
    bench.chunks.await_reads(3);
    // The last prefetch may begin; what is in the background may not, as long as the read waits.
    bench.chunks.set_fault(10, None);
    bench.chunks.await_reads(4);
    bench.chunks.set_fault(11, None);
    bench.chunks.set_fault(12, None);
    assert_eq!(bench.chunks.order()[2..], [30, 12]);
    bench.chunks.set_fault(30, None);
    answered.recv().unwrap();
    bench.chunks.await_reads(6);
    let mut background = bench.chunks.order()[4..].to_vec();
    background.sort_unstable();
    assert_eq!(background, [0, 1], "two at once");
    bench.set_all(None);
    // Not what is in memory already.
    bench.chunks.await_reads(CHUNKS);
    assert_eq!(bench.chunks.reads(), CHUNKS);
}

/// A read of a chunk that is being fetched in the background waits for that, and asks for it no second time at its origin.
#[test]
fn a_read_joins_what_is_fetched_in_the_background() {
    let bench = bench(|_| {});
    bench.chunks.set_fault(5, Some(Fault::Slow));
    bench.device.fetch_in_background([5]);
    bench.chunks.await_reads(1);
    let answered = bench.read_later(5);
    while bench.device.stats().touched_chunks == 0 {
        std::thread::yield_now();
    }
    bench.chunks.set_fault(5, None);
    assert_eq!(answered.recv().unwrap(), 6);
    let stats = bench.device.stats();
    assert_eq!((stats.in_background, stats.prefetched), (1, 0));
    let of = |tier| stats.loads.iter().find(|(of, _)| *of == tier).unwrap().1;
    assert_eq!((of(Tier::Zone), of(Tier::Memory)), (1, 1), "from afar once, and then from near");
}

#[test]
fn all_is_there_before_a_start_that_wants_it() {
    let bench = bench(|_| {});
    let mut seen = Vec::new();
    let order = [7, 3].into_iter().chain(0..CHUNKS + 5).collect::<Vec<_>>();
    bench.device.fetch_all(order, &mut |bytes, total| seen.push((bytes, total))).unwrap();
    // Each once, however often the order has it.
    assert_eq!(bench.chunks.reads(), CHUNKS);
    let chunks: Vec<u64> = (0..CHUNKS).collect();
    assert!(bench.device.are_near(&chunks).iter().all(|is_near| *is_near));
    let total = CHUNKS * CHUNK;
    assert_eq!(seen.last(), Some(&(total, total)));
    assert!(seen.is_sorted());
    let before = bench.chunks.reads();
    bench.device.fetch_all(0..CHUNKS, &mut |_, total| assert_eq!(total, 0)).unwrap();
    assert_eq!(bench.chunks.reads(), before, "what is near is not asked for");
}

#[test]
fn a_chunk_that_is_nowhere_ends_a_start_that_wants_all() {
    let bench = bench(|_| {});
    bench.chunks.set_fault(20, Some(Fault::Missing));
    let error = bench.device.fetch_all(0..CHUNKS, &mut |_, _| {}).unwrap_err();
    assert!(matches!(&error, Error::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("#20"), "{error}");
}

/// As for reads: an outage is a pause, up to the deadline.
#[test]
fn an_outage_pauses_a_start_that_wants_all() {
    let deadline = Duration::from_secs(10);
    let bench = bench(|options| options.deadline = deadline);
    bench.chunks.set_fault(20, Some(Fault::Unavailable));
    let device = Arc::clone(&bench.device);
    let fetching = std::thread::spawn(move || device.fetch_all(0..CHUNKS, &mut |_, _| {}));
    bench.clock.await_waiter(Duration::from_millis(50));
    bench.chunks.set_fault(20, None);
    bench.clock.advance(Duration::from_millis(50));
    fetching.join().unwrap().unwrap();

    let hopeless = bench_that_fails();
    let error = hopeless.device.fetch_all([20], &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }));
    assert_eq!(hopeless.chunks.reads(), 1, "not tried again");
}

fn bench_that_fails() -> Bench {
    let bench = bench(|options| options.on_unavailable = OnUnavailable::Fail);
    bench.chunks.set_fault(20, Some(Fault::Unavailable));
    bench
}

/// What is recorded is what was read in time; and what was loaded ahead for nothing, but not the rest of the image.
#[test]
fn starts_are_recorded_for_as_long_as_is_said() {
    let second = Duration::from_secs(1);
    let bench = bench(|options| options.record_for = second);
    bench.device.prefetch([4, 6]);
    bench.device.fetch_in_background([8]);
    while bench.device.stats().total_loads() < 3 {
        std::thread::yield_now();
    }
    bench.read(4);
    bench.read(2);
    bench.clock.advance(second);
    bench.read(3);
    bench.clock.advance(Duration::from_nanos(1));
    bench.read(9);
    let stats = bench.device.stats();
    assert_eq!((stats.touched_chunks, stats.in_vain), (4, 1));
    let log = StartLog::record(&bench.device);
    assert_eq!(log.indices().collect::<Vec<_>>(), [4, 2, 3]);
    assert_eq!(log.vain, [Vain { index: 6, start: 1 }]);
    // No ext4, so everything is metadata.
    assert!(log.chunks.iter().all(|chunk| chunk.files.is_empty() && chunk.metadata.len() == 1));
}
