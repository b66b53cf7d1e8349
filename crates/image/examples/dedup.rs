//! How much of several images is stored once: by whole files, which is the ceiling, and by chunks, laid out for
//! deduplication and serially.
//!
//! ```sh
//! cargo run --release -p snowmelt-image --example dedup -- --chunk-size 524288 oci:DIR:a oci:DIR:b dir:PATH
//! ```
//!
//! Prints one JSON object. Chunks count as they are stored, that is without trailing zero pages; `metadata` is what lies
//! before the data region, and in no file. `share_to_files` compares the shares of bytes that are unique;
//! `unique_to_file_pages` the bytes, with files rounded up to whole pages as any file system image has to.

#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::error::Error;
use std::path::PathBuf;

use serde_json::{Value, json};
use snowmelt_image::{
    FlatImage, FlattenOptions, ImageConfig, OpenOptions, PlacementKind, SourceRef, flatten, flatten_directory, open,
};

const PAGE_BYTES: usize = 4096;

/// What was seen of one kind of unit.
#[derive(Default)]
struct Tally {
    seen: BTreeSet<[u8; 32]>,
    count: u64,
    total_bytes: u64,
    unique_bytes: u64,
    /// As `unique_bytes`, each unit rounded up to pages: what a file system with such blocks has to store.
    unique_page_bytes: u64,
}

impl Tally {
    fn add(&mut self, digest: [u8; 32], bytes: u64) {
        self.count += 1;
        self.total_bytes += bytes;
        if self.seen.insert(digest) {
            self.unique_bytes += bytes;
            self.unique_page_bytes += bytes.next_multiple_of(PAGE_BYTES as u64);
        }
    }

    fn unique_share(&self) -> f64 {
        self.unique_bytes as f64 / self.total_bytes as f64
    }

    fn to_json(&self) -> Value {
        json!({
            "count": self.count,
            "unique_count": self.seen.len(),
            "total_bytes": self.total_bytes,
            "unique_bytes": self.unique_bytes,
            "unique_page_bytes": self.unique_page_bytes,
            "unique_share": self.unique_share(),
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut chunk_size = 512 << 10;
    let mut references = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--chunk-size" {
            chunk_size = arguments.next().ok_or("--chunk-size wants a number of bytes")?.parse()?;
        } else {
            references.push(argument.parse::<SourceRef>()?);
        }
    }
    if references.is_empty() {
        return Err("name at least one image, such as oci:DIR:TAG".into());
    }
    let mut files = Tally::default();
    let mut placements = serde_json::Map::new();
    for (name, placement) in [("aligned", PlacementKind::Aligned), ("serial", PlacementKind::Serial)] {
        let (mut data, mut metadata) = (Tally::default(), Tally::default());
        for reference in &references {
            let image = flatten_reference(reference, placement, chunk_size)?;
            if placement == PlacementKind::Aligned {
                image.contents().for_each(|content| files.add(content.digest, content.stored_bytes));
            }
            add_chunks(&image, &mut data, &mut metadata)?;
        }
        let value = json!({
            "data": data.to_json(),
            "metadata": metadata.to_json(),
            "unique_bytes": data.unique_bytes + metadata.unique_bytes,
            "share_to_files": data.unique_share() / files.unique_share(),
            "unique_to_file_pages": data.unique_bytes as f64 / files.unique_page_bytes as f64,
            "unique_to_file_bytes": data.unique_bytes as f64 / files.unique_bytes as f64,
        });
        placements.insert(name.to_owned(), value);
    }
    let report = json!({
        "images": references.len(),
        "chunk_size": chunk_size,
        "total_bytes": files.total_bytes,
        "file_unique_bytes": files.unique_bytes,
        "files": files.to_json(),
        "aligned": placements["aligned"],
        "serial": placements["serial"],
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

fn flatten_reference(
    reference: &SourceRef,
    placement: PlacementKind,
    chunk_size: u32,
) -> Result<FlatImage, Box<dyn Error>> {
    let spools = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let options = FlattenOptions { free_bytes: 0, chunk_size, spool_directory: &spools, placement, progress: None };
    Ok(match reference {
        SourceRef::Directory { path } => flatten_directory(path, ImageConfig::default(), &options)?,
        _ => flatten(&*open(reference, &OpenOptions::default())?, &options)?,
    })
}

fn add_chunks(image: &FlatImage, data: &mut Tally, metadata: &mut Tally) -> Result<(), Box<dyn Error>> {
    let size = u64::from(image.chunk_size());
    let mut chunk = vec![0; image.chunk_size() as usize];
    for start in (0..image.size_bytes()).step_by(chunk.len()) {
        let end = image.size_bytes().min(start + size);
        if image.is_hole(start..end) {
            continue;
        }
        let chunk = &mut chunk[..(end - start) as usize];
        image.read_at(start, chunk)?;
        let pages = chunk.chunks(PAGE_BYTES).rposition(|page| page.iter().any(|&byte| byte != 0));
        let stored = pages.map_or(0, |page| (page + 1) * PAGE_BYTES).min(chunk.len());
        if stored > 0 {
            let tally = if start < image.data_start_bytes() { &mut *metadata } else { &mut *data };
            tally.add(*blake3::hash(&chunk[..stored]).as_bytes(), stored as u64);
        }
    }
    Ok(())
}
