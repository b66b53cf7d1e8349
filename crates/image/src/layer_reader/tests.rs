#![allow(clippy::unwrap_used, missing_docs)]
use std::io::Write;

use flate2::write::GzEncoder;

use super::*;
use crate::sources::verified::VerifiedReader;

fn content() -> Vec<u8> {
    (0..700_000_u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn describe(stored: &[u8], content: &[u8], compression: Compression) -> LayerDescriptor {
    LayerDescriptor {
        digest: Digest::of(stored).to_string(),
        size: stored.len() as u64,
        media_type: String::new(),
        compression,
        diff_id: Some(Digest::of(content).to_string()),
    }
}

fn read(stored: &[u8], descriptor: &LayerDescriptor) -> Result<Vec<u8>, Error> {
    let input = Box::new(Cursor::new(stored.to_vec()));
    let digest = Digest::parse(&descriptor.digest).unwrap();
    let verified = VerifiedReader::new(input, "image x, layer y".into(), digest, descriptor.size).unwrap();
    let mut bytes = Vec::new();
    let mut reader = decompress(Box::new(verified), descriptor)?;
    reader.read_to_end(&mut bytes).map_err(|error| Error::from_read("layer", error))?;
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
    Ok(bytes)
}

#[test]
fn every_compression_whatever_the_media_type_says() {
    let content = content();
    let two_members = [gzip(&content[..1000]), gzip(&content[1000..])].concat();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9];
    let frames = [&skippable[..], &zstd(&content[..5000]), &zstd(&content[5000..]), &skippable[..]].concat();
    for stored in [content.clone(), gzip(&content), two_members, zstd(&content), frames] {
        for said in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert!(read(&stored, &describe(&stored, &content, said)).unwrap() == content);
        }
    }
}

#[test]
fn empty_layers() {
    for stored in [vec![], gzip(b""), zstd(b"")] {
        assert_eq!(read(&stored, &describe(&stored, b"", Compression::Gzip)).unwrap(), b"");
    }
}

#[test]
fn a_truncated_or_damaged_blob_is_told_by_its_digest() {
    let content = content();
    for stored in [content.clone(), gzip(&content), zstd(&content)] {
        let descriptor = describe(&stored, &content, Compression::Gzip);
        let mut damaged = stored.clone();
        for place in [7, stored.len() / 2, stored.len() - 1] {
            damaged[place] ^= 0x10;
        }
        let error = read(&damaged, &descriptor).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("image x, layer y is damaged: its digest is sha256:"), "{error}");
        for length in [0, 1, 5, stored.len() / 2, stored.len() - 1] {
            let error = read(&stored[..length], &descriptor).unwrap_err().to_string();
            assert!(error.contains(&format!("ends after {length} of {} bytes", stored.len())), "{error}");
        }
        let mut longer = stored.clone();
        longer.extend_from_slice(b"more");
        let error = read(&longer, &descriptor).unwrap_err().to_string();
        assert!(error.contains("has more than the"), "{error}");
    }
}

#[test]
fn a_wrong_diff_id_is_told_at_the_end() {
    let content = content();
    for stored in [gzip(&content), zstd(&content)] {
        let descriptor = describe(&stored, b"other", Compression::Gzip);
        let error = read(&stored, &descriptor).unwrap_err().to_string();
        assert!(error.contains(&format!("decompressed it is {}", Digest::of(&content))), "{error}");
    }
    let descriptor = LayerDescriptor { diff_id: None, ..describe(&content, b"", Compression::None) };
    assert_eq!(read(&content, &descriptor).unwrap(), content);
}

#[test]
fn a_layer_published_broken_says_so() {
    let content = content();
    for whole in [gzip(&content), zstd(&content)] {
        let stored = &whole[..whole.len() / 2];
        let error = read(stored, &describe(stored, &content, Compression::Gzip)).unwrap_err().to_string();
        assert!(error.contains("though the blob is the one that was published"), "{error}");
    }
    let trailing = [gzip(&content), b"rubbish".to_vec()].concat();
    assert!(read(&trailing, &describe(&trailing, &content, Compression::Gzip)).is_err());
}

#[test]
fn other_compressions_are_refused_by_name() {
    for (stored, name) in [(&b"\xfd7zXZ\x00...."[..], "xz"), (&b"BZh91AY&SY...."[..], "bzip2")] {
        let error = read(stored, &describe(stored, b"", Compression::Gzip)).unwrap_err().to_string();
        assert!(error.contains(&format!("compressed with {name}")), "{error}");
    }
}
