//! How callers name functions: by name, by a part of an ARN, or by the whole of it, each perhaps with a version or alias.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::api::ApiError;

/// A function's name: 1 to 64 letters, digits, `-` and `_`.
const MOST_NAME: usize = 64;
/// An alias's: 1 to 128 of the same, with a letter or `-` or `_` in it.
const MOST_ALIAS: usize = 128;
/// Partition and service of every ARN.
const SERVICE: &str = "arn:aws:lambda";

/// Where functions of a tenant are, for ARNs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Such as `us-east-1`.
    pub region: String,
    /// Twelve digits.
    pub account: String,
}

/// What a name is followed by: which code is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Qualifier {
    /// `$LATEST`: what can still be changed.
    #[default]
    Latest,
    /// A version that was published.
    Version(u64),
    /// A name for a version.
    Alias(String),
}

/// A function as somebody names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionName {
    /// The name alone.
    pub name: String,
    /// What was said of the code, if anything was.
    pub qualifier: Option<Qualifier>,
}

impl fmt::Display for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("$LATEST"),
            Self::Version(number) => write!(f, "{number}"),
            Self::Alias(name) => f.write_str(name),
        }
    }
}

impl From<Qualifier> for String {
    fn from(qualifier: Qualifier) -> Self {
        qualifier.to_string()
    }
}

impl TryFrom<String> for Qualifier {
    type Error = ApiError;

    fn try_from(text: String) -> Result<Self, ApiError> {
        Self::parse(&text)
    }
}

fn is_word(text: &str, most: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=most).contains(&text.len()) && text.bytes().all(plain)
}

impl Qualifier {
    /// Reads what stands behind the last colon, or in a query.
    ///
    /// # Errors
    /// Invalid parameter.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        if text == "$LATEST" {
            return Ok(Self::Latest);
        }
        if let Ok(number) = text.parse::<u64>()
            && number > 0
            && !text.starts_with(['0', '+'])
        {
            return Ok(Self::Version(number));
        }
        Self::alias(text)
    }

    /// An alias's name.
    ///
    /// # Errors
    /// Invalid parameter.
    pub fn alias(text: &str) -> Result<Self, ApiError> {
        if is_word(text, MOST_ALIAS) && !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Alias(text.to_owned()));
        }
        Err(ApiError::invalid(format!(
            "{text:?} is no version and no alias: expected $LATEST, a number, or 1 to {MOST_ALIAS} letters, digits, '-' and '_' that are not all digits"
        )))
    }
}

impl FunctionName {
    /// Reads `name`, `account:function:name`, or an ARN, of a function at `place`.
    ///
    /// # Errors
    /// Invalid parameter for what is none of these; not found for the ARN of another place.
    pub fn parse(text: &str, place: &Place) -> Result<Self, ApiError> {
        let invalid = || {
            ApiError::invalid(format!(
                "{text:?} names no function: expected a name of 1 to {MOST_NAME} letters, digits, '-' and '_', \
                 <account>:function:<name>, or {SERVICE}:<region>:<account>:function:<name>, each with or without :<qualifier>"
            ))
        };
        let elsewhere = || ApiError::not_found(format!("Function not found: {text}"));
        let parts: Vec<&str> = text.split(':').collect();
        let rest = match parts.as_slice() {
            ["arn", "aws", "lambda", region, account, "function", rest @ ..] => {
                if *region != place.region || *account != place.account {
                    return Err(elsewhere());
                }
                rest
            }
            [account, "function", rest @ ..] => {
                if !account.bytes().all(|byte| byte.is_ascii_digit()) || account.len() != 12 {
                    return Err(invalid());
                }
                if *account != place.account {
                    return Err(elsewhere());
                }
                rest
            }
            ["function", rest @ ..] | rest => rest,
        };
        let (name, qualifier) = match rest {
            [name] => (*name, None),
            [name, qualifier] => (*name, Some(Qualifier::parse(qualifier)?)),
            _ => return Err(invalid()),
        };
        if !is_word(name, MOST_NAME) {
            return Err(invalid());
        }
        Ok(Self { name: name.to_owned(), qualifier })
    }

