//! What an extension asks for: which events, how many at once, and where to.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Kind;

/// Which API was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Api {
    /// 2022-07-01.
    Telemetry,
    /// 2020-08-15.
    Logs,
}

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Subscription {
    pub(super) api: Api,
    pub(super) kinds: Vec<Kind>,
    pub(super) most_items: usize,
    pub(super) most_bytes: usize,
    pub(super) patience: Duration,
    pub(super) destination: Destination,
}

/// Where events go, within the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// Each batch is a request.
    Http { port: u16, authority: String, path: String, method: &'static str },
    /// Each event is a line.
    Tcp { port: u16 },
}

impl Destination {
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Http { port, .. } | Self::Tcp { port } => *port,
        }
    }
}

/// A request that was not understood, and why.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Invalid(pub(in super::super) String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    schema_version: Option<String>,
    types: Vec<String>,
    buffering: Option<Buffering>,
    destination: RequestDestination,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Buffering {
    max_items: Option<u64>,
    max_bytes: Option<u64>,
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
struct RequestDestination {
    protocol: String,
    #[serde(rename = "URI")]
    uri: Option<String>,
    port: Option<u16>,
    method: Option<String>,
    encoding: Option<String>,
}

impl Subscription {
    /// Reads a request.
    pub(in super::super) fn parse(api: Api, body: &[u8]) -> Result<Self, Invalid> {
        let request: Request = serde_json::from_slice(body).map_err(|error| Invalid(error.to_string()))?;
        let known: &[&str] = match api {
            Api::Telemetry => &["2022-07-01", "2022-12-13", "2025-01-29"],
            Api::Logs => &["2020-08-15", "2021-03-18"],
        };
        if let Some(version) = request.schema_version.filter(|version| !known.contains(&version.as_str())) {
            return Err(Invalid(format!("schemaVersion {version:?} should be one of {}", known.join(", "))));
        }
        let mut kinds = Vec::new();
        for name in &request.types {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
            let kind = kind.ok_or_else(|| {
                Invalid(format!("types has {name:?}: expected some of platform, function, extension"))
            })?;
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            return Err(Invalid("types should not be empty".into()));
        }
        let buffering = request.buffering.unwrap_or_default();
        let within = |name: &str, value: Option<u64>, default: u64, least: u64, most: u64| match value {
            None => Ok(default),
            Some(value) if (least..=most).contains(&value) => Ok(value),
            Some(value) => Err(Invalid(format!("buffering.{name} is {value}: expected {least} to {most}"))),
        };
        Ok(Self {
            api,
            kinds,
            most_items: within("maxItems", buffering.max_items, 10_000, 1000, 10_000)? as usize,
            most_bytes: within("maxBytes", buffering.max_bytes, 262_144, 262_144, 1_048_576)? as usize,
            patience: Duration::from_millis(within("timeoutMs", buffering.timeout_ms, 1000, 25, 30_000)?),
            destination: destination(request.destination)?,
        })
    }
}

fn destination(asked: RequestDestination) -> Result<Destination, Invalid> {
    if let Some(encoding) = asked.encoding.filter(|encoding| encoding != "JSON") {
        return Err(Invalid(format!("destination.encoding is {encoding:?}: expected JSON")));
    }
    match asked.protocol.as_str() {
        "TCP" => {
            let port = asked.port.filter(|port| *port > 0);
            port.map(|port| Destination::Tcp { port }).ok_or_else(|| Invalid("destination.port is not provided".into()))
        }
        "HTTP" => {
            let method = match asked.method.as_deref() {
                None | Some("POST") => "POST",
                Some("PUT") => "PUT",
                Some(other) => {
                    return Err(Invalid(format!("destination.method is {other:?}: expected POST or PUT")));
                }
            };
            let text = asked.uri.ok_or_else(|| Invalid("destination.URI is not provided".into()))?;
            let uri: http::Uri = text.parse().map_err(|_| Invalid(format!("destination.URI is {text:?}")))?;
            let is_here = uri.host().is_some_and(|host| ["sandbox.localdomain", "sandbox"].contains(&host));
            if uri.scheme() != Some(&http::uri::Scheme::HTTP) || !is_here {
                return Err(Invalid(format!(
                    "destination.URI is {text:?}: expected http://sandbox.localdomain:PORT/PATH"
                )));
            }
            let port = uri.port_u16().ok_or_else(|| Invalid("URI port is not provided".into()))?;
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            let path = uri.path_and_query().map_or_else(|| "/".into(), ToString::to_string);
            Ok(Destination::Http { port, authority, path, method })
        }
        other => Err(Invalid(format!("destination.protocol is {other:?}: expected HTTP or TCP"))),
    }
}

/// An event as the Logs API has it, which knows fewer and names some otherwise. `None` for one that it does not have.
pub(super) fn as_log(name: &'static str, record: &Value) -> Option<(&'static str, Value)> {
    let of = |names: &[&str]| {
        let kept = names.iter().filter_map(|name| Some(((*name).to_owned(), record.get(*name)?.clone())));
        Value::Object(kept.collect())
    };
    match name {
        "function" | "extension" | "platform.logsDropped" => Some((name, record.clone())),
        "platform.start" => Some((name, of(&["requestId", "version"]))),
        "platform.runtimeDone" | "platform.initRuntimeDone" => {
            Some((name, of(&["requestId", "status", "initializationType", "phase"])))
        }
        "platform.report" => Some((name, of(&["requestId", "metrics"]))),
        "platform.extension" => Some((name, of(&["name", "state", "events", "errorType"]))),
        "platform.telemetrySubscription" => {
            let mut record = of(&["name", "types"]);
            record["state"] = json!("Subscribed");
            Some(("platform.logsSubscription", record))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn parse(body: &Value) -> Result<Subscription, Invalid> {
        Subscription::parse(Api::Telemetry, body.to_string().as_bytes())
    }

    #[test]
    fn requests() {
        let good = json!({
            "schemaVersion": "2022-12-13", "types": ["platform", "function", "platform"],
            "buffering": { "maxItems": 1000, "maxBytes": 262_144, "timeoutMs": 25 },
            "destination": { "protocol": "HTTP", "URI": "http://sandbox.localdomain:8080/path?x=1" },
        });
        let found = parse(&good).unwrap();
        assert_eq!(found.kinds, [Kind::Platform, Kind::Function]);
        assert_eq!((found.most_items, found.most_bytes, found.patience.as_millis()), (1000, 262_144, 25));
        let Destination::Http { port, authority, path, method } = &found.destination else { panic!("{found:?}") };
        assert_eq!(
            (*port, authority.as_str(), path.as_str(), *method),
            (8080, "sandbox.localdomain:8080", "/path?x=1", "POST")
        );
        let tcp = json!({ "types": ["extension"], "destination": { "protocol": "TCP", "port": 9 } });
        let found = parse(&tcp).unwrap();
        assert_eq!((found.most_items, found.most_bytes, found.patience.as_millis()), (10_000, 262_144, 1000));
        for (path, value, word) in [
            ("/schemaVersion", json!("2019-01-01"), "schemaVersion"),
            ("/types", json!([]), "types should not be empty"),
            ("/types", json!(["other"]), "other"),
            ("/buffering/maxItems", json!(999), "1000 to 10000"),
            ("/buffering/maxBytes", json!(1), "262144 to 1048576"),
            ("/buffering/timeoutMs", json!(30_001), "25 to 30000"),
            ("/destination/protocol", json!("UDP"), "HTTP or TCP"),
            ("/destination/URI", json!("http://sandbox.localdomain/x"), "URI port is not provided"),
            ("/destination/URI", json!("http://169.254.169.254:80/x"), "sandbox.localdomain"),
            ("/destination/URI", json!("https://sandbox.localdomain:80/x"), "http://"),
            ("/destination/URI", json!("http://sandbox.localdomain:99999/x"), "URI"),
            ("/destination/URI", json!(null), "not provided"),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(path).unwrap() = value;
            let error = parse(&bad).unwrap_err();
            assert!(error.0.contains(word), "{path}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512), uri in ".{0,40}") {
            let _ = Subscription::parse(Api::Logs, &bytes);
            let _ = parse(&json!({ "types": ["function"], "destination": { "protocol": "HTTP", "URI": uri } }));
        }
    }
}
