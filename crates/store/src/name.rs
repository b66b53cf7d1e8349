//! Names of images, as users write them.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// `NAME[:TAG]`: what a published image is called within its tenant. The tag is `latest` where none is given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    name: String,
    tag: String,
}

impl ImageName {
    /// The part before the colon: lower-case letters, digits and `._-`, in components separated by `/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part after the colon.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name as one component of an object's path. `+` is in no name.
    pub(crate) fn folder(&self) -> String {
        self.name.replace('/', "+")
    }

    pub(crate) fn from_path(folder: &str, tag: &str) -> Option<Self> {
        format!("{}:{tag}", folder.replace('+', "/")).parse().ok()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Err(Error::Invalid(format!(
                "{text:?} is not an image's name: {why} (NAME[:TAG], such as python or tools/python:3.12)"
            )))
        };
        let (name, tag) = text.rsplit_once(':').unwrap_or((text, "latest"));
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if name.len() > 200 {
            return invalid("it has more than 200 characters");
        }
        for component in name.split('/') {
            let bytes = component.as_bytes();
            let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
                return invalid("a component of it is empty");
            };
            if !bytes.iter().all(|byte| alphanumeric(*byte) || b"._-".contains(byte)) {
                return invalid("only a-z, 0-9, '.', '_', '-' and '/' are allowed in it");
            }
            if !alphanumeric(*first) || !alphanumeric(*last) {
                return invalid("a component begins and ends with a letter or digit");
            }
        }
        let tag_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(|byte| tag_byte(&byte)) || tag.starts_with(['.', '-'])
        {
            return invalid("the tag has 1 to 128 letters, digits, '.', '_' or '-', and begins with no '.' or '-'");
        }
        Ok(Self { name: name.into(), tag: tag.into() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_read_and_show() {
        for (text, shown) in [("python", "python:latest"), ("a/b-c.d_e/f:V1.0", "a/b-c.d_e/f:V1.0"), ("1:2", "1:2")] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(ImageName::from_path(&name.folder(), name.tag()), Some(name));
        }
    }

    #[test]
    fn names_that_would_be_ambiguous_or_escape_are_refused() {
        let long = "a".repeat(201);
        for text in [
            "", ":", "a:", ":a", "A", "a//b", "/a", "a/", "../a", "a/..", "a b", "a+b", "a:b:c/d", "a:-x", "a:.x",
            "-a", "a_", "é", &long,
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
    }
}
