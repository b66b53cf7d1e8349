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

/// Reads `data` as a layer: its entries, their bodies, and the tree they make. Then once more with every block's header
/// checksum mended, since a fuzzer does not find one by chance and would never get behind it.
pub fn fuzz_tar(data: &[u8]) {
    crate::layers::fuzz(data);
    let mut mended = data.to_vec();
    for block in mended.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    crate::layers::fuzz(&mended);
}
