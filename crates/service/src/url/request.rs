//! A request as a function is given it: payload format 2.0.

use base64::Engine as _;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::api::query_values;

/// Headers that are the connection's and not the request's, or told elsewhere in the event.
const UNTOLD: [&str; 7] =
    ["connection", "cookie", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// A request to a function's URL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// As it came, not decoded.
    pub(crate) path: &'a str,
    /// As it came, without the question mark.
    pub(crate) query: &'a str,
    /// Names in lower case, and values, in the order in which they came.
    pub(crate) headers: &'a [(String, String)],
    pub(crate) body: &'a [u8],
    /// Of the URL.
    pub(crate) id: &'a str,
    /// The host's name, without a port.
    pub(crate) domain: &'a str,
    pub(crate) scheme: &'a str,
    pub(crate) source: std::net::IpAddr,
    pub(crate) request_id: &'a str,
    pub(crate) at: DateTime<Utc>,
    /// Who signed, where somebody must: access key, account and name.
    pub(crate) caller: Option<(&'a str, &'a str, &'a str)>,
}

impl Asked<'_> {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|(found, value)| (found == name).then_some(value.as_str()))
    }

    /// The event.
    pub(crate) fn event(&self) -> Value {
        let (body, is_encoded) = self.shown_body();
        let (account, authorizer) = match self.caller {
            None => ("anonymous", None),
            Some((key, account, name)) => {
                let user = format!("arn:aws:iam::{account}:user/{name}");
                let iam = json!({
                    "accessKey": key, "accountId": account, "callerId": key, "cognitoIdentity": null,
                    "principalOrgId": null, "userArn": user, "userId": key,
                });
                (account, Some(json!({ "iam": iam })))
            }
        };
        let mut context = json!({
            "accountId": account,
            "apiId": self.id,
            "domainName": self.domain,
            "domainPrefix": self.id,
            "http": {
                "method": self.method,
                "path": self.path,
                "protocol": "HTTP/1.1",
                "sourceIp": self.source.to_string(),
                "userAgent": self.header("user-agent"),
            },
            "requestId": self.request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": self.at.format("%d/%b/%Y:%H:%M:%S +0000").to_string(),
            "timeEpoch": self.at.timestamp_millis(),
        });
        if let Some(authorizer) = authorizer {
            context["authorizer"] = authorizer;
        }
        let mut event = json!({
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": self.path,
            "rawQueryString": self.query,
            "headers": self.shown_headers(),
            "requestContext": context,
            "isBase64Encoded": is_encoded,
        });
        let cookies = self.cookies();
        if !cookies.is_empty() {
            event["cookies"] = json!(cookies);
        }
        let mut parameters = Map::new();
        for (name, value) in query_values(self.query) {
            join(&mut parameters, name, &value);
        }
        if !parameters.is_empty() {
            event["queryStringParameters"] = Value::Object(parameters);
        }
        if let Some(body) = body {
            event["body"] = json!(body);
        }
        event
    }

    fn cookies(&self) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(name, _)| name == "cookie");
        lines.flat_map(|(_, line)| line.split(';')).map(str::trim).filter(|cookie| !cookie.is_empty()).collect()
    }

    fn shown_headers(&self) -> Map<String, Value> {
        let mut all = Map::new();
        for (name, value) in self.headers {
            // A signature is for us.
            let is_ours = self.caller.is_some() && name == "authorization";
            let is_told = !is_ours && !UNTOLD.contains(&name.as_str());
            // Who is in front of the caller says so in these, and who is in front of us is added.
            if is_told {
                join(&mut all, name.clone(), value);
            }
        }
        let own = if self.scheme == "https" { "443" } else { "80" };
        let port = self.header("host").and_then(|host| host.rsplit_once(':')).map_or(own, |(_, port)| port);
        join(&mut all, "x-forwarded-for".into(), &self.source.to_string());
        for (name, value) in [
            ("x-forwarded-proto", self.scheme.to_owned()),
            ("x-forwarded-port", port.to_owned()),
            ("x-amzn-trace-id", format!("Root=1-{:08x}-{}", self.at.timestamp(), trace(self.request_id))),
        ] {
            all.entry(name).or_insert_with(|| json!(value));
        }
        all
    }

    /// As text where it is text, and in base64 otherwise, which is said.
    fn shown_body(&self) -> (Option<String>, bool) {
        if self.body.is_empty() {
            return (None, false);
        }
        let kind = self.header("content-type").unwrap_or("").to_ascii_lowercase();
        let kind = kind.split(';').next().unwrap_or("").trim();
        let is_text = kind.starts_with("text/")
            || ["application/json", "application/javascript", "application/xml"].contains(&kind)
            || kind.ends_with("+json")
            || kind.ends_with("+xml");
        match std::str::from_utf8(self.body) {
            Ok(text) if is_text => (Some(text.to_owned()), false),
            _ => (Some(base64::engine::general_purpose::STANDARD.encode(self.body)), true),
        }
    }
}

