//! Images that were made for functions, so that none stays that no function has: not even where the service was killed between making an
//! image and saying whose it is, or before it removed one.
//!
//! An image is noted before it is made, and until it has been removed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};

use super::{Registry, broken, key};
use crate::api::ApiError;

/// Tenant and image; the function, and when it was noted, in seconds since 1970.
pub(super) const IMAGES: TableDefinition<'static, &str, (&str, u64)> = TableDefinition::new("images");

/// An image that was made, or was to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) tenant: String,
    pub(crate) image: String,
    pub(crate) function: String,
    /// Since it was noted.
    pub(crate) age: Duration,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Registry {
    /// An image is about to be made.
    ///
    /// # Errors
    /// Our own fault.
    pub(crate) fn note_image(&self, tenant: &str, function: &str, image: &str) -> Result<(), ApiError> {
        let begun = self.changing().begin_write().map_err(broken)?;
        let entry = (function, now().as_secs());
        begun.open_table(IMAGES).map_err(broken)?.insert(key(tenant, image).as_str(), entry).map_err(broken)?;
        begun.commit().map_err(broken)
    }

    /// It is not there any more.
    ///
    /// # Errors
    /// Our own fault.
    pub(crate) fn forget_image(&self, tenant: &str, image: &str) -> Result<(), ApiError> {
        let begun = self.changing().begin_write().map_err(broken)?;
        begun.open_table(IMAGES).map_err(broken)?.remove(key(tenant, image).as_str()).map_err(broken)?;
        begun.commit().map_err(broken)
    }

    /// Those of which no version says that it has them.
    ///
    /// # Errors
    /// Our own fault.
    pub(crate) fn unused_images(&self) -> Result<Vec<Noted>, ApiError> {
        let read = self.changing().begin_read().map_err(broken)?;
        let mut unused = Vec::new();
        for entry in read.open_table(IMAGES).map_err(broken)?.iter().map_err(broken)? {
            let (place, noted) = entry.map_err(broken)?;
            let Some((tenant, image)) = place.value().split_once('\0') else { continue };
            let (function, seconds) = noted.value();
            if self.find(tenant, function).is_none_or(|function| !function.uses(image)) {
                let age = now().saturating_sub(Duration::from_secs(seconds));
                let (tenant, image, function) = (tenant.to_owned(), image.to_owned(), function.to_owned());
                unused.push(Noted { tenant, image, function, age });
            }
        }
        Ok(unused)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_noted_is_known_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("functions.redb");
        let registry = Registry::open(&path).unwrap();
        registry.note_image("t", "f", "functions/a:1").unwrap();
        registry.note_image("t", "f", "functions/a:2").unwrap();
        registry.forget_image("t", "functions/a:1").unwrap();
        drop(registry);
        let registry = Registry::open(&path).unwrap();
        let unused = registry.unused_images().unwrap();
        assert_eq!(unused.iter().map(|noted| noted.image.as_str()).collect::<Vec<_>>(), ["functions/a:2"]);
        assert!(unused[0].age < Duration::from_mins(1) && unused[0].function == "f", "{unused:?}");
    }
}
