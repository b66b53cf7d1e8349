#![allow(clippy::unwrap_used, missing_docs)]
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn digest(fill: char) -> String {
    format!("sha256:{}", fill.to_string().repeat(64))
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": digest('a'), "size": 10 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest('b'), "size": 20 }],
    })
}

fn decode(value: &Value) -> Result<Document, Error> {
    Document::decode(value.to_string().as_bytes(), "image")
}

fn refusal(value: &Value) -> String {
    decode(value).unwrap_err().to_string()
}

#[test]
fn manifests_and_indexes() {
    let Document::Manifest { config, layers } = decode(&manifest()).unwrap() else { panic!("a manifest") };
    assert_eq!((config.size, layers.len()), (10, 1));
    let layer = layers[0].layer("image", Some(&digest('c'))).unwrap();
    assert_eq!((layer.compression, layer.size, layer.diff_id), (Compression::Gzip, 20, Some(digest('c'))));
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": digest('a'), "size": 1,
        "platform": { "os": "linux", "architecture": "arm64", "variant": "v8", "os.version": "1" },
        "annotations": { "org.opencontainers.image.ref.name": "v1" } }] });
    let Document::Index(entries) = decode(&index).unwrap() else { panic!("an index") };
    assert_eq!(entries[0].platform, Some("linux/arm64".parse().unwrap()));
    assert_eq!(entries[0].ref_name.as_deref(), Some("v1"));
}

#[test]
fn what_is_no_image_is_refused_with_its_reason() {
    let change = |path: &str, value: Value| {
        let mut document = manifest();
        match document.pointer_mut(path) {
            Some(place) => *place = value,
            None => document[path] = value,
        }
        document
    };
    for (document, reason) in [
        (json!({ "schemaVersion": 1, "fsLayers": [] }), "Docker schema 1 manifest"),
        (change("manifests", json!([])), "an index and a manifest at once"),
        (change("/mediaType", json!(OCI_INDEX)), "says it is an index and is a manifest"),
        (json!({ "mediaType": DOCKER_MANIFEST, "manifests": [] }), "says it is a manifest and is an index"),
        (json!({ "schemaVersion": 2 }), "neither an index nor a manifest"),
        (json!([]), "not an image manifest or index"),
        (change("/config/mediaType", json!("application/vnd.cncf.helm.config.v1+json")), "not a container image, but"),
        (change("/config/digest", json!("md5:00")), "neither sha256"),
        (change("/config/size", json!(-1)), "not an image manifest or index"),
        (change("/config/size", json!(u64::MAX)), "the size of"),
    ] {
        let error = refusal(&document);
        assert!(error.starts_with("image ") && error.contains(reason), "{error}");
    }
    let large = vec![b' '; MAX_MANIFEST_BYTES as usize + 1];
    assert!(matches!(Document::decode(&large, "image"), Err(Error::Invalid { .. })));
}

#[test]
fn layers_that_cannot_be_fetched_or_unpacked_are_refused() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let good = "application/vnd.oci.image.layer.v1.tar";
    for (media_type, urls, reason) in [
        (foreign, json!(null), "kept outside the registry (a foreign layer)"),
        (good, json!(["https://example.com/layer"]), "kept outside the registry (a foreign layer)"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", json!([]), "kept outside the registry"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", json!([]), "it is encrypted"),
        ("text/plain", json!([]), "\"text/plain\" is not a kind of layer"),
    ] {
        let mut document = manifest();
        document["layers"][0]["mediaType"] = json!(media_type);
        document["layers"][0]["urls"] = urls;
        let Document::Manifest { layers, .. } = decode(&document).unwrap() else { panic!("a manifest") };
        let error = layers[0].layer("image", None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("image, layer {} cannot be used: ", digest('b'))), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

proptest! {
    /// Documents with one part replaced by anything don't panic.
    #[test]
    fn mutated_documents_never_panic(place in 0_usize..400, with in prop::collection::vec(any::<u8>(), 0..20)) {
        for document in [manifest(), json!({ "manifests": [{ "digest": digest('a'), "size": 1, "platform": {} }] })] {
            let mut bytes = document.to_string().into_bytes();
            let start = place.min(bytes.len());
            let end = (start + with.len() / 2).min(bytes.len());
            bytes.splice(start..end, with.iter().copied());
            crate::fuzz::fuzz_oci_json(&bytes);
        }
    }

    #[test]
    fn anything_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzz::fuzz_oci_json(&bytes);
    }
}
