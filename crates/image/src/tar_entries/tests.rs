//! Table tests for each thing a header can say, and for what must be refused.

#![allow(clippy::unwrap_used, missing_docs)]

use super::*;
use crate::testing::{Item, archive, extension, pax_records, seal};

/// All entries with their bodies, holes filled in.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, EntryError> {
    let mut reader = TarReader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut body = Vec::new();
        reader.copy_body(&mut |piece| {
            match piece {
                Piece::Data(data) => body.extend_from_slice(data),
                Piece::Zeros(count) => body.resize(body.len() + usize::try_from(count).unwrap(), 0),
            }
            Ok(())
        })?;
        entries.push((entry, body));
    }
    Ok(entries)
}

fn one(item: Item) -> Entry {
    read(&archive(&[item])).unwrap().remove(0).0
}

fn refusal(bytes: &[u8]) -> String {
    match read(bytes).unwrap_err().problem {
        Problem::Malformed(reason) | Problem::Unsupported(reason) => reason,
        Problem::Io(error) => panic!("{error}"),
    }
}

fn refused(item: Item) -> String {
    refusal(&archive(&[item]))
}

fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).unwrap()
}

#[test]
fn plain_entries_of_every_kind() {
    let items = [
        Item { uid: 5, gid: 6, ..Item::file("f", "hello").with_mode(0o4755) },
        Item::directory("d/"),
        Item::symlink("s", "../x"),
        Item::hard_link("h", "./f"),
        Item { device: (1, 3), ..Item::new(b'3', "c") },
        Item { device: (8, 1), ..Item::new(b'4', "b") },
        Item::new(b'6', "p"),
        Item { flag: b'7', ..Item::file("contiguous", "x") },
        Item { flag: 0, ..Item::file("old", "y") },
        Item { flag: 0, ..Item::directory("olddir/") },
    ];
    let entries = read(&archive(&items)).unwrap();
    let kinds: Vec<_> = entries.iter().map(|(entry, _)| entry.kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            EntryKind::File { size: 5 },
            EntryKind::Directory,
            EntryKind::Symlink { target: b"../x".to_vec() },
            EntryKind::HardLink { target: path("f") },
            EntryKind::CharDevice { major: 1, minor: 3 },
            EntryKind::BlockDevice { major: 8, minor: 1 },
            EntryKind::Fifo,
            EntryKind::File { size: 1 },
            EntryKind::File { size: 1 },
            EntryKind::Directory,
        ]
    );
    assert_eq!(entries[0].1, b"hello");
    let metadata = &entries[0].0.metadata;
    assert_eq!((metadata.mode, metadata.uid, metadata.gid, metadata.mtime.seconds), (0o4755, 5, 6, 1_600_000_000));
}

#[test]
fn names_have_one_spelling() {
    for (raw, expected) in
        [("./a", "a"), ("/a/b", "a/b"), ("a//b/./c/", "a/b/c"), ("a/../b", "b"), ("./", ""), ("/", "")]
    {
        assert_eq!(one(Item::directory(raw)).path, path(expected), "{raw}");
    }
    assert_eq!(one(Item::file(b"\xff\xfe", "")).path.components().next().unwrap(), b"\xff\xfe");
    for raw in ["..", "../a", "a/../../b", "/.."] {
        assert!(refused(Item::directory(raw)).contains("leaves the root"), "{raw}");
    }
    assert!(refused(Item::file("x".repeat(256), "")).contains("limit is 255"));
    assert!(refused(Item::file("x/".repeat(2100), "")).contains("limit is 4096"));
    assert!(refused(Item::file("slash/", "")).contains("ends in a slash"));
}

#[test]
fn ustar_prefix_is_joined() {
    let mut block = Item::new(b'5', "name").header();
    block[345..351].copy_from_slice(b"prefix");
    seal(&mut block);
    assert_eq!(read(&block).unwrap()[0].0.path, path("prefix/name"));
    // GNU headers hold times there.
    block[257..265].copy_from_slice(b"ustar  \0");
    seal(&mut block);
    assert_eq!(read(&block).unwrap()[0].0.path, path("name"));
}

