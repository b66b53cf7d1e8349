//! The hash of directory entries: half MD4 over unsigned characters (fs/ext4/hash.c).

/// Hash values have 31 significant bits, the lowest is used as a continuation mark. The largest value means "end of directory".
const END_OF_DIRECTORY: u32 = 0x7fff_ffff << 1;

/// The hash of a name: major, by which blocks are found, and minor, which orders entries of equal major hash.
pub(crate) fn half_md4(name: &[u8], seed: &[u8; 16]) -> (u32, u32) {
    let mut state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    if seed.iter().any(|byte| *byte != 0) {
        for (word, bytes) in state.iter_mut().zip(seed.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        }
    }
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, &to_words(rest));
        rest = rest.get(32..).unwrap_or_default();
    }
    let major = state[1] & !1;
    (if major == END_OF_DIRECTORY { (0x7fff_ffff - 1) << 1 } else { major }, state[2])
}

/// Up to 32 bytes as 8 words, padded with the length of all that remains.
fn to_words(rest: &[u8]) -> [u32; 8] {
    let length = rest.len() as u32;
    let pad = length | length << 8 | length << 16 | length << 24;
    let mut words = [pad; 8];
    for (word, bytes) in words.iter_mut().zip(rest[..rest.len().min(32)].chunks(4)) {
        *word = bytes.iter().fold(pad, |word, byte| (word << 8).wrapping_add(u32::from(*byte)));
    }
    words
}

#[expect(clippy::many_single_char_names, reason = "the words of MD4 are called a, b, c and d")]
fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    /// Mixing function, added constant, order of the input words, and rotations of one round.
    type Round = (Mix, u32, [usize; 8], [u32; 4]);
    const ROUNDS: [Round; 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let mut w = *state;
    for (mix, constant, order, rotations) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            // The roles of the four words rotate: a, d, c, b.
            let a = (4 - step % 4) % 4;
            let (b, c, d) = (w[(a + 1) % 4], w[(a + 2) % 4], w[(a + 3) % 4]);
            w[a] = w[a]
                .wrapping_add(mix(b, c, d))
                .wrapping_add(input[word].wrapping_add(constant))
                .rotate_left(rotations[step % 4]);
        }
    }
    for (word, mixed) in state.iter_mut().zip(w) {
        *word = word.wrapping_add(mixed);
    }
}

#[cfg(test)]
mod tests {
    use super::half_md4;

    /// Values printed by `debugfs -R "dx_hash -h half_md4 NAME"`, with no seed; for ASCII, signed and unsigned characters agree.
    #[test]
    fn it_agrees_with_debugfs() {
        for (name, major, minor) in VECTORS {
            assert_eq!(half_md4(name, &[0; 16]), (*major, *minor), "{}", String::from_utf8_lossy(name));
        }
    }

    const VECTORS: &[(&[u8], u32, u32)] = &[
        (b"a", 0xd5fa_7d7a, 0xacb4_8187),
        (b"hello", 0x1746_da32, 0x4200_13b5),
        (b"lost+found", 0x591d_e422, 0x6ffc_56e0),
        (b"a-name-of-more-than-thirty-two-bytes-in-all.txt", 0x8b71_c960, 0x8390_ff1f),
        (b"exactly-thirty-two-bytes-long-ok", 0xfc94_0c3a, 0xa9d1_64fb),
    ];
}
