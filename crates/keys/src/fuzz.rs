//! Entry points for fuzzers: bytes from outside in, no panic out.

use snowmelt_chunk::{KeyService, KeyUse, LocalKeys, WrappedKey};

use crate::{Login, Options, Service, Vault, VaultAccess};

/// A setting, and what a manifest says about its key: the first line is the setting, the second the key's id, the rest the wrapped key.
/// Nobody is asked: it is about what is refused before.
pub fn fuzz_keys(input: &[u8]) {
    let mut lines = input.splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (setting, key_id, wrapped) =
        (String::from_utf8_lossy(line()), String::from_utf8_lossy(line()), line().to_vec());
    if let Ok(service) = setting.parse::<Service>() {
        assert_eq!(service.to_string().parse::<Service>().ok().as_ref(), Some(&service));
        if let Ok(of_tenant) = service.for_tenant("a-tenant") {
            assert!(!of_tenant.to_string().contains("{tenant}"));
        }
        owns(&service, &key_id);
    }
    // A folder that is not there: a key is looked for, and none is made.
    let local = LocalKeys::new("/nonexistent/snowmelt");
    let use_ = KeyUse { tenant: "a-tenant", image: "x:latest" };
    assert!(local.unwrap_data_key(&use_, &WrappedKey { key_id: key_id.into_owned(), bytes: wrapped.clone() }).is_err());
    crate::vault::fuzz_ciphertext(&wrapped);
}

/// Whether a service takes a key's id for one of its own, which it must not with one of another service.
fn owns(service: &Service, key_id: &str) {
    let own: Option<Box<dyn KeyService>> = match service {
        Service::Local => Some(Box::new(LocalKeys::new("/nonexistent/snowmelt"))),
        #[cfg(feature = "aws")]
        Service::AwsKms { key } => Some(Box::new(crate::AwsKms::new(key.clone(), Options::default()))),
        #[cfg(not(feature = "aws"))]
        Service::AwsKms { .. } => None,
        Service::Vault { address, mount, key } => {
            let address = address.clone().unwrap_or_else(|| "https://localhost".into());
            let login = Login::Token(zeroize::Zeroizing::new("t".into()));
            let access = VaultAccess { address, namespace: None, ca_file: None, login };
            Vault::new(access, mount, key, Options::default())
                .ok()
                .map(|vault| -> Box<dyn KeyService> { Box::new(vault) })
        }
    };
    if let Some(own) = own.filter(|own| own.owns(key_id)) {
        let kind = |text: &str| text.split([':', ' ']).next().map(str::to_owned);
        assert_eq!(kind(&own.describe()), kind(key_id), "{} takes {key_id}", own.describe());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARTS: [&str; 14] = [
        "local",
        "local:",
        "awskms:",
        "vault:",
        "arn:aws:kms:eu-west-1:1:key/",
        "mrk-1",
        "alias/",
        "{tenant}",
        "transit/",
        "/k",
        ":v1",
        "https://h:1/",
        "\n",
        "AAAA=",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn hostile_bytes_give_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_keys(&bytes);
        }

        #[test]
        fn settings_and_ids_of_any_parts_give_errors(
            parts in proptest::collection::vec((0..PARTS.len(), "[a-z0-9:/._-]{0,3}"), 0..12),
        ) {
            let text: String = parts.iter().flat_map(|(part, more)| [PARTS[*part], more.as_str()]).collect();
            fuzz_keys(text.as_bytes());
        }
    }
}
