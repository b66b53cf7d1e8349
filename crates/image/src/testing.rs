//! What this crate's tests build their images from: tar archives written by hand, field by field, so that a test can
//! also write what no sane tool would, and sources that live in memory.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Cursor, Read, Write};

use crate::config::ImageConfig;
use crate::error::Error;
use crate::flatten::{FlatImage, FlattenOptions, flatten};
use crate::layout::PlacementKind;
use crate::sources::{Compression, LayerDescriptor, Source};

/// One header and its body. Start from [`Item::file`] and the like and change the fields.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) path: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) body: Vec<u8>,
    /// Size in the header where it is not the body's.
    pub(crate) size: Option<u64>,
    /// Records of a PAX header before the entry.
    pub(crate) pax: Vec<(String, Vec<u8>)>,
}

impl Item {
    pub(crate) fn new(flag: u8, path: impl AsRef<[u8]>) -> Item {
        Item {
            path: path.as_ref().to_vec(),
            flag,
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            link: Vec::new(),
            device: (0, 0),
            body: Vec::new(),
            size: None,
            pax: Vec::new(),
        }
    }

    pub(crate) fn file(path: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Item {
        Item { body: body.as_ref().to_vec(), ..Item::new(b'0', path) }
    }

    pub(crate) fn directory(path: impl AsRef<[u8]>) -> Item {
        Item::new(b'5', path)
    }

    pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
        Item { link: target.as_ref().to_vec(), ..Item::new(b'2', path) }
    }

    pub(crate) fn hard_link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
        Item { link: target.as_ref().to_vec(), ..Item::new(b'1', path) }
    }

    pub(crate) fn with_mode(self, mode: u32) -> Item {
        Item { mode, ..self }
    }

    pub(crate) fn with_pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Item {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn header(&self) -> [u8; 512] {
        let mut block = [0u8; 512];
        block[..self.path.len()].copy_from_slice(&self.path);
        octal(&mut block[100..108], u64::from(self.mode));
        octal(&mut block[108..116], u64::from(self.uid));
        octal(&mut block[116..124], u64::from(self.gid));
        octal(&mut block[124..136], self.size.unwrap_or(self.body.len() as u64));
        octal(&mut block[136..148], self.mtime as u64);
        block[156] = self.flag;
        block[157..157 + self.link.len()].copy_from_slice(&self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], u64::from(self.device.0));
        octal(&mut block[337..345], u64::from(self.device.1));
        seal(&mut block);
        block
    }

    pub(crate) fn write_to(&self, archive: &mut Vec<u8>) {
        let mut item = self.clone();
        if item.path.len() > 100 {
            item.pax.push(("path".into(), std::mem::take(&mut item.path)));
        }
        if item.link.len() > 100 {
            item.pax.push(("linkpath".into(), std::mem::take(&mut item.link)));
        }
        if !item.pax.is_empty() {
            extension(archive, b'x', &pax_records(&item.pax));
        }
        archive.extend_from_slice(&item.header());
        padded(archive, &item.body);
    }
}

/// Writes an extended header or long name.
pub(crate) fn extension(archive: &mut Vec<u8>, flag: u8, body: &[u8]) {
    let item = Item { body: body.to_vec(), ..Item::new(flag, "extension") };
    archive.extend_from_slice(&item.header());
    padded(archive, body);
}

pub(crate) fn padded(archive: &mut Vec<u8>, body: &[u8]) {
    archive.extend_from_slice(body);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

pub(crate) fn pax_records(records: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length += 1;
        }
        write!(bytes, "{length} {key}=").unwrap();
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    bytes
}

/// Writes the checksum into a header block.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[148..156], sum);
}

fn octal(field: &mut [u8], value: u64) {
    let digits = format!("{value:0width$o}\0", width = field.len() - 1);
    field.copy_from_slice(digits.as_bytes());
}

/// A whole archive, with its end marker.
pub(crate) fn archive(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        item.write_to(&mut bytes);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Layers in memory.
pub(crate) struct MemorySource {
    layers: Vec<LayerDescriptor>,
    bytes: Vec<Vec<u8>>,
    config: ImageConfig,
}

impl MemorySource {
    pub(crate) fn new(archives: &[Vec<u8>], compression: Compression) -> MemorySource {
        let compress = |archive: &Vec<u8>| match compression {
            Compression::None => archive.clone(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(archive).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(&archive[..], 1).unwrap(),
        };
        let bytes: Vec<Vec<u8>> = archives.iter().map(compress).collect();
        let describe = |(index, bytes): (usize, &Vec<u8>)| LayerDescriptor {
            digest: format!("sha256:{index:064x}"),
            size: bytes.len() as u64,
            media_type: String::new(),
            compression,
            diff_id: None,
        };
        MemorySource { layers: bytes.iter().enumerate().map(describe).collect(), bytes, config: ImageConfig::default() }
    }

    /// What the manifest says of the layers, to make it say something else.
    pub(crate) fn layers_mut(&mut self) -> &mut [LayerDescriptor] {
        &mut self.layers
    }

    /// Uncompressed layers of these items.
    pub(crate) fn of(layers: &[&[Item]]) -> MemorySource {
        let archives: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
        MemorySource::new(&archives, Compression::None)
    }
}

impl Source for MemorySource {
    fn config(&self) -> &ImageConfig {
        &self.config
    }

    fn manifest_digest(&self) -> Option<&str> {
        None
    }

    fn layers(&self) -> &[LayerDescriptor] {
        &self.layers
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(Cursor::new(self.bytes[index].clone())))
    }
}

/// Flattens with chunks of 512 KiB, 1 MiB of free space, and the given placement.
pub(crate) fn flatten_with(source: &dyn Source, placement: PlacementKind) -> Result<FlatImage, Error> {
    let directory = tempfile::tempdir().unwrap();
    let options = FlattenOptions {
        free_bytes: 1 << 20,
        chunk_size: 512 << 10,
        spool_directory: directory.path(),
        placement,
        progress: None,
    };
    flatten(source, &options)
}

/// All bytes of an image, hashed chunk by chunk so that large images are no matter.
pub(crate) fn image_digest(image: &FlatImage) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < image.size_bytes() {
        let count = buffer.len().min((image.size_bytes() - offset) as usize);
        // Holes count by their place, so that a sparse terabyte is quick to hash.
        if !image.is_hole(offset..offset + count as u64) {
            image.read_at(offset, &mut buffer[..count]).unwrap();
            hasher.update(&offset.to_le_bytes()).update(&buffer[..count]);
        }
        offset += count as u64;
    }
    hasher.update(&image.size_bytes().to_le_bytes());
    hasher.finalize().to_hex().to_string()
}
