//! PAX extended headers: `length key=value\n` records (POSIX.1-2017, pax, "pax Extended Header"), with the vendor keys
//! that carry extended attributes, device numbers and sparse maps.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use snowmelt_ext4::{Timestamp, has_xattr_namespace};

use super::{MAX_XATTR_BYTES, Problem};

/// Bytes of names and values that the headers of one entry may give, before what ext4 can keep is checked exactly. Global
/// headers add up, so each of them being bounded is not enough.
const MAX_XATTRS_BYTES: usize = 256 << 10;

/// What extended headers say about the next entry.
#[derive(Clone, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<u32>,
    pub(super) device_minor: Option<u32>,
    /// `SCHILY.xattr.*`: names and raw values.
    schily_xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `LIBARCHIVE.xattr.*`: the same, encoded; only used for names that the former lacks.
    libarchive_xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `SCHILY.acl.access`, as text.
    pub(super) access_acl: Option<Vec<u8>>,
    /// `SCHILY.acl.default`, as text.
    pub(super) default_acl: Option<Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

/// The `GNU.sparse.*` keys (GNU tar manual, "Storing Sparse Files"), all three versions.
#[derive(Clone, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    pub(super) blocks: Option<u64>,
    /// Alternating offsets and lengths, from `map` (0.1) or repeated `offset` and `numbytes` (0.0).
    pub(super) numbers: Vec<u64>,
}

impl SparseRecords {
    pub(super) fn is_present(&self) -> bool {
        self.major.is_some() || self.size.is_some() || self.blocks.is_some() || !self.numbers.is_empty()
    }
}

impl Extended {
    /// Applies a global header's records. Keys that name or delimit one entry make no sense for all that follow, and
    /// readers disagree about them, so they are refused.
    pub(super) fn apply_global(&mut self, records: &[u8]) -> Result<(), Problem> {
        for_each_record(records, |key, value| {
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
                return Err(Problem::malformed(format!("global header sets `{}`", lossy(key))));
            }
            self.apply_record(key, value)
        })?;
        self.check_xattrs_bytes()
    }

    /// Applies a local header's records; later records win.
    pub(super) fn apply_local(&mut self, records: &[u8]) -> Result<(), Problem> {
        for_each_record(records, |key, value| self.apply_record(key, value))?;
        self.check_xattrs_bytes()
    }

    fn check_xattrs_bytes(&self) -> Result<(), Problem> {
        let all = self.schily_xattrs.iter().chain(&self.libarchive_xattrs);
        let total: usize = all.map(|(name, value)| name.len() + value.len()).sum();
        if total > MAX_XATTRS_BYTES {
            return Err(Problem::unsupported(format!(
                "extended attributes of {total} bytes, the limit is {MAX_XATTRS_BYTES}"
            )));
        }
        Ok(())
    }

    fn apply_record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        match key {
            b"path" => self.path = text(key, value)?,
            b"linkpath" => self.link = text(key, value)?,
            b"size" => self.size = optional(value, |value| decimal(key, value))?,
            b"uid" => self.uid = optional(value, |value| decimal32(key, value))?,
            b"gid" => self.gid = optional(value, |value| decimal32(key, value))?,
            b"mtime" => self.mtime = optional(value, timestamp)?,
            b"SCHILY.devmajor" => self.device_major = optional(value, |value| decimal32(key, value))?,
            b"SCHILY.devminor" => self.device_minor = optional(value, |value| decimal32(key, value))?,
            b"SCHILY.acl.access" => self.access_acl = acl_text(key, value)?,
            b"SCHILY.acl.default" => self.default_acl = acl_text(key, value)?,
            b"SCHILY.realsize" => {
                return Err(Problem::unsupported("star's own sparse format (SCHILY.realsize) is not read"));
            }
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(key, value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(key, value)?),
            b"GNU.sparse.name" => self.sparse.name = text(key, value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(key, value)?),
            b"GNU.sparse.numblocks" => self.sparse.blocks = Some(decimal(key, value)?),
            b"GNU.sparse.offset" => self.sparse_number(key, value, 0)?,
            b"GNU.sparse.numbytes" => self.sparse_number(key, value, 1)?,
            b"GNU.sparse.map" => {
                self.sparse.numbers =
                    value.split(|&byte| byte == b',').map(|item| decimal(key, item)).collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    set_xattr(&mut self.schily_xattrs, name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decode(name)?;
                    set_xattr(&mut self.libarchive_xattrs, name, base64_decode(value)?)?;
                }
            }
        }
        Ok(())
    }

    fn sparse_number(&mut self, key: &[u8], value: &[u8], parity: usize) -> Result<(), Problem> {
        if self.sparse.numbers.len() % 2 != parity {
            return Err(Problem::malformed("GNU.sparse.offset and GNU.sparse.numbytes do not alternate"));
        }
        self.sparse.numbers.push(decimal(key, value)?);
        Ok(())
    }

    /// All extended attributes, by name. Those of namespaces that Linux does not have are without a value.
    pub(super) fn take_xattrs(&mut self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = std::mem::take(&mut self.libarchive_xattrs);
        all.append(&mut self.schily_xattrs);
        all
    }
}

fn acl_text(key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    if value.len() > MAX_XATTR_BYTES {
        return Err(Problem::malformed(format!(
            "`{}` is {} bytes, the limit is {MAX_XATTR_BYTES}",
            lossy(key),
            value.len()
        )));
    }
    Ok(if value.is_empty() { None } else { Some(value.to_vec()) })
}

