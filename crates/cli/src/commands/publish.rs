//! `publish`.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use snowmelt_chunk::{DEFAULT_CHUNK_SIZE, Scope};
use snowmelt_image::{
    FlatImage, FlattenOptions, ImageConfig, OpenOptions, PlacementKind, Progress, SourceRef, add_layers, flatten,
    flatten_directory, open, suggested_name,
};
use snowmelt_keys::Service;
use snowmelt_store::{ImageMetadata, ImageName, PublishOptions, PublishProgress, Sharing, publish as publish_chunks};

use crate::app::App;
use crate::args::{PublishArgs, Share};
use crate::output;
use crate::units::{Size, show_duration};

pub(crate) fn publish(app: &App, args: &PublishArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&args.source)?,
    };
    let store = app.store()?;
    store.check_writable()?;
    let keys = app.keys(&app.config.tenant)?;
    let secret = match app.config.salt_key(args)? {
        Service::Local => app.local_keys().salt_secret()?,
        service => store.salt_secret(&app.keys_of(&service, &[], &app.config.tenant)?)?,
    };
    let scope = match app.config.share(args) {
        Share::Everyone => Scope::Everyone,
        Share::Tenant => Scope::Tenant(app.config.tenant.clone()),
        Share::Layer(layer) => Scope::Layer(layer),
    };
    let sharing = Sharing { secret: &secret, scope, zone: app.config.zone(args), class: args.class.clone() };
    let image = read_source(app, args)?;
    let reading = started.elapsed();

    let bar = output::bytes_bar("storing", image.size_bytes(), app.json);
    let progress = |progress: PublishProgress| bar.set_position(progress.done_bytes);
    let metadata = ImageMetadata {
        config: image.config().clone(),
        source_digest: image.source_digest().map(str::to_owned),
        content_bytes: image.content_bytes(),
        binding: None,
    };
    let source = args.source.to_string();
    let options = PublishOptions {
        tenant: &app.config.tenant,
        name: &name,
        source: &source,
        suite: args.suite,
        sharing: &sharing,
        keys: &keys,
        repair: args.repair,
        hide_existing: args.hide_existing,
        threads: App::threads(&store),
        progress: Some(&progress),
    };
    let published = publish_chunks(&image, &metadata, &store, &options)?;
    bar.finish_and_clear();

    let record = &published.record;
    // Where every chunk was put, what was there is not known.
    let present = (
        published.distinct_chunks.saturating_sub(published.new_chunks),
        published.distinct_bytes.saturating_sub(published.new_bytes),
    );
    if app.json {
        let mut value = json!({
            "name": name.to_string(),
            "manifest": published.manifest.to_string(),
            "source": source,
            "image_bytes": record.image_size,
            "content_bytes": metadata.content_bytes,
            "chunks": record.chunk_count,
            "stored_bytes": record.stored_bytes,
            "distinct_chunks": published.distinct_chunks,
            "new_chunks": published.new_chunks,
            "new_bytes": published.new_bytes,
            "repaired_chunks": published.repaired_chunks,
            "present_chunks": present.0,
            "present_bytes": present.1,
            "manifest_bytes": published.manifest_bytes,
            "read_ms": reading.as_millis() as u64,
            "store_ms": published.chunks_time.as_millis() as u64,
            "total_ms": started.elapsed().as_millis() as u64,
        });
        if let Some(fields) = value.as_object_mut().filter(|_| args.hide_existing) {
            fields.retain(|name, _| !name.starts_with("new_") && !name.starts_with("present_"));
        }
        output::print_json(&value)?;
    } else {
        let mut rows = vec![
            ("Published", format!("{name}  ({})", &record.manifest[..12])),
            ("Size", format!("{} of files, {} with free space", Size(metadata.content_bytes), Size(record.image_size))),
            ("Chunks", format!("{} ({})", record.chunk_count, Size(record.stored_bytes))),
        ];
        if !args.hide_existing {
            rows.push(("New", format!("{} ({})", published.new_chunks, Size(published.new_bytes))));
            rows.push(("Already there", format!("{} ({})", present.0, Size(present.1))));
        }
        if args.repair {
            rows.push(("Repaired", published.repaired_chunks.to_string()));
        }
        let time = format!(
            "{} (reading {}, storing {})",
            show_duration(started.elapsed()),
            show_duration(reading),
            show_duration(published.chunks_time)
        );
        rows.push(("Time", time));
        output::print(&output::pairs(&rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens and flattens the source. What it unpacks waits in unlinked files beside the cache, which is on a real disk.
fn read_source(app: &App, args: &PublishArgs) -> Result<FlatImage> {
    let spool = &app.config.cache_dir;
    std::fs::create_dir_all(spool).with_context(|| format!("making the folder {}", spool.display()))?;
    let bar = output::bytes_bar("reading", 0, app.json);
    let progress = |progress: Progress| match progress {
        Progress::LayersTotal { compressed_bytes } => bar.set_length(compressed_bytes),
        Progress::LayerBytes { read } | Progress::FileBytes { read } => bar.inc(read),
        _ => {}
    };
    let options = FlattenOptions {
        free_bytes: args.free.0,
        chunk_size: DEFAULT_CHUNK_SIZE,
        spool_directory: spool,
        placement: PlacementKind::Aligned,
        progress: Some(&progress),
    };
    let image = if let SourceRef::Directory { path } = &args.source {
        anyhow::ensure!(
            args.platform.is_none(),
            "--platform chooses among the images of an index: {} has none",
            args.source
        );
        anyhow::ensure!(args.add_layer.is_empty(), "--add-layer is for images: {} has no layers", args.source);
        flatten_directory(path, ImageConfig::default(), &options)?
    } else {
        let open_options = OpenOptions { platform: args.platform.clone(), insecure_http: args.insecure };
        let image = open(&args.source, &open_options)?;
        let image = if args.add_layer.is_empty() { image } else { add_layers(image, &args.add_layer)? };
        flatten(&*image, &options)?
    };
    bar.finish_and_clear();
    Ok(image)
}

/// The name that a source suggests.
fn default_name(source: &SourceRef) -> Result<ImageName> {
    let stem = |path: &std::path::Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default()
    };
    let suggested = match source {
        // Calling any digest the latest would move that name.
        SourceRef::Registry { tag: None, digest: Some(_), .. } => {
            bail!("the source {source} has a digest and no tag, which suggests no name: give one after it")
        }
        SourceRef::Registry { repository, tag, .. } => registry_name(repository, tag.as_deref()),
        SourceRef::OciLayout { path, tag } => format!("{}:{}", stem(path), tag.as_deref().unwrap_or("latest")),
        SourceRef::DockerArchive { name: Some(name), .. } => name.clone(),
        SourceRef::DockerArchive { path, name: None } => match suggested_name(source)? {
            // A name that was saved has the registry in it; the name is the same as if it came from there.
            Some(saved) => match format!("docker://{saved}").parse() {
                Ok(SourceRef::Registry { repository, tag, .. }) => registry_name(&repository, tag.as_deref()),
                _ => saved,
            },
            None => stem(path),
        },
        SourceRef::Directory { path } => stem(path),
        _ => bail!("the source {source} suggests no name: give one after it"),
    };
    suggested.parse().with_context(|| format!("the source {source} suggests no usable name: give one after it"))
}

/// A name in a registry without the registry, and without the folder of Docker's own images.
fn registry_name(repository: &str, tag: Option<&str>) -> String {
    let repository = repository.strip_prefix("library/").unwrap_or(repository);
    format!("{repository}:{}", tag.unwrap_or("latest"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sources_suggest_names() {
        for (source, name) in [
            ("docker://localhost:5000/a/b:v1", "a/b:v1"),
            ("docker://debian", "debian:latest"),
            ("oci:/x/layout", "layout:latest"),
            ("oci:/x/Layout:v2", "layout:v2"),
            ("docker-archive:/x/image.tar:py:3", "py:3"),
            ("dir:/x/rootfs/", "rootfs:latest"),
        ] {
            assert_eq!(default_name(&source.parse().unwrap()).unwrap().to_string(), name, "{source}");
        }
        assert!(default_name(&"dir:/".parse().unwrap()).is_err());
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let error = default_name(&format!("docker://debian@{digest}").parse().unwrap()).unwrap_err().to_string();
        assert!(error.ends_with("suggests no name: give one after it"), "{error}");
        let tagged = format!("docker://debian:12@{digest}").parse().unwrap();
        assert_eq!(default_name(&tagged).unwrap().to_string(), "debian:12");
    }

    #[test]
    fn archives_suggest_the_name_that_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image.tar");
        let source = format!("docker-archive:{}", file.display()).parse().unwrap();
        for (tags, name) in [
            (json!(["small:1.0", "small:latest"]), "small:1.0"),
            (json!(["docker.io/library/debian:12"]), "debian:12"),
            (json!(["localhost/a/b:v1"]), "a/b:v1"),
            (json!([]), "image:latest"),
            (json!(null), "image:latest"),
        ] {
            let manifest = json!([{ "Config": "c.json", "RepoTags": tags, "Layers": [] }]).to_string();
            std::fs::write(directory.path().join("manifest.json"), manifest).unwrap();
            let mut tar = std::process::Command::new("tar");
            let status = tar.arg("-C").arg(directory.path()).arg("-cf").arg(&file).arg("manifest.json").status();
            assert!(status.unwrap().success());
            assert_eq!(default_name(&source).unwrap().to_string(), name, "{tags}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(format!("{:#}", default_name(&source).unwrap_err()).contains("there is no such file"));
    }
}
