//! `make bench`: measures snowmelt side by side with the usual way, in one run, and writes a page of tables.
//!
//! Each case in [`cases`] takes a [`Bench`] (binary, images, directories) and returns [`report::Section`]s. Samples of what
//! is compared are interleaved, so that a busy moment of the machine hits both. Servers are this program's own:
//! [`origin`] serves a store by HTTP, and [`network`] puts a slower network in front of it and of the registry;
//! but for S3, which `scripts/test-servers` starts ([`objects`]).

mod cases;
mod functions;
mod http;
mod images;
mod machine;
mod measure;
mod network;
mod objects;
mod origin;
mod report;
mod tiers;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::images::Images;
use crate::report::Section;

/// Measures snowmelt against pulling, unpacking and plain runc, and writes the tables as Markdown.
#[derive(Parser)]
struct Arguments {
    /// Where the page goes; standard output without it.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Only these cases (cold, modes, warm, s3, reads, device, publish, memory, collect, dedup, suites, eviction, zone, starts, invoke, cold-invoke, functions).
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<String>,
    /// Samples of each quick measurement; slow ones take a third.
    #[arg(long, default_value_t = 15, value_name = "N")]
    samples: usize,
    /// The snowmelt binary; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Runs a command, then prints the largest resident memory of any process under it, in KiB, as the last line of
    /// standard error.
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    peak_memory: Vec<String>,
}

/// What every case works with.
pub(crate) struct Bench {
    /// The snowmelt binary.
    binary: PathBuf,
    /// Examples that were built beside it.
    examples: PathBuf,
    /// Scratch space, removed at the end.
    work: tempfile::TempDir,
    /// The same in memory.
    memory: tempfile::TempDir,
    images: Images,
    samples: usize,
    /// Where pictures go: beside the page, if it goes into a file.
    pictures: Option<PathBuf>,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// Samples of a measurement that takes seconds.
    fn few(&self) -> usize {
        (self.samples / 3).max(3)
    }
}

type Case = fn(&Bench) -> Result<Vec<Section>>;

/// Every case, in the order of the page.
const CASES: [(&str, Case); 17] = [
    ("cold", cases::cold::measure),
    ("modes", cases::modes::measure),
    ("warm", cases::warm::measure),
    ("s3", cases::cold::from_s3),
    ("reads", cases::reads::measure),
    ("device", cases::device::measure),
    ("publish", cases::publish::measure),
    ("memory", cases::memory::measure),
    ("collect", cases::collect::measure),
    ("dedup", cases::dedup::measure),
    ("suites", cases::suites::measure),
    ("eviction", cases::eviction::measure),
    ("zone", cases::zone::measure),
    ("starts", cases::starts::measure),
    ("invoke", cases::functions::warm::measure),
    ("cold-invoke", cases::functions::cold::measure),
    ("functions", cases::functions::many::measure),
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.peak_memory.is_empty() {
        return measure::report_peak_memory(&arguments.peak_memory);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark mounts file systems and starts containers: run it as root"
    );
    for name in &arguments.only {
        ensure!(CASES.iter().any(|(case, _)| case == name), "no case named {name}; there are: {}", case_names());
    }
    let own = std::env::current_exe()?;
    let directory = own.parent().context("this program lies in a directory")?;
    let binary = arguments.binary.unwrap_or_else(|| directory.join("snowmelt"));
    ensure!(binary.exists(), "{} is missing: run `make bench`, which builds it", binary.display());
    let bench = Bench {
        binary,
        examples: directory.join("examples"),
        work: tempfile::Builder::new().prefix("snowmelt-bench-").tempdir()?,
        memory: tempfile::Builder::new().prefix("snowmelt-bench-").tempdir_in("/dev/shm")?,
        images: Images::find()?,
        samples: arguments.samples.max(3),
        pictures: arguments.output.as_deref().and_then(Path::parent).map(|folder| folder.join("pictures")),
    };

    let mut page = report::Page::new(&machine::describe()?);
    for (name, case) in CASES {
        if arguments.only.is_empty() || arguments.only.iter().any(|only| only == name) {
            eprintln!("measuring: {name}");
            for section in case(&bench).with_context(|| format!("case {name}"))? {
                page.add(&section);
            }
            // What was measured is not lost where a later case fails.
            if let Some(file) = &arguments.output {
                write(file, &page)?;
            }
        }
    }
    match &arguments.output {
        Some(file) => eprintln!("written: {}", file.display()),
        None => print!("{}", page.text()),
    }
    Ok(())
}

fn write(file: &Path, page: &report::Page) -> Result<()> {
    if let Some(parent) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(file, page.text()).with_context(|| format!("writing {}", file.display()))
}

fn case_names() -> String {
    CASES.map(|(name, _)| name).join(", ")
}
