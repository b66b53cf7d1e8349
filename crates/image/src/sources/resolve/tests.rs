#![allow(clippy::unwrap_used, missing_docs)]
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

/// Documents by digest, and a way to make them.
#[derive(Default)]
struct Memory(BTreeMap<String, Vec<u8>>);

impl Memory {
    fn put(&mut self, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let descriptor = json!({ "digest": Digest::of(&bytes).to_string(), "size": bytes.len() });
        self.0.insert(Digest::of(&bytes).to_string(), bytes);
        descriptor
    }

    /// The manifest of an image without layers, whose command is `name`.
    fn image(&mut self, platform: &str, name: &str) -> Value {
        let platform: Platform = platform.parse().unwrap();
        let config =
            json!({ "os": platform.os(), "architecture": platform.architecture(), "config": { "Cmd": [name] } });
        let config = self.put(&config);
        self.put(&json!({ "config": config, "layers": [] }))
    }
}

impl Documents for Memory {
    fn subject(&self) -> &'static str {
        "image x"
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        self.blob(descriptor)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        self.0.get(&descriptor.digest.to_string()).cloned().ok_or_else(|| Error::not_found("image x", "no blob"))
    }
}

fn on(platform: &str, mut entry: Value) -> Value {
    let parts: Vec<&str> = platform.split('/').collect();
    entry["platform"] = json!({ "os": parts[0], "architecture": parts[1], "variant": parts.get(2) });
    entry
}

fn find(documents: &Memory, entries: &[Value], platform: &str) -> Result<String, Error> {
    let document = Document::decode(json!({ "manifests": entries }).to_string().as_bytes(), "image x")?;
    resolve(documents, document, None, &platform.parse()?).map(|image| image.config.cmd[0].clone())
}

#[test]
fn the_platform_decides_among_an_index() {
    let mut all = Memory::default();
    let attestation = on("unknown/unknown", all.put(&json!({ "config": {} })));
    let mut signature = all.put(&json!({}));
    signature["mediaType"] = json!("application/vnd.example.signature");
    let mut entries = vec![attestation, signature];
    for platform in ["linux/arm/v6", "linux/arm/v7", "linux/amd64", "linux/amd64/v3", "linux/arm64/v8"] {
        entries.push(on(platform, all.image(platform, platform)));
    }
    for (wanted, found) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/amd64/v2", "linux/amd64"),
        ("linux/amd64/v4", "linux/amd64/v3"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/arm/v8", "linux/arm/v7"),
    ] {
        assert_eq!(find(&all, &entries, wanted).unwrap(), found, "{wanted}");
    }
    assert_eq!(
        find(&all, &entries, "linux/s390x").unwrap_err().to_string(),
        "image x for linux/s390x is not there: the image is for linux/arm/v6, linux/arm/v7, linux/amd64, \
         linux/amd64/v3, linux/arm64: choose with --platform"
    );
}

#[test]
fn indexes_nest_a_little() {
    let mut all = Memory::default();
    let mut entry = all.image("linux/amd64", "deep");
    for depth in 1..=5 {
        let result = find(&all, std::slice::from_ref(&entry), "linux/amd64");
        assert_eq!(result.is_ok(), depth <= MAX_INDEX_DEPTH, "{depth}");
        entry = all.put(&json!({ "manifests": [entry] }));
    }
}

#[test]
fn an_image_for_another_platform_is_not_taken_unasked() {
    let mut all = Memory::default();
    let entry = all.image("linux/arm64", "x");
    assert_eq!(find(&all, std::slice::from_ref(&entry), "linux/arm64").unwrap(), "x");
    assert_eq!(
        find(&all, &[entry], "linux/amd64").unwrap_err().to_string(),
        "image x for linux/amd64 is not there: the image is for linux/arm64 alone: if that is meant, say --platform linux/arm64"
    );
}

#[test]
fn documents_are_verified_and_bounded() {
    let mut all = Memory::default();
    let good = all.image("linux/amd64", "x");
    let digest = good["digest"].as_str().unwrap().to_owned();
    for (size, reason) in [(1, "more than the 1 bytes"), (9999, "of 9999 bytes"), (5 << 20, "more than the 4194304")] {
        let mut entry = good.clone();
        entry["size"] = json!(size);
        let error = find(&all, &[entry], "linux/amd64").unwrap_err().to_string();
        assert!(error.starts_with(&format!("image x, manifest {digest}")) && error.contains(reason), "{error}");
    }
    let bytes = all.0.get_mut(&digest).unwrap();
    *bytes.last_mut().unwrap() = b' ';
    let error = find(&all, &[good], "linux/amd64").unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let config = all.put(&json!({ "rootfs": { "diff_ids": [digest] } }));
    let manifest = all.put(&json!({ "config": config, "layers": [] }));
    let error = find(&all, &[manifest], "linux/amd64").unwrap_err().to_string();
    assert!(error.contains("it has 1 diff ids for 0 layers"), "{error}");
}