#[test]
fn pax_records_override_the_header() {
    let entry = one(Item::symlink("short", "t")
        .with_pax("path", "long/name\u{fc}")
        .with_pax("linkpath", "target")
        .with_pax("uid", "4000000000")
        .with_pax("gid", "70000")
        .with_pax("mtime", "1.25")
        .with_pax("comment", "nothing"));
    assert_eq!(entry.path, path("long/name\u{fc}"));
    assert_eq!(entry.kind, EntryKind::Symlink { target: b"target".to_vec() });
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (4_000_000_000, 70_000));
    let cases = [
        ("0", (0, 0)),
        ("1.5", (1, 500_000_000)),
        ("-1", (-1, 0)),
        ("-1.25", (-2, 750_000_000)),
        ("-0.000000001", (-1, 999_999_999)),
        ("4102444800.123456789999", (4_102_444_800, 123_456_789)),
        ("3.", (3, 0)),
    ];
    for (text, (seconds, nanoseconds)) in cases {
        let entry = one(Item::directory("d").with_pax("mtime", text));
        assert_eq!(entry.metadata.mtime, Timestamp { seconds, nanoseconds }, "{text}");
    }
    for text in ["x", "1.x", "--1", "+1", ".", "99999999999999999999"] {
        assert!(refused(Item::directory("d").with_pax("mtime", text)).contains("mtime"), "{text}");
    }
}

#[test]
fn pax_global_records_hold_until_overridden() {
    let mut bytes = Vec::new();
    extension(&mut bytes, b'g', &pax_records(&[("uid".into(), b"7".to_vec()), ("gid".into(), b"8".to_vec())]));
    Item::directory("a").write_to(&mut bytes);
    Item::directory("b").with_pax("uid", "9").write_to(&mut bytes);
    Item::directory("c").with_pax("uid", "").write_to(&mut bytes);
    let owners: Vec<_> = read(&bytes).unwrap().iter().map(|(e, _)| (e.metadata.uid, e.metadata.gid)).collect();
    assert_eq!(owners, [(7, 8), (9, 8), (0, 8)]);
    for key in ["path", "linkpath", "size", "GNU.sparse.major"] {
        let mut bytes = Vec::new();
        extension(&mut bytes, b'g', &pax_records(&[(key.into(), b"1".to_vec())]));
        assert!(refusal(&bytes).contains("global header sets"), "{key}");
    }
}

#[test]
fn xattrs_of_both_spellings() {
    let entry = one(Item::file("f", "")
        .with_pax("SCHILY.xattr.user.b", b"\x00\xff\n=raw")
        .with_pax("SCHILY.xattr.security.capability", b"\x01\x00\x00\x02")
        .with_pax("LIBARCHIVE.xattr.user.b", "b3RoZXI")
        .with_pax("LIBARCHIVE.xattr.user.%61%3D", "aGVsbG8"));
    assert_eq!(
        entry.metadata.xattrs,
        [
            (b"security.capability".to_vec(), b"\x01\x00\x00\x02".to_vec()),
            (b"user.a=".to_vec(), b"hello".to_vec()),
            (b"user.b".to_vec(), b"\x00\xff\n=raw".to_vec()),
        ]
    );
    // What fits a block of ext4; more is refused where the entry is known.
    let largest = vec![b'x'; 4000];
    assert_eq!(one(Item::file("f", "").with_pax("SCHILY.xattr.user.a", &largest)).metadata.xattrs[0].1, largest);
    assert!(
        refused(Item::file("f", "").with_pax("SCHILY.xattr.user.a", [b'x'; 4096])).contains("do not fit one block")
    );
    let many = (0..300)
        .fold(Item::file("f", ""), |item, number| item.with_pax(&format!("SCHILY.xattr.user.{number}"), [b'x'; 1000]));
    assert!(refused(many).contains("the limit is 262144"));
    let larger = vec![b'x'; MAX_XATTR_BYTES + 1];
    assert!(refused(Item::file("f", "").with_pax("SCHILY.xattr.user.a", larger)).contains("the limit is"));
    assert!(refused(Item::file("f", "").with_pax("LIBARCHIVE.xattr.user.%4", "")).contains("escape"));
    assert!(refused(Item::file("f", "").with_pax("LIBARCHIVE.xattr.user.a", "*")).contains("base64"));
}