    /// With what a query says of the code, which must not say something else.
    ///
    /// # Errors
    /// Invalid parameter.
    pub fn qualified(mut self, query: Option<&str>) -> Result<Self, ApiError> {
        let Some(query) = query.map(Qualifier::parse).transpose()? else { return Ok(self) };
        match &self.qualifier {
            Some(own) if *own != query => Err(ApiError::invalid(format!(
                "The derived qualifier from the function name does not match the specified qualifier: {own} and {query}"
            ))),
            _ => {
                self.qualifier = Some(query);
                Ok(self)
            }
        }
    }

    /// Only a name, for what concerns all versions.
    ///
    /// # Errors
    /// Invalid parameter where something was said of the code.
    pub fn unqualified(self) -> Result<String, ApiError> {
        match self.qualifier {
            None | Some(Qualifier::Latest) => Ok(self.name),
            Some(other) => Err(ApiError::invalid(format!(
                "this concerns the function and not a version of it: leave {other} out of its name"
            ))),
        }
    }
}

impl Place {
    /// The ARN of a function, or of one of its versions and aliases.
    pub fn arn(&self, name: &str, qualifier: Option<&Qualifier>) -> String {
        let arn = format!("{SERVICE}:{}:{}:function:{name}", self.region, self.account);
        match qualifier {
            None => arn,
            Some(qualifier) => format!("{arn}:{qualifier}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place { region: "us-east-1".into(), account: "000000000000".into() }
    }

    #[test]
    fn every_way_to_name_a_function() {
        for (text, qualifier) in [
            ("hello", None),
            ("hello:$LATEST", Some(Qualifier::Latest)),
            ("hello:7", Some(Qualifier::Version(7))),
            ("hello:live", Some(Qualifier::Alias("live".into()))),
            ("function:hello", None),
            ("000000000000:function:hello", None),
            ("arn:aws:lambda:us-east-1:000000000000:function:hello", None),
            ("arn:aws:lambda:us-east-1:000000000000:function:hello:1a", Some(Qualifier::Alias("1a".into()))),
        ] {
            let name = FunctionName::parse(text, &place()).unwrap();
            assert_eq!((name.name.as_str(), &name.qualifier), ("hello", &qualifier), "{text}");
        }
    }

    #[test]
    fn what_is_no_name() {
        let long = "x".repeat(65);
        for text in ["", ":", "a b", "a:", "a:b:c", "hello:0", "hello:07", "arn:aws:lambda", "x:function:hello", &long]
        {
            let error = FunctionName::parse(text, &place()).unwrap_err();
            assert_eq!(error.status(), 400, "{text}");
        }
        for text in ["arn:aws:lambda:eu-west-1:000000000000:function:hello", "111111111111:function:hello"] {
            assert_eq!(FunctionName::parse(text, &place()).unwrap_err().status(), 404, "{text}");
        }
    }

    #[test]
    fn a_query_says_the_same_or_nothing() {
        let name = |text| FunctionName::parse(text, &place()).unwrap();
        assert_eq!(name("a").qualified(Some("3")).unwrap().qualifier, Some(Qualifier::Version(3)));
        assert_eq!(name("a:3").qualified(None).unwrap().qualifier, Some(Qualifier::Version(3)));
        assert!(name("a:3").qualified(Some("3")).is_ok());
        assert_eq!(name("a:3").qualified(Some("4")).unwrap_err().status(), 400);
        assert_eq!(name("a:$LATEST").unqualified().unwrap(), "a");
        assert_eq!(name("a:3").unqualified().unwrap_err().status(), 400);
    }

    proptest! {
        #[test]
        fn an_arn_is_read_as_it_is_written(name in "[A-Za-z0-9_-]{1,64}", version in 1u64..) {
            let place = place();
            for qualifier in [None, Some(Qualifier::Latest), Some(Qualifier::Version(version))] {
                let arn = place.arn(&name, qualifier.as_ref());
                prop_assert_eq!(FunctionName::parse(&arn, &place).unwrap(), FunctionName { name: name.clone(), qualifier });
            }
        }

        #[test]
        fn any_text_is_a_name_or_none(text in "\\PC{0,200}") {
            let _ = FunctionName::parse(&text, &place());
        }
    }
}
