//! Processes that serve a device are killed while it is used, at seeded moments, and others go on in their place. Needs root,
//! /dev/fuse and loop devices, and Linux 6.9 or later: where the kernel cannot send requests again, the tests say so.
#![allow(clippy::unwrap_used, missing_docs)]

mod server;

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use server::{Behaviour, CHUNK, Server, Supervisor};
use snowmelt_device::{loop_device, mount};

const PAGE: u64 = 4096;

fn random_image(bytes: usize) -> Vec<u8> {
    let mut image = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(5).fill_bytes(&mut image[..bytes / 2]);
    image
}

/// Work done so far, and who waits for more of it.
#[derive(Default)]
struct Progress {
    done: Mutex<u64>,
    more: Condvar,
}

impl Progress {
    fn note(&self) {
        *self.done.lock().unwrap() += 1;
        self.more.notify_all();
    }

    fn await_more(&self, count: u64) {
        let done = self.done.lock().unwrap();
        let until = *done + count;
        drop(self.more.wait_while(done, |done| *done < until).unwrap());
    }
}

/// Memory that direct I/O accepts.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new(length: usize) -> Self {
        Self(vec![0; length + PAGE as usize])
    }

    fn slice(&mut self, length: usize) -> &mut [u8] {
        let start = self.0.as_ptr().addr().next_multiple_of(PAGE as usize) - self.0.as_ptr().addr();
        &mut self.0[start..start + length]
    }
}

/// Reads, writes and discards at random within `model`, the bytes of the device from `start` on, and compares all that it reads.
fn work(file: &File, start: u64, model: &mut [u8], seed: u64, whole_pages: bool, stop: &AtomicBool, done: &Progress) {
    const MOST: u64 = 160 << 10;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut buffer = Aligned::new(MOST as usize);
    while !stop.load(Ordering::Acquire) {
        let grain = if whole_pages { PAGE } else { 1 };
        let span = model.len() as u64 / grain;
        let at = random.random_range(0..span);
        let most = if random.random_bool(0.7) { 4 * PAGE } else { MOST };
        let length = (random.random_range(1..=most / grain).min(span - at) * grain) as usize;
        let at = at * grain;
        let part = at as usize..at as usize + length;
        let bytes = buffer.slice(length);
        match random.random_range(0..10) {
            0..5 => {
                random.fill_bytes(&mut model[part.clone()]);
                bytes.copy_from_slice(&model[part]);
                file.write_all_at(bytes, start + at).unwrap();
            }
            9 if !whole_pages => {
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let pages = at.next_multiple_of(PAGE)..(at + length as u64) / PAGE * PAGE;
                if !pages.is_empty() {
                    rustix::fs::fallocate(file, flags, start + pages.start, pages.end - pages.start).unwrap();
                    model[pages.start as usize..pages.end as usize].fill(0);
                }
            }
            _ => {
                bytes.fill(0xee);
                file.read_exact_at(bytes, start + at).unwrap();
                assert!(*bytes == model[part], "{length} bytes at {}", start + at);
            }
        }
        done.note();
    }
}