/// Archives from a Mac have such attributes at every file; one of them once failed the whole image.
#[test]
fn attributes_of_other_systems_are_left_out_and_counted() {
    let mac = |name: &str| {
        Item::file(name, "")
            .with_pax("SCHILY.xattr.com.apple.ResourceFork", vec![b'x'; 100_000])
            .with_pax("LIBARCHIVE.xattr.com.apple.quarantine", "MDA4MQ")
            .with_pax("SCHILY.xattr.com.apple.quarantine", "0081")
            .with_pax("SCHILY.xattr.user.a", "1")
    };
    let bytes = archive(&[mac("a"), mac("b")]);
    let mut reader = TarReader::new(&bytes[..]);
    for _ in 0..2 {
        assert_eq!(reader.next_entry().unwrap().unwrap().metadata.xattrs, [(b"user.a".to_vec(), b"1".to_vec())]);
    }
    assert_eq!(
        reader.take_dropped().xattrs_text().unwrap(),
        "left out 4 extended attributes of namespaces that Linux does not have, the first com.apple.ResourceFork of a"
    );
}

#[test]
fn access_control_lists_as_text() {
    let list = "user::rw-,user:7:r--,group::r--,mask::r--,other::r--";
    let names = |item: Item| {
        let bytes = archive(&[item]);
        let mut reader = TarReader::new(&bytes[..]);
        let entry = reader.next_entry().unwrap().unwrap();
        let names = entry.metadata.xattrs.into_iter().map(|(name, _)| String::from_utf8(name).unwrap());
        (names.collect::<Vec<_>>(), reader.take_dropped().acls_text())
    };
    let directory = Item::directory("d").with_pax("SCHILY.acl.access", list).with_pax("SCHILY.acl.default", list);
    assert_eq!(
        names(directory.clone()),
        (vec!["system.posix_acl_access".into(), "system.posix_acl_default".into()], None)
    );
    assert_eq!(names(directory.with_pax("SCHILY.acl.access", "").with_pax("SCHILY.acl.default", "")), (vec![], None));
    let minimal = Item::file("f", "").with_pax("SCHILY.acl.access", "user::rw-\ngroup::r--\nother::r--\n");
    assert_eq!(names(minimal), (vec![], None));
    for (item, key, reason) in [
        (Item::file("f", ""), "SCHILY.acl.default", "only directories"),
        (Item::symlink("f", "x"), "SCHILY.acl.access", "Linux has none"),
    ] {
        let (names, dropped) = names(item.with_pax(key, list));
        assert!(names.is_empty() && dropped.unwrap().contains(reason));
    }
    let named = Item::file("f", "").with_pax("SCHILY.acl.access", list.replace('7', "lisa"));
    let dropped = names(named).1.unwrap();
    assert!(dropped.starts_with("left out 1 access control lists, the first that of f: the user `lisa`"), "{dropped}");
    // The binary form is exact.
    let mut exact = vec![2, 0, 0, 0];
    exact.extend([1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]);
    let both = Item::file("f", "")
        .with_pax("SCHILY.acl.access", list)
        .with_pax("SCHILY.xattr.system.posix_acl_access", &exact);
    assert_eq!(one(both).metadata.xattrs[0].1, exact);
    assert!(refused(Item::file("f", "").with_pax("SCHILY.acl.access", vec![b','; 70_000])).contains("the limit is"));
}

