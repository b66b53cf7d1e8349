//! Changing the key service: new manifests are sealed with the current one, older ones open with those before it.

use super::{DataKey, KeyService, KeyUse, WrappedKey};
use crate::Error;

/// A key service made of several.
#[derive(Debug)]
pub struct KeyRing {
    current: Box<dyn KeyService>,
    previous: Vec<Box<dyn KeyService>>,
}

impl KeyRing {
    /// Seals with `current`; opens with it or one of `previous`, whichever owns a manifest's key.
    pub fn new(current: Box<dyn KeyService>, previous: Vec<Box<dyn KeyService>>) -> Self {
        Self { current, previous }
    }

    fn services(&self) -> impl Iterator<Item = &dyn KeyService> {
        std::iter::once(&*self.current).chain(self.previous.iter().map(|service| &**service))
    }
}

impl KeyService for KeyRing {
    fn generate_data_key(&self, use_: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
        self.current.generate_data_key(use_)
    }

    fn unwrap_data_key(&self, use_: &KeyUse<'_>, wrapped: &WrappedKey) -> Result<DataKey, Error> {
        // Of several services that may own a key, one that does not have it says nothing about the others. What is told in
        // the end is what can be done most about: a service that may answer later, then any other reason than not having it.
        let mut worst: Option<Error> = None;
        let weight = |error: &Error| match error {
            Error::NoKey { .. } => 0,
            error if error.is_unavailable() => 2,
            _ => 1,
        };
        for service in self.services().filter(|service| service.owns(&wrapped.key_id)) {
            match service.unwrap_data_key(use_, wrapped) {
                Ok(key) => return Ok(key),
                Err(error) => {
                    if worst.as_ref().is_none_or(|worst| weight(&error) > weight(worst)) {
                        worst = Some(error);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| Error::NoKey {
            tenant: use_.tenant.into(),
            reason: format!(
                "{} is sealed under {}, and the key services here are {}: set `keys` to the one that has this key, or add \
                 it to `previous_keys`",
                use_.image,
                wrapped.key_id.escape_debug(),
                self.services().map(KeyService::describe).collect::<Vec<_>>().join(", "),
            ),
        }))
    }

    fn owns(&self, key_id: &str) -> bool {
        self.services().any(|service| service.owns(key_id))
    }

    fn describe(&self) -> String {
        self.current.describe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::LocalKeys;

    /// A service that has no key and does not answer.
    #[derive(Debug)]
    struct Down;

    impl KeyService for Down {
        fn generate_data_key(&self, _: &KeyUse<'_>) -> Result<(DataKey, WrappedKey), Error> {
            Err(Error::KeyServiceUnavailable { service: self.describe(), reason: "it is down".into() })
        }

        fn unwrap_data_key(&self, use_: &KeyUse<'_>, _: &WrappedKey) -> Result<DataKey, Error> {
            self.generate_data_key(use_).map(|(key, _)| key)
        }

        fn owns(&self, key_id: &str) -> bool {
            key_id.starts_with("local:") || key_id.starts_with("down:")
        }

        fn describe(&self) -> String {
            "down".into()
        }
    }

    const USE: KeyUse<'_> = KeyUse { tenant: "a", image: "x:latest" };

    fn local(folder: &tempfile::TempDir) -> Box<dyn KeyService> {
        Box::new(LocalKeys::new(folder.path()))
    }

    #[test]
    fn it_seals_with_the_current_service_and_opens_with_all() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (old_key, old) = local(&folders[0]).generate_data_key(&USE).unwrap();
        let ring = KeyRing::new(local(&folders[1]), vec![local(&folders[0])]);
        let (new_key, new) = ring.generate_data_key(&USE).unwrap();
        assert_ne!(old.key_id, new.key_id);
        assert_eq!(ring.unwrap_data_key(&USE, &old).unwrap().expose(), old_key.expose());
        assert_eq!(ring.unwrap_data_key(&USE, &new).unwrap().expose(), new_key.expose());
        assert!(matches!(local(&folders[0]).unwrap_data_key(&USE, &new), Err(Error::NoKey { .. })));
    }

    #[test]
    fn a_service_that_does_not_answer_does_not_hide_one_that_has_the_key() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (_, wrapped) = local(&folder).generate_data_key(&USE).unwrap();
        let ring = KeyRing::new(Box::new(Down), vec![local(&folder)]);
        assert!(ring.unwrap_data_key(&USE, &wrapped).is_ok());
        // Nobody has it, but one may.
        let ring = KeyRing::new(local(&other), vec![Box::new(Down)]);
        assert!(ring.unwrap_data_key(&USE, &wrapped).unwrap_err().is_unavailable());
    }

    #[test]
    fn a_manifest_of_a_service_that_is_not_set_up_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::new(local(&folder), vec![Box::new(Down)]);
        for key_id in ["awskms:arn:aws:kms:eu-west-1:1:key/2", "", "local", "\u{1b}[2J"] {
            let error = ring.unwrap_data_key(&USE, &WrappedKey { key_id: key_id.into(), bytes: vec![1] }).unwrap_err();
            assert!(matches!(error, Error::NoKey { .. }), "{error:?}");
            let message = error.to_string();
            for word in ["x:latest", "`previous_keys`", "local", "down"] {
                assert!(message.contains(word), "{message}");
            }
            assert!(!message.contains('\u{1b}'));
        }
    }
}
