//! Where a Vault server is and who asks it, as Vault's own command finds them: `VAULT_ADDR`, `VAULT_TOKEN` and so on.

use std::fmt;
use std::path::PathBuf;

use snowmelt_chunk::Error;
use zeroize::Zeroizing;

/// How a Vault server is reached.
#[derive(Clone, Debug)]
pub struct VaultAccess {
    /// The server: `https://vault.example:8200`.
    pub address: String,
    /// A namespace of Vault Enterprise or OpenBao.
    pub namespace: Option<String>,
    /// A PEM file of authorities that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Who asks.
    pub login: Login,
}

/// Who asks a Vault server.
#[derive(Clone)]
pub enum Login {
    /// Somebody with a token.
    Token(Zeroizing<String>),
    /// A machine with an AppRole, which gets a token for it.
    AppRole {
        /// Names the role.
        role_id: String,
        /// Proves it; absent where the role needs none.
        secret_id: Option<Zeroizing<String>>,
    },
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(secret)",
            Self::AppRole { .. } => "AppRole(secret)",
        })
    }
}

impl VaultAccess {
    /// From `VAULT_ADDR`, unless `address` is given, `VAULT_NAMESPACE`, `VAULT_CACERT`; and the first there is of `VAULT_TOKEN`,
    /// `VAULT_ROLE_ID` with `VAULT_SECRET_ID`, and `~/.vault-token`.
    ///
    /// # Errors
    /// [`Error::KeyService`] without an address or a token.
    pub fn from_environment(address: Option<&str>) -> Result<Self, Error> {
        Self::from_variables(address, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(address: Option<&str>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let missing = |reason: String| Error::KeyService { service: "vault".into(), reason };
        let address = address.map(str::to_owned).or_else(|| variable("VAULT_ADDR"));
        let address = address.ok_or_else(|| missing("its address is not set: set VAULT_ADDR".into()))?;
        let file = variable("HOME").map(|home| PathBuf::from(home).join(".vault-token"));
        let from_file = || {
            let text = Zeroizing::new(std::fs::read_to_string(file.as_ref()?).ok()?);
            let token = text.trim();
            (!token.is_empty()).then(|| Login::Token(Zeroizing::new(token.to_owned())))
        };
        let app_role = || {
            let role_id = variable("VAULT_ROLE_ID")?;
            Some(Login::AppRole { role_id, secret_id: variable("VAULT_SECRET_ID").map(Zeroizing::new) })
        };
        let token = variable("VAULT_TOKEN").map(|token| Login::Token(Zeroizing::new(token)));
        let login = token.or_else(app_role).or_else(from_file).ok_or_else(|| {
            missing(
                "there is no token: set VAULT_TOKEN, or VAULT_ROLE_ID and VAULT_SECRET_ID, or log in (~/.vault-token)"
                    .into(),
            )
        })?;
        let (namespace, ca_file) = (variable("VAULT_NAMESPACE"), variable("VAULT_CACERT").map(PathBuf::from));
        Ok(Self { address, namespace, ca_file, login })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn access(address: Option<&str>, variables: &[(&str, &str)]) -> Result<VaultAccess, Error> {
        VaultAccess::from_variables(address, &|name| {
            variables.iter().find(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn token(access: &VaultAccess) -> &str {
        let Login::Token(token) = &access.login else { panic!("{access:?}") };
        token
    }

    #[test]
    fn a_token_is_looked_for_where_vault_does() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        let error = access(Some("https://a"), &[("HOME", home_text)]).unwrap_err().to_string();
        assert!(error.contains("VAULT_TOKEN") && error.contains(".vault-token"), "{error}");
        std::fs::write(home.path().join(".vault-token"), "from-file\n").unwrap();
        let file = ("HOME", home_text);
        assert_eq!(token(&access(Some("https://a"), &[file]).unwrap()), "from-file");
        let role = [("VAULT_ROLE_ID", "role"), ("VAULT_SECRET_ID", "proof")];
        let found = access(Some("https://a"), &[file, role[0], role[1]]).unwrap();
        assert!(matches!(&found.login, Login::AppRole { role_id, secret_id: Some(_) } if role_id == "role"));
        assert!(!format!("{found:?}").contains("proof"));
        let found = access(Some("https://a"), &[file, role[0], role[1], ("VAULT_TOKEN", "from-variable")]).unwrap();
        assert_eq!(token(&found), "from-variable");
        assert!(!format!("{found:?}").contains("from-variable"));
    }

    #[test]
    fn the_setting_s_address_goes_before_the_variable() {
        let variables = [("VAULT_TOKEN", "t"), ("VAULT_ADDR", "https://b")];
        assert_eq!(access(None, &variables).unwrap().address, "https://b");
        assert_eq!(access(Some("https://a"), &variables).unwrap().address, "https://a");
        assert!(access(None, &variables[..1]).unwrap_err().to_string().contains("VAULT_ADDR"));
    }
}
