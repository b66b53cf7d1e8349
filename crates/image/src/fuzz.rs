//! Entry points for fuzzing: bytes from strangers, through the same code as in earnest. None may panic.

use crate::Platform;
use crate::config::ConfigDocument;
use crate::sources::docker_archive;
use crate::sources::documents::Document;
use crate::sources::resolve::choose;

/// Reads `data` as an index, a manifest, a configuration, and a `manifest.json` of `docker save`.
pub fn fuzz_oci_json(data: &[u8]) {
    match Document::decode(data, "fuzz") {
        Ok(Document::Index(entries)) => {
            let _ = choose("fuzz", &entries, &Platform::new("linux", "arm64", Some("v9")));
        }
        Ok(Document::Manifest { layers, .. }) => {
            for layer in &layers {
                let _ = layer.layer("fuzz", None);
            }
        }
        Err(_) => {}
    }
    let _ = ConfigDocument::decode(data, "fuzz");
    docker_archive::fuzz(data);
}

/// Reads `data` as a layer: its entries, their bodies, and the tree they make.
pub fn fuzz_tar(data: &[u8]) {
    crate::layers::fuzz(data);
}
