//! Access control lists in the text form of PAX headers (`SCHILY.acl.access`, `SCHILY.acl.default`), as GNU tar, star and
//! libarchive write them, and their binary form as the kernel's system calls take it (`system.posix_acl_*`).
//!
//! Text form: acl(5), "ACL TEXT FORMS", entries separated by commas or line breaks; star appends the numeric id to a named
//! entry (`user:lisa:rwx:500`). Binary form: linux/posix_acl_xattr.h. Other container tools ignore these records, so what
//! can't be understood must not fail an image: the reason is for a warning.

use super::EntryKind;

const VERSION: u32 = 2;
/// The id of entries that name nobody (`ACL_UNDEFINED_ID`).
const UNDEFINED_ID: u32 = u32::MAX;
/// More than fit a block of ext4; a limit before anything is sorted.
const MAX_ENTRIES: usize = 1024;

/// Who an entry is for, with its tag in the binary form. The order is the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tag {
    UserOwner = 0x01,
    User = 0x02,
    GroupOwner = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Entry {
    tag: Tag,
    id: u32,
    permissions: u16,
}

/// The value of `system.posix_acl_access` for a file of this mode, `None` where the list says no more than the mode.
/// Where they disagree the mode wins, as if it was set after the list (chmod(2)).
pub(super) fn access(text: &[u8], kind: &EntryKind, mode: u16) -> Result<Option<Vec<u8>>, String> {
    if matches!(kind, EntryKind::Symlink { .. }) {
        return Err("Linux has none for symlinks".into());
    }
    let mut entries = parse(text)?;
    if entries.len() == 3 {
        return Ok(None);
    }
    let has_mask = entries.iter().any(|entry| entry.tag == Tag::Mask);
    for entry in &mut entries {
        match entry.tag {
            Tag::UserOwner => entry.permissions = mode >> 6 & 7,
            Tag::Mask => entry.permissions = mode >> 3 & 7,
            Tag::GroupOwner if !has_mask => entry.permissions = mode >> 3 & 7,
            Tag::Other => entry.permissions = mode & 7,
            _ => {}
        }
    }
    Ok(Some(encode(&entries)))
}

/// The value of `system.posix_acl_default`.
pub(super) fn default(text: &[u8], kind: &EntryKind) -> Result<Vec<u8>, String> {
    if *kind != EntryKind::Directory {
        return Err("only directories have one for what is made in them".into());
    }
    parse(text).map(|entries| encode(&entries))
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend_from_slice(&(entry.tag as u16).to_le_bytes());
        value.extend_from_slice(&entry.permissions.to_le_bytes());
        value.extend_from_slice(&entry.id.to_le_bytes());
    }
    value
}

/// The entries in the kernel's order, complete as it wants them (`posix_acl_valid`).
fn parse(text: &[u8]) -> Result<Vec<Entry>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text".to_owned())?;
    let mut entries = Vec::new();
    for line in text.split('\n') {
        // Comments say which permissions are effective.
        let line = line.split('#').next().unwrap_or_default();
        for entry in line.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if entries.len() == MAX_ENTRIES {
                return Err(format!("it has more than {MAX_ENTRIES} entries"));
            }
            entries.push(parse_entry(entry)?);
        }
    }
    entries.sort_unstable();
    if let Some(twice) = entries.windows(2).find(|pair| (pair[0].tag, pair[0].id) == (pair[1].tag, pair[1].id)) {
        return Err(format!("it has two entries for {:?} {}", twice[0].tag, twice[0].id as i32));
    }
    let has = |tag| entries.iter().any(|entry: &Entry| entry.tag == tag);
    let is_named = has(Tag::User) || has(Tag::Group);
    if !has(Tag::UserOwner) || !has(Tag::GroupOwner) || !has(Tag::Other) || (is_named && !has(Tag::Mask)) {
        return Err("it lacks an entry for owner, group, others or the mask".into());
    }
    Ok(entries)
}

fn parse_entry(text: &str) -> Result<Entry, String> {
    let malformed = || format!("`{}` is no entry of an access control list", shown(text));
    let fields: Vec<&str> = text.split(':').map(str::trim).take(5).collect();
    let (kind, name, permissions, id) = match fields[..] {
        // The forms of `mask` and `other` without a field for a name.
        [kind @ ("mask" | "m" | "other" | "o"), permissions] => (kind, "", permissions, None),
        [kind, name, permissions] => (kind, name, permissions, None),
        [kind, name, permissions, id] => (kind, name, permissions, Some(id)),
        _ => return Err(malformed()),
    };
    let tag = match (kind, name) {
        ("user" | "u", "") => Tag::UserOwner,
        ("user" | "u", _) => Tag::User,
        ("group" | "g", "") => Tag::GroupOwner,
        ("group" | "g", _) => Tag::Group,
        ("mask" | "m", "") => Tag::Mask,
        ("other" | "o", "") => Tag::Other,
        _ => return Err(malformed()),
    };
    let id = match tag {
        // Names mean whatever this machine says; the id is what the archive's machine meant.
        Tag::User | Tag::Group => number(id.unwrap_or(name)).ok_or_else(|| match id {
            Some(_) => malformed(),
            None => format!("the {kind} `{}` is no number, and its number is not given", shown(name)),
        })?,
        _ => UNDEFINED_ID,
    };
    let bits = permissions.chars().try_fold(0, |bits, letter| match letter {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    });
    Ok(Entry { tag, id, permissions: bits.ok_or_else(malformed)? })
}

