#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let length = 40 + body.len() as u32;
    let mut bytes = [length.to_ne_bytes(), opcode.to_ne_bytes()].concat();
    bytes.extend_from_slice(&77_u64.to_ne_bytes());
    bytes.extend_from_slice(&1_u64.to_ne_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(body);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn structures_have_the_kernels_sizes() {
    assert_eq!(size_of::<InHeader>(), 40);
    assert_eq!(size_of::<OutHeader>(), 16);
    assert_eq!(size_of::<InitOut>(), 64);
    assert_eq!(size_of::<AttrOut>(), 104);
    assert_eq!(size_of::<EntryOut>(), 128);
    assert_eq!(size_of::<OpenOut>(), 16);
    assert_eq!(size_of::<WriteOut>(), 8);
    assert_eq!(size_of::<StatfsOut>(), 80);
    assert_eq!((size_of::<ReadIn>(), size_of::<WriteIn>(), size_of::<FallocateIn>()), (40, 40, 32));
}

#[test]
fn requests_are_understood() {
    let read = request(15, &words(&[0, 4096, 512, 0, 0]));
    let parsed = Request::parse(&read).unwrap();
    assert_eq!((parsed.header.unique, parsed.header.node), (77, 1));
    assert_eq!(parsed.operation, Operation::Read { offset: 4096, size: 512 });

    let write = request(16, &[words(&[0, 8192, 3, 0, 0]), b"abc".to_vec()].concat());
    assert_eq!(Request::parse(&write).unwrap().operation, Operation::Write { offset: 8192, bytes: b"abc" });
    assert_eq!(WRITE_PAYLOAD_AT, write.len() - 3);

    let lookup = request(1, b"device\0");
    assert_eq!(Request::parse(&lookup).unwrap().operation, Operation::Lookup { name: b"device" });

    let first_flags = (flags::INIT_EXT | flags::ASYNC_DIO) as u32;
    let init = [7, 40, 4096, first_flags, 1 << 7, 0].map(u32::to_ne_bytes).concat();
    let flags = u64::from(first_flags) | flags::HAS_RESEND;
    let expected = Operation::Init { major: 7, minor: 40, max_readahead: 4096, flags };
    assert_eq!(Request::parse(&request(26, &init)).unwrap().operation, expected);
    // Before Linux 5.17 there is no second word.
    let init = [7, 32, 4096, flags::ASYNC_DIO as u32].map(u32::to_ne_bytes).concat();
    let expected = Operation::Init { major: 7, minor: 32, max_readahead: 4096, flags: flags::ASYNC_DIO };
    assert_eq!(Request::parse(&request(26, &init)).unwrap().operation, expected);
}

#[test]
fn what_ends_too_early_is_refused_by_its_number() {
    let whole = request(16, &[words(&[0, 8192, 3, 0, 0]), b"abc".to_vec()].concat());
    for length in 0..whole.len() {
        let unique = (length >= 40).then_some(77);
        assert_eq!(Request::parse(&whole[..length]).unwrap_err(), Malformed { unique }, "{length}");
    }
    assert!(Request::parse(&request(1, b"device")).is_err(), "a name has an end");
    assert!(Request::parse(&request(16, &words(&[0, 0, 1, 0, 0]))).is_err(), "a byte is missing");
}

#[test]
fn entries_of_a_directory_are_padded_and_bounded() {
    let mut bytes = Vec::new();
    assert!(push_entry(&mut bytes, 64, 1, 1, 4, "."));
    assert_eq!(bytes.len(), 32);
    assert!(push_entry(&mut bytes, 64, 2, 2, 8, "device"));
    assert_eq!(bytes.len(), 64);
    assert!(!push_entry(&mut bytes, 64, 2, 2, 8, "device"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_bytes_are_parsed_or_refused(
        opcode in 0..60_u32,
        length in prop_oneof![0..200_u32, any::<u32>()],
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        has_length in any::<bool>(),
    ) {
        fuzz(&bytes);
        if bytes.len() >= 8 {
            let length = if has_length { bytes.len() as u32 } else { length };
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
            fuzz(&bytes);
        }
    }
}
