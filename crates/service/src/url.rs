//! Function URLs: functions that browsers and other HTTP clients call, each by a host name of its own.
//!
//! `http://<id>.lambda-url.<region>.localhost:<port>/`: names under `localhost` are this machine's in browsers and most clients, and the id
//! in the host's name says which function is meant. Everything here is pure: what a request becomes for a function ([`request`]), what a
//! function's payload becomes for the client ([`answer`]), and what other pages may read ([`cors`]).

pub(crate) mod answer;
pub(crate) mod cors;
pub(crate) mod request;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::cors::Cors;
use crate::api::ApiError;

/// Characters of an id.
const ID_LENGTH: usize = 32;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UrlAuth {
    /// Everybody, if the function's policy says so.
    None,
    /// Who signs with a key of the function's tenant.
    Iam,
}

impl UrlAuth {
    /// By AWS's name.
    ///
    /// # Errors
    /// Invalid parameter; `what` is the field's name.
    pub(crate) fn parse(what: &str, name: &str) -> Result<Self, ApiError> {
        match name {
            "NONE" => Ok(Self::None),
            "AWS_IAM" => Ok(Self::Iam),
            other => Err(ApiError::invalid(format!("{what} {other:?}: expected NONE or AWS_IAM"))),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Iam => "AWS_IAM",
        }
    }
}

/// A function's URL, or an alias's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UrlConfig {
    pub(crate) id: String,
    pub(crate) auth: UrlAuth,
    /// Whether answers are passed on as they come.
    pub(crate) is_streamed: bool,
    pub(crate) cors: Option<Cors>,
    pub(crate) created: DateTime<Utc>,
    pub(crate) modified: DateTime<Utc>,
}

impl UrlConfig {
    /// As clients see it.
    pub(crate) fn show(&self, base: &UrlBase, region: &str, arn: &str) -> Value {
        let time = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let mut all = json!({
            "FunctionUrl": base.url(&self.id, region),
            "FunctionArn": arn,
            "AuthType": self.auth.name(),
            "CreationTime": time(self.created),
            "LastModifiedTime": time(self.modified),
            "InvokeMode": if self.is_streamed { "RESPONSE_STREAM" } else { "BUFFERED" },
        });
        if let Some(cors) = &self.cors {
            all["Cors"] = json!(cors);
        }
        all
    }
}

/// What URLs of functions begin and end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlBase {
    /// `http`, or `https` where something in front of the service speaks TLS.
    pub scheme: String,
    /// Such as `localhost`.
    pub domain: String,
    /// Where it is not the scheme's own.
    pub port: Option<u16>,
}

impl UrlBase {
    /// Reads `[SCHEME://]DOMAIN[:PORT]`; without a scheme it is `https`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: expected such as functions.example.org or http://example.org:8080");
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (domain, port) = match rest.split_once(':') {
            Some((domain, port)) => (domain, Some(port.parse().map_err(|_| wrong())?)),
            None => (rest, None),
        };
        let is_label =
            |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !["http", "https"].contains(&scheme) || !domain.split('.').all(is_label) {
            return Err(wrong());
        }
        Ok(Self { scheme: scheme.to_owned(), domain: domain.to_ascii_lowercase(), port })
    }

    /// The URL of an id.
    pub(crate) fn url(&self, id: &str, region: &str) -> String {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{id}.lambda-url.{region}.{}{port}/", self.scheme, self.domain)
    }

    /// The id in a host's name. `None` where that is no function's.
    pub(crate) fn id_of(&self, host: &str, region: &str) -> Option<String> {
        let host = host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
        let rest = [self.domain.as_str(), "localhost"]
            .iter()
            .find_map(|domain| host.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.')))?;
        let id = rest.strip_suffix(region)?.strip_suffix(".lambda-url.")?;
        (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())).then(|| id.to_owned())
    }
}

/// A fresh id: nobody guesses it.
pub(crate) fn new_id() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; ID_LENGTH];
    // The system always has random bytes once it runs.
    let _ = getrandom::fill(&mut bytes);
    bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_id_is_found_in_the_hosts_name() {
        let base = UrlBase::parse("https://example.org").unwrap();
        let id = new_id();
        assert_eq!(
            (id.len(), base.url(&id, "us-east-1")),
            (32, format!("https://{id}.lambda-url.us-east-1.example.org/"))
        );
        for host in [
            ".lambda-url.us-east-1.example.org",
            ".lambda-url.us-east-1.localhost:9001",
            ".Lambda-URL.us-east-1.LOCALHOST",
        ] {
            assert_eq!(base.id_of(&format!("{id}{host}"), "us-east-1"), Some(id.clone()), "{host}");
        }
        for host in [
            "localhost",
            "127.0.0.1:9001",
            "lambda-url.us-east-1.localhost",
            "x.lambda-url.eu-west-1.localhost",
            "a.b.lambda-url.us-east-1.localhost",
            "x.lambda-url.us-east-1.example.com",
            "",
        ] {
            assert_eq!(base.id_of(host, "us-east-1"), None, "{host}");
        }
        let local = UrlBase::parse("http://localhost:9001").unwrap();
        assert_eq!(local.url("x", "us-east-1"), "http://x.lambda-url.us-east-1.localhost:9001/");
        for bad in ["", "ftp://x", "a b", "x:99999", "http://", "a..b"] {
            assert!(UrlBase::parse(bad).is_err(), "{bad}");
        }
    }
}