#[test]
fn gnu_long_names() {
    let (name, link) = ("n/".repeat(200), "l/".repeat(150));
    let mut bytes = Vec::new();
    extension(&mut bytes, b'K', format!("{link}\0").as_bytes());
    extension(&mut bytes, b'L', format!("{name}\0").as_bytes());
    Item::symlink("short", "short").write_to(&mut bytes);
    let entries = read(&bytes).unwrap();
    assert_eq!(entries[0].0.path, path(&name));
    assert_eq!(entries[0].0.kind, EntryKind::Symlink { target: link.into_bytes() });

    let mut bytes = Vec::new();
    extension(&mut bytes, b'L', b"one\0");
    Item::directory("x").with_pax("path", "other").write_to(&mut bytes);
    assert!(refusal(&bytes).contains("two different names"));
    let mut bytes = Vec::new();
    extension(&mut bytes, b'L', b"one\0");
    extension(&mut bytes, b'L', b"two\0");
    Item::directory("x").write_to(&mut bytes);
    assert!(refusal(&bytes).contains("two long names"));
    let mut bytes = Vec::new();
    extension(&mut bytes, b'L', b"one\0two\0");
    Item::directory("x").write_to(&mut bytes);
    assert!(refusal(&bytes).contains("NUL"));
}

#[test]
fn base_256_numbers() {
    let mut block = Item::file("f", "").header();
    block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    block[136..148].copy_from_slice(&[0xff; 12]);
    seal(&mut block);
    let metadata = read(&block).unwrap().remove(0).0.metadata;
    assert_eq!((metadata.uid, metadata.mtime.seconds), (u32::MAX - 1, -1));
    block[124..136].copy_from_slice(&[0xff; 12]);
    seal(&mut block);
    assert!(refusal(&block).contains("size is negative"));
    block[124..136].copy_from_slice(&[0x80, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    seal(&mut block);
    assert!(refusal(&block).contains("too large"));
    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]);
    seal(&mut block);
    assert!(refusal(&block).contains("the limit is"));
}

#[test]
fn sparse_files_in_every_format() {
    let mut expected = vec![0; 10_000];
    expected[1000..1003].copy_from_slice(b"one");
    expected[5000..5003].copy_from_slice(b"two");
    let data = b"onetwo";
    let real = |item: Item, key: &str| item.with_pax(key, "10000");

    let numbers: [(&str, &str); 5] = [
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "1000"),
        ("GNU.sparse.numbytes", "3"),
        ("GNU.sparse.offset", "5000"),
        ("GNU.sparse.numbytes", "3"),
    ];
    let zero_zero = numbers.iter().fold(Item::file("f", data), |item, (key, value)| item.with_pax(key, value));
    let zero_one = Item::file("GNUSparseFile.0/f", data)
        .with_pax("GNU.sparse.name", "f")
        .with_pax("GNU.sparse.map", "1000,3,5000,3")
        .with_pax("GNU.sparse.numblocks", "2");
    let mut with_map = b"2\n1000\n3\n5000\n3\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(data);
    let one_zero = Item::file("GNUSparseFile.0/f", &with_map)
        .with_pax("GNU.sparse.major", "1")
        .with_pax("GNU.sparse.minor", "0")
        .with_pax("GNU.sparse.name", "f");
    let cases =
        [real(zero_zero, "GNU.sparse.size"), real(zero_one, "GNU.sparse.size"), real(one_zero, "GNU.sparse.realsize")];
    for item in cases {
        let entries = read(&archive(&[item.clone(), Item::file("next", "x")])).unwrap();
        assert_eq!(entries[0].0.path, path("f"));
        assert_eq!(entries[0].0.kind, EntryKind::File { size: 10_000 }, "{:?}", item.pax);
        assert_eq!(entries[0].1, expected);
        assert_eq!(entries[1].1, b"x");
    }

    // Old GNU: four ranges in the header, the rest in an extension block.
    let ranges: Vec<u64> = (0..6).map(|index| index * 1000).collect();
    let body: Vec<u8> = ranges.iter().flat_map(|_| *b"abc").collect();
    let mut block = Item { flag: b'S', size: Some(18), ..Item::new(b'S', "f") }.header();
    block[257..265].copy_from_slice(b"ustar  \0");
    block[345..].fill(0);
    let mut more = [0; 512];
    for (index, offset) in ranges.iter().enumerate() {
        let text = format!("{offset:011o}\0{:011o}\0", 3);
        let field = if index < 4 { &mut block[386 + index * 24..][..24] } else { &mut more[(index - 4) * 24..][..24] };
        field.copy_from_slice(text.as_bytes());
    }
    block[482] = 1;
    block[483..495].copy_from_slice(format!("{:011o}\0", 5010).as_bytes());
    seal(&mut block);
    let mut bytes = [block, more].concat();
    crate::testing::padded(&mut bytes, &body);
    let entries = read(&bytes).unwrap();
    assert_eq!(entries[0].1.len(), 5010);
    for offset in ranges {
        assert_eq!(&entries[0].1[offset as usize..][..5], b"abc\0\0");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let with = |map: &str, size: &str| {
        refused(Item::file("f", "onetwo").with_pax("GNU.sparse.map", map).with_pax("GNU.sparse.size", size))
    };
    assert!(with("10,3,11,3", "100").contains("overlaps"));
    assert!(with("10,3,98,3", "100").contains("leaves its file"));
    assert!(with("10,3", "100").contains("3 bytes for a body of 6"));
    assert!(with("10,3,20", "100").contains("count"));
    assert!(with("18446744073709551615,3,4,3", "100").contains("overlaps"));
    assert!(with("0,6", "99999999999999999").contains("limit"));
    let long = Item::file("f", [b'1'; 512]).with_pax("GNU.sparse.major", "1").with_pax("GNU.sparse.realsize", "9");
    assert!(refused(long).contains("numbers"));
    let short = Item::file("f", "1\n0\n").with_pax("GNU.sparse.major", "1").with_pax("GNU.sparse.realsize", "9");
    assert!(refused(short).contains("longer than its entry"));
}

