//! One 512-byte tar header block and the numbers in it.
//!
//! Field offsets are those of POSIX.1-2017 (pax, "ustar Interchange Format"), of the GNU tar manual ("Basic Tar Format")
//! and, for the `tar\0` trailer, of star(5). Nothing here reads from a stream.

use super::Problem;

/// Size of a tar block in bytes; headers are one block, bodies are padded to whole blocks.
pub(crate) const TAR_BLOCK: usize = 512;

/// A header block whose checksum was verified.
pub(super) struct Header {
    block: [u8; TAR_BLOCK],
    dialect: Dialect,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Seventh Edition: no magic, names of 100 bytes.
    V7,
    /// POSIX: a prefix field of 155 bytes.
    Ustar,
    /// As ustar, but the prefix is 131 bytes and followed by times.
    Star,
    /// GNU: no prefix; the space holds times and a sparse map.
    Gnu,
}

impl Header {
    /// Checks the checksum; the block must not be all zeros (that is the end of the archive).
    pub(super) fn parse(block: &[u8; TAR_BLOCK]) -> Result<Header, Problem> {
        let stated =
            octal(&block[148..156]).map_err(|_| Problem::malformed("header checksum field is not a number"))?;
        let (mut unsigned, mut signed) = (0u64, 0i64);
        for (index, &byte) in block.iter().enumerate() {
            // The checksum is computed as if its own field held spaces.
            let byte = if (148..156).contains(&index) { b' ' } else { byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte as i8);
        }
        // Historic writers summed signed chars; every reader accepts both.
        if stated != unsigned && i64::try_from(stated) != Ok(signed) {
            return Err(Problem::malformed(format!("header checksum is {unsigned}, the header says {stated}")));
        }
        let dialect = match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Dialect::Star,
            (b"ustar\0", _) => Dialect::Ustar,
            (b"ustar ", b" \0") => Dialect::Gnu,
            _ => Dialect::V7,
        };
        Ok(Header { block: *block, dialect })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.dialect == Dialect::Gnu
    }

    /// The raw path: prefix and name joined.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = match self.dialect {
            Dialect::Ustar => until_nul(&self.block[345..500]),
            Dialect::Star => until_nul(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.block[157..257]).to_vec()
    }

    /// Bytes of body that follow, as this block says; a PAX record may say otherwise.
    pub(super) fn size(&self) -> Result<u64, Problem> {
        u64::try_from(number(&self.block[124..136], "size")?).map_err(|_| Problem::malformed("size is negative"))
    }

    /// Permission bits, `07777`.
    pub(super) fn mode(&self) -> Result<u16, Problem> {
        // Some writers store the file type in the upper bits.
        Ok((number(&self.block[100..108], "mode")? & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, Problem> {
        narrow(number(&self.block[108..116], "uid")?, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, Problem> {
        narrow(number(&self.block[116..124], "gid")?, "gid")
    }

    /// Seconds since the epoch.
    pub(super) fn mtime(&self) -> Result<i64, Problem> {
        number(&self.block[136..148], "mtime")
    }

    /// Major and minor number; zero where the dialect has no such fields.
    pub(super) fn device(&self) -> Result<(u32, u32), Problem> {
        if self.dialect == Dialect::V7 {
            return Ok((0, 0));
        }
        Ok((
            narrow(number(&self.block[329..337], "device major")?, "device major")?,
            narrow(number(&self.block[337..345], "device minor")?, "device minor")?,
        ))
    }

    /// Old GNU sparse: the first four ranges.
    pub(super) fn gnu_sparse(&self) -> Result<GnuSparse, Problem> {
        Ok(GnuSparse {
            ranges: sparse_ranges(&self.block[386..482])?,
            is_extended: self.block[482] != 0,
            size: unsigned(&self.block[483..495], "sparse file size")?,
        })
    }
}

/// What an old GNU sparse header says of its file.
pub(super) struct GnuSparse {
    pub(super) ranges: Vec<(u64, u64)>,
    /// Blocks with more ranges follow.
    pub(super) is_extended: bool,
    /// Bytes of the file, holes included.
    pub(super) size: u64,
}

/// Pairs of 12-byte offset and length; an empty pair ends the list early.
pub(super) fn sparse_ranges(field: &[u8]) -> Result<Vec<(u64, u64)>, Problem> {
    let mut ranges = Vec::new();
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 && pair[12] == 0 {
            break;
        }
        ranges.push((unsigned(&pair[..12], "sparse offset")?, unsigned(&pair[12..], "sparse length")?));
    }
    Ok(ranges)
}

/// A field's bytes up to its first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    &field[..end]
}

fn unsigned(field: &[u8], what: &str) -> Result<u64, Problem> {
    u64::try_from(number(field, what)?).map_err(|_| Problem::malformed(format!("{what} is negative")))
}

fn narrow(value: i64, what: &str) -> Result<u32, Problem> {
    u32::try_from(value).map_err(|_| Problem::malformed(format!("{what} {value} does not fit in 32 bits")))
}

/// A numeric field: octal text, or base-256 when its first bit is set (GNU tar manual, "Extensions").
fn number(field: &[u8], what: &str) -> Result<i64, Problem> {
    if field[0] & 0x80 == 0 {
        let value =
            octal(field).map_err(|text| Problem::malformed(format!("{what} `{text}` is not an octal number")))?;
        return i64::try_from(value).map_err(|_| Problem::malformed(format!("{what} is too large")));
    }
    // Two's complement; the flag bit itself is not part of the number.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value: i128 = i128::from(if negative { i64::from(first as i8) } else { i64::from(first) });
    for &byte in &field[1..] {
        value = value << 8 | i128::from(byte);
        if i64::try_from(value).is_err() {
            return Err(Problem::malformed(format!("{what} is too large")));
        }
    }
    Ok(value as i64)
}

/// Octal text with leading and trailing spaces or NULs; an empty field is 0.
fn octal(field: &[u8]) -> Result<u64, String> {
    let start = field.iter().position(|&byte| byte != 0 && byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|&byte| byte == 0 || byte == b' ').unwrap_or(digits.len());
    let bad = || String::from_utf8_lossy(digits).escape_debug().to_string();
    // Whatever follows the terminator would be read by one parser and skipped by another.
    if digits[end..].iter().any(|&byte| byte != 0 && byte != b' ') {
        return Err(bad());
    }
    digits[..end].iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'7' => {
            value.checked_mul(8).and_then(|value| value.checked_add(u64::from(digit - b'0'))).ok_or_else(bad)
        }
        _ => Err(bad()),
    })
}