fn open_direct(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Uses a device through loop and directly, from three threads, while `disturb` does what it does; then compares all of it.
fn use_while(
    supervisor: &mut Supervisor,
    mut server: Server,
    mut disturb: impl FnMut(&mut Supervisor, &mut Server, &Progress),
) {
    let size = fs::metadata(supervisor.image()).unwrap().len();
    let attached = loop_device::attach(&supervisor.device(), false, size).unwrap();
    let mut model = fs::read(supervisor.image()).unwrap();
    let (stop, done) = (AtomicBool::new(false), Progress::default());
    let through_loop = open_direct(attached.path());
    // Parts of pages, and discards: what a file system on a loop device does not ask for, or not always.
    let through_fuse = OpenOptions::new().read(true).write(true).open(supervisor.device()).unwrap();
    std::thread::scope(|scope| {
        let part = model.len() / 3 / 4096 * 4096;
        for (number, model) in (0_u64..).zip(model[..3 * part].chunks_mut(part)) {
            let whole_pages = number < 2;
            let file = if whole_pages { &through_loop } else { &through_fuse };
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                // A thread that fails lets the others and the supervisor end.
                let _stop = StopAtPanic(stop, done);
                work(file, number * part as u64, model, 11 + number, whole_pages, stop, done);
            });
        }
        for _ in 0..10 {
            if stop.load(Ordering::Acquire) {
                break;
            }
            disturb(supervisor, &mut server, &done);
        }
        stop.store(true, Ordering::Release);
    });
    let mut found = Vec::new();
    File::open(attached.path()).unwrap().read_to_end(&mut found).unwrap();
    assert!(found == model);
    drop((through_loop, through_fuse));
    attached.detach().unwrap();
    drop(server);
}

#[test]
fn ten_kills_in_a_row_are_ten_pauses() {
    let behaviour = Behaviour::default();
    let Some((mut supervisor, server)) = Supervisor::start(&random_image(12 << 20), &behaviour) else { return };
    let mut random = ChaCha8Rng::seed_from_u64(21);
    use_while(&mut supervisor, server, |supervisor, server, done| {
        done.await_more(random.random_range(1..400));
        server.kill();
        *server = supervisor.succeed(&behaviour).unwrap();
    });
}

#[test]
fn ten_times_letting_go_are_ten_pauses() {
    let behaviour = Behaviour::default();
    let Some((mut supervisor, server)) = Supervisor::start(&random_image(12 << 20), &behaviour) else { return };
    let mut random = ChaCha8Rng::seed_from_u64(22);
    use_while(&mut supervisor, server, |supervisor, server, done| {
        done.await_more(random.random_range(1..400));
        assert_eq!(server.let_go(), 0, "all that was begun is answered");
        // The old one is still there.
        *server = supervisor.succeed(&behaviour).unwrap();
    });
}

#[test]
fn a_read_that_its_server_never_answers_is_answered_by_the_next() {
    for (read_only, lets_go) in [(true, false), (false, false), (false, true)] {
        let stuck = Behaviour { read_only, stuck: Some(3), ..Behaviour::default() };
        let image = random_image(1 << 20);
        let Some((mut supervisor, mut server)) = Supervisor::start(&image, &stuck) else { return };
        let attached = loop_device::attach(&supervisor.device(), read_only, image.len() as u64).unwrap();
        std::thread::scope(|scope| {
            let at = 3 * CHUNK as usize + 4096;
            let path = attached.path().to_owned();
            let expected = &image[at..at + 4096];
            let reading = scope.spawn(move || {
                let mut read = vec![0; 4096];
                File::open(path).unwrap().read_exact_at(&mut read, at as u64).unwrap();
                assert!(read == expected);
            });
            server.await_stuck();
            if lets_go {
                assert!(server.let_go() > 0, "it cannot answer");
            } else {
                server.kill();
            }
            let next = supervisor.succeed(&Behaviour { stuck: None, ..stuck.clone() }).unwrap();
            reading.join().unwrap();
            server = next;
        });
        attached.detach().unwrap();
    }
}

/// Files that are written to it.
const FILES: u64 = 120;

