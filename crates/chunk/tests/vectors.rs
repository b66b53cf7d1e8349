//! The test vectors in tests/vectors at the root of the source tree, which tests/read_image.py checks too.
//!
//! They pin the format: where one of these tests fails, stored images can no longer be read or shared.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::Value;
use snowmelt_chunk::{
    ChunkSecret, Error, Geometry, LocalKeys, Manifest, OpenedManifest, PAGE_SIZE, Salt, SaltDomain, Scope, Suite,
};

/// The cases of a file, each with its name.
fn cases(file: &str) -> Vec<(String, Value)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors").join(file);
    let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let Value::Array(cases) = document["cases"].take() else { panic!("{file} has no cases") };
    assert!(!cases.is_empty(), "{file}");
    cases.into_iter().map(|case| (format!("{file}: {}", case["name"]), case)).collect()
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("no text {field} in {}", case["name"]))
}

fn number(case: &Value, field: &str) -> u64 {
    case[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {}", case["name"]))
}

fn bytes(case: &Value, field: &str) -> Vec<u8> {
    let digits = text(case, field).as_bytes();
    digits.chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The bytes that a vector describes in pieces, without their trailing pages of zeros.
fn stored(pieces: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces.as_array().unwrap() {
        let start = bytes.len();
        if let Some(zeros) = piece["zeros"].as_u64() {
            bytes.resize(start + zeros as usize, 0);
        } else {
            bytes.resize(start + number(piece, "bytes") as usize, 0);
            blake3::Hasher::new().update(text(piece, "xof").as_bytes()).finalize_xof().fill(&mut bytes[start..]);
        }
    }
    while bytes.last_chunk::<{ PAGE_SIZE as usize }>().is_some_and(|page| *page == [0; PAGE_SIZE as usize]) {
        bytes.truncate(bytes.len() - PAGE_SIZE as usize);
    }
    bytes
}

/// A secret as vectors write it: the tag is empty where the suite has none.
fn check_secret(name: &str, case: &Value, suite: Suite, secret: &ChunkSecret) {
    assert_eq!(hex(&secret.key), text(case, "key"), "{name}");
    match suite {
        Suite::Blake3Gcm => assert_eq!(hex(&secret.tag), text(case, "tag"), "{name}"),
        Suite::Sha256Ctr => assert_eq!((secret.tag, text(case, "tag")), ([0; 16], ""), "{name}"),
    }
}

#[test]
fn chunks_are_sealed_as_the_vectors_say() {
    let mut trimmed = 0;
    for (name, case) in cases("suites.json") {
        let plaintext = stored(&case["slot"]);
        assert_eq!(plaintext.len() as u64, number(&case, "stored_length"), "{name}");
        if plaintext.is_empty() {
            continue;
        }
        trimmed += usize::from(name.contains("trimmed"));
        let suite: Suite = text(&case, "suite").parse().unwrap();
        let salt = Salt::from_bytes(bytes(&case, "salt").try_into().unwrap());
        let mut ciphertext = vec![0; plaintext.len()];
        let sealed = suite.seal(&salt, &plaintext, &mut ciphertext);
        check_secret(&name, &case, suite, &sealed.secret);
        assert_eq!(sealed.id.to_string(), text(&case, "id"), "{name}");
        assert_eq!(suite.id_of(&ciphertext), sealed.id, "{name}");
        assert_eq!(hex(&ciphertext[..32]), text(&case, "ciphertext_start"), "{name}");
        let mut opened = vec![0; ciphertext.len()];
        suite.open(&sealed.secret, &ciphertext, &mut opened).unwrap();
        assert_eq!(opened, plaintext, "{name}");
    }
    assert!(trimmed >= 4, "both suites have chunks whose tail is not stored");
}

#[test]
fn salts_are_derived_as_the_vectors_say() {
    for (name, case) in cases("salts.json") {
        let scope_name = text(&case, "scope_name").to_owned();
        let scope = match text(&case, "scope") {
            "everyone" => Scope::Everyone,
            "tenant" => Scope::Tenant(scope_name),
            "layer" => Scope::Layer(scope_name),
            other => panic!("{name}: no scope {other}"),
        };
        let domain = SaltDomain {
            root: text(&case, "root").into(),
            epoch: u32::try_from(number(&case, "epoch")).unwrap(),
            class: text(&case, "class").into(),
            scope,
        };
        let secret = bytes(&case, "secret").try_into().unwrap();
        assert_eq!(hex(Salt::derive(&secret, &domain).expose()), text(&case, "salt"), "{name}");
    }
}

/// A folder with the case's key file under the name of a tenant.
fn keys(case: &Value, tenant: &str) -> (tempfile::TempDir, LocalKeys) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{tenant}.key"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text(case, "key_file").as_bytes()).unwrap();
    let keys = LocalKeys::new(folder.path());
    (folder, keys)
}

#[test]
fn manifests_open_as_the_vectors_say() {
    for (name, case) in cases("manifests.json") {
        let (_folder, keys) = keys(&case, text(&case, "tenant"));
        let encoded = bytes(&case, "manifest");
        let manifest = Manifest::decode(&encoded).unwrap();
        let suite: Suite = text(&case, "suite").parse().unwrap();
        let geometry = Geometry {
            image_size: number(&case, "image_size"),
            chunk_size: u32::try_from(number(&case, "chunk_size")).unwrap(),
        };
        assert_eq!(manifest.as_bytes(), encoded, "{name}");
        assert_eq!(manifest.id().to_string(), text(&case, "manifest_id"), "{name}");
        assert_eq!((manifest.suite(), manifest.geometry()), (suite, geometry), "{name}");
        assert_eq!(manifest.tenant(), text(&case, "tenant"), "{name}");
        assert_eq!(manifest.key_id(), text(&case, "key_id"), "{name}");

        let opened = manifest.open(&keys, "vector:latest").unwrap();
        assert_eq!(opened.id(), manifest.id(), "{name}");
        assert_eq!((opened.suite(), opened.geometry()), (suite, geometry), "{name}");
        assert_eq!(opened.metadata(), text(&case, "metadata").as_bytes(), "{name}");
        check_chunks(&name, &case, &manifest, &opened);
    }
}

fn check_chunks(name: &str, case: &Value, manifest: &Manifest, opened: &OpenedManifest) {
    let chunks = case["chunks"].as_array().unwrap();
    assert_eq!(manifest.records().collect::<Vec<_>>(), opened.records(), "{name}");
    assert_eq!(opened.records().len(), chunks.len(), "{name}");
    let salt = Salt::from_bytes(bytes(case, "salt").try_into().unwrap());
    for slot in 0..opened.geometry().slot_count() as u32 {
        let name = format!("{name}, slot {slot}");
        let expected = chunks.iter().find(|chunk| number(chunk, "slot") == u64::from(slot));
        let Some(expected) = expected else {
            assert!(opened.chunk(slot).is_none(), "{name}");
            continue;
        };
        let (record, secret) = opened.chunk(slot).unwrap();
        assert_eq!(record.slot, slot, "{name}");
        assert_eq!(u64::from(record.stored_length), number(expected, "stored_length"), "{name}");
        assert_eq!(record.id.to_string(), text(expected, "id"), "{name}");
        check_secret(&name, expected, opened.suite(), &secret);

        let plaintext = stored(&expected["plaintext"]);
        let mut ciphertext = vec![0; plaintext.len()];
        let sealed = opened.suite().seal(&salt, &plaintext, &mut ciphertext);
        assert_eq!((sealed.id, sealed.secret), (record.id, secret), "{name}");
    }
}

#[test]
fn damaged_manifests_are_refused_as_the_vectors_say() {
    for (name, case) in cases("manifests.json") {
        for damage in case["damage"].as_array().unwrap() {
            let mut encoded = bytes(&case, "manifest");
            let (at, change) = (number(damage, "at") as usize, bytes(damage, "bytes"));
            encoded[at..at + change.len()].copy_from_slice(&change);
            encoded.truncate(encoded.len() - number(damage, "cut") as usize);
            let error = Manifest::decode(&encoded)
                .and_then(|manifest| {
                    let (_folder, keys) = keys(&case, manifest.tenant());
                    manifest.open(&keys, "vector:latest")
                })
                .unwrap_err();
            let kind = match &error {
                Error::BadManifest(_) => "bad_manifest",
                Error::Unsupported(_) => "unsupported",
                Error::Unauthentic { .. } => "unauthentic",
                Error::NoKey { .. } => "no_key",
                other => panic!("{name}, {}: {other}", damage["name"]),
            };
            assert_eq!(kind, text(damage, "error"), "{name}, {}: {error}", damage["name"]);
        }
    }
}
