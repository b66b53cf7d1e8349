//! No `Debug` shows a secret: what is written to a log by mistake must give nothing away.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Debug;

use snowmelt_chunk::{
    ChunkId, ChunkRecord, ChunkSecret, DataKey, Geometry, KeyRing, KeyService as _, KeyUse, LocalKeys, ManifestBuilder,
    Salt, SaltDomain, Scope, Sealed, Suite,
};
use zeroize::Zeroizing;

/// A pattern that shows in any of the ways bytes are written: as numbers, hexadecimal digits, text.
const SECRET: [u8; 32] = *b"ZQZQZQZQZQZQZQZQZQZQZQZQZQZQZQZQ";

fn hides(value: &dyn Debug) {
    for shown in [format!("{value:?}"), format!("{value:#?}"), format!("{value:x?}")] {
        let plain: String = shown.split_whitespace().collect::<String>().to_lowercase();
        for pattern in ["zqzq", "90,81", "5a51", "5a,51", "0x5a"] {
            assert!(!plain.contains(pattern), "{shown}");
        }
    }
}

#[test]
fn no_secret_type_shows_what_it_holds() {
    let secret = ChunkSecret { key: SECRET, tag: SECRET[..16].try_into().unwrap() };
    let id = ChunkId([1; 32]);
    hides(&secret);
    hides(&Some(&secret));
    hides(&Sealed { id, secret: secret.clone() });
    hides(&DataKey::from_bytes(&Zeroizing::new(SECRET)));
    hides(&Salt::from_bytes(SECRET));
    let domain = SaltDomain { root: "main".into(), epoch: 0, class: String::new(), scope: Scope::Everyone };
    hides(&Salt::derive(&SECRET, &domain));

    let folder = tempfile::tempdir().unwrap();
    let hex = ChunkId(SECRET).to_string();
    for name in ["a.key", "salt.secret"] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(folder.path().join(name), &hex).unwrap();
        std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let keys = LocalKeys::new(folder.path());
    assert_eq!(*keys.salt_secret().unwrap(), SECRET, "the secret is the one that is looked for");
    let use_ = KeyUse { tenant: "a", image: "x:latest" };
    hides(&keys);
    hides(&keys.generate_data_key(&use_).unwrap());
    hides(&keys.rotate("a").unwrap());
    hides(&KeyRing::new(Box::new(keys.clone()), vec![Box::new(keys.clone())]));

    let geometry = Geometry { image_size: 8192, chunk_size: 4096 };
    let mut builder = ManifestBuilder::new(Suite::default(), geometry).unwrap();
    builder.push(ChunkRecord { slot: 0, stored_length: 4096, id }, secret);
    hides(&builder);
    // Metadata is sealed too: variables of the environment may be secrets.
    let manifest = builder.seal("a", "x:latest", &SECRET, &keys).unwrap();
    hides(&manifest);
    let opened = manifest.open(&keys, "x:latest").unwrap();
    assert_eq!(opened.metadata(), SECRET);
    hides(&opened);
    hides(&opened.chunk(0));
    std::fs::remove_file(folder.path().join("a.key")).unwrap();
    hides(&manifest.open(&keys, "x:latest").unwrap_err());
}
