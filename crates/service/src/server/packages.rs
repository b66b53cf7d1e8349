//! Packages as clients fetch them again: at addresses that are signed and good for ten minutes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{HeaderValue, Response};

use super::{Answer, whole};
use crate::api::{ApiError, query_values};
use crate::service::Service;
use crate::sigv4::hex;

/// What their paths begin with.
pub(super) const PREFIX: &str = "/snowmelt/packages/";
/// As in AWS.
const GOOD_FOR_SECONDS: u64 = 600;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Service {
    /// Where a package can be fetched, by tenant, function and hash.
    pub(crate) fn package_address(&self, base: &str, place: &str) -> String {
        let expires = now() + GOOD_FOR_SECONDS;
        let signature = hex(hmac::sign(&self.address_hmac(), address_text(place, expires).as_bytes()).as_ref());
        format!("{base}{PREFIX}{place}?expires={expires}&signature={signature}")
    }

    fn address_hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.address_key)
    }
}

fn address_text(place: &str, expires: u64) -> String {
    format!("{place}?{expires}")
}

/// Gives a package.
///
/// # Errors
/// Access denied for an address that is not ours or is too old; not found.
pub(super) async fn fetch(service: &Arc<Service>, place: &str, query: &str) -> Result<Answer, ApiError> {
    let denied = || ApiError::access_denied("this address is not good, or not any more: GetFunction gives another one");
    let values = query_values(query);
    let value = |name: &str| values.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()));
    let expires = value("expires").and_then(|expires| expires.parse::<u64>().ok()).ok_or_else(denied)?;
    let signature = value("signature").and_then(unhex).ok_or_else(denied)?;
    let text = address_text(place, expires);
    hmac::verify(&service.address_hmac(), text.as_bytes(), &signature).map_err(|_| denied())?;
    if expires < now() {
        return Err(denied());
    }
    // It is as we made it.
    let parts: Vec<&str> = place.split('/').collect();
    let [tenant, function, sha256] = parts.as_slice() else { return Err(denied()) };
    let path = service.packages.path(tenant, function, sha256);
    let bytes = tokio::fs::read(path).await.map_err(|_| ApiError::not_found("the package is not there any more"))?;
    let mut answer = Response::new(whole(Bytes::from(bytes)));
    answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    Ok(answer)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|digits| std::str::from_utf8(digits).ok());
    digits.map(|digits| u8::from_str_radix(digits?, 16).ok()).collect()
}
