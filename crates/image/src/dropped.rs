//! What of a source's metadata an image leaves out, as other container tools do, instead of being refused for it: counted,
//! and told once for an image, since an archive from a Mac has it at every file.

/// Extended attributes and access control lists that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    xattrs: Kind,
    acls: Kind,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kind {
    count: u64,
    /// Which it was, where, and why.
    first: Option<String>,
}

impl Kind {
    fn add(&mut self, count: u64, first: impl FnOnce() -> String) {
        if count > 0 && self.first.is_none() {
            self.first = Some(first());
        }
        self.count += count;
    }
}

impl Dropped {
    /// An extended attribute of a namespace that Linux does not have.
    pub(crate) fn add_xattr(&mut self, entry: &str, name: &[u8]) {
        self.xattrs.add(1, || format!("{} of {entry}", name.escape_ascii()));
    }

    /// An access control list that can't be used, and why.
    pub(crate) fn add_acl(&mut self, entry: &str, reason: &str) {
        self.acls.add(1, || format!("that of {entry}: {reason}"));
    }

    /// Adds what was left out of a part of the image, such as a layer.
    pub(crate) fn add_part(&mut self, part: &str, dropped: Dropped) {
        for (sum, kind) in [(&mut self.xattrs, dropped.xattrs), (&mut self.acls, dropped.acls)] {
            sum.add(kind.count, || format!("in {part}, {}", kind.first.unwrap_or_default()));
        }
    }

    /// Tells of it, if there is anything to tell.
    pub(crate) fn warn(&self) {
        if let Some(text) = self.xattrs_text() {
            tracing::warn!("{text}");
        }
        if let Some(text) = self.acls_text() {
            tracing::warn!("{text}");
        }
    }

    /// The warning of extended attributes.
    pub(crate) fn xattrs_text(&self) -> Option<String> {
        let first = self.xattrs.first.as_ref()?;
        let count = self.xattrs.count;
        Some(format!("left out {count} extended attributes of namespaces that Linux does not have, the first {first}"))
    }

    /// The warning of access control lists.
    pub(crate) fn acls_text(&self) -> Option<String> {
        let first = self.acls.first.as_ref()?;
        Some(format!("left out {} access control lists, the first {first}", self.acls.count))
    }
}
