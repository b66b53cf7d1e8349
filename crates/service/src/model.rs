//! What is kept of a function, and how clients see it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::policy::Policy;
use crate::sigv4::hex;
use crate::url::UrlConfig;
use crate::{Place, Qualifier};

/// Default and limits that AWS has.
pub(crate) const DEFAULT_TIMEOUT: u32 = 3;
pub(crate) const DEFAULT_MEMORY: u32 = 128;
pub(crate) const DEFAULT_STORAGE: u32 = 512;

/// A function, with all of its versions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Function {
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) latest: Version,
    /// By number, oldest first.
    pub(crate) versions: BTreeMap<u64, Version>,
    pub(crate) aliases: BTreeMap<String, Alias>,
    pub(crate) tags: BTreeMap<String, String>,
    /// What becomes of events, by qualifier.
    #[serde(default)]
    pub(crate) event_configs: BTreeMap<String, EventConfig>,
    /// Who else may invoke it, by qualifier; of the function alone by an empty one.
    #[serde(default)]
    pub(crate) policies: BTreeMap<String, Policy>,
    /// Its URLs, by qualifier.
    #[serde(default)]
    pub(crate) urls: BTreeMap<String, UrlConfig>,
    /// How many sandboxes are kept, by qualifier.
    #[serde(default)]
    pub(crate) provisioned: BTreeMap<String, Provisioned>,
    /// Of all versions together.
    pub(crate) reserved_concurrency: Option<u32>,
    /// The next number to be given: numbers are not given twice.
    pub(crate) next_version: u64,
    /// Whether it may pass its own events on for ever.
    #[serde(default)]
    pub(crate) allows_recursion: bool,
}

/// Code and how it runs: `$LATEST`, or what it was when it was published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) code: Code,
    /// What the code is to be, until it is.
    #[serde(default)]
    pub(crate) wanted: Option<Source>,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) last_update: Update,
    pub(crate) modified: DateTime<Utc>,
    pub(crate) revision: String,
}

/// What code is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Source {
    /// An image, as the caller names it.
    Image(String),
    Package(Package),
}

/// A zip archive over the image of a runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) runtime: String,
    /// As hexadecimal digits.
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

/// Where code comes from, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Code {
    /// As the caller said it.
    pub(crate) image_uri: String,
    /// The image in our store, once it is there.
    pub(crate) image: Option<String>,
    /// Its manifest's id.
    pub(crate) manifest: Option<String>,
    pub(crate) bytes: u64,
    /// What is over that image, where something is.
    #[serde(default)]
    pub(crate) package: Option<Package>,
}

/// What the caller may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) description: String,
    pub(crate) role: String,
    pub(crate) timeout: u32,
    pub(crate) memory: u32,
    pub(crate) storage: u32,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) image_config: ImageConfig,
    /// Of a package: what in it is called.
    #[serde(default)]
    pub(crate) handler: Option<String>,
    pub(crate) architecture: String,
    /// Where events go that could not be run.
    #[serde(default)]
    pub(crate) dead_letter: Option<String>,
}

/// What is taken in place of the image's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct ImageConfig {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) entry_point: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) command: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) working_directory: Option<String>,
}

/// Whether it can be invoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Pending,
    Active,
    Failed { code: String, reason: String },
}

/// How the last change went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Update {
    Successful,
    InProgress,
    Failed { code: String, reason: String },
}

/// How many sandboxes of a version are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Provisioned {
    pub(crate) requested: u32,
    pub(crate) modified: DateTime<Utc>,
}

/// A name for a version, or for two by weight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Alias {
    pub(crate) version: Qualifier,
    pub(crate) description: String,
    /// Of the other version: its share, between 0 and 1.
    pub(crate) weights: BTreeMap<u64, f64>,
    pub(crate) revision: String,
}

/// What becomes of invocations that nobody waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EventConfig {
    pub(crate) modified: DateTime<Utc>,
    pub(crate) most_retries: u32,
    pub(crate) most_age_seconds: u32,
    pub(crate) on_success: Option<String>,
    pub(crate) on_failure: Option<String>,
}

impl Default for EventConfig {
    /// What Lambda does where nothing is set.
    fn default() -> Self {
        Self {
            modified: DateTime::UNIX_EPOCH,
            most_retries: 2,
            most_age_seconds: 6 * 3600,
            on_success: None,
            on_failure: None,
        }
    }
}

