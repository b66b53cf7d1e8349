//! What goes over the wire between readers and nodes, as docs/protocol.md has it: HTTP/1.1, one request a shard.
//!
//! ```text
//! GET /v1/shards/4+1/<64 hex>/<index>   200 with the shard's bytes and its headers, or 404
//! PUT /v1/shards/4+1/<64 hex>/<index>   201, or 200 where it is there already; the same headers in the request
//! ```

use snowmelt_chunk::ChunkId;

use crate::shard::ShardKey;

/// Bytes of the whole chunk, in decimal digits.
pub(crate) const CHUNK_BYTES: &str = "snowmelt-chunk-bytes";
/// The shard's checksum, 8 hexadecimal digits.
pub(crate) const CHECKSUM: &str = "snowmelt-crc32c";
/// No chunk is longer.
pub(crate) const MOST_CHUNK_BYTES: u32 = 16 << 20;

const PREFIX: &str = "/v1/shards/";

/// The path of a shard.
pub(crate) fn path_of(key: &ShardKey) -> String {
    format!("{PREFIX}{}/{}/{}", key.code, key.chunk, key.index)
}

/// The shard of a path; `None` for any other path.
pub(crate) fn parse_path(path: &str) -> Option<ShardKey> {
    let mut parts = path.strip_prefix(PREFIX)?.split('/');
    let code = parts.next()?.parse().ok()?;
    let chunk: ChunkId = parts.next()?.parse().ok()?;
    let index = parts.next()?;
    let key = ShardKey { chunk, code, index: index.parse().ok()? };
    // Written in one way only, so that what lies between can tell two requests for one thing.
    let is_canonical = parts.next().is_none() && usize::from(key.index) < key.code.shards() && path == path_of(&key);
    is_canonical.then_some(key)
}

/// The value of [`CHECKSUM`].
pub(crate) fn checksum_text(checksum: u32) -> String {
    format!("{checksum:08x}")
}

/// Reads the value of [`CHECKSUM`].
pub(crate) fn parse_checksum(text: &str) -> Option<u32> {
    let digits = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// Reads the value of [`CHUNK_BYTES`], 1 to [`MOST_CHUNK_BYTES`].
pub(crate) fn parse_chunk_bytes(text: &str) -> Option<u32> {
    let digits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|bytes| (1..=MOST_CHUNK_BYTES).contains(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::Code;

    proptest! {
        #[test]
        fn a_path_is_read_as_it_is_written(id in any::<[u8; 32]>(), data in 1..=32_u8, parity in 0..=8_u8, index in any::<u8>()) {
            let code = Code::new(data, parity).unwrap();
            let key = ShardKey { chunk: ChunkId(id), code, index: index % code.shards() as u8 };
            prop_assert_eq!(parse_path(&path_of(&key)), Some(key));
        }

        #[test]
        fn any_text_is_a_path_or_none(text in "(/v1/shards/)?[0-9a-f+/]{0,90}") {
            if let Some(key) = parse_path(&text) {
                prop_assert_eq!(path_of(&key), text);
            }
        }

        #[test]
        fn a_checksum_is_read_as_it_is_written(checksum in any::<u32>(), text in ".{0,9}") {
            prop_assert_eq!(parse_checksum(&checksum_text(checksum)), Some(checksum));
            if let Some(found) = parse_checksum(&text) {
                prop_assert_eq!(checksum_text(found), text);
            }
        }
    }

    #[test]
    fn lengths_of_chunks_are_bounded() {
        assert_eq!(parse_chunk_bytes("524288"), Some(524_288));
        for text in ["", "0", "-1", "+1", "16777217", "99999999999", "1e3", " 1"] {
            assert_eq!(parse_chunk_bytes(text), None, "{text:?}");
        }
    }
}
