//! What a registry asks for in `WWW-Authenticate` (RFC 9110, section 11.6.1; distribution's token protocol).

use serde::Deserialize;

/// The way to log in that a registry offers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A user name and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// What a token server answers.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    pub(crate) fn token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

/// The challenge to meet among those of the headers: a token rather than a password.
pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for (scheme, parameters) in headers.flat_map(parse) {
        let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        match (scheme.as_str(), parameter("realm")) {
            ("bearer", Some(realm)) => {
                return Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
            }
            ("basic", _) => basic = Some(Challenge::Basic),
            _ => {}
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// The challenges of one header: schemes and names in lower case.
fn parse(mut rest: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            return challenges;
        }
        let word = rest[..end].to_ascii_lowercase();
        let after = rest[end..].trim_start_matches([' ', '\t']);
        match (after.strip_prefix('='), challenges.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let (value, tail) = parse_value(value.trim_start_matches([' ', '\t']));
                parameters.push((word, value));
                rest = tail;
            }
            // A value without a scheme: nothing that can be met.
            (Some(_), None) => return challenges,
            (None, _) => {
                challenges.push((word, Vec::new()));
                rest = &rest[end..];
            }
        }
    }
}

/// A token or quoted string, and what follows.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[allow(clippy::unnecessary_wraps)] // It is compared with what `choose` gives.
    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull,push""#;
        assert_eq!(
            choose([hub].into_iter()),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:library/a:pull,push"))
        );
        assert_eq!(choose([r#"Basic realm="x""#].into_iter()), Some(Challenge::Basic));
        assert_eq!(choose(["basic"].into_iter()), Some(Challenge::Basic));
        assert_eq!(
            choose([r#"Basic realm="x", BEARER Realm=y , service = "a\"b""#].into_iter()),
            bearer("y", Some("a\"b"), None)
        );
        assert_eq!(choose([r#"Basic realm="x""#, r#"Bearer realm="z""#].into_iter()), bearer("z", None, None));
    }

    #[test]
    fn rubbish_is_no_challenge() {
        for text in [
            "",
            "=",
            ",,,",
            "realm=x",
            "Bearer",
            "Bearer service=x",
            "Negotiate abc==",
            "Bearer =\"",
            "Bearer realm",
            "\"é\\",
        ] {
            assert_eq!(choose([text].into_iter()), None, "{text}");
        }
        assert_eq!(choose(["Bearer realm=\"open\\"].into_iter()), bearer("open", None, None));
    }
}
