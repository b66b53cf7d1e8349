#![allow(clippy::unwrap_used)]
use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

fn use_of(tenant: &str) -> KeyUse<'_> {
    KeyUse { tenant, image: "x:latest" }
}

#[test]
fn a_data_key_comes_back_only_for_its_tenant_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    let (data_key, wrapped) = keys.generate_data_key(&use_of("a")).unwrap();
    assert_eq!(keys.unwrap_data_key(&use_of("a"), &wrapped).unwrap().expose(), data_key.expose());
    assert!(matches!(keys.unwrap_data_key(&use_of("b"), &wrapped), Err(Error::NoKey { .. })));

    // A tenant who copies another's key file still needs the other's name.
    fs::copy(folder.path().join("a.key"), folder.path().join("b.key")).unwrap();
    assert!(matches!(keys.unwrap_data_key(&use_of("b"), &wrapped), Err(Error::Unauthentic { .. })));

    for bytes in [vec![], vec![0; 5], wrapped.bytes[1..].to_vec(), vec![0; 60]] {
        let damaged = WrappedKey { bytes, ..wrapped.clone() };
        assert!(matches!(keys.unwrap_data_key(&use_of("a"), &damaged), Err(Error::Unauthentic { .. })));
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
        assert!(matches!(keys.generate_data_key(&use_of(name)), Err(Error::Invalid(_))), "{name:?}");
    }
}

/// Every key file of the folder, by name.
fn files(keys: &LocalKeys) -> Vec<(String, String)> {
    let mut files: Vec<_> = fs::read_dir(&keys.folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn after_a_rotation_old_manifests_open_until_the_old_key_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    assert!(matches!(keys.rotate("a"), Err(Error::NoKey { .. })), "there is none to rotate");
    let (old_key, old) = keys.generate_data_key(&use_of("a")).unwrap();
    let rotated = keys.rotate("a").unwrap();
    let (new_key, new) = keys.generate_data_key(&use_of("a")).unwrap();
    assert_eq!((&rotated.previous_key_id, &rotated.key_id), (&old.key_id, &new.key_id));
    assert_eq!(keys.unwrap_data_key(&use_of("a"), &old).unwrap().expose(), old_key.expose());
    assert_eq!(keys.unwrap_data_key(&use_of("a"), &new).unwrap().expose(), new_key.expose());

    let id = old.key_id.strip_prefix("local:").unwrap();
    assert_eq!(rotated.previous_path, folder.path().join(format!("a.{id}.key")));
    assert_eq!(fs::metadata(&rotated.previous_path).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::remove_file(&rotated.previous_path).unwrap();
    assert!(matches!(keys.unwrap_data_key(&use_of("a"), &old), Err(Error::NoKey { .. })));
    assert!(keys.unwrap_data_key(&use_of("a"), &new).is_ok());
}

#[test]
fn an_interrupted_rotation_loses_no_key_and_the_next_one_goes_on() {
    for stop in [Step::Kept, Step::Drafted, Step::Replaced] {
        let folder = tempfile::tempdir().unwrap();
        let keys = LocalKeys::new(folder.path());
        let mut wrapped = vec![keys.generate_data_key(&use_of("a")).unwrap().1];
        let stopped = keys.rotate_stopping("a", &|step| {
            // At each step on the way, not only at the one that it ends with, both old and current manifests open.
            assert!(keys.unwrap_data_key(&use_of("a"), &wrapped[0]).is_ok(), "{stop:?} {step:?}");
            if step == stop { Err(Error::Invalid("power cut".into())) } else { Ok(()) }
        });
        assert!(matches!(stopped, Err(Error::Invalid(_))));
        wrapped.push(keys.generate_data_key(&use_of("a")).unwrap().1);
        keys.rotate("a").unwrap();
        wrapped.push(keys.generate_data_key(&use_of("a")).unwrap().1);
        for (index, wrapped) in wrapped.iter().enumerate() {
            assert!(keys.unwrap_data_key(&use_of("a"), wrapped).is_ok(), "{stop:?} {index}");
        }
    }
}

#[test]
fn concurrent_rotations_and_publishers_lose_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    keys.generate_data_key(&use_of("a")).unwrap();
    let wrapped: Vec<WrappedKey> = std::thread::scope(|scope| {
        let rotate = || {
            for _ in 0..5 {
                keys.rotate("a").unwrap();
            }
        };
        let rotating: Vec<_> = (0..4).map(|_| scope.spawn(rotate)).collect();
        let publishing: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut wrapped = Vec::new();
                    for _ in 0..200 {
                        wrapped.push(keys.generate_data_key(&use_of("a")).unwrap().1);
                        assert!(keys.unwrap_data_key(&use_of("a"), wrapped.last().unwrap()).is_ok());
                    }
                    wrapped
                })
            })
            .collect();
        for thread in rotating {
            thread.join().unwrap();
        }
        publishing.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for wrapped in &wrapped {
        assert!(keys.unwrap_data_key(&use_of("a"), wrapped).is_ok(), "{}", wrapped.key_id);
    }
    assert_eq!(files(&keys).len(), 21, "twenty rotations keep twenty keys beside the current one");
}

#[test]
fn a_previous_key_under_a_false_name_is_neither_used_nor_lost() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    let (_, wrapped) = keys.generate_data_key(&use_of("a")).unwrap();
    let id = wrapped.key_id.strip_prefix("local:").unwrap().to_string();
    keys.generate_data_key(&use_of("b")).unwrap();
    let occupied = folder.path().join(format!("a.{id}.key"));
    fs::copy(folder.path().join("b.key"), &occupied).unwrap();
    let before = files(&keys);
    assert!(matches!(keys.rotate("a"), Err(Error::BadKeyFile { .. })));
    assert_eq!(files(&keys), before);
    fs::rename(folder.path().join("b.key"), folder.path().join("a.key")).unwrap();
    assert!(matches!(keys.unwrap_data_key(&use_of("a"), &wrapped), Err(Error::NoKey { .. })));
}

#[test]
fn a_key_id_from_a_manifest_leads_to_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let keys = LocalKeys::new(folder.path());
    keys.generate_data_key(&use_of("a")).unwrap();
    for id in ["local:", "local:../../../etc/x", "local:0123456789ABCDEF", "local:0123456789abcdef0", "awskms:x", ""] {
        let wrapped = WrappedKey { key_id: id.into(), bytes: vec![0; 60] };
        assert!(matches!(keys.unwrap_data_key(&use_of("a"), &wrapped), Err(Error::NoKey { .. })), "{id}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn hostile_wrapped_keys_give_errors(id in "(local:)?\\PC{0,24}", bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let folder = tempfile::tempdir().unwrap();
        let keys = LocalKeys::new(folder.path());
        let (_, ours) = keys.generate_data_key(&use_of("a")).unwrap();
        for key_id in [id, ours.key_id] {
            let unwrapped = keys.unwrap_data_key(&use_of("a"), &WrappedKey { key_id, bytes: bytes.clone() });
            prop_assert!(unwrapped.is_err());
        }
    }
}
