//! Reads of chunks that the worker has in memory, beside the page cache and a plain loop device, and where their time goes.

mod reading;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::Value;

use self::reading::{KIB, Pattern, Reader, Through};
use super::reads::{LargeFile, Mounted, exported, large_files};
use crate::Bench;
use crate::measure;
use crate::report::{Section, ratio};
use crate::tiers::Machine;

/// More than the image, so that nothing is evicted; no disk, so that nothing comes from there.
const WORKER: [&str; 4] = ["--memory", "2GiB", "--disk-size", "0"];
/// What is read over and over where chunks are to stay decrypted: half of what an agent keeps.
const RESIDENT_BYTES: u64 = 16 << 20;

const PATTERNS: [Pattern; 5] = [
    Pattern { name: "random 4 KiB", length: 4 * KIB, is_random: true, span: None },
    Pattern { name: "random 128 KiB", length: 128 * KIB, is_random: true, span: None },
    Pattern { name: "in order, 128 KiB", length: 128 * KIB, is_random: false, span: None },
    Pattern { name: "random 4 KiB of 16 MiB", length: 4 * KIB, is_random: true, span: Some(RESIDENT_BYTES) },
    Pattern { name: "random 128 KiB of 16 MiB", length: 128 * KIB, is_random: true, span: Some(RESIDENT_BYTES) },
];

/// What is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    PageCache,
    LoopInMemory,
    LoopOnDisk,
    Snowmelt,
}

impl Way {
    const ALL: [Self; 4] = [Self::PageCache, Self::LoopInMemory, Self::LoopOnDisk, Self::Snowmelt];

    fn name(self) -> &'static str {
        match self {
            Self::PageCache => "page cache",
            Self::LoopInMemory => "plain loop, file in memory",
            Self::LoopOnDisk => "plain loop, file on disk",
            Self::Snowmelt => "snowmelt, worker's memory",
        }
    }
}

/// What the agent did in the reads of a pattern: of its own figures, the difference that the reads made.
#[derive(Default)]
struct Work {
    /// That the reader made.
    asked: u64,
    /// Of the reader, in seconds.
    wall: f64,
    /// Chunks that came from the worker.
    loads: f64,
    /// In seconds: served, queue, fetch, verify, decrypt, copy.
    parts: [f64; 6],
}

const PARTS: [&str; 6] = ["serve_us", "queue_us", "fetch_us", "verify_us", "decrypt_us", "copy_us"];

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let place = bench.published()?;
    let image = exported(bench)?;
    let in_memory = plain_mount(bench, &image, "plain-in-memory", false)?;
    let on_disk = plain_mount(bench, &image, "plain-on-disk", true)?;
    let files = large_files(&in_memory.directory)?;
    let machine = Machine::start(bench, &place, "device", None, &WORKER)?;
    fill(bench, &machine)?;

    let mut times = Vec::new();
    for _ in PATTERNS.iter().flat_map(|_| Way::ALL) {
        // Up to a minute, in nanoseconds, to three digits.
        times.push(Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?);
    }
    let mut work = PATTERNS.map(|_| Work::default());
    for sample in 0..bench.few() as u64 {
        for (at, pattern) in PATTERNS.iter().enumerate() {
            for (way, times) in Way::ALL.iter().zip(&mut times[at * Way::ALL.len()..]) {
                match way {
                    Way::PageCache | Way::LoopInMemory => {
                        let through = if *way == Way::PageCache { Through::PageCache } else { Through::Device };
                        read_file(&image)?;
                        let mut reader = Reader::open(&in_memory.directory, &files, *pattern, through)?;
                        reader.prepare()?;
                        reader.read(sample, times)?;
                    }
                    Way::LoopOnDisk => {
                        let mut reader = Reader::open(&on_disk.directory, &files, *pattern, Through::Device)?;
                        measure::drop_page_cache()?;
                        reader.read(sample, times)?;
                    }
                    Way::Snowmelt => work[at].add(bench, &machine, &files, *pattern, sample, times)?,
                }
            }
        }
    }
    Ok(vec![table(&times), parts(&work)])
}

