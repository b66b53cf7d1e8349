//! Publishing, against decompressing the same layers to nothing and against unpacking them.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Bench;
use crate::measure::{self, Samples};
use crate::report::{Section, ratio, seconds};

pub(crate) fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let layout = bench.images.layout()?;
    let source = format!("oci:{}:numpy", layout.display());
    let mut section = Section::new(
        "Publish",
        "Flattening, chunking, encrypting and storing the image from an OCI layout on disk into a fresh store, against \
         decompressing its layers to nothing with the same library (one thread, layer after layer), and against \
         `umoci unpack`.",
        &["what", "time", "p90", "against decompressing"],
    );
    let layers = layers_of(&layout, "numpy")?;
    let mut samples: [Samples; 4] = Default::default();
    for sample in 0..bench.few() {
        samples[0].add(decompress_to_nothing(&layers)?);

        let place = bench.place(&format!("publish-{sample}"))?;
        let cache = bench.path("publish-cache");
        samples[1].add(measure::run(bench.snowmelt(&place, &cache).args(["publish", &source, "numpy"]))?.total);
        samples[2].add(measure::run(bench.snowmelt(&place, &cache).args(["publish", &source, "numpy"]))?.total);
        std::fs::remove_dir_all(&place)?;

        let bundle = bench.path("publish-bundle");
        let started = Instant::now();
        super::unpack(&layout, &bundle)?;
        samples[3].add(started.elapsed());
        std::fs::remove_dir_all(&bundle)?;
    }
    let names = ["decompress to nothing", "snowmelt publish", "snowmelt publish, all chunks there", "umoci unpack"];
    for (name, times) in names.into_iter().zip(&samples) {
        section.row([
            name.to_owned(),
            seconds(times.median()),
            seconds(times.p90()),
            ratio(times.median(), samples[0].median()),
        ]);
    }
    Ok(vec![section])
}

fn decompress_to_nothing(layers: &[std::path::PathBuf]) -> Result<std::time::Duration> {
    let started = Instant::now();
    for layer in layers {
        let reader = std::io::BufReader::with_capacity(1 << 20, File::open(layer)?);
        std::io::copy(&mut flate2::bufread::MultiGzDecoder::new(reader), &mut std::io::sink())?;
    }
    Ok(started.elapsed())
}

/// Files of an image's layers in an OCI layout.
fn layers_of(layout: &Path, tag: &str) -> Result<Vec<std::path::PathBuf>> {
    let read = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let file_of = |descriptor: &Value| -> Result<std::path::PathBuf> {
        let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = read(&layout.join("index.json"))?;
    let manifests = index["manifests"].as_array().context("an index lists manifests")?;
    let manifest = manifests
        .iter()
        .find(|manifest| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag)
        .with_context(|| format!("no tag {tag} in {}", layout.display()))?;
    let manifest = read(&file_of(manifest)?)?;
    manifest["layers"].as_array().context("a manifest lists layers")?.iter().map(file_of).collect()
}