fn set_xattr(xattrs: &mut BTreeMap<Vec<u8>, Vec<u8>>, name: Vec<u8>, mut value: Vec<u8>) -> Result<(), Problem> {
    // The kernel's limits: XATTR_NAME_MAX and XATTR_SIZE_MAX (linux/limits.h).
    if name.is_empty() || name.len() > 255 || name.contains(&0) {
        return Err(Problem::malformed(format!(
            "extended attribute name `{}` is empty, too long or holds a NUL",
            lossy(&name)
        )));
    }
    if !has_xattr_namespace(&name) {
        // A resource fork of a Mac may be large, and is left out anyway.
        value = Vec::new();
    }
    if value.len() > MAX_XATTR_BYTES {
        return Err(Problem::malformed(format!(
            "extended attribute `{}` is {} bytes, the limit is {MAX_XATTR_BYTES}",
            lossy(&name),
            value.len()
        )));
    }
    xattrs.insert(name, value);
    Ok(())
}

fn for_each_record(mut rest: &[u8], mut apply: impl FnMut(&[u8], &[u8]) -> Result<(), Problem>) -> Result<(), Problem> {
    let bad = || Problem::malformed("extended header has a malformed record");
    while !rest.is_empty() {
        let space = rest.iter().take(10).position(|&byte| byte == b' ').ok_or_else(bad)?;
        let length = decimal(b"length", &rest[..space]).map_err(|_| bad())?;
        let length = usize::try_from(length).map_err(|_| bad())?;
        if length > rest.len() || length < space + 3 || rest[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(bad());
        }
        apply(key, value)?;
        rest = &rest[length..];
    }
    Ok(())
}

/// An empty value takes back what an earlier record set.
fn optional<T>(value: &[u8], parse: impl FnOnce(&[u8]) -> Result<T, Problem>) -> Result<Option<T>, Problem> {
    if value.is_empty() { Ok(None) } else { parse(value).map(Some) }
}

fn text(key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    if value.contains(&0) {
        return Err(Problem::malformed(format!("`{}` holds a NUL byte", lossy(key))));
    }
    Ok(if value.is_empty() { None } else { Some(value.to_vec()) })
}

/// A decimal number without sign or spaces.
pub(super) fn decimal(key: &[u8], value: &[u8]) -> Result<u64, Problem> {
    let bad =
        || Problem::malformed(format!("`{}` is not a number that fits in 64 bits: `{}`", lossy(key), lossy(value)));
    if value.is_empty() {
        return Err(bad());
    }
    value.iter().try_fold(0u64, |number, &digit| match digit {
        b'0'..=b'9' => {
            number.checked_mul(10).and_then(|number| number.checked_add(u64::from(digit - b'0'))).ok_or_else(bad)
        }
        _ => Err(bad()),
    })
}

fn decimal32(key: &[u8], value: &[u8]) -> Result<u32, Problem> {
    u32::try_from(decimal(key, value)?)
        .map_err(|_| Problem::malformed(format!("`{}` does not fit in 32 bits: `{}`", lossy(key), lossy(value))))
}

/// Seconds with an optional sign and fraction; digits beyond nanoseconds are dropped.
fn timestamp(value: &[u8]) -> Result<Timestamp, Problem> {
    let bad = || Problem::malformed(format!("`mtime` is not a time: `{}`", lossy(value)));
    let (negative, magnitude) = match value.strip_prefix(b"-") {
        Some(magnitude) => (true, magnitude),
        None => (false, value),
    };
    let mut parts = magnitude.splitn(2, |&byte| byte == b'.');
    let whole = decimal(b"mtime", parts.next().unwrap_or_default())?;
    let whole = i64::try_from(whole).map_err(|_| bad())?;
    let mut nanoseconds = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return Err(bad());
        }
        for index in 0..9 {
            let digit = fraction.get(index).map_or(0, |digit| digit - b'0');
            nanoseconds = nanoseconds * 10 + u32::from(digit);
        }
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds: whole, nanoseconds },
        (true, 0) => Timestamp { seconds: -whole, nanoseconds: 0 },
        // Nanoseconds always count forward from the second.
        (true, _) => Timestamp { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn percent_decode(name: &[u8]) -> Result<Vec<u8>, Problem> {
    let hex = |digit: Option<&u8>| digit.and_then(|&digit| (digit as char).to_digit(16)).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(name.len());
    let mut index = 0;
    while index < name.len() {
        if name[index] == b'%' {
            let (Some(high), Some(low)) = (hex(name.get(index + 1)), hex(name.get(index + 2))) else {
                return Err(Problem::malformed(format!("extended attribute name `{}` has a bad escape", lossy(name))));
            };
            decoded.push(high << 4 | low);
            index += 3;
        } else {
            decoded.push(name[index]);
            index += 1;
        }
    }
    Ok(decoded)
}

fn base64_decode(value: &[u8]) -> Result<Vec<u8>, Problem> {
    // libarchive writes no padding and bsdtar's descendants do.
    STANDARD_NO_PAD
        .decode(value)
        .or_else(|_| STANDARD.decode(value))
        .map_err(|_| Problem::malformed("a LIBARCHIVE.xattr value is not base64"))
}

fn lossy(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(80)];
    String::from_utf8_lossy(shown).escape_debug().to_string()
}