/// The image's file on a loop device, which reads it past the page cache where that is said.
fn plain_mount<'a>(bench: &Bench, image: &Path, name: &str, is_direct: bool) -> Result<Mounted<'a>> {
    let directory = bench.path(name);
    std::fs::create_dir_all(&directory)?;
    let mut attach = Command::new("losetup");
    attach.args(["--show", "--find", "--read-only"]).arg(if is_direct { "--direct-io=on" } else { "--direct-io=off" });
    let attached = attach.arg(image).output()?;
    ensure!(attached.status.success(), "losetup: {}", String::from_utf8_lossy(&attached.stderr));
    let device = String::from_utf8(attached.stdout)?.trim().to_owned();
    let status = Command::new("mount").args(["-o", "ro", &device]).arg(&directory).status();
    let unmounted = directory.clone();
    let mounted = Mounted {
        directory,
        unmount: Box::new(move || {
            let _ = Command::new("umount").arg(&unmounted).status();
            let _ = Command::new("losetup").args(["--detach", &device]).status();
        }),
    };
    let status = status?;
    ensure!(status.success(), "mount: {status}");
    Ok(mounted)
}

/// Has the kernel keep all of a file.
fn read_file(path: &Path) -> Result<()> {
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// Has the worker keep all of the image.
fn fill(bench: &Bench, machine: &Machine<'_>) -> Result<()> {
    mount(machine, &bench.path("device-mount"), "all")?;
    unmount(machine, &bench.path("device-mount"))?;
    Ok(())
}

fn mount(machine: &Machine<'_>, directory: &Path, load: &str) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut mount = machine.snowmelt();
    mount.args(["--use-worker", "always", "--load", load, "mount", "numpy"]).arg(directory);
    let output = mount.output()?;
    ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Gives the agent's figures.
fn unmount(machine: &Machine<'_>, directory: &Path) -> Result<Value> {
    let output = machine.snowmelt().args(["--json", "unmount"]).arg(directory).output()?;
    ensure!(output.status.success(), "unmount: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["stats"].clone())
}

/// A mount that is read through; gives its agent's figures, and what `read` gave.
fn mounted<T>(machine: &Machine<'_>, directory: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<(Value, T)> {
    mount(machine, directory, "on-demand")?;
    let found = read(directory);
    // Also where reading has failed.
    let stats = unmount(machine, directory);
    found.and_then(|found| Ok((stats?, found)))
}

impl Work {
    /// Reads in a mount of its own, and compares its figures with those of a mount in which nothing but that was done.
    fn add(
        &mut self,
        bench: &Bench,
        machine: &Machine<'_>,
        files: &[LargeFile],
        pattern: Pattern,
        sample: u64,
        times: &mut Histogram<u64>,
    ) -> Result<()> {
        let directory = bench.path("device-mount");
        let prepare = |root: &Path| -> Result<Reader> {
            let mut reader = Reader::open(root, files, pattern, Through::Device)?;
            if pattern.span.is_some() {
                reader.prepare()?;
            }
            Ok(reader)
        };
        let (without, ()) = mounted(machine, &directory, |root| prepare(root).map(drop))?;
        let before = times.len();
        let (with, wall) = mounted(machine, &directory, |root| prepare(root)?.read(sample, times))?;
        let number =
            |stats: &Value, name: &str| stats[name].as_f64().with_context(|| format!("no `{name}` in {stats}"));
        let loads = |stats: &Value| -> Result<f64> {
            let tiers = stats["loads"].as_array().with_context(|| format!("no `loads` in {stats}"))?;
            let mut all = 0.0;
            for tier in tiers {
                let chunks = number(tier, "chunks")?;
                ensure!(tier["tier"] == "memory" || chunks == 0.0, "not all is in the worker's memory: {stats}");
                all += chunks;
            }
            Ok(all)
        };
        self.asked += times.len() - before;
        self.wall += wall.as_secs_f64();
        self.loads += (loads(&with)? - loads(&without)?).max(0.0);
        for (part, name) in self.parts.iter_mut().zip(PARTS) {
            *part += (number(&with, name)? - number(&without, name)?).max(0.0) / 1e6;
        }
        Ok(())
    }
}

fn table(times: &[Histogram<u64>]) -> Section {
    let mut section = Section::new(
        "A chunk in the worker's memory, read through the device",
        format!(
            "Reads of the files of 1 MB and more of the mounted image, one at a time, past the kernel's cache of the mount \
             (O_DIRECT), but for `page cache`, where all of the file is in it. snowmelt: every chunk is in the memory of this machine's \
             worker, none on its disk; the agent of the mount gets it from there, opens it and keeps some, so that few of the reads at \
             random find it decrypted, and those within {} MiB do nearly always. Plain loop: the same ext4 image as one file, which \
             is in the kernel's page cache, or is read past that from the disk. Nothing is loaded ahead but by the device itself, where \
             reads are in order.",
            RESIDENT_BYTES >> 20
        ),
        &["read", "from", "p50", "p99", "p99.9", "p50 against plain loop, in memory"],
    );
    for (pattern, times) in PATTERNS.iter().zip(times.chunks(Way::ALL.len())) {
        let plain = &times[1];
        for (way, times) in Way::ALL.iter().zip(times) {
            let quantile = |share| duration(times.value_at_quantile(share));
            section.row([
                pattern.name.to_owned(),
                way.name().to_owned(),
                quantile(0.5),
                quantile(0.99),
                quantile(0.999),
                ratio(times.value_at_quantile(0.5) as f64, plain.value_at_quantile(0.5) as f64),
            ]);
        }
    }
    section
}

fn parts(work: &[Work]) -> Section {
    let mut section = Section::new(
        "Where the time of a read from the worker goes",
        "Of the reads of snowmelt above: means for each read, by the figures of its agent, from which those of a mount without \
         the reads were taken away. `Chunks` is how many were loaded for each read. `Kernel` is the reader's time less that in which \
         the agent was serving: system call, ext4, loop, FUSE, and waking the agent. `Fetch` is asking the worker for the \
         chunk's descriptor and reading the ciphertext from it; `verify` is nothing where opening authenticates, as it does with \
         `blake3-gcm`. `Copy` is the system call that gives the kernel the bytes; it wakes who waits for them, and where that goes on at \
         once on the same core, the call is not over before that has had its turn: so `kernel` loses what `copy` gains. In order, \
         chunks load ahead of the reads and beside them. Means have in them what medians leave out: other work on the same cores.",
        &["read", "whole", "chunks", "kernel", "served", "queue", "fetch", "verify", "decrypt", "copy"],
    );
    for (pattern, work) in PATTERNS.iter().zip(work) {
        let each = |seconds: f64| format!("{:.1} us", seconds.max(0.0) * 1e6 / work.asked as f64);
        let mut cells = vec![
            pattern.name.to_owned(),
            each(work.wall),
            format!("{:.2}", work.loads / work.asked as f64),
            each(work.wall - work.parts[0]),
        ];
        cells.extend(work.parts.map(each));
        section.row(cells);
    }
    section
}

/// To a tenth of a microsecond, where that is something.
fn duration(nanoseconds: u64) -> String {
    match Duration::from_nanos(nanoseconds) {
        time if time < Duration::from_micros(10) => format!("{:.1} us", time.as_secs_f64() * 1e6),
        time if time < Duration::from_millis(10) => format!("{:.0} us", time.as_secs_f64() * 1e6),
        time => format!("{:.0} ms", time.as_secs_f64() * 1e3),
    }
}