#[test]
fn ambiguous_headers_are_refused() {
    // tar crates have been fooled by exactly this: one reader sees a body of 1 KiB, the other sees two more headers.
    let smuggling = Item { size: Some(0), ..Item::file("f", [b'x'; 1024]) }.with_pax("size", "1024");
    assert!(refused(smuggling).contains("header gives 0 bytes, its extension 1024"));
    assert!(refused(Item::file("f", "abc").with_pax("size", "4")).contains("its extension 4"));
    assert_eq!(one(Item::file("f", "abc").with_pax("size", "3")).kind, EntryKind::File { size: 3 });
    for flag in *b"123456" {
        let item = Item { flag, link: b"x".to_vec(), ..Item::file("f", "body") };
        assert!(refused(item).contains("has a body"), "{}", flag as char);
    }
    let mut bytes = Vec::new();
    extension(&mut bytes, b'x', &pax_records(&[("uid".into(), b"1".to_vec())]));
    Item::directory("d").with_pax("uid", "2").write_to(&mut bytes);
    assert!(refusal(&bytes).contains("two extended headers"));
    let mut bytes = Vec::new();
    extension(&mut bytes, b'x', &pax_records(&[("uid".into(), b"1".to_vec())]));
    assert!(refusal(&bytes).contains("ends after an extended header"));
    let mut bytes = archive(&[Item::directory("a")]);
    bytes.extend_from_slice(&archive(&[Item::directory("b")]));
    assert!(refusal(&bytes).contains("after its end marker"));
}

#[test]
fn malformed_headers_are_refused() {
    let mut block = Item::file("f", "").header();
    block[0] = b'g';
    assert!(refusal(&block).contains("checksum"));
    let change = |range: std::ops::Range<usize>, bytes: &[u8]| {
        let mut block = Item::file("f", "").header();
        block[range].copy_from_slice(bytes);
        seal(&mut block);
        refusal(&block)
    };
    assert!(change(124..136, b"0000000008\0\0").contains("octal"));
    assert!(change(124..136, b"0000 000001\0").contains("octal"));
    assert!(change(156..157, b"V").contains("entry type `V`"));
    assert!(refused(Item { device: (1 << 12, 0), ..Item::new(b'3', "d") }).contains("device number"));
    assert!(refused(Item::symlink("s", "")).contains("target of 0 bytes"));
    assert!(refused(Item::symlink("s", "t".repeat(5000))).contains("target of 5000"));
    for records in ["5 a=b\n", "7 a=b\n", "x a=b\n", "6 a=b", "6 ab\n\n", "99999999999 a=b\n", "4 =\n"] {
        let mut bytes = Vec::new();
        extension(&mut bytes, b'x', records.as_bytes());
        Item::directory("d").write_to(&mut bytes);
        assert!(refusal(&bytes).contains("malformed record"), "{records:?}");
    }
    assert!(refused(Item::directory("d").with_pax("path", "a\0b")).contains("NUL"));
    assert!(refused(Item::directory("d").with_pax("uid", "4294967296")).contains("32 bits"));
    let mut bytes = Vec::new();
    let huge = Item { size: Some((1 << 20) + 1), ..Item::new(b'x', "x") };
    bytes.extend_from_slice(&huge.header());
    assert!(refusal(&bytes).contains("limit is 1048576"));
}

