//! What an image says about how to run it: the OCI image configuration, as far as it is used.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Largest configuration in bytes that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// How to run an image, from its configuration document (OCI image-spec, config.md; Docker's format is the same here).
/// What a document leaves out is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the program where there is no entrypoint.
    pub cmd: Vec<String>,
    /// Environment, each `NAME=value`.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
    /// Where the program starts; empty means `/`.
    pub working_dir: String,
    /// The signal that asks the program to stop, such as `SIGINT` or `2`.
    pub stop_signal: Option<String>,
    /// Directories that hold data of the container and not of the image, sorted.
    pub volumes: Vec<String>,
    /// Ports such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Architecture in Go's terms, such as `amd64`.
    pub architecture: String,
    /// Operating system in Go's terms, such as `linux`.
    pub os: String,
    /// When it was built, RFC 3339, as the document has it.
    pub created: Option<String>,
}

/// A configuration document, and the parts of it that only reading the image needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigDocument {
    pub(crate) config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<String>,
}

/// The document as it is written. Every field may be absent or null.
#[derive(Deserialize)]
struct Document {
    architecture: Option<String>,
    os: Option<String>,
    created: Option<String>,
    config: Option<Execution>,
    rootfs: Option<RootFs>,
}

// Sets are written as objects with empty values.
#[allow(clippy::zero_sized_map_values)]
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Execution {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<OneOrMany>,
    cmd: Option<OneOrMany>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    stop_signal: Option<String>,
}

/// Docker once wrote a single string for a command of one word.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<String>),
    One(String),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::Many(words) => words,
            OneOrMany::One(word) => vec![word],
        }
    }
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

impl ConfigDocument {
    /// Reads a document; `subject` names it in errors.
    pub(crate) fn decode(bytes: &[u8], subject: &str) -> Result<ConfigDocument, Error> {
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(Error::invalid(
                subject,
                format!("it has {} bytes, and {MAX_CONFIG_BYTES} is the most a configuration may have", bytes.len()),
            ));
        }
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt(subject, format!("not an image configuration: {error}")))?;
        let execution = document.config.unwrap_or_default();
        let config = ImageConfig {
            entrypoint: execution.entrypoint.map(OneOrMany::into_vec).unwrap_or_default(),
            cmd: execution.cmd.map(OneOrMany::into_vec).unwrap_or_default(),
            env: execution.env.unwrap_or_default(),
            user: execution.user.unwrap_or_default(),
            working_dir: execution.working_dir.unwrap_or_default(),
            stop_signal: execution.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: execution.volumes.unwrap_or_default().into_keys().collect(),
            exposed_ports: execution.exposed_ports.unwrap_or_default().into_keys().collect(),
            labels: execution
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, value.unwrap_or_default()))
                .collect(),
            architecture: document.architecture.unwrap_or_default(),
            os: document.os.unwrap_or_default(),
            created: document.created,
        };
        let diff_ids = document.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        Ok(ConfigDocument { config, diff_ids })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn reads_what_docker_writes() {
        let text = br#"{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","unknown":[1],
            "config":{"User":"1000:1000","Env":["PATH=/bin","A=b"],"Entrypoint":["/bin/sh","-c"],"Cmd":"ls",
            "WorkingDir":"/srv","StopSignal":"SIGINT","Volumes":{"/b":{},"/a":{}},"ExposedPorts":{"80/tcp":{}},
            "Labels":{"x":"y","z":null},"Healthcheck":{"Test":["NONE"]}},
            "rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[{"created_by":"x"}]}"#;
        let document = ConfigDocument::decode(text, "config").unwrap();
        assert_eq!(document.diff_ids, ["sha256:aa"]);
        let config = document.config;
        assert_eq!(config.entrypoint, ["/bin/sh", "-c"]);
        assert_eq!(config.cmd, ["ls"]);
        assert_eq!(config.env, ["PATH=/bin", "A=b"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:1000", "/srv"));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.volumes, ["/a", "/b"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.labels["x"], "y");
        assert_eq!(config.labels["z"], "");
        assert_eq!(config.created.as_deref(), Some("2024-01-02T03:04:05Z"));
    }

    #[test]
    fn nulls_and_absent_fields_are_empty() {
        let text =
            br#"{"architecture":null,"config":{"Env":null,"Cmd":null,"Volumes":null,"Labels":null},"rootfs":{}}"#;
        let document = ConfigDocument::decode(text, "config").unwrap();
        assert_eq!(document, ConfigDocument { config: ImageConfig::default(), diff_ids: vec![] });
    }

    #[test]
    fn what_is_not_a_document_is_named() {
        let error = ConfigDocument::decode(b"{", "configuration of x").unwrap_err();
        assert!(error.to_string().starts_with("configuration of x is damaged: not an image configuration"), "{error}");
    }

    #[test]
    fn an_image_config_survives_its_own_json() {
        let config = ImageConfig { cmd: vec!["a".into()], stop_signal: Some("9".into()), ..ImageConfig::default() };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&text).unwrap(), config);
    }
}
