//! Paths inside an image: byte strings, relative to the root, in one spelling.

use std::fmt;

/// Longest path in bytes (the kernel's `PATH_MAX`, linux/limits.h).
pub(crate) const MAX_PATH: usize = 4096;
/// Longest name of one directory entry in bytes (ext4's and the kernel's `NAME_MAX`).
pub(crate) const MAX_NAME: usize = 255;

/// A path without `.`, `..`, empty components, leading or trailing slash. The root is the empty path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Brings `raw` into the one spelling. `..` is resolved lexically, as container runtimes do; a path that leaves the
    /// root is refused.
    pub(crate) fn normalise(raw: &[u8]) -> Result<EntryPath, String> {
        if raw.len() > MAX_PATH {
            return Err(format!("path is {} bytes, the limit is {MAX_PATH}", raw.len()));
        }
        if raw.contains(&0) {
            return Err("path holds a NUL byte".into());
        }
        let mut components: Vec<&[u8]> = Vec::new();
        for component in raw.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    if components.pop().is_none() {
                        return Err("path leaves the root of the image through `..`".into());
                    }
                }
                name if name.len() > MAX_NAME => {
                    return Err(format!("a name in the path is {} bytes, the limit is {MAX_NAME}", name.len()));
                }
                name => components.push(name),
            }
        }
        Ok(EntryPath(components.join(&b'/')))
    }

    pub(crate) fn byte_count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
    }

    /// Parent and last name; `None` for the root.
    pub(crate) fn split(&self) -> Option<(EntryPath, &[u8])> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.iter().rposition(|&byte| byte == b'/');
        Some(match slash {
            Some(slash) => (EntryPath(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (EntryPath::default(), &self.0[..]),
        })
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", self.0.escape_ascii())
    }
}