#[test]
fn every_truncation_is_an_error_or_a_clean_end() {
    let items = [Item::file("a", [7; 700]), Item::directory("d").with_pax("path", "e"), Item::file("b", "x")];
    let mut bytes = Vec::new();
    let mut ends = vec![0];
    for item in &items {
        item.write_to(&mut bytes);
        ends.push(bytes.len());
    }
    for length in 0..bytes.len() {
        assert_eq!(read(&bytes[..length]).is_ok(), ends.contains(&length), "{length} bytes");
    }
}

#[test]
fn unread_bodies_are_skipped() {
    let bytes = archive(&[Item::file("a", vec![7; 70_000]), Item::file("b", "x")]);
    let mut reader = TarReader::new(&bytes[..]);
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(entry.path.to_string());
    }
    assert_eq!(names, ["/a", "/b"]);
}

#[test]
fn archives_of_the_tar_crate_read_the_same() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o600);
    header.set_entry_type(tar::EntryType::Regular);
    builder.append_data(&mut header, "d/".repeat(90) + "file", &b"hello"[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_pax_extensions([("SCHILY.xattr.user.x", &b"1"[..])]).unwrap();
    builder.append_link(&mut header, "link", "target").unwrap();
    let entries = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries[0].0.path, path(&("d/".repeat(90) + "file")));
    assert_eq!(entries[0].1, b"hello");
    assert_eq!(entries[1].0.metadata.xattrs, [(b"user.x".to_vec(), b"1".to_vec())]);
}

proptest::proptest! {
    #[test]
    fn hostile_access_control_lists_never_panic(text in "[ugmod:,#\n0-9rwx-]{0,200}") {
        let item = Item::directory("d").with_pax("SCHILY.acl.access", &text).with_pax("SCHILY.acl.default", &text);
        proptest::prop_assert!(read(&archive(&[item])).is_ok());
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096)) {
        let _ = read(&bytes);
    }

    /// Valid archives with a few bytes changed and the checksums made right again reach deeper than noise does.
    #[test]
    fn damaged_headers_never_panic(changes in proptest::collection::vec((0usize..6, 0usize..512, proptest::num::u8::ANY), 1..8)) {
        let mut map = b"1\n0\n3\n".to_vec();
        map.resize(512, 0);
        map.extend_from_slice(b"abc");
        let mut bytes = archive(&[
            Item::file("f", map).with_pax("GNU.sparse.major", "1").with_pax("GNU.sparse.realsize", "3"),
            Item::symlink("s", "t"),
        ]);
        for (block, offset, value) in changes {
            let end = bytes.len();
            let block: &mut [u8; 512] = (&mut bytes[(block * 512).min(end - 512)..][..512]).try_into().unwrap();
            block[offset] = value;
            if &block[257..262] == b"ustar" {
                seal(block);
            }
        }
        let mut reader = TarReader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next_entry() {
            let mut length = 0u64;
            let _ = reader.copy_body(&mut |piece| {
                length += match piece { Piece::Data(data) => data.len() as u64, Piece::Zeros(count) => count };
                Ok(())
            });
            proptest::prop_assert!(length <= MAX_FILE_BYTES);
        }
    }
}
