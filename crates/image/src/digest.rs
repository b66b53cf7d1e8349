//! Content digests as OCI writes them: `sha256:` or `sha512:` and lower-case hexadecimal digits.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256, SHA512};

mod background;
pub(crate) use background::BackgroundHasher;

/// An algorithm that OCI registers (image-spec, descriptor.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

/// A digest, checked to be well-formed; so its text is safe in an URL and in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Reads `sha256:<64 hex>` or `sha512:<128 hex>`; the error says what is wrong with the text.
    pub(crate) fn parse(text: &str) -> Result<Digest, String> {
        let (algorithm, hex) = match text.split_once(':') {
            Some(("sha256", hex)) => (Algorithm::Sha256, hex),
            Some(("sha512", hex)) => (Algorithm::Sha512, hex),
            _ => return Err(format!("the digest {text:?} is neither sha256:… nor sha512:…")),
        };
        let length = match algorithm {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        };
        if hex.len() != length || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("the digest {text:?} must have {length} lower-case hexadecimal digits"));
        }
        Ok(Digest { algorithm, hex: hex.to_owned() })
    }

    /// The digest of `bytes`.
    #[cfg(test)]
    pub(crate) fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(crate) fn hex(&self) -> &str {
        &self.hex
    }

    /// Name of the algorithm, as it stands before the colon.
    pub(crate) fn algorithm_name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Whether `bytes` have this digest.
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm_name(), self.hex)
    }
}

/// Computes a digest piece by piece.
pub(crate) struct Hasher {
    algorithm: Algorithm,
    context: Context,
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        let context = match algorithm {
            Algorithm::Sha256 => Context::new(&SHA256),
            Algorithm::Sha512 => Context::new(&SHA512),
        };
        Hasher { algorithm, context }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        use fmt::Write;
        let mut hex = String::with_capacity(128);
        for byte in self.context.finish().as_ref() {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        }
        Digest { algorithm: self.algorithm, hex }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn known_digests() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert!(Digest::parse(empty).unwrap().matches(b""));
        assert!(!Digest::parse(empty).unwrap().matches(b"x"));
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"abc");
        assert!(hasher.finish().to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
    }

    #[test]
    fn malformed_digests_are_refused() {
        for text in ["", "sha256:", "md5:00", "sha256:../../etc/passwd", &format!("sha256:{}", "A".repeat(64))] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
    }
}
