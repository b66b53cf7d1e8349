//! Who asks: AWS's Signature Version 4, as headers or as a query, checked.
//!
//! The other side signs a canonical form of the request with a key that is derived from its secret; we make the same form of what came, and
//! compare. See *Signature Version 4 signing process* in AWS's general reference.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, NaiveDateTime, Utc};

use crate::api::{ApiError, decode};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "lambda";
/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_mins(5);
/// A query may be signed for no longer.
const MOST_EXPIRY: u64 = 7 * 24 * 3600;

/// A request, as far as it is signed.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Such as `POST`.
    pub method: &'a str,
    /// As it came, not decoded.
    pub path: &'a str,
    /// As it came, without the question mark.
    pub query: &'a str,
    /// Names in lower case, and values, in any order.
    pub headers: &'a [(String, String)],
    /// Its bytes.
    pub body: &'a [u8],
}

/// What a caller says about itself, before it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which key signed.
    pub access_key: String,
    /// What goes with temporary keys.
    pub session_token: Option<String>,
    date: String,
    region: String,
    signed_headers: Vec<String>,
    signature: String,
    is_query: bool,
    at: SystemTime,
    expires_after: Duration,
}

impl Claim {
    /// Reads who says to have signed a request, by headers or by query.
    ///
    /// # Errors
    /// Where nothing is signed, or not in this way.
    pub fn read(request: &Signed<'_>) -> Result<Self, ApiError> {
        match request.header("authorization") {
            Some(authorization) => Self::of_header(request, authorization),
            None => Self::of_query(request),
        }
    }

    fn of_header(request: &Signed<'_>, authorization: &str) -> Result<Self, ApiError> {
        let incomplete = |what: &str| {
            ApiError::invalid_signature(format!(
                "the Authorization header has no {what}: expected {ALGORITHM} Credential=…, SignedHeaders=…, Signature=…"
            ))
        };
        let parts = authorization.strip_prefix(ALGORITHM).ok_or_else(|| incomplete(ALGORITHM))?;
        let part = |name: &str| {
            let mut parts = parts.split(',').filter_map(|part| part.trim().split_once('='));
            parts.find_map(|(found, value)| (found == name).then_some(value))
        };
        let date = request.header("x-amz-date").ok_or_else(|| ApiError::invalid_signature("there is no X-Amz-Date"))?;
        Self::new(
            part("Credential").ok_or_else(|| incomplete("Credential"))?,
            part("SignedHeaders").ok_or_else(|| incomplete("SignedHeaders"))?,
            part("Signature").ok_or_else(|| incomplete("Signature"))?,
            date,
            request.header("x-amz-security-token").map(Into::into),
            None,
        )
    }

