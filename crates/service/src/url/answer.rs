//! What a function gives as an answer of HTTP.
//!
//! A payload is an answer if it is an object with a `statusCode`, and otherwise the body of one. An answer that is streamed begins with such
//! an object and eight NUL bytes, and the rest is its body.

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value};

/// Between the head of a streamed answer and its body.
const SEPARATOR: [u8; 8] = [0; 8];
/// Bytes of such a head.
const MOST_HEAD: usize = 1 << 20;
/// Headers that are the connection's.
const OURS: [&str; 7] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// A status and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a function gave is no answer of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoAnswer;

/// Reads a payload that came as a whole.
///
/// # Errors
/// For an object with a `statusCode` whose other parts are not what they must be.
pub(crate) fn read(payload: Bytes) -> Result<(Head, Bytes), NoAnswer> {
    let value = serde_json::from_slice::<Value>(&payload);
    let Ok(Value::Object(fields)) = value else { return Ok((Head::json(), payload)) };
    if !fields.contains_key("statusCode") {
        return Ok((Head::json(), payload));
    }
    let head = Head::read(&fields)?;
    let body = match fields.get("body") {
        None | Some(Value::Null) => Bytes::new(),
        Some(Value::String(text)) if fields.get("isBase64Encoded") == Some(&Value::Bool(true)) => {
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| NoAnswer)?.into()
        }
        Some(Value::String(text)) => Bytes::from(text.clone()),
        Some(_) => return Err(NoAnswer),
    };
    Ok((head, body))
}

/// Reads the head of a streamed answer, and gives what of its body is there. `None` where more of it is to come.
///
/// # Errors
/// For what is no such head, and for one that does not end.
pub(crate) fn read_head(begun: &[u8]) -> Result<Option<(Head, usize)>, NoAnswer> {
    let Some(at) = begun.windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR) else {
        return if begun.len() > MOST_HEAD { Err(NoAnswer) } else { Ok(None) };
    };
    let fields: Map<String, Value> = serde_json::from_slice(&begun[..at]).map_err(|_| NoAnswer)?;
    Ok(Some((Head::read(&fields)?, at + SEPARATOR.len())))
}

impl Head {
    /// Of a body that the function says nothing about.
    fn json() -> Self {
        Self::of("application/json")
    }

    /// Of a stream that the function says nothing about.
    pub(crate) fn bytes() -> Self {
        Self::of("application/octet-stream")
    }

    fn of(kind: &'static str) -> Self {
        Self { status: StatusCode::OK, headers: vec![(http::header::CONTENT_TYPE, HeaderValue::from_static(kind))] }
    }

    fn read(fields: &Map<String, Value>) -> Result<Self, NoAnswer> {
        let status = match fields.get("statusCode") {
            None | Some(Value::Null) => Some(200),
            Some(Value::Number(number)) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        // What comes before an answer is not for functions.
        let status = status.filter(|status| (200..600).contains(status)).ok_or(NoAnswer)?;
        let status = StatusCode::from_u16(status).map_err(|_| NoAnswer)?;
        let mut headers = Vec::new();
        let mut add = |name: &str, value: &str| -> Result<(), NoAnswer> {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| NoAnswer)?;
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| NoAnswer)?;
            if !OURS.contains(&name.as_str()) {
                headers.push((name, value));
            }
            Ok(())
        };
        match fields.get("headers") {
            None | Some(Value::Null) => {}
            Some(Value::Object(all)) => {
                for (name, value) in all {
                    match value {
                        Value::String(text) => add(name, text)?,
                        Value::Number(number) => add(name, &number.to_string())?,
                        Value::Bool(flag) => add(name, &flag.to_string())?,
                        _ => return Err(NoAnswer),
                    }
                }
            }
            Some(_) => return Err(NoAnswer),
        }
        match fields.get("cookies") {
            None | Some(Value::Null) => {}
            Some(Value::Array(all)) => {
                for cookie in all {
                    add("set-cookie", cookie.as_str().ok_or(NoAnswer)?)?;
                }
            }
            Some(_) => return Err(NoAnswer),
        }
        if !headers.iter().any(|(name, _)| *name == http::header::CONTENT_TYPE) {
            headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
        }
        Ok(Self { status, headers })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value<'a>(head: &'a Head, name: &str) -> Vec<&'a str> {
        head.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.to_str().unwrap()).collect()
    }

    #[test]
    fn any_payload_is_a_body() {
        for payload in ["{\"a\": 1}", "\"text\"", "[1, 2]", "no json at all", ""] {
            let (head, body) = read(Bytes::from(payload)).unwrap();
            assert_eq!(
                (head.status.as_u16(), value(&head, "content-type"), &body[..]),
                (200, vec!["application/json"], payload.as_bytes())
            );
        }
    }

    #[test]
    fn an_object_with_a_status_is_an_answer() {
        let payload = json!({
            "statusCode": 201, "headers": { "X-One": "1", "x-two": 2, "content-type": "text/html", "Connection": "close" },
            "cookies": ["a=1; Path=/", "b=2"], "body": "aGVsbG8=", "isBase64Encoded": true,
        });
        let (head, body) = read(payload.to_string().into()).unwrap();
        assert_eq!((head.status.as_u16(), &body[..]), (201, &b"hello"[..]));
        assert_eq!((value(&head, "x-one"), value(&head, "x-two")), (vec!["1"], vec!["2"]));
        assert_eq!(
            (value(&head, "set-cookie"), value(&head, "content-type")),
            (vec!["a=1; Path=/", "b=2"], vec!["text/html"])
        );
        assert!(value(&head, "connection").is_empty());
        for bad in [
            json!({ "statusCode": 99 }),
            json!({ "statusCode": 101 }),
            json!({ "statusCode": "many" }),
            json!({ "statusCode": 200, "headers": { "a b": "c" } }),
            json!({ "statusCode": 200, "headers": { "a": "b\r\nc: d" } }),
            json!({ "statusCode": 200, "cookies": "a=1" }),
            json!({ "statusCode": 200, "body": { "a": 1 } }),
            json!({ "statusCode": 200, "body": "?", "isBase64Encoded": true }),
        ] {
            assert_eq!(read(bad.to_string().into()), Err(NoAnswer), "{bad}");
        }
    }

    #[test]
    fn a_stream_has_its_head_wherever_it_is_cut() {
        let all = b"{\"statusCode\": 404, \"cookies\": [\"a=1\"]}\0\0\0\0\0\0\0\0body\0\0";
        let length = all.len() - 6;
        for cut in 0..length {
            assert_eq!(read_head(&all[..cut]), Ok(None), "{cut}");
        }
        let (head, at) = read_head(all).unwrap().unwrap();
        assert_eq!((head.status.as_u16(), at, value(&head, "set-cookie")), (404, length, vec!["a=1"]));
        assert_eq!(read_head(b"no json\0\0\0\0\0\0\0\0"), Err(NoAnswer));
        assert_eq!(read_head(&vec![b' '; MOST_HEAD + 1]), Err(NoAnswer));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(bytes.clone().into());
            let _ = read_head(&bytes);
        }
    }
}
