#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::access::Login;
use super::*;

fn vault(address: &str, allow_http: bool) -> Result<Vault, Error> {
    let access = VaultAccess {
        address: address.into(),
        namespace: None,
        ca_file: None,
        login: Login::Token(Zeroizing::new("t".into())),
    };
    Vault::new(access, "transit", "images", Options { allow_http, ..Options::default() })
}

#[test]
fn an_address_without_tls_needs_to_be_allowed() {
    assert!(vault("https://127.0.0.1:1", false).is_ok());
    assert!(vault("http://127.0.0.1:1", true).is_ok());
    for address in ["http://127.0.0.1:1", "ftp://a", "a", ""] {
        assert!(matches!(vault(address, false), Err(Error::KeyService { .. })), "{address}");
    }
}

#[test]
fn a_key_knows_its_ids() {
    let vault = vault("https://a", false).unwrap();
    assert!(vault.owns("vault:transit/images:v1") && vault.owns("vault:transit/images:v12"));
    for foreign in [
        "vault:transit/images",
        "vault:transit/images:v",
        "vault:transit/images:v1x",
        "vault:transit/images2:v1",
        "vault:other/images:v1",
        "local:0123456789abcdef",
        "",
    ] {
        assert!(!vault.owns(foreign), "{foreign}");
    }
}

/// Where this fails, manifests that are stored no longer open.
#[test]
fn a_key_is_bound_to_what_the_format_says() {
    let use_ = KeyUse { tenant: "a", image: "python/app:latest" };
    assert_eq!(associated_text(&use_), r#"{"snowmelt:image":"python/app:latest","snowmelt:tenant":"a"}"#);
}

proptest! {
    /// Nothing is at that address, so whatever is sent fails there; what is not even sent is not authentic.
    #[test]
    fn hostile_wrapped_keys_are_refused_before_they_are_sent(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let vault = vault("https://192.0.2.1", false).unwrap();
        let use_ = KeyUse { tenant: "a", image: "x:latest" };
        for prefix in ["", "vault:v1:"] {
            let bytes = [prefix.as_bytes(), &bytes, b"\""].concat();
            let wrapped = WrappedKey { key_id: "vault:transit/images:v1".into(), bytes };
            let refused = matches!(vault.unwrap_data_key(&use_, &wrapped), Err(Error::Unauthentic { .. }));
            prop_assert!(refused);
        }
    }
}
