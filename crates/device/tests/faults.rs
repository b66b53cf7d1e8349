//! What readers of a device get when chunks are damaged, missing, late or out of reach. Time is moved by hand.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Arc, mpsc};
use std::time::Duration;

use snowmelt_device::{
    Device, DeviceOptions, Error, Fault, ManualClock, MemoryChunks, OnUnavailable, Stall, StallObserver, Tier,
};

const CHUNK: u64 = 16 << 10;
const CHUNKS: u64 = 24;
const DEADLINE: Duration = Duration::from_secs(10);
/// No longer than the first pause between attempts.
const PAUSE: Duration = Duration::from_millis(50);

struct Bench {
    chunks: Arc<MemoryChunks>,
    clock: Arc<ManualClock>,
    device: Arc<Device>,
}

fn byte_of(chunk: u64) -> u8 {
    chunk as u8 + 1
}

fn bench(change: impl FnOnce(&mut DeviceOptions)) -> Bench {
    let image = (0..CHUNKS).flat_map(|chunk| vec![byte_of(chunk); CHUNK as usize]).collect();
    let chunks = Arc::new(MemoryChunks::new(image, CHUNK as u32));
    let clock = Arc::new(ManualClock::default());
    let mut options = DeviceOptions {
        deadline: DEADLINE,
        clock: Arc::clone(&clock) as _,
        read_ahead_chunks: 0,
        ..DeviceOptions::default()
    };
    change(&mut options);
    let device = Arc::new(Device::with_reader(Arc::clone(&chunks) as _, options).unwrap());
    Bench { chunks, clock, device }
}

impl Bench {
    fn read(&self, chunk: u64) -> Result<(), Error> {
        let mut buf = [0; 100];
        self.device.read_at(chunk * CHUNK + 7, &mut buf)?;
        assert_eq!(buf, [byte_of(chunk); 100]);
        Ok(())
    }

    fn read_in_background(&self, chunk: u64) -> std::thread::JoinHandle<Result<(), Error>> {
        let other = Bench {
            chunks: Arc::clone(&self.chunks),
            clock: Arc::clone(&self.clock),
            device: Arc::clone(&self.device),
        };
        std::thread::spawn(move || other.read(chunk))
    }
}

#[test]
fn a_bad_chunk_is_an_error_that_names_it_and_the_next_read_tries_again() {
    let bench = bench(|_| {});
    for (fault, word) in [(Fault::Corrupt, "damaged"), (Fault::Missing, "missing"), (Fault::Panic, "panicked")] {
        bench.chunks.set_fault(3, Some(fault));
        let error = bench.read(3).unwrap_err();
        assert_eq!(error.errno(), libc::EIO);
        let text = error.to_string();
        for part in ["#3", "memory", word] {
            assert!(text.contains(part), "{text:?} has no {part:?}");
        }
        bench.read(2).unwrap();
        let mut across = vec![0; 2 * CHUNK as usize];
        assert!(bench.device.read_at(2 * CHUNK, &mut across).is_err(), "one of two chunks is bad");
    }
    bench.chunks.set_fault(3, None);
    bench.read(3).unwrap();
    assert_eq!(bench.device.stats().failures, 6);
    assert_eq!(bench.device.stats().retries, 0, "only what is unavailable is tried again");
}

#[test]
fn a_device_that_blocks_goes_on_when_the_origin_is_back() {
    let bench = bench(|options| options.on_unavailable = OnUnavailable::Block);
    bench.chunks.set_fault(0, Some(Fault::Unavailable));
    let reading = bench.read_in_background(0);
    bench.clock.await_waiter(PAUSE);
    bench.read(1).unwrap();
    bench.chunks.set_fault(0, None);
    bench.clock.advance(PAUSE);
    reading.join().unwrap().unwrap();
    assert_eq!(bench.device.stats().retries, 1);
    assert_eq!(bench.device.stats().failures, 0);
}

#[test]
fn a_device_that_blocks_fails_at_its_deadline() {
    let bench = bench(|options| options.on_unavailable = OnUnavailable::Block);
    bench.chunks.set_fault(0, Some(Fault::Unavailable));
    let reading = bench.read_in_background(0);
    bench.clock.await_waiter(PAUSE);
    bench.clock.advance(DEADLINE);
    let error = reading.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!(error.errno(), libc::EIO);
}

/// The kernel asks again, page by page, for what could not be read. A program once waited for the deadline twice.
#[test]
fn who_asks_again_after_the_deadline_does_not_wait_again() {
    let bench = bench(|options| options.on_unavailable = OnUnavailable::Block);
    bench.chunks.set_fault(0, Some(Fault::Unavailable));
    let reading = bench.read_in_background(0);
    bench.clock.await_waiter(PAUSE);
    bench.clock.advance(DEADLINE);
    reading.join().unwrap().unwrap_err();
    let asked = bench.chunks.reads();
    // On a clock that does not move, so it does not wait.
    assert!(matches!(bench.read(0), Err(Error::Unavailable { .. })));
    assert_eq!(bench.chunks.reads(), asked);
    // A moment later it is worth another try.
    bench.clock.advance(Duration::from_secs(1));
    bench.chunks.set_fault(0, None);
    bench.read(0).unwrap();
}

#[test]
fn a_device_that_fails_does_so_at_once() {
    let bench = bench(|options| options.on_unavailable = OnUnavailable::Fail);
    bench.chunks.set_fault(0, Some(Fault::Unavailable));
    assert!(matches!(bench.read(0), Err(Error::Unavailable { .. })));
    assert_eq!(bench.device.stats().retries, 0);
    bench.chunks.set_fault(0, None);
    bench.read(0).unwrap();
}

