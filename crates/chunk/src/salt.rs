//! Salts: what decides with whom a chunk is shared, and for how long.

use aws_lc_rs::hkdf;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret of 32 bytes that goes into every chunk key. Chunks are shared between images that were published under the
/// same salt. Only publishers need it: readers take the keys from the manifest.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Salt([u8; 32]);

/// Who may share a chunk (section 2 of the design).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every tenant of the deployment: images.
    Everyone,
    /// One tenant: private data, such as the memory of a function.
    Tenant(String),
    /// One layer of a stack of snapshots, such as `os` or `runtime`.
    Layer(String),
}

/// What a salt is derived for. Two domains that differ in any field have unrelated salts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaltDomain {
    /// The id of the root that the chunks are stored under.
    pub root: String,
    /// Counts rotations over time.
    pub epoch: u32,
    /// The zone that the chunks are kept in, or its popularity class; empty where chunks of all zones and classes are shared.
    pub class: String,
    /// Who may share the chunks.
    pub scope: Scope,
}

impl SaltDomain {
    /// The domain's bytes: a label, then every field preceded by its length, so that no two domains encode alike.
    fn encode(&self) -> Vec<u8> {
        let (scope, name) = match &self.scope {
            Scope::Everyone => (0, ""),
            Scope::Tenant(name) => (1, name.as_str()),
            Scope::Layer(name) => (2, name.as_str()),
        };
        let mut bytes = b"snowmelt salt v1".to_vec();
        bytes.extend(self.epoch.to_le_bytes());
        bytes.push(scope);
        for field in [self.root.as_str(), self.class.as_str(), name] {
            bytes.extend((field.len() as u64).to_le_bytes());
            bytes.extend(field.as_bytes());
        }
        bytes
    }
}

impl Salt {
    /// Derives the salt of a domain from the deployment's salt secret: HKDF-SHA256 (RFC 5869) with an empty salt, the
    /// secret as input key material and the encoded domain as info.
    pub fn derive(secret: &[u8; 32], domain: &SaltDomain) -> Self {
        Self(hkdf_sha256(&[], secret, &domain.encode()))
    }

    /// A salt given as bytes, for tests and test vectors.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The salt's bytes. They are secret.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(secret)")
    }
}

/// HKDF-SHA256, extract and expand, to 32 bytes.
pub(crate) fn hkdf_sha256(salt: &[u8], input: &[u8], info: &[u8]) -> [u8; 32] {
    let mut output = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(input)
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|key| key.fill(&mut output))
        .expect("32 bytes are one block of HKDF-SHA256, always within its limit");
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> SaltDomain {
        SaltDomain { root: "a".into(), epoch: 0, class: String::new(), scope: Scope::Everyone }
    }

    #[test]
    fn every_field_of_the_domain_changes_the_salt() {
        let secret = [1; 32];
        let base = Salt::derive(&secret, &domain());
        let others = [
            SaltDomain { root: "b".into(), ..domain() },
            SaltDomain { epoch: 1, ..domain() },
            SaltDomain { class: "hot".into(), ..domain() },
            SaltDomain { scope: Scope::Tenant(String::new()), ..domain() },
            SaltDomain { scope: Scope::Tenant("t".into()), ..domain() },
            SaltDomain { scope: Scope::Layer("t".into()), ..domain() },
            SaltDomain { root: String::new(), class: "a".into(), ..domain() },
        ];
        let mut seen = vec![*base.expose()];
        for other in &others {
            let salt = *Salt::derive(&secret, other).expose();
            assert!(!seen.contains(&salt), "{other:?}");
            seen.push(salt);
        }
        assert_ne!(Salt::derive(&[2; 32], &domain()).expose(), base.expose());
    }

    #[test]
    fn a_salt_does_not_show() {
        assert_eq!(format!("{:?}", Salt::from_bytes([3; 32])), "Salt(secret)");
    }
}
