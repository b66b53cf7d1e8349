use std::fmt;
use std::str::FromStr;

use crate::Error;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse_hex(text)
                    .map(Self)
                    .ok_or_else(|| Error::Invalid(format!("{text:?} is not an id: 64 hexadecimal digits in lower case")))
            }
        }
    };
}

id_type! {
    /// The name of a stored chunk: the suite's hash of its ciphertext, 32 bytes; shown as 64 lower-case hexadecimal digits.
    ChunkId
}

id_type! {
    /// The name of a stored manifest: BLAKE3 of its bytes, 32 bytes; shown as 64 lower-case hexadecimal digits.
    ManifestId
}

impl ManifestId {
    /// The id of a manifest's encoded bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// Reads 64 lower-case hexadecimal digits.
pub(crate) fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_shows() {
        let id = ChunkId(std::array::from_fn(|i| (i * 9) as u8));
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
    }

    #[test]
    fn only_64_lower_case_digits_are_an_id() {
        for text in ["", "00", &"0".repeat(63), &"0".repeat(65), &"A".repeat(64), &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<ChunkId>().is_err(), "{text:?}");
        }
    }
}
