//! Arbitrary bytes as what this crate is given from outside: a tree, a placement and options to plan; a device to look into.

use crate::{Kind, Node, NodeId, Options, Owned, Placement, Plan, Segment, Timestamp, Tree, owners};

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        match self.next() {
            wide @ 0xf0.. => (0..8).fold(u64::from(wide & 1), |number, _| number << 8 | u64::from(self.next())),
            small => u64::from(small),
        }
    }

    fn string(&mut self) -> Vec<u8> {
        let length = self.next() as usize;
        (0..length.min(self.0.len())).map(|_| self.next()).collect()
    }

    fn node(&mut self) -> Node {
        let kind = match self.next() % 8 {
            0 | 1 => Kind::Directory {
                entries: (0..self.next() % 32).map(|_| (self.string(), NodeId(u32::from(self.next() % 64)))).collect(),
            },
            2 | 3 => Kind::File {
                size: self.number(),
                segments: (0..self.next() % 8)
                    .map(|_| Segment { first_block: self.number(), blocks: self.number() })
                    .collect(),
            },
            4 => Kind::Symlink { target: self.string() },
            5 => Kind::CharDevice { major: self.number() as u32, minor: self.number() as u32 },
            6 => Kind::Fifo,
            _ => Kind::Socket,
        };
        Node {
            kind,
            mode: self.number() as u16,
            uid: self.number() as u32,
            gid: self.number() as u32,
            mtime: Timestamp { seconds: self.number() as i64, nanoseconds: self.number() as u32 },
            xattrs: (0..self.next() % 4).map(|_| (self.string(), self.string())).collect(),
        }
    }
}

/// Plans what `input` describes; a plan that is made can be read at any place.
pub fn fuzz_plan(input: &[u8]) {
    let mut bytes = Bytes(input);
    let options =
        Options { free_bytes: bytes.number() << 12, data_alignment: bytes.number() << 12, ..Options::default() };
    let mut tree = Tree::default();
    let mut placement = Placement { starts: Vec::new(), blocks: bytes.number() };
    for _ in 0..=bytes.next() % 64 {
        tree.nodes.push(bytes.node());
        placement.starts.push((bytes.next() % 2 == 0).then(|| bytes.number()));
    }
    let Ok(plan) = Plan::new(&tree, &placement, &options) else { return };
    let mut buf = [0; 5000];
    for offset in
        [0, plan.data_start_bytes().saturating_sub(2500), plan.size_bytes() / 2, plan.size_bytes().saturating_sub(100)]
    {
        let read: Result<(), ()> = plan.read_at(offset, &mut buf, &|_, _, buf| {
            buf.fill(1);
            Ok(())
        });
        assert!(read.is_ok());
    }
}

/// Asks whose blocks of a device are, every byte of which is taken from `input`.
pub fn fuzz_owners(input: &[u8]) {
    if input.is_empty() {
        return;
    }
    // The superblock is what it must be, so that more than that is looked at.
    let mut superblock = [0; 1024];
    for (byte, input) in superblock.iter_mut().zip(input) {
        *byte = *input;
    }
    superblock[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
    superblock[0x18..0x1c].copy_from_slice(&[2, 0, 0, 0]);
    let mut read = |offset: u64, buf: &mut [u8]| {
        if (offset, buf.len()) == (1024, 1024) {
            buf.copy_from_slice(&superblock);
            return true;
        }
        for (at, byte) in (offset..).zip(buf.iter_mut()) {
            *byte = input[(at / 4096 * 577 + at % 4096) as usize % input.len()];
        }
        input[offset as usize % input.len()] != 0xff
    };
    let ranges = [4096..8192, 8192..40960, 0..4096, 65536..131_072, 16384..20480, (1 << 40)..(1 << 40) + 8192];
    let owned = owners(&ranges, &mut read);
    // Whatever the device says: every byte has one owner.
    let bytes = |range: &std::ops::Range<u64>| range.end - range.start;
    let asked: u64 = ranges.iter().map(bytes).sum();
    let mut answered = 0;
    for Owned::File { range, .. } | Owned::Other { range } in &owned {
        answered += bytes(range);
    }
    assert_eq!(asked, answered);
}
