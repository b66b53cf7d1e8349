#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn a_data_key_comes_back_only_for_its_tenant_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    let (data_key, wrapped) = keys.generate_data_key("a").unwrap();
    assert_eq!(keys.unwrap_data_key("a", &wrapped).unwrap().0, data_key.0);
    assert!(matches!(keys.unwrap_data_key("b", &wrapped), Err(Error::NoKey { .. })));

    // A tenant who copies another's key file still needs the other's name.
    fs::copy(folder.path().join("a.key"), folder.path().join("b.key")).unwrap();
    assert!(matches!(keys.unwrap_data_key("b", &wrapped), Err(Error::Unauthentic { .. })));

    for bytes in [vec![], vec![0; 5], wrapped.bytes[1..].to_vec(), vec![0; 60]] {
        let damaged = WrappedKey { bytes, ..wrapped.clone() };
        assert!(matches!(keys.unwrap_data_key("a", &damaged), Err(Error::Unauthentic { .. })));
    }
}

#[test]
fn key_files_are_made_once_for_the_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path().join("deep/er"));
    let secrets: Vec<[u8; 32]> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| *keys.salt_secret().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));
    let files: Vec<_> = fs::read_dir(&keys.folder).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 1, "no draft is left: {files:?}");
    assert_eq!(files[0].metadata().unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn a_key_file_that_others_may_read_or_that_is_damaged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    keys.salt_secret().unwrap();
    let path = folder.path().join("salt.secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(keys.salt_secret().unwrap_err().to_string().contains("chmod 600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for text in ["", "abc", &"z".repeat(64), &"0".repeat(100)] {
        fs::write(&path, text).unwrap();
        assert!(matches!(keys.salt_secret(), Err(Error::BadKeyFile { .. })), "{text:?}");
    }
}

#[test]
fn tenants_names_stay_inside_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    for name in ["", "..", "a/b", "A", "-a", "_a", "a b", "salt.secret", &"a".repeat(65)] {
        assert!(matches!(keys.generate_data_key(name), Err(Error::Invalid(_))), "{name:?}");
    }
}
