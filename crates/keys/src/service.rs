//! Key services as settings name them: `local`, `awskms:alias/images`, `vault:transit/images`.

use std::fmt;
use std::str::FromStr;

use snowmelt_chunk::{Error, check_tenant};
use url::Url;

/// Stands for the tenant in a setting, so that one setting gives each tenant a key of its own.
const TENANT: &str = "{tenant}";

/// A key service and the key in it, as a setting names them. `{tenant}` in it stands for the tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Service {
    /// `local`: files on this machine.
    Local,
    /// `awskms:<key>`: AWS KMS.
    AwsKms {
        /// An id, an ARN, an alias (`alias/<name>`) or an alias' ARN.
        key: String,
    },
    /// `vault:<mount>/<key>` or `vault:https://<host>/<mount>/<key>`: the transit engine of HashiCorp Vault or OpenBao.
    Vault {
        /// The server; `None` where `VAULT_ADDR` names it.
        address: Option<String>,
        /// Where the engine is mounted: one or more names joined by `/`.
        mount: String,
        /// The key's name in the engine.
        key: String,
    },
}

impl Service {
    /// The same with the tenant's name in the place of `{tenant}`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no tenant's name.
    pub fn for_tenant(&self, tenant: &str) -> Result<Self, Error> {
        // Nothing in a tenant's name means anything in an id, an alias or a path.
        check_tenant(tenant)?;
        let named = |text: &String| text.replace(TENANT, tenant);
        Ok(match self {
            Self::Local => Self::Local,
            Self::AwsKms { key } => Self::AwsKms { key: named(key) },
            Self::Vault { address, mount, key } => {
                Self::Vault { address: address.clone(), mount: named(mount), key: named(key) }
            }
        })
    }
}

impl FromStr for Service {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |what: &str| {
            Error::Invalid(format!(
                "{text:?} is no key service: {what}; expected local, awskms:KEY (an id, an ARN or alias/NAME), \
                 vault:MOUNT/KEY or vault:https://HOST/MOUNT/KEY"
            ))
        };
        if text == "local" {
            return Ok(Self::Local);
        }
        if let Some(key) = text.strip_prefix("awskms:") {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b":/_-".contains(&byte);
            let spelled = key.replace(TENANT, "t");
            if spelled.is_empty() || spelled.len() > 2048 || !spelled.bytes().all(plain) {
                return Err(invalid("its key is not one of AWS KMS"));
            }
            return Ok(Self::AwsKms { key: key.into() });
        }
        let Some(rest) = text.strip_prefix("vault:") else {
            return Err(invalid("it begins with none of their names"));
        };
        let (address, path) = match address_end(rest) {
            Some(end) => {
                let (address, path) = rest.split_at(end);
                let url = Url::parse(address).map_err(|error| invalid(&format!("its address: {error}")))?;
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(invalid("its address holds a user, which Vault has none of"));
                }
                (Some(address.to_owned()), path.trim_start_matches('/'))
            }
            None => (None, rest),
        };
        let (mount, key) = path.rsplit_once('/').ok_or_else(|| invalid("it names no mount and key"))?;
        let named = |name: &str| {
            let name = name.replace(TENANT, "t");
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !name.is_empty() && name.len() <= 255 && name.bytes().all(plain) && !name.starts_with('.')
        };
        if !mount.split('/').all(named) || !named(key) {
            return Err(invalid("names of mounts and keys have letters, digits, '.', '_', '-'"));
        }
        Ok(Self::Vault { address, mount: mount.into(), key: key.into() })
    }
}

/// Where the address of `https://host:8200/mount/key` ends; `None` where there is none.
fn address_end(text: &str) -> Option<usize> {
    let scheme = ["https://", "http://"].into_iter().find(|scheme| text.starts_with(scheme))?;
    Some(text[scheme.len()..].find('/').map_or(text.len(), |slash| scheme.len() + slash))
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::AwsKms { key } => write!(f, "awskms:{key}"),
            Self::Vault { address: None, mount, key } => write!(f, "vault:{mount}/{key}"),
            Self::Vault { address: Some(address), mount, key } => write!(f, "vault:{address}/{mount}/{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_setting_reads_back_as_it_shows() {
        for text in [
            "local",
            "awskms:1234abcd-12ab-34cd-56ef-1234567890ab",
            "awskms:alias/snowmelt-{tenant}",
            "awskms:arn:aws:kms:eu-west-1:111122223333:key/mrk-1234",
            "vault:transit/images",
            "vault:team/a/transit/{tenant}",
            "vault:https://vault.example:8200/transit/images",
            "vault:http://[::1]:8200/transit/images",
        ] {
            assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
        }
        let Service::Vault { address, mount, key } = "vault:https://a:1/b/c/d".parse().unwrap() else { panic!() };
        assert_eq!((address.as_deref(), mount.as_str(), key.as_str()), (Some("https://a:1"), "b/c", "d"));
    }

    #[test]
    fn what_is_no_service_is_refused_with_what_is_one() {
        for text in [
            "",
            "Local",
            "local:",
            "awskms:",
            "awskms:a b",
            "awskms:{other}",
            "vault:",
            "vault:transit",
            "vault:/key",
            "vault:a//b",
            "vault:../sys/key",
            "vault:a/b?c",
            "vault:https://",
            "vault:https:///a/b",
            "vault:https://h/a",
            "vault:https://user:password@h/a/b",
            "gcpkms:x",
        ] {
            let error = text.parse::<Service>().unwrap_err().to_string();
            assert!(error.contains("awskms:KEY"), "{text}: {error}");
        }
    }

    #[test]
    fn a_tenant_is_put_in_its_place_and_nothing_else() {
        let service: Service = "vault:a-{tenant}/{tenant}".parse().unwrap();
        assert_eq!(service.for_tenant("t1").unwrap().to_string(), "vault:a-t1/t1");
        for tenant in ["../x", "", "A", "a/b", "{tenant}"] {
            assert!(service.for_tenant(tenant).is_err(), "{tenant}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_setting_or_an_error(text in "(awskms:|vault:|vault:https?://)?\\PC{0,40}") {
            if let Ok(service) = text.parse::<Service>() {
                prop_assert_eq!(service.to_string().parse::<Service>().unwrap(), service);
            }
        }
    }
}
