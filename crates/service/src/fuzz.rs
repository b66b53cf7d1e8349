//! Entry points for fuzzing: bytes from strangers, through the same code as in earnest. None may panic.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use chrono::DateTime;
use serde_json::Value;

use crate::control::{Input, fuzz_settings};
use crate::package::write_layer;
use crate::policy::Policy;
use crate::sigv4::{Claim, Signed};
use crate::url::cors::Cors;
use crate::url::{UrlBase, answer, request};
use crate::{FunctionName, Place, Qualifier, api};

/// The lines of a text, up to so many; the rest is a body.
fn split(data: &[u8], lines: usize) -> (Vec<String>, &[u8]) {
    let mut parts: Vec<&[u8]> = data.splitn(lines + 1, |byte| *byte == b'\n').collect();
    let body = if parts.len() > lines { parts.pop().unwrap_or_default() } else { &[] };
    let mut texts: Vec<String> = parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    texts.resize(lines, String::new());
    (texts, body)
}

fn place() -> Place {
    Place { region: "us-east-1".into(), account: "000000000000".into() }
}

/// Headers of `name: value` with tabs between them.
fn headers(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('\t').filter_map(|pair| pair.split_once(':'));
    pairs.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned())).collect()
}

/// Reads `data` as a request to the API: method, path, query and headers in a line each, and a body. Who signed, and what is asked.
pub fn fuzz_service_request(data: &[u8]) {
    let (lines, body) = split(data, 4);
    let [method, path, query, head] = lines.as_slice() else { return };
    let headers = headers(head);
    let signed = Signed { method, path, query, headers: &headers, body };
    if let Ok(claim) = Claim::read(&signed) {
        // Whatever time it says is good.
        let times = [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1_795_000_000)];
        for now in times {
            let _ = claim.verify(&signed, "secret", now);
        }
    }
    let Some(route) = api::find(method, path, query) else { return };
    let query = api::query_values(query);
    let body = Input::body(body).unwrap_or_default();
    let input = Input { tenant: "t".into(), base: String::new(), path: route.parameters, query, body };
    let _ = input.function(&place());
    let _ = input.page((0..100).collect::<Vec<_>>(), 50);
}

/// Reads `data` as a function's name, an ARN, a qualifier, and what the base of URLs may be. What is a name is read again as it is written.
pub fn fuzz_service_name(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let place = place();
    if let Ok(name) = FunctionName::parse(&text, &place) {
        let arn = place.arn(&name.name, name.qualifier.as_ref());
        assert_eq!(FunctionName::parse(&arn, &place), Ok(name));
    }
    if let Ok(qualifier) = Qualifier::parse(&text) {
        assert_eq!(Qualifier::parse(&qualifier.to_string()), Ok(qualifier));
    }
    let _ = UrlBase::parse(&text);
    let base = UrlBase { scheme: "http".into(), domain: "localhost".into(), port: None };
    if let Some(id) = base.id_of(&text, &place.region) {
        let url = base.url(&id, &place.region);
        assert_eq!(base.id_of(url.trim_start_matches("http://").trim_end_matches('/'), &place.region), Some(id));
    }
}

/// Reads `data` as a request to a function's URL (method, path, query and headers in a line each, and a body), the body as an answer.
pub fn fuzz_service_url(data: &[u8]) {
    let (lines, body) = split(data, 4);
    let [method, path, query, head] = lines.as_slice() else { return };
    let headers = headers(head);
    let asked = request::Asked {
        method,
        path,
        query,
        headers: &headers,
        body,
        id: "id",
        domain: "id.lambda-url.us-east-1.localhost",
        scheme: "http",
        source: std::net::Ipv4Addr::LOCALHOST.into(),
        request_id: "00000000-0000-4000-8000-000000000000",
        at: DateTime::UNIX_EPOCH,
        caller: None,
    };
    let event = asked.event().to_string();
    assert!(serde_json::from_str::<Value>(&event).is_ok());
    let _ = answer::read(Bytes::copy_from_slice(body));
    if let Ok(Some((_, at))) = answer::read_head(body) {
        assert!(at <= body.len());
    }
    if let Ok(cors) = serde_json::from_slice::<Cors>(body)
        && cors.check().is_ok()
    {
        cors.of_preflight(head);
        cors.of_answer(Some(head));
    }
}

/// Reads `data` as the body of a request: the settings of a function, and a statement of a policy.
pub fn fuzz_service_input(data: &[u8]) {
    let Ok(body) = Input::body(data) else { return };
    let input = Input { tenant: "t".into(), base: String::new(), path: Vec::new(), query: Vec::new(), body };
    if let Ok(statement) = fuzz_settings(&input) {
        let mut policy = Policy::new();
        if policy.add(statement, "arn").is_ok() {
            policy.allows_everybody();
            assert!(serde_json::from_str::<Value>(&policy.show("arn")).is_ok());
        }
    }
}

/// Reads `data` as a package, and makes a layer of it.
pub fn fuzz_service_package(data: &[u8]) {
    let _ = write_layer(data, std::io::sink());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn none_panics(data in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
            for data in [&data[..], text.as_bytes()] {
                fuzz_service_request(data);
                fuzz_service_name(data);
                fuzz_service_url(data);
                fuzz_service_input(data);
                fuzz_service_package(data);
            }
        }
    }

    #[test]
    fn what_is_whole_is_read_to_its_end() {
        let head = "authorization: AWS4-HMAC-SHA256 Credential=AKID/20261119/us-east-1/lambda/aws4_request, SignedHeaders=host, Signature=00\thost: x\tx-amz-date: 20261119T000000Z";
        fuzz_service_request(
            format!("PUT\n/2015-03-31/functions/a%3A1/code\nQualifier=1&Marker=7\n{head}\n{{}}").as_bytes(),
        );
        fuzz_service_url(format!("GET\n/a\nb=c\ncookie: d=e\n{}", r#"{"statusCode": 200, "body": "x"}"#).as_bytes());
        fuzz_service_input(br#"{"Role": "arn:x", "StatementId": "a", "Action": "lambda:*", "Principal": "*"}"#);
    }
}
