//! Nodes that register themselves in etcd, by the JSON gateway that every member of it has: the gRPC client would need a compiler
//! for its protocol wherever this is built.
//!
//! A node puts `PREFIX/NAME` with `HOST:PORT [DOMAIN]` under a lease, which it keeps alive; where it dies the key goes with the
//! lease. Readers list the prefix and watch it from the revision of the list on, and list again whenever the watch says anything.

use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{check_address, node};
use crate::Error;
use crate::placement::Node;
use crate::tls::ClientTls;

/// A node that is dead or cut off is out of the zone after so many seconds.
const LEASE_SECONDS: u64 = 10;
/// How often its lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long one of etcd's members may take to answer; then the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// After no member has answered.
const AGAIN: Duration = Duration::from_secs(1);
/// Longer is no answer.
const MOST_BYTES: usize = 32 << 20;

/// Where nodes are registered: `etcd://HOST:PORT,HOST:PORT/PREFIX`, or `etcds://…` with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddress {
    members: Vec<String>,
    prefix: String,
    is_secure: bool,
}

impl FromStr for EtcdAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid =
            || Error::invalid(format!("{text:?}"), "expected etcd://HOST:PORT,HOST:PORT/PREFIX, or etcds:// with TLS");
        let (scheme, rest) = text.split_once("://").ok_or_else(invalid)?;
        let is_secure = match scheme {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(invalid()),
        };
        let (members, prefix) = rest.split_once('/').ok_or_else(invalid)?;
        let is_part = |part: &str| !part.is_empty() && super::check_word("a prefix", part).is_ok();
        if prefix.len() > 255 || !prefix.split('/').all(is_part) {
            return Err(invalid());
        }
        let members = members.split(',').map(|member| check_address(member).map(|()| member.to_owned()));
        Ok(Self { members: members.collect::<Result<_, _>>()?, prefix: prefix.to_owned(), is_secure })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "etcds" } else { "etcd" };
        write!(f, "{scheme}://{}/{}", self.members.join(","), self.prefix)
    }
}

