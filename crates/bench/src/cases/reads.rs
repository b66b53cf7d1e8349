//! Reads through a mount, against the same file system image on a plain loop device.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Bench;
use crate::measure::{self, Samples};
use crate::report::{Section, ratio, seconds};

const RANDOM_READS: u64 = 2000;

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let mut sections = vec![through_mounts(bench)?];
    sections.extend(parts_of_a_read(bench)?);
    Ok(sections)
}

/// A mounted directory, unmounted when dropped.
pub(super) struct Mounted<'a> {
    pub(super) directory: PathBuf,
    pub(super) unmount: Box<dyn Fn() + 'a>,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        (self.unmount)();
    }
}

fn through_mounts(bench: &Bench) -> Result<Section> {
    let mut section = Section::new(
        "Reads",
        format!(
            "Read from the mounted image: all files of 1 MB and more once in order, and {RANDOM_READS} random reads of \
             4 KiB in the largest ones. The kernel's page cache is dropped before each sample. `first read`: snowmelt's \
             cache is empty and chunks come from a store on the local disk; `cached`: they are in its cache. The plain \
             loop device holds the very same ext4 image as one file."
        ),
        &["read", "plain loop", "p90", "cached", "p90", "times as long", "first read", "p90"],
    );
    let place = bench.published()?;
    let image = exported(bench)?;
    let cache = bench.path("reads");
    let snowmelt = |arguments: &[&str]| -> Result<()> {
        let output = bench.snowmelt(&place, &cache).args(arguments).output()?;
        ensure!(output.status.success(), "snowmelt {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let plain_directory = bench.path("plain-mount");
    std::fs::create_dir_all(&plain_directory)?;
    let status = Command::new("mount").args(["-o", "loop,ro"]).args([&image, &plain_directory]).status()?;
    ensure!(status.success(), "mount: {status}");
    let plain = Mounted {
        directory: plain_directory.clone(),
        unmount: Box::new(move || {
            let _ = Command::new("umount").arg(&plain_directory).status();
        }),
    };
    let files = large_files(&plain.directory)?;
    let ours_directory = bench.path("mount");
    std::fs::create_dir_all(&ours_directory)?;

    let mut results: [[Samples; 3]; 2] = Default::default();
    for _ in 0..bench.few() {
        for (index, work) in
            [read_in_order as fn(&Path, &[LargeFile]) -> Result<f64>, read_at_random].into_iter().enumerate()
        {
            measure::drop_page_cache()?;
            results[index][0].add_number(work(&plain.directory, &files)?);
            if cache.exists() {
                std::fs::remove_dir_all(&cache)?;
            }
            // Empty cache first, then with what that read has put there.
            for column in [2, 1] {
                snowmelt(&["mount", "numpy", path_text(&ours_directory)?])?;
                let mounted = Mounted {
                    directory: ours_directory.clone(),
                    unmount: Box::new(|| {
                        let _ = path_text(&ours_directory).and_then(|directory| snowmelt(&["unmount", directory]));
                    }),
                };
                measure::drop_page_cache()?;
                results[index][column].add_number(work(&mounted.directory, &files)?);
            }
        }
    }
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let [in_order, at_random] = &results;
    let speed = |samples: &Samples| format!("{:.2} GB/s", bytes as f64 / samples.median() / 1e9);
    let slow_speed = |samples: &Samples| format!("{:.2} GB/s", bytes as f64 / samples.p90() / 1e9);
    section.row([
        format!("in order, {} MB", bytes / 1_000_000),
        speed(&in_order[0]),
        slow_speed(&in_order[0]),
        speed(&in_order[1]),
        slow_speed(&in_order[1]),
        ratio(in_order[1].median(), in_order[0].median()),
        speed(&in_order[2]),
        slow_speed(&in_order[2]),
    ]);
    let each = |seconds_all: f64| seconds(seconds_all / RANDOM_READS as f64);
    section.row([
        "random 4 KiB, each".to_owned(),
        each(at_random[0].median()),
        each(at_random[0].p90()),
        each(at_random[1].median()),
        each(at_random[1].p90()),
        ratio(at_random[1].median(), at_random[0].median()),
        each(at_random[2].median()),
        each(at_random[2].p90()),
    ]);
    Ok(section)
}

/// The image `numpy` as one file; made once for all cases.
pub(super) fn exported(bench: &Bench) -> Result<PathBuf> {
    let image = bench.path("numpy.ext4");
    if !image.exists() {
        let mut export = bench.snowmelt(&bench.published()?, &bench.path("published-cache"));
        let output = export.args(["export", "numpy"]).arg(&image).output()?;
        ensure!(output.status.success(), "export: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(image)
}

/// A file to read: where, relative to the mount, and its size in bytes.
pub(super) struct LargeFile {
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

/// Files of 1 MB and more, the largest first, so that every mount is read in the same order.
pub(super) fn large_files(root: &Path) -> Result<Vec<LargeFile>> {
    let output = Command::new("find")
        .arg(root)
        .args(["-xdev", "-type", "f", "-size", "+1000k", "-printf", "%s %P\\n"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (size, path) = line.split_once(' ')?;
            Some(LargeFile { path: path.into(), size: size.parse().ok()? })
        })
        .collect();
    files.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    ensure!(!files.is_empty(), "no large file in {}", root.display());
    Ok(files)
}

fn read_in_order(root: &Path, files: &[LargeFile]) -> Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let started = Instant::now();
    for file in files {
        let mut opened = File::open(root.join(&file.path))?;
        while opened.read(&mut buffer)? > 0 {}
    }
    Ok(started.elapsed().as_secs_f64())
}

fn read_at_random(root: &Path, files: &[LargeFile]) -> Result<f64> {
    let largest: Vec<_> =
        files.iter().take(8).map(|file| Ok((File::open(root.join(&file.path))?, file.size))).collect::<Result<_>>()?;
    let mut buffer = [0; 4096];
    // The same places each time: a fixed generator (SplitMix64's constants).
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let started = Instant::now();
    for number in 0..RANDOM_READS {
        state = state.wrapping_mul(0xBF58_476D_1CE4_E5B9).wrapping_add(0x94D0_49BB_1331_11EB);
        let (file, size) = &largest[number as usize % largest.len()];
        let block = (state >> 16) % (size / 4096);
        file.read_exact_at(&mut buffer, block * 4096)?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Where the time of a read goes, as the device's own example measures it.
fn parts_of_a_read(bench: &Bench) -> Result<Vec<Section>> {
    let output = Command::new(bench.examples.join("read_bench")).output().context("the example `read_bench`")?;
    ensure!(output.status.success(), "read_bench: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).context("the example's report")?;
    let mut parts = Section::new(
        "Where the time of a read goes",
        "By `cargo run --release -p snowmelt-device --example read_bench`: the block device alone, its sealed chunks in \
         memory, read through FUSE and loop with `blake3-gcm`. Per read that reaches the device; chunks load beside one \
         another and ahead of reads, so the parts may add up to more than the time served. `kernel` is the rest of the \
         caller's time. In order is 128 KiB at a time past the page cache; `resident` are blocks of decrypted chunks.",
        &["read", "kernel", "served", "queue", "fetch", "verify", "decrypt", "copy"],
    );
    for (name, case) in [
        ("in order, 128 KiB", "sequential_128k_direct"),
        ("random 4 KiB, resident", "random_4k_resident"),
        ("random 4 KiB, anywhere", "random_4k_everywhere"),
    ] {
        let split = &report["blake3-gcm"][case]["split"];
        let mut cells = vec![name.to_owned()];
        for part in ["kernel_us", "serve_us", "queue_us", "fetch_us", "verify_us", "decrypt_us", "copy_us"] {
            let time = split[part].as_f64().with_context(|| format!("no `{case}/{part}` in {report}"))?;
            cells.push(format!("{time:.1} us"));
        }
        parts.row(cells);
    }
    let mut steps = Section::new(
        "Where the time of a mount goes",
        "Medians, by the same example: making the device, exporting it by FUSE, attaching the loop device, mounting ext4, \
         and the way back.",
        &["step", "time"],
    );
    for (name, step) in [
        ("device", "device"),
        ("export by FUSE", "fuse"),
        ("attach loop", "loop"),
        ("mount ext4", "ext4"),
        ("unmount ext4", "unmount"),
        ("detach loop", "detach"),
        ("end FUSE", "fuse_unmount"),
    ] {
        let time =
            report["blake3-gcm"]["mount_us"][step].as_f64().with_context(|| format!("no `{step}` in {report}"))?;
        steps.row([name.to_owned(), seconds(time / 1e6)]);
    }
    Ok(vec![parts, steps])
}

pub(super) fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("scratch paths are text")
}
