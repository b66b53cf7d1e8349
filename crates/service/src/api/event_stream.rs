//! Messages of AWS's event streams (`application/vnd.amazon.eventstream`), as `InvokeWithResponseStream` answers with.
//!
//! ```text
//! u32   bytes of the message          all numbers big endian
//! u32   bytes of the headers
//! u32   CRC-32 of the two before
//!       headers: u8 length, name, u8 7 (text), u16 length, value
//!       payload
//! u32   CRC-32 of all before
//! ```

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

/// What the whole is.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.amazon.eventstream";
/// A longer payload is cut into several messages.
const MOST_PAYLOAD: usize = 1 << 20;

/// A part of an answer: one message or more.
pub(crate) fn chunk(payload: &[u8]) -> Bytes {
    let parts = payload.chunks(MOST_PAYLOAD).map(|part| message("PayloadChunk", "application/octet-stream", part));
    parts
        .fold(BytesMut::new(), |mut all, part| {
            all.put(part);
            all
        })
        .freeze()
}

/// The end of an answer.
pub(crate) fn complete(fields: &Value) -> Bytes {
    message("InvokeComplete", "application/json", fields.to_string().as_bytes())
}

fn message(event: &str, content_type: &str, payload: &[u8]) -> Bytes {
    let mut headers = BytesMut::new();
    for (name, value) in [(":event-type", event), (":content-type", content_type), (":message-type", "event")] {
        headers.put_u8(name.len() as u8);
        headers.put(name.as_bytes());
        headers.put_u8(7);
        headers.put_u16(value.len() as u16);
        headers.put(value.as_bytes());
    }
    let length = 12 + headers.len() + payload.len() + 4;
    let mut all = BytesMut::with_capacity(length);
    all.put_u32(length as u32);
    all.put_u32(headers.len() as u32);
    all.put_u32(crc32fast::hash(&all));
    all.put(headers);
    all.put(payload);
    all.put_u32(crc32fast::hash(&all));
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_lengths_and_sums() {
        let all = message("PayloadChunk", "application/octet-stream", b"hello");
        let number = |at: usize| u32::from_be_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]]);
        assert_eq!(number(0) as usize, all.len());
        assert_eq!(number(8), crc32fast::hash(&all[..8]));
        assert_eq!(number(all.len() - 4), crc32fast::hash(&all[..all.len() - 4]));
        let payload = 12 + number(4) as usize;
        assert_eq!(&all[payload..all.len() - 4], b"hello");
        assert_eq!(chunk(&vec![7; 2 * MOST_PAYLOAD + 1]).len(), 2 * (MOST_PAYLOAD + payload + 4) + 1 + payload + 4);
    }
}