fn number(text: &str) -> Option<u32> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| is_decimal && *id != UNDEFINED_ID)
}

fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn access(text: &[u8], mode: u16) -> Result<Option<Vec<u8>>, String> {
        super::access(text, &EntryKind::File { size: 0 }, mode)
    }

    fn default(text: &[u8]) -> Result<Vec<u8>, String> {
        super::default(text, &EntryKind::Directory)
    }

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn every_spelling_gives_the_kernels_value() {
        const NOBODY: u32 = u32::MAX;
        let expected = value(&[
            (0x01, 6, NOBODY),
            (0x02, 7, 500),
            (0x02, 5, 1000),
            (0x04, 4, NOBODY),
            (0x08, 4, 50),
            (0x10, 7, NOBODY),
            (0x20, 4, NOBODY),
        ]);
        for text in [
            "user::rw-\nuser:500:rwx\nuser:1000:r-x\ngroup::r--\ngroup:50:r--\nmask::rwx\nother::r--\n",
            "user::rw-,user:lisa:rwx:500,user:toolies:r-x:1000,group::r--,group:staff:r--:50,mask::rwx,other::r--",
            "other:r--,mask:rwx,g:50:r,g::r,u:1000:rx,u:500:xwr,u::rw",
            "user::rw-\t#effective:rw-\nuser:1000:r-x # , a comment\nuser:500:rwx\ngroup::r--\ngroup:50:r\nm::rwx\no::r--",
        ] {
            assert_eq!(access(text.as_bytes(), 0o674).unwrap().unwrap(), expected, "{text}");
            assert_eq!(default(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn the_mode_wins_and_a_list_that_says_no_more_is_none() {
        assert_eq!(access(b"user::rw-,group::r--,other::r--", 0o644), Ok(None));
        assert_eq!(access(b"user::rwx,group::rwx,other::rwx", 0o600), Ok(None));
        let list = access(b"user::rwx,user:7:rwx,group::r--,mask::rwx,other::rwx", 0o4640).unwrap().unwrap();
        let nobody = u32::MAX;
        let entries = [(1, 6, nobody), (2, 7, 7), (4, 4, nobody), (0x10, 4, nobody), (0x20, 0, nobody)];
        assert_eq!(list, value(&entries));
        assert_eq!(default(b"user::rwx,group::r-x,other::---").unwrap().len(), 4 + 3 * 8);
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (text, reason) in [
            ("user::rw-,user:lisa:rwx,group::r--,mask::rwx,other::r--", "the user `lisa` is no number"),
            ("user::rw-,group:staff:rwx,group::r--,mask::rwx,other::r--", "the group `staff` is no number"),
            ("user::rw-,user:1:rwx,group::r--,other::r--", "lacks an entry"),
            ("user::rw-,group::r--", "lacks an entry"),
            ("", "lacks an entry"),
            ("user::rw-,user::rw-,group::r--,other::r--", "two entries for UserOwner"),
            ("user:1:r,user:1:w,user::rw-,group::r--,mask::r,other::r--", "two entries for User 1"),
            ("user::rwz", "no entry"),
            ("user:4294967295:r", "no number"),
            ("user:a:r:+5", "no entry"),
            ("user:a:r:5:6", "no entry"),
            ("mask:5:r", "no entry"),
            ("everyone@:r", "no entry"),
        ] {
            let error = default(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(default(b"user::\xff").is_err());
        assert!(default("user:1:r,".repeat(5000).as_bytes()).unwrap_err().contains("more than"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_every_value_is_valid(text in "[ugmo:,#\n0-9rwx a-]{0,120}|(user|group|other|mask|,|:|1|rwx|-)*") {
            if let Ok(value) = default(text.as_bytes()) {
                proptest::prop_assert_eq!(snowmelt_ext4::check_xattrs(&[(b"system.posix_acl_default".to_vec(), value)]), Ok(()));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = access(&bytes, 0o777);
        }
    }
}