#[test]
fn a_file_system_goes_on_over_kills() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-O", "^has_journal"]).arg(&image).status();
    assert!(made.unwrap().success());
    let behaviour = Behaviour::default();
    let Some((mut supervisor, mut server)) = Supervisor::start(&fs::read(&image).unwrap(), &behaviour) else { return };
    let attached = loop_device::attach(&supervisor.device(), false, 64 << 20).unwrap();
    let mnt = supervisor.folder().join("mnt");
    fs::create_dir(&mnt).unwrap();
    mount::mount_ext4(&attached, &mnt, false).unwrap();
    let content = |number: u64| {
        let mut bytes = vec![0; (number as usize * 7919) % 90_000];
        ChaCha8Rng::seed_from_u64(number).fill_bytes(&mut bytes);
        bytes
    };
    let done = Progress::default();
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for number in 0..FILES {
                let path = mnt.join(format!("file-{number}"));
                fs::write(&path, content(number)).unwrap();
                File::open(&path).unwrap().sync_all().unwrap();
                // Not from the page cache.
                let flags = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(File::open(&path).unwrap(), 0, None, flags).unwrap();
                assert!(fs::read(&path).unwrap() == content(number));
                if number % 3 == 0 {
                    fs::rename(&path, mnt.join(format!("renamed-{number}"))).unwrap();
                }
                done.note();
            }
        });
        for _ in 0..6 {
            done.await_more(FILES / 8);
            server.kill();
            server = supervisor.succeed(&behaviour).unwrap();
        }
        writing.join().unwrap();
    });
    mount::unmount(&mnt).unwrap();
    mount::mount_ext4(&attached, &mnt, false).unwrap();
    for number in 0..FILES {
        let name = if number % 3 == 0 { "renamed" } else { "file" };
        assert!(fs::read(mnt.join(format!("{name}-{number}"))).unwrap() == content(number), "{number}");
    }
    mount::unmount(&mnt).unwrap();
    let checked = Command::new("e2fsck").arg("-fn").arg(attached.path()).stdout(Stdio::null()).status().unwrap();
    assert!(checked.success(), "e2fsck finds nothing");
    attached.detach().unwrap();
    drop(server);
}

/// The file is open here while a successor is started. The successor once waited for ever before it ran: executing it closed its
/// duplicate of the file, the kernel asked whoever serves the file to flush it, and that was the successor.
#[test]
fn a_successor_with_another_key_or_image_is_refused_and_the_right_one_still_goes_on() {
    let behaviour = Behaviour::default();
    let image = random_image(1 << 20);
    let Some((mut supervisor, mut server)) = Supervisor::start(&image, &behaviour) else { return };
    let file = OpenOptions::new().read(true).write(true).open(supervisor.device()).unwrap();
    file.write_all_at(b"written", 100_000).unwrap();
    server.kill();
    let refused = |supervisor: &mut Supervisor, behaviour| supervisor.succeed(&behaviour).err().unwrap();
    let why = refused(&mut supervisor, Behaviour { other_key: true, ..Behaviour::default() });
    assert!(why.contains("sealed under another key"), "{why}");
    let why = refused(&mut supervisor, Behaviour { read_only: true, ..Behaviour::default() });
    assert!(why.contains("writable"), "{why}");
    fs::write(supervisor.image(), &image[..512 << 10]).unwrap();
    let why = refused(&mut supervisor, Behaviour::default());
    assert!(why.contains("1048576 bytes"), "{why}");
    fs::write(supervisor.image(), &image).unwrap();
    let server = supervisor.succeed(&behaviour).unwrap();
    let mut read = [0; 7];
    file.read_exact_at(&mut read, 100_000).unwrap();
    assert_eq!(&read, b"written");
    drop(file);
    drop(server);
}

#[test]
fn without_a_successor_readers_get_an_error_once_nobody_holds_the_session() {
    let Some((mut supervisor, mut server)) = Supervisor::start(&random_image(1 << 20), &Behaviour::default()) else {
        return;
    };
    let file = File::open(supervisor.device()).unwrap();
    server.kill();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| file.read_exact_at(&mut [0; 4096], 0));
        supervisor.give_up();
        assert!(reading.join().unwrap().is_err());
    });
}

/// Stops everybody when one fails.
struct StopAtPanic<'a>(&'a AtomicBool, &'a Progress);

impl Drop for StopAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Release);
            // More than anybody waits for.
            *self.1.done.lock().unwrap() += 1 << 40;
            self.1.more.notify_all();
        }
    }
}