/// What can be asked of etcd.
pub(super) struct Etcd {
    address: EtcdAddress,
    http: reqwest::Client,
    /// The member that answered last.
    current: AtomicUsize,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Listed {
    header: Header,
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Header {
    revision: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KeyValue {
    key: String,
    value: String,
}

impl Etcd {
    /// With TLS, this side shows the certificate that it has for nodes, where it has one.
    pub(super) fn new(address: EtcdAddress, tls: Option<&Arc<ClientTls>>) -> Result<Self, Error> {
        let builder = reqwest::Client::builder().no_proxy().connect_timeout(PATIENCE);
        let builder = match (address.is_secure, tls) {
            (false, _) => builder.tls_certs_only([]),
            (true, Some(tls)) => builder.tls_backend_preconfigured(rustls::ClientConfig::clone(&tls.config())),
            (true, None) => builder,
        };
        let http = builder.build().map_err(|error| Error::invalid(address.to_string(), error.to_string()))?;
        Ok(Self { address, http, current: AtomicUsize::new(0) })
    }

    pub(super) fn address(&self) -> &EtcdAddress {
        &self.address
    }

    fn unavailable(&self, reason: impl fmt::Display) -> Error {
        Error::Unavailable { subject: self.address.to_string(), reason: reason.to_string() }
    }

    /// Asks a member; where it does not answer, each of the others.
    async fn post(&self, path: &str, body: &Value) -> Result<reqwest::Response, Error> {
        let scheme = if self.address.is_secure { "https" } else { "http" };
        let count = self.address.members.len();
        let first = self.current.load(Ordering::Relaxed);
        let mut last = None;
        for at in (first..first + count).map(|at| at % count) {
            let url = format!("{scheme}://{}/v3/{path}", self.address.members[at]);
            let asked = timeout(PATIENCE, self.http.post(&url).body(body.to_string()).send()).await;
            match asked {
                Ok(Ok(answer)) if answer.status().is_success() => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Ok(answer)) => {
                    let (status, text) = (answer.status(), read(answer).await.unwrap_or_default());
                    let text = String::from_utf8_lossy(&text[..text.len().min(300)]).trim().to_owned();
                    last = Some(format!("{} answers {status}: {text}", self.address.members[at]));
                }
                Ok(Err(error)) => last = Some(causes(&error)),
                Err(_) => last = Some(format!("{} does not answer", self.address.members[at])),
            }
        }
        Err(self.unavailable(last.unwrap_or_default()))
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Vec<u8>, Error> {
        let answer = self.post(path, body).await?;
        let read = timeout(PATIENCE, read(answer)).await;
        read.map_err(|_| self.unavailable("an answer does not end"))?.map_err(|error| self.unavailable(error))
    }

    /// First and last of what lies below the prefix; the character after `/` is `0`.
    fn range(&self) -> (String, String) {
        let encode = |end: char| BASE64_STANDARD.encode(format!("{}{end}", self.address.prefix));
        (encode('/'), encode('0'))
    }

    /// The nodes that are registered, and the revision that says so.
    pub(super) async fn list(&self) -> Result<(Vec<Node>, u64), Error> {
        let (key, range_end) = self.range();
        // Any member may answer alone: the watch from its revision on catches up.
        let body = json!({"key": key, "range_end": range_end, "serializable": true});
        let answer = self.ask("kv/range", &body).await?;
        parse_listed(&self.address.prefix, &answer)
            .ok_or_else(|| self.unavailable("an answer that is no list with a revision"))
    }

    /// Waits until something below the prefix has changed since the revision.
    pub(super) async fn await_change(&self, revision: u64) -> Result<(), Error> {
        let (key, range_end) = self.range();
        let from = (revision + 1).to_string();
        let body = json!({"create_request": {"key": key, "range_end": range_end, "start_revision": from}});
        let mut watch = self.post("watch", &body).await?;
        let mut line = Vec::new();
        while let Some(bytes) = watch.chunk().await.map_err(|error| self.unavailable(causes(&error)))? {
            line.extend_from_slice(&bytes);
            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let said: Value = serde_json::from_slice(&line[..end]).map_err(|error| self.unavailable(error))?;
                line.drain(..=end);
                // What comes first says only that the watch has begun. A watch that was cancelled, as after its revision was
                // compacted away, asks for a new list too.
                if said["result"]["events"].is_array() || said["result"]["canceled"] == true {
                    return Ok(());
                }
                if !said["error"].is_null() {
                    return Err(self.unavailable(&said["error"]));
                }
            }
            if line.len() > MOST_BYTES {
                return Err(self.unavailable("a watch that says too much"));
            }
        }
        Err(self.unavailable("a watch has ended"))
    }

    /// Registers a node; gives its lease.
    async fn register(&self, node: &Node) -> Result<String, Error> {
        let granted = self.ask("lease/grant", &json!({"TTL": LEASE_SECONDS.to_string()})).await?;
        let granted: Value = serde_json::from_slice(&granted).map_err(|error| self.unavailable(error))?;
        let lease = granted["ID"].as_str().ok_or_else(|| self.unavailable("an answer without a lease"))?.to_owned();
        let domain = node.domain.as_ref().map(|domain| format!(" {domain}")).unwrap_or_default();
        let key = BASE64_STANDARD.encode(format!("{}/{}", self.address.prefix, node.name));
        let value = BASE64_STANDARD.encode(format!("{}{domain}", node.address));
        let put = self.ask("kv/put", &json!({"key": key, "value": value, "lease": lease, "prev_kv": true})).await?;
        let put: Value = serde_json::from_slice(&put).map_err(|error| self.unavailable(error))?;
        if put["prev_kv"]["value"].as_str().is_some_and(|before| before != value) {
            tracing::warn!(
                name = node.name,
                "a node of this name was registered with another address: if it is not this one, give each its own name"
            );
        }
        Ok(lease)
    }

    /// Whether the lease is still there.
    async fn renew(&self, lease: &str) -> Result<bool, Error> {
        let answer = self.ask("lease/keepalive", &json!({"ID": lease})).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|error| self.unavailable(error))?;
        let left = answer["result"]["TTL"].as_str().and_then(|left| left.parse::<u64>().ok());
        Ok(left.is_some_and(|left| left > 0))
    }
}

/// Registers a node, and keeps it registered until `end` is there; then readers are told that it is gone. `known` is called once
/// it is registered for the first time. Where etcd does not answer this goes on trying: a node serves without it.
///
/// # Errors
/// [`Error::Invalid`] for an address that cannot be used.
pub async fn keep_registered(
    address: &EtcdAddress,
    tls: Option<&Arc<ClientTls>>,
    node: &Node,
    end: impl Future<Output = ()>,
) -> Result<(), Error> {
    let etcd = Etcd::new(address.clone(), tls)?;
    let mut lease: Option<String> = None;
    let keeping = async {
        let mut is_failing = false;
        loop {
            let kept = match &lease {
                Some(held) => etcd.renew(held).await.map(|is_there| is_there.then(|| held.clone())),
                None => etcd.register(node).await.map(Some),
            };
            match kept {
                Ok(held) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(etcd = %etcd.address, "etcd answers again");
                    }
                    // Without one it registers again, at once.
                    let is_held = held.is_some();
                    lease = held;
                    if is_held {
                        sleep(RENEW_EVERY).await;
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "the node cannot be registered; it goes on trying");
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::select! {
        () = keeping => {}
        () = end => {}
    }
    if let Some(lease) = lease
        && let Err(error) = etcd.ask("lease/revoke", &json!({"ID": lease})).await
    {
        tracing::warn!(%error, "the node stays registered until its lease ends");
    }
    Ok(())
}

/// Nodes and revision of an answer to `kv/range`. A key that is none of ours must not cost the zone.
pub(crate) fn parse_listed(prefix: &str, answer: &[u8]) -> Option<(Vec<Node>, u64)> {
    let listed: Listed = serde_json::from_slice(answer).ok()?;
    let revision = listed.header.revision.parse().ok().filter(|revision| *revision < u64::MAX)?;
    let node = |kv: &KeyValue| {
        let found = registered(prefix, &kv.key, &kv.value);
        if found.is_none() {
            tracing::debug!(key = kv.key, "a key in etcd that is no node");
        }
        found
    };
    Some((listed.kvs.iter().filter_map(node).collect(), revision))
}

/// The node that a key and its value stand for, both in base64.
fn registered(prefix: &str, key: &str, value: &str) -> Option<Node> {
    let decode = |text: &str| BASE64_STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (key, value) = (decode(key)?, decode(value)?);
    let name = key.strip_prefix(prefix)?.strip_prefix('/')?;
    let words: Vec<&str> = value.split_whitespace().collect();
    match words[..] {
        [address] => node(name, address, None).ok(),
        [address, domain] => node(name, address, Some(domain)).ok(),
        _ => None,
    }
}

async fn read(mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(more) = answer.chunk().await.map_err(|error| causes(&error))? {
        if bytes.len() + more.len() > MOST_BYTES {
            return Err("an answer that is too long".into());
        }
        bytes.extend_from_slice(&more);
    }
    Ok(bytes)
}

/// The client's own message names the request alone.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_a_node_with_or_without_a_domain() {
        let read =
            |key: &str, value: &str| registered("a/z", &BASE64_STANDARD.encode(key), &BASE64_STANDARD.encode(value));
        let found = read("a/z/n1", "10.0.0.1:7070 rack-1").unwrap();
        assert_eq!((&*found.name, &*found.address, found.domain.as_deref()), ("n1", "10.0.0.1:7070", Some("rack-1")));
        assert_eq!(read("a/z/n2", "10.0.0.2:7070").unwrap().domain, None);
        for (key, value) in
            [("a/zz/n", "h:1"), ("a/z", "h:1"), ("a/z/", "h:1"), ("a/z/n/m", "h:1"), ("a/z/n", "h"), ("a/z/n", "")]
        {
            assert_eq!(read(key, value), None, "{key} {value}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_node_or_none(key in ".{0,20}", value in ".{0,40}") {
            let _ = registered("a", &key, &value);
            let _ = registered("a", &BASE64_STANDARD.encode(format!("a/{key}")), &BASE64_STANDARD.encode(&value));
        }

        #[test]
        fn any_text_is_an_address_or_an_error(text in "(etcds?://)?[a-z0-9:,/\\[\\].]{0,40}") {
            if let Ok(address) = text.parse::<EtcdAddress>() {
                prop_assert_eq!(address.to_string(), text);
            }
        }
    }
}
