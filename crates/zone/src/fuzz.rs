//! Entry points for fuzzers: bytes from outside in, no panic out.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::client::connection::{Connection, Progress, parse_head};
use crate::membership::{EtcdAddress, Members, parse_file, parse_listed};
use crate::node::disk;
use crate::wire;

/// What a reader believes a node's answer to be. The first byte says how long its shard is, the rest is what the node sends; an
/// answer that is whole is taken as one that nobody waits for too.
pub fn fuzz_response(input: &[u8]) {
    let Some((length, sent)) = input.split_first() else { return };
    if let Ok(Some((head, length))) = parse_head(sent) {
        assert!(length <= sent.len() && head.body_bytes <= wire::MOST_CHUNK_BYTES as usize);
    }
    let Ok((ours, mut node)) = UnixStream::pair() else { return };
    // More would wait for somebody to read it.
    let sent = &sent[..sent.len().min(16 << 10)];
    if ours.set_nonblocking(true).is_err() || node.write_all(sent).is_err() {
        return;
    }
    // It takes the request, and says no more.
    if node.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut connection = Connection::over(ours.into());
    connection.begin(Instant::now(), |out| out.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n"));
    let mut body = vec![0xee; usize::from(*length)];
    match connection.advance(&mut body) {
        Ok(Progress::Done(head)) => {
            assert!(head.status != 200 || head.body_bytes == body.len());
            assert!(connection.is_stale(), "there is nobody at the other end");
        }
        Ok(Progress::Pending) => {}
        Err(_) => drop(connection.drain()),
    }
}

/// What a client asks a node for: a path in the first line, values of headers in the second.
pub fn fuzz_request(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (path, value) = text.split_once('\n').unwrap_or((&text, ""));
    if let Some(key) = wire::parse_path(path) {
        assert!(usize::from(key.index) < key.code.shards());
        assert_eq!(wire::path_of(&key), path);
    }
    if let Some(checksum) = wire::parse_checksum(value) {
        assert_eq!(wire::checksum_text(checksum), value);
    }
    if let Some(bytes) = wire::parse_chunk_bytes(value) {
        assert!((1..=wire::MOST_CHUNK_BYTES).contains(&bytes));
    }
}

/// A segment of a node's disk, as a start finds it. What is whole is found again where it is written alone.
pub fn fuzz_segment(input: &[u8]) {
    for (key, shard) in disk::shards_in(input) {
        assert_eq!(disk::shards_in(&disk::record_of(&key, &shard)), [(key, shard)]);
    }
}

/// A list of nodes in each of the ways it may come: a text of settings, a file, an answer of etcd.
pub fn fuzz_members(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(members) = text.parse::<Members>() {
        let written = members.to_string();
        assert_eq!(written.parse::<Members>().expect("it was written by us"), members);
    }
    if let Ok(address) = text.parse::<EtcdAddress>() {
        assert_eq!(address.to_string(), text);
    }
    let listed = parse_listed("zone", input).unwrap_or_default().0;
    for node in parse_file(&text).unwrap_or_default().into_iter().chain(listed) {
        assert!(!node.name.contains([' ', ',', '=', '@', '/']) && !node.address.contains([' ', ',', '=', '@', '/']));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Code, Shard, ShardKey, checksum};

    proptest! {
        #[test]
        fn any_bytes_go_in(input in prop::collection::vec(any::<u8>(), 0..600)) {
            fuzz_response(&input);
            fuzz_request(&input);
            fuzz_segment(&input);
            fuzz_members(&input);
        }

        #[test]
        fn bytes_like_a_response_go_in(
            length in any::<u8>(),
            status in prop::sample::select(vec![200_u16, 201, 204, 404, 503]),
            says in 0..300_usize,
            more in prop::collection::vec(any::<u8>(), 0..300),
            header in "(connection: close\r\n|x: y\r\n|content-length: 7\r\n)?",
        ) {
            let mut input = vec![length];
            input.extend(format!("HTTP/1.1 {status} x\r\ncontent-length: {says}\r\n{header}\r\n").bytes());
            input.extend(more);
            fuzz_response(&input);
        }

        #[test]
        fn records_with_a_changed_byte_are_found_or_not(
            id in any::<[u8; 32]>(),
            sizes in prop::collection::vec(1..2000_usize, 1..5),
            at in any::<prop::sample::Index>(),
            flip in any::<u8>(),
        ) {
            let mut segment = Vec::new();
            for size in sizes {
                let key = ShardKey { chunk: snowmelt_chunk::ChunkId(id), code: Code::default(), index: 0 };
                let bytes = vec![7; key.code.bytes_of(0, size)];
                let checksum = checksum(&key, size as u32, &bytes);
                segment.extend(disk::record_of(&key, &Shard { chunk_bytes: size as u32, checksum, bytes: bytes.into() }));
            }
            let at = at.index(segment.len());
            segment[at] ^= flip;
            fuzz_segment(&segment);
        }

        #[test]
        fn text_like_lists_goes_in(text in "(etcds?://|dns:|file:/)?([a-z0-9.:=@,/# \n\\[\\]\"{}-]{0,80})") {
            fuzz_members(text.as_bytes());
        }
    }
}