/// A tier that hangs does not hang its readers for longer than the deadline, nor those that come later.
#[test]
fn a_reader_that_does_not_come_back_ends_the_wait_at_the_deadline() {
    let bench = bench(|_| {});
    bench.chunks.set_fault(0, Some(Fault::Slow));
    for _ in 0..2 {
        let reading = bench.read_in_background(0);
        bench.chunks.await_reads(1);
        while !reading.is_finished() {
            bench.clock.advance(Duration::from_secs(1));
            std::thread::yield_now();
        }
        let error = reading.join().unwrap().unwrap_err();
        assert!(error.chain().contains("deadline") && error.chain().contains("#0"), "{}", error.chain());
    }
    bench.chunks.set_fault(0, None);
    // Until then the failure is remembered, should the load not have ended by now.
    bench.clock.advance(Duration::from_secs(2));
    bench.read(0).unwrap();
    assert_eq!(bench.chunks.reads(), 1, "it came after all, and was not asked for again");
}

#[test]
fn a_stall_is_told_after_a_second_and_then_at_doubling_times() {
    let (sender, stalls) = mpsc::channel::<Stall>();
    let bench = bench(|options| {
        options.stall_observer = Some(StallObserver(Arc::new(move |stall| sender.send(stall.clone()).unwrap())));
    });
    bench.chunks.set_fault(5, Some(Fault::Slow));
    let reading = bench.read_in_background(5);
    bench.chunks.await_reads(1);
    let mut waited = 0;
    for next in [1, 2, 4, 8] {
        bench.clock.advance(Duration::from_secs(next - waited));
        waited = next;
        let stall = stalls.recv().unwrap();
        assert_eq!(stall.waited, Duration::from_secs(waited));
        assert_eq!((stall.image.as_str(), stall.chunk.as_str(), stall.tier), ("memory", "#5", Tier::Memory));
        assert_eq!(stall.readers, 1);
    }
    bench.chunks.set_fault(5, None);
    reading.join().unwrap().unwrap();
    assert_eq!(bench.device.stats().stalls, 4);
}

#[test]
fn readers_of_one_chunk_share_one_load() {
    let bench = bench(|_| {});
    bench.chunks.set_fault(1, Some(Fault::Slow));
    let reading: Vec<_> = (0..8).map(|_| bench.read_in_background(1)).collect();
    bench.chunks.await_reads(1);
    bench.chunks.set_fault(1, None);
    for one in reading {
        one.join().unwrap().unwrap();
    }
    assert_eq!(bench.chunks.reads(), 1);
}

#[test]
fn a_sequential_reader_is_read_ahead_of() {
    let bench = bench(|options| options.read_ahead_chunks = 4);
    for chunk in 0..3 {
        bench.read(chunk).unwrap();
    }
    bench.chunks.await_reads(7);
    let mut order = bench.chunks.order();
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
    for chunk in 3..7 {
        bench.read(chunk).unwrap();
    }
    let touched: Vec<u64> = bench.device.access_log().iter().map(|access| access.index).collect();
    assert_eq!(touched, [0, 1, 2, 3, 4, 5, 6], "what was read, not what was read ahead");
}

#[test]
fn a_failed_read_ahead_fails_nobody() {
    let bench = bench(|options| options.read_ahead_chunks = 4);
    bench.chunks.set_fault(2, Some(Fault::Unavailable));
    bench.read(0).unwrap();
    bench.read(1).unwrap();
    bench.chunks.await_reads(4);
    assert_eq!(bench.device.stats().failures, 0);
    bench.chunks.set_fault(2, None);
    bench.read(2).unwrap();
}

/// A read must not wait for prefetches that were asked for earlier.
#[test]
fn a_read_overtakes_the_prefetches() {
    let bench = bench(|options| options.most_prefetches = 1);
    bench.chunks.set_fault(5, Some(Fault::Slow));
    bench.device.prefetch([5, 6, 7]);
    bench.chunks.await_reads(1);
    bench.read(7).unwrap();
    assert_eq!(bench.chunks.order(), [5, 7]);
    bench.chunks.set_fault(5, None);
    bench.chunks.await_reads(3);
    assert_eq!(bench.chunks.order(), [5, 7, 6], "7 is not loaded twice");
}

/// A prefetch gives up at the first failure. A read that joined it gets its own attempts.
#[test]
fn a_read_that_joined_a_failing_prefetch_is_served() {
    let bench = bench(|_| {});
    bench.chunks.set_fault(5, Some(Fault::Slow));
    bench.device.prefetch([5]);
    bench.chunks.await_reads(1);
    let reading = bench.read_in_background(5);
    bench.chunks.set_fault(5, Some(Fault::Unavailable));
    bench.clock.await_waiter(PAUSE);
    bench.chunks.set_fault(5, None);
    bench.clock.advance(PAUSE);
    reading.join().unwrap().unwrap();
}

#[test]
fn prefetched_chunks_need_no_load_when_they_are_read() {
    let bench = bench(|_| {});
    bench.device.prefetch([4, 2, 9, CHUNKS + 5]);
    bench.chunks.await_reads(3);
    for chunk in [2, 4, 9] {
        bench.read(chunk).unwrap();
    }
    let stats = bench.device.stats();
    assert_eq!((bench.chunks.reads(), stats.prefetched, stats.touched_chunks), (3, 3, 3));
}

#[test]
fn a_small_memory_still_serves_everything() {
    let bench = bench(|options| options.memory_bytes = 0);
    for _ in 0..2 {
        for chunk in 0..CHUNKS {
            bench.read(chunk).unwrap();
        }
    }
    let mut whole = vec![0; (CHUNKS * CHUNK) as usize];
    bench.device.read_at(0, &mut whole).unwrap();
    assert!((0..CHUNKS).all(|chunk| whole[(chunk * CHUNK) as usize] == byte_of(chunk)));
}
