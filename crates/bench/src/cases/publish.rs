//! Publishing, against decompressing the same layers to nothing and against unpacking them.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use object_store::aws::AmazonS3;
use serde_json::Value;

use crate::Bench;
use crate::measure::{self, Samples};
use crate::network::{ORIGINS, Proxy};
use crate::objects::{self, Server};
use crate::report::{Section, bytes, ratio, seconds};

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
        super::unpack(&format!("{}:numpy", layout.display()), &bundle)?;
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
    Ok(vec![section, to_s3(bench, &source)?])
}

/// The same on an S3 server, and what else could be put there.
fn to_s3(bench: &Bench, source: &str) -> Result<Section> {
    let server = Server::find()?;
    let runtime = objects::runtime()?;
    let s3 = server.open()?;
    let publish = |folder: &str, place: &Path, proxy: Option<SocketAddr>| -> Result<Value> {
        let mut command = bench.snowmelt(place, &bench.path("publish-cache"));
        server.serve(&mut command, folder, proxy);
        let ran = measure::run(command.args(["--json", "publish", source, "numpy"]))?;
        serde_json::from_str(&ran.stdout).context("publish --json")
    };
    let number = |report: &Value, key: &str| report[key].as_u64().with_context(|| format!("no `{key}` in {report}"));
    let milliseconds = |report: &Value, key: &str| Ok::<_, anyhow::Error>(Duration::from_millis(number(report, key)?));

    let proxy = Proxy::start(server.address()?, ORIGINS[0])?;
    let (mut first, mut again, mut requests) = (<[Samples; 2]>::default(), <[Samples; 2]>::default(), [0, 0]);
    let (mut plain, mut copied) = (Samples::default(), Samples::default());
    let mut stored = (0, 0);
    for sample in 0..SAMPLES_ON_S3 {
        let folder = format!("published-{sample}");
        let place = bench.place(&folder)?;
        for (index, samples) in [&mut first, &mut again].into_iter().enumerate() {
            let report = publish(&folder, &place, None)?;
            samples[0].add(milliseconds(&report, "total_ms")?);
            samples[1].add(milliseconds(&report, "store_ms")?);
            if index == 0 {
                stored = (number(&report, "new_chunks")?, number(&report, "new_bytes")?);
            } else {
                ensure!(number(&report, "new_chunks")? == 0, "the image has not changed: {report}");
            }
        }
        if sample == 0 {
            // Counted apart from the times, since a proxy takes some.
            for (requests, folder) in requests.iter_mut().zip(["published-counted", &folder]) {
                proxy.take_counts();
                publish(folder, &place, Some(proxy.address()))?;
                *requests = proxy.take_counts().0;
            }
            runtime.block_on(objects::remove_all(&s3, &"published-counted".into()))?;
        }
        runtime.block_on(objects::remove_all(&s3, &folder.as_str().into()))?;
        std::fs::remove_dir_all(&place)?;

        let started = Instant::now();
        runtime.block_on(put_plainly(&s3, stored.1))?;
        plain.add(started.elapsed());
        runtime.block_on(objects::remove_all(&s3, &"plain".into()))?;

        copied.add(super::cold::Registry::start(bench)?.copied_in);
    }

    let mut section = Section::new(
        "Publish to S3",
        format!(
            "The same image, to SeaweedFS on this machine: {} in {} chunks. `storing` is what comes after its layers were \
             read: encrypting, listing what is there, putting what is not. The limit is to put as many bytes that are at \
             hand, as objects of 512 KiB, {PUTS_AT_ONCE} at once as snowmelt does. `skopeo copy` puts the layers as they \
             are, compressed, into a registry on this machine that has nothing. Publishing again what has not changed \
             should take at most a tenth of the first time's storing: it takes {:.1} %.",
            bytes(stored.1 as f64),
            stored.0,
            100.0 * again[1].median() / first[1].median()
        ),
        &["what", "time", "p90", "storing", "p90", "against the limit", "requests"],
    );
    for (name, [total, storing], requests) in
        [("snowmelt publish", &first, requests[0]), ("snowmelt publish, all chunks there", &again, requests[1])]
    {
        section.row([
            name.to_owned(),
            seconds(total.median()),
            seconds(total.p90()),
            seconds(storing.median()),
            seconds(storing.p90()),
            ratio(storing.median(), plain.median()),
            requests.to_string(),
        ]);
    }
    for (name, times, requests) in [
        ("the same bytes put plainly", &plain, stored.1.div_ceil(PUT_BYTES as u64).to_string()),
        ("skopeo copy to a registry", &copied, String::new()),
    ] {
        let (median, p90) = (seconds(times.median()), seconds(times.p90()));
        let against = ratio(times.median(), plain.median());
        section.row([name.to_owned(), median, p90, String::new(), String::new(), against, requests]);
    }
    Ok(section)
}

/// Of what takes a quarter of a minute and varies little.
const SAMPLES_ON_S3: usize = 3;
/// The size of a chunk.
const PUT_BYTES: usize = 512 << 10;
const PUTS_AT_ONCE: usize = 8;

/// Puts that many bytes that are in memory already, as objects of the size of chunks.
async fn put_plainly(s3: &AmazonS3, length: u64) -> Result<()> {
    // Nothing that a server could compress.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(PUT_BYTES / 8)
    .flatten()
    .collect();
    let noise = bytes::Bytes::from(noise);
    let puts = (0..length).step_by(PUT_BYTES).enumerate().map(|(number, start)| {
        let size = PUT_BYTES.min((length - start) as usize);
        (format!("plain/{:02x}/{number:064}", number % 256).into(), noise.slice(..size))
    });
    objects::put_all(s3, PUTS_AT_ONCE, puts).await
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