    fn of_query(request: &Signed<'_>) -> Result<Self, ApiError> {
        let value = |name: &str| {
            let mut pairs = request.query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(found, value)| (found == name).then(|| decode(value)).flatten())
        };
        let Some(algorithm) = value("X-Amz-Algorithm") else {
            return Err(ApiError::not_signed(
                "Missing Authentication Token: sign requests, as every AWS client does that has keys",
            ));
        };
        if algorithm != ALGORITHM {
            return Err(ApiError::invalid_signature(format!("X-Amz-Algorithm is {algorithm}: expected {ALGORITHM}")));
        }
        let need =
            |name: &str| value(name).ok_or_else(|| ApiError::invalid_signature(format!("the query has no {name}")));
        let expires = need("X-Amz-Expires")?;
        let expires = expires.parse().ok().filter(|seconds| (1..=MOST_EXPIRY).contains(seconds));
        let expires = expires
            .ok_or_else(|| ApiError::invalid_signature(format!("X-Amz-Expires must be 1 to {MOST_EXPIRY} seconds")))?;
        Self::new(
            &need("X-Amz-Credential")?,
            &need("X-Amz-SignedHeaders")?,
            &need("X-Amz-Signature")?,
            &need("X-Amz-Date")?,
            value("X-Amz-Security-Token"),
            Some(Duration::from_secs(expires)),
        )
    }

    fn new(
        credential: &str,
        signed_headers: &str,
        signature: &str,
        at: &str,
        session_token: Option<String>,
        expires_after: Option<Duration>,
    ) -> Result<Self, ApiError> {
        let scope = || {
            ApiError::invalid_signature(format!(
                "Credential {credential:?}: expected <access key>/<date>/<region>/{SERVICE}/aws4_request"
            ))
        };
        // An access key has no slash in it.
        let parts: Vec<&str> = credential.split('/').collect();
        let [access_key, date, region, service, "aws4_request"] = parts.as_slice() else { return Err(scope()) };
        if *service != SERVICE {
            return Err(scope());
        }
        let time = NaiveDateTime::parse_from_str(at, "%Y%m%dT%H%M%SZ");
        let time =
            time.map_err(|_| ApiError::invalid_signature(format!("X-Amz-Date {at:?}: expected 20261126T080000Z")))?;
        if !at.starts_with(date) || date.len() != 8 {
            return Err(ApiError::invalid_signature("Credential and X-Amz-Date are of different days"));
        }
        let seconds = u64::try_from(time.and_utc().timestamp()).unwrap_or(0);
        let signed_headers: Vec<String> = signed_headers.split(';').map(Into::into).collect();
        if !signed_headers.iter().any(|name| name == "host") {
            return Err(ApiError::invalid_signature("'host' must be one of the SignedHeaders"));
        }
        Ok(Self {
            access_key: (*access_key).to_owned(),
            session_token,
            date: (*date).to_owned(),
            region: (*region).to_owned(),
            signed_headers,
            signature: signature.to_owned(),
            is_query: expires_after.is_some(),
            at: UNIX_EPOCH + Duration::from_secs(seconds),
            expires_after: expires_after.unwrap_or(SKEW),
        })
    }

    /// Whether what was signed is not too old, nor from the future.
    ///
    /// # Errors
    /// If it is.
    pub fn check_time(&self, now: SystemTime) -> Result<(), ApiError> {
        if self.at > now + SKEW {
            return Err(ApiError::invalid_signature(format!(
                "Signature not yet current: {} is still later than {} ({} minutes are allowed)",
                text_of(self.at),
                text_of(now),
                SKEW.as_secs() / 60
            )));
        }
        if self.at + self.expires_after < now {
            return Err(ApiError::invalid_signature(format!(
                "Signature expired: {} is now earlier than {} by more than {} seconds: look at the clock of this machine and of the caller's",
                text_of(self.at),
                text_of(now),
                self.expires_after.as_secs()
            )));
        }
        Ok(())
    }

    /// Believes it, or not.
    ///
    /// # Errors
    /// Where the secret is another one, anything that is signed was changed, or the time has passed or not come.
    pub fn verify(&self, request: &Signed<'_>, secret: &str, now: SystemTime) -> Result<(), ApiError> {
        self.check_time(now)?;
        for (name, _) in request.headers.iter().filter(|(name, _)| name.starts_with("x-amz-")) {
            if !self.signed_headers.contains(name) {
                return Err(ApiError::invalid_signature(format!("the header {name} is not signed")));
            }
        }
        let canonical = self.canonical_request(request)?;
        let at = text_of(self.at);
        let scope = format!("{}/{}/{SERVICE}/aws4_request", self.date, self.region);
        let to_sign = format!("{ALGORITHM}\n{at}\n{scope}\n{}", hex(sha256(canonical.as_bytes()).as_ref()));
        let key = [self.date.as_str(), &self.region, SERVICE, "aws4_request"]
            .iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| sign(&key, part));
        let expected = hex(&sign(&key, &to_sign));
        verify_slices_are_equal(expected.as_bytes(), self.signature.as_bytes()).map_err(|_| {
            ApiError::invalid_signature(
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method.",
            )
        })
    }

    fn canonical_request(&self, request: &Signed<'_>) -> Result<String, ApiError> {
        let mut text =
            format!("{}\n{}\n{}\n", request.method, canonical_path(request.path), self.canonical_query(request));
        let mut names = self.signed_headers.clone();
        names.sort();
        for name in &names {
            let values: Vec<String> =
                request.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| trimmed(value)).collect();
            if values.is_empty() {
                return Err(ApiError::invalid_signature(format!("the signed header {name} is not there")));
            }
            let _ = writeln!(text, "{name}:{}", values.join(","));
        }
        let _ = write!(text, "\n{}\n", self.signed_headers.join(";"));
        let digest = hex(sha256(request.body).as_ref());
        match request.header("x-amz-content-sha256") {
            // What is said of the body must be so.
            Some(said) if said != digest => {
                return Err(ApiError::invalid_signature("the body is not what X-Amz-Content-Sha256 says"));
            }
            Some(said) => text.push_str(said),
            None => text.push_str(&digest),
        }
        Ok(text)
    }

    fn canonical_query(&self, request: &Signed<'_>) -> String {
        let pairs = request.query.split('&').filter(|pair| !pair.is_empty());
        let mut pairs: Vec<(String, String)> = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(name, _)| !(self.is_query && *name == "X-Amz-Signature"))
            .map(|(name, value)| (encoded_again(name), encoded_again(value)))
            .collect();
        pairs.sort();
        let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("&")
    }
}

fn text_of(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%Y%m%dT%H%M%SZ").to_string()
}

impl Signed<'_> {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()))
    }
}

/// Every part of the path encoded once more, as it is for all services but S3.
fn canonical_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    let slash = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.iter().map(|part| encoded(part.as_bytes())).collect::<Vec<_>>().join("/"))
}

/// Encoded as AWS encodes, whatever way the caller chose.
fn encoded_again(text: &str) -> String {
    decode(&text.replace('+', " ")).map_or_else(|| text.to_owned(), |text| encoded(text.as_bytes()))
}

fn encoded(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(*byte as char);
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Without blanks around it, and with one for several inside.
fn trimmed(value: &str) -> String {
    value.split(' ').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Lower case, two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