/// A fresh id, as AWS's are: a random UUID.
pub(crate) fn new_id() -> String {
    let mut bytes = [0; 16];
    // The system always has random bytes once it runs.
    let _ = getrandom::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl Function {
    /// The version that a qualifier names. `None` where there is none. Of an alias with weights, the one that `chance` (0 to 1) falls on.
    pub(crate) fn resolve(&self, qualifier: Option<&Qualifier>, chance: f64) -> Option<(Qualifier, &Version)> {
        match qualifier {
            None | Some(Qualifier::Latest) => Some((Qualifier::Latest, &self.latest)),
            Some(Qualifier::Version(number)) => {
                self.versions.get(number).map(|version| (Qualifier::Version(*number), version))
            }
            Some(Qualifier::Alias(name)) => {
                let alias = self.aliases.get(name)?;
                let mut left = chance;
                for (number, weight) in &alias.weights {
                    if left < *weight {
                        return self.resolve(Some(&Qualifier::Version(*number)), 0.0);
                    }
                    left -= weight;
                }
                self.resolve(Some(&alias.version), 0.0)
            }
        }
    }

    /// Whether any version has this image for its code.
    pub(crate) fn uses(&self, image: &str) -> bool {
        let mut versions = self.versions.values().chain([&self.latest]);
        versions.any(|version| version.code.image.as_deref() == Some(image))
    }

    /// The packages that any version has, or is to have, by their hashes.
    pub(crate) fn packages(&self) -> std::collections::BTreeSet<String> {
        let versions = self.versions.values().chain([&self.latest]);
        let packages = versions.flat_map(|version| {
            [version.package(), version.code.package.as_ref()]
                .into_iter()
                .flatten()
                .map(|package| package.sha256.clone())
        });
        packages.collect()
    }

    /// The version of a number, if it is the revision that is meant.
    pub(crate) fn with_revision(&self, number: &str, revision: &str) -> Option<&Version> {
        let (_, version) = self.resolve(Some(&Qualifier::parse(number).ok()?), 0.0)?;
        (version.revision == revision).then_some(version)
    }

    /// `$LATEST` as a version of its own, under the next number.
    pub(crate) fn add_version(&mut self, version: Version) -> u64 {
        let number = self.next_version;
        self.next_version += 1;
        self.versions.insert(number, Version { revision: new_id(), ..version });
        number
    }

    /// The version that a qualifier means before all others.
    pub(crate) fn resolve_first(&self, qualifier: &Qualifier) -> Option<(Qualifier, &Version)> {
        match qualifier {
            Qualifier::Alias(name) => self.resolve(Some(&self.aliases.get(name)?.version), 0.0),
            other => self.resolve(Some(other), 0.0),
        }
    }

    /// How many sandboxes are kept of which versions.
    pub(crate) fn provisioned_versions(&self) -> BTreeMap<Qualifier, u32> {
        let mut all = BTreeMap::new();
        for (qualifier, provisioned) in &self.provisioned {
            let Ok(qualifier) = Qualifier::parse(qualifier) else { continue };
            if let Some((number, _)) = self.resolve_first(&qualifier) {
                *all.entry(number).or_insert(0) += provisioned.requested;
            }
        }
        all
    }

    /// Of one version.
    pub(crate) fn provisioned_of(&self, number: &str) -> u32 {
        if self.provisioned.is_empty() {
            return 0;
        }
        Qualifier::parse(number).ok().and_then(|number| self.provisioned_versions().get(&number).copied()).unwrap_or(0)
    }

    /// Of all versions.
    pub(crate) fn provisioned_total(&self) -> u32 {
        self.provisioned.values().map(|provisioned| provisioned.requested).sum()
    }

    /// Forgets what was set for a version or an alias that goes.
    pub(crate) fn forget(&mut self, qualifier: &str) {
        self.event_configs.remove(qualifier);
        self.policies.remove(qualifier);
        self.urls.remove(qualifier);
        self.provisioned.remove(qualifier);
    }

    pub(crate) fn has_revision(&self, number: &str, revision: &str) -> bool {
        self.with_revision(number, revision).is_some()
    }

    /// A version's configuration, as clients see it. `qualifier` is what the caller asked for.
    pub(crate) fn configuration(
        &self,
        place: &Place,
        version: &Version,
        number: &Qualifier,
        asked: Option<&Qualifier>,
    ) -> Value {
        let settings = &version.settings;
        let mut all = json!({
            "FunctionName": self.name,
            "FunctionArn": place.arn(&self.name, asked),
            "Role": settings.role,
            "CodeSize": version.package().map_or(version.code.bytes, |package| package.bytes),
            "Description": settings.description,
            "Timeout": settings.timeout,
            "MemorySize": settings.memory,
            "LastModified": version.modified.format("%Y-%m-%dT%H:%M:%S%.3f+0000").to_string(),
            "CodeSha256": version.code_sha256(),
            "Version": number.to_string(),
            "TracingConfig": { "Mode": "PassThrough" },
            "RevisionId": version.revision,
            "PackageType": if version.package().is_some() { "Zip" } else { "Image" },
            "Architectures": [settings.architecture],
            "EphemeralStorage": { "Size": settings.storage },
            "SnapStart": { "ApplyOn": "None", "OptimizationStatus": "Off" },
            "LoggingConfig": { "LogFormat": "Text", "LogGroup": format!("/aws/lambda/{}", self.name) },
        });
        let Some(fields) = all.as_object_mut() else { return all };
        if !settings.environment.is_empty() {
            fields.insert("Environment".into(), json!({ "Variables": settings.environment }));
        }
        if let Some(package) = version.package() {
            fields.insert("Runtime".into(), json!(package.runtime));
            fields.insert("Handler".into(), json!(settings.handler));
        }
        if let Some(target) = &settings.dead_letter {
            fields.insert("DeadLetterConfig".into(), json!({ "TargetArn": target }));
        }
        if settings.image_config != ImageConfig::default() {
            fields.insert("ImageConfigResponse".into(), json!({ "ImageConfig": settings.image_config }));
        }
        version.state.show(fields);
        version.last_update.show(fields);
        all
    }
}

impl Version {
    /// What runs: a package's handler is the argument of its runtime, or its own `bootstrap` is the runtime.
    pub(crate) fn command(&self) -> ImageConfig {
        let Some(package) = self.code.package.as_ref() else { return self.settings.image_config.clone() };
        let working_directory = Some("/var/task".to_owned());
        let handler: Vec<String> = self.settings.handler.iter().cloned().collect();
        if package.runtime.starts_with("provided") {
            return ImageConfig {
                entry_point: vec!["/var/task/bootstrap".into()],
                command: handler,
                working_directory,
            };
        }
        ImageConfig { entry_point: Vec::new(), command: handler, working_directory }
    }

    /// The package that its code is, or is about to be.
    pub(crate) fn package(&self) -> Option<&Package> {
        match &self.wanted {
            Some(Source::Package(package)) => Some(package),
            Some(Source::Image(_)) => None,
            None => self.code.package.as_ref(),
        }
    }

    /// What tells its code from any other: of a package what AWS tells, of an image its manifest's id.
    pub(crate) fn code_sha256(&self) -> String {
        use base64::Engine as _;
        let Some(package) = self.package() else { return self.code.manifest.clone().unwrap_or_default() };
        let digits = package.sha256.as_bytes().chunks(2).map(|digits| std::str::from_utf8(digits).unwrap_or_default());
        let bytes: Vec<u8> = digits.filter_map(|digits| u8::from_str_radix(digits, 16).ok()).collect();
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    /// Whether a change of it is under way.
    pub(crate) fn is_changing(&self) -> bool {
        self.state == State::Pending || self.last_update == Update::InProgress
    }
}

impl State {
    fn show(&self, fields: &mut Map<String, Value>) {
        let mut set = |name: &str, value: &str| fields.insert(name.into(), json!(value));
        match self {
            Self::Pending => {
                set("State", "Pending");
                set("StateReason", "The function is being created.");
                set("StateReasonCode", "Creating");
            }
            Self::Active => drop(set("State", "Active")),
            Self::Failed { code, reason } => {
                set("State", "Failed");
                set("StateReason", reason);
                set("StateReasonCode", code);
            }
        }
    }
}

impl Update {
    fn show(&self, fields: &mut Map<String, Value>) {
        let mut set = |name: &str, value: &str| fields.insert(name.into(), json!(value));
        match self {
            Self::Successful => drop(set("LastUpdateStatus", "Successful")),
            Self::InProgress => {
                set("LastUpdateStatus", "InProgress");
                set("LastUpdateStatusReason", "The function is being updated.");
            }
            Self::Failed { code, reason } => {
                set("LastUpdateStatus", "Failed");
                set("LastUpdateStatusReason", reason);
                set("LastUpdateStatusReasonCode", code);
            }
        }
    }
}

impl Alias {
    /// As clients see it.
    pub(crate) fn show(&self, place: &Place, function: &str, name: &str) -> Value {
        let arn = place.arn(function, Some(&Qualifier::Alias(name.to_owned())));
        let mut all = json!({
            "AliasArn": arn,
            "Name": name,
            "FunctionVersion": self.version.to_string(),
            "Description": self.description,
            "RevisionId": self.revision,
        });
        if !self.weights.is_empty() {
            let weights: Map<String, Value> =
                self.weights.iter().map(|(number, weight)| (number.to_string(), json!(weight))).collect();
            all["RoutingConfig"] = json!({ "AdditionalVersionWeights": weights });
        }
        all
    }
}