/// The part of a trace's id that differs: 24 hexadecimal digits.
fn trace(request_id: &str) -> String {
    request_id.chars().filter(char::is_ascii_hexdigit).take(24).collect()
}

/// Several values of one name, with commas between them.
fn join(all: &mut Map<String, Value>, name: String, value: &str) {
    match all.get_mut(&name) {
        Some(Value::String(before)) => {
            before.push(',');
            before.push_str(value);
        }
        _ => drop(all.insert(name, json!(value))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn event(headers: &[(&str, &str)], query: &str, body: &[u8], caller: Option<(&str, &str, &str)>) -> Value {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let asked = Asked {
            method: "POST",
            path: "/a%20b/",
            query,
            headers: &headers,
            body,
            id: "id",
            domain: "id.lambda-url.us-east-1.localhost",
            scheme: "http",
            source: std::net::Ipv4Addr::LOCALHOST.into(),
            request_id: "0123456789abcdef0123456789",
            at: DateTime::UNIX_EPOCH,
            caller,
        };
        asked.event()
    }

    #[test]
    fn the_parts_are_where_format_2_has_them() {
        let headers = [
            ("host", "x"),
            ("cookie", "a=1; b=2"),
            ("x-one", "1"),
            ("cookie", "c=3"),
            ("x-one", "2"),
            ("user-agent", "me"),
            ("content-type", "text/plain; charset=utf-8"),
        ];
        let event = event(&headers, "p=1&p=2&q=%C3%BC&r", "ü".as_bytes(), None);
        assert_eq!(
            (&event["version"], &event["rawPath"], &event["rawQueryString"]),
            (&json!("2.0"), &json!("/a%20b/"), &json!("p=1&p=2&q=%C3%BC&r"))
        );
        assert_eq!(event["cookies"], json!(["a=1", "b=2", "c=3"]));
        assert_eq!(event["queryStringParameters"], json!({ "p": "1,2", "q": "ü", "r": "" }));
        assert_eq!((&event["headers"]["x-one"], event["headers"].get("cookie")), (&json!("1,2"), None));
        assert_eq!((&event["body"], &event["isBase64Encoded"]), (&json!("ü"), &json!(false)));
        let context = &event["requestContext"];
        assert_eq!(
            (&context["accountId"], &context["apiId"], &context["http"]["userAgent"]),
            (&json!("anonymous"), &json!("id"), &json!("me"))
        );
        assert_eq!((&context["time"], &context["timeEpoch"]), (&json!("01/Jan/1970:00:00:00 +0000"), &json!(0)));
    }

    #[test]
    fn what_is_no_text_is_encoded() {
        let encoded =
            |kind: &str, body: &[u8]| event(&[("content-type", kind)], "", body, None)["isBase64Encoded"].clone();
        assert_eq!(encoded("application/octet-stream", b"x"), json!(true));
        assert_eq!(encoded("application/x-www-form-urlencoded", b"a=b"), json!(true));
        assert_eq!(encoded("text/plain", b"\xff"), json!(true));
        assert_eq!(encoded("application/problem+json", b"{}"), json!(false));
        assert!(event(&[], "", b"", None).get("body").is_none());
    }

    #[test]
    fn who_signed_is_told_and_the_signature_is_not() {
        let event = event(&[("authorization", "AWS4…")], "", b"", Some(("AKID", "000000000000", "me")));
        assert!(event["headers"].get("authorization").is_none());
        assert_eq!(event["requestContext"]["authorizer"]["iam"]["userArn"], "arn:aws:iam::000000000000:user/me");
    }

    proptest! {
        #[test]
        fn any_request_is_an_event(query in "\\PC{0,80}", cookie in "\\PC{0,40}", body in proptest::collection::vec(any::<u8>(), 0..60)) {
            event(&[("cookie", &cookie), ("content-type", "text/x")], &query, &body, None);
        }
    }
}
