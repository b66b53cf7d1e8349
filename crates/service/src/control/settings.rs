//! What callers may set of a function.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::input::{self, Input, number, text, texts};
use crate::api::ApiError;
use crate::model::{DEFAULT_MEMORY, DEFAULT_STORAGE, DEFAULT_TIMEOUT, ImageConfig, Settings};

/// All variables together, as in Lambda.
const MOST_ENVIRONMENT: usize = 4096;

/// Names that are Lambda's own: runtimes read them.
const RESERVED: [&str; 20] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_LAMBDA_RUNTIME_API",
    "LAMBDA_TASK_ROOT",
    "LAMBDA_RUNTIME_DIR",
    "AWS_LAMBDA_METADATA_API",
    "AWS_LAMBDA_METADATA_TOKEN",
];

/// The settings of a new function.
pub(super) fn new(input: &Input) -> Result<Settings, ApiError> {
    let mut settings = Settings {
        description: String::new(),
        role: input.needed("Role")?,
        timeout: DEFAULT_TIMEOUT,
        memory: DEFAULT_MEMORY,
        storage: DEFAULT_STORAGE,
        environment: BTreeMap::new(),
        image_config: ImageConfig::default(),
        architecture: own_architecture().into(),
        handler: None,
        dead_letter: None,
    };
    architecture(input, &mut settings)?;
    change(input, &mut settings)?;
    Ok(settings)
}

/// Changes what the caller names, and nothing else.
pub(super) fn change(input: &Input, settings: &mut Settings) -> Result<(), ApiError> {
    refuse_what_is_not_there(&input.body, input.path.first().map(String::as_str))?;
    if let Some(role) = input.text("Role")? {
        if !role.starts_with("arn:") {
            return Err(ApiError::invalid(format!(
                "Role is {role:?}: expected the ARN of a role; it is kept and used for nothing"
            )));
        }
        settings.role = role;
    }
    if let Some(description) = input.text("Description")? {
        if description.chars().count() > 256 {
            return Err(ApiError::invalid("Description has more than 256 characters"));
        }
        settings.description = description;
    }
    if let Some(timeout) = input.number("Timeout", 1, 900)? {
        settings.timeout = timeout;
    }
    if let Some(memory) = input.number("MemorySize", 128, 10_240)? {
        settings.memory = memory;
    }
    if let Some(storage) = input.object("EphemeralStorage")?
        && let Some(size) = number(storage, "Size", 512, 10_240)?
    {
        settings.storage = size;
    }
    if let Some(environment) = input.object("Environment")? {
        settings.environment = variables(environment)?;
    }
    if let Some(image_config) = input.object("ImageConfig")? {
        settings.image_config = image(image_config)?;
    }
    if let Some(handler) = input.text("Handler")?.filter(|handler| !handler.is_empty()) {
        if handler.len() > 128 || handler.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(ApiError::invalid(format!(
                "Handler {handler:?}: expected up to 128 characters without blanks"
            )));
        }
        settings.handler = Some(handler);
    }
    if let Some(target) = dead_letter(input)? {
        settings.dead_letter = Some(target).filter(|target| !target.is_empty());
    }
    Ok(())
}

/// Where events are to go that cannot be run: an empty text where that is to be nowhere.
pub(super) fn dead_letter(input: &Input) -> Result<Option<String>, ApiError> {
    let Some(config) = input.object("DeadLetterConfig")? else { return Ok(None) };
    Ok(Some(text(config, "TargetArn")?.unwrap_or_default()))
}

fn variables(environment: &Map<String, Value>) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(Value::Object(fields)) = environment.get("Variables") else { return Ok(BTreeMap::new()) };
    let all = texts(fields, "Environment variable")?;
    let is_name = |name: &str| {
        name.len() > 1
            && name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    for name in all.keys() {
        if RESERVED.contains(&name.as_str()) {
            return Err(ApiError::invalid(format!(
                "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {name}"
            )));
        }
        if !is_name(name) {
            return Err(ApiError::invalid(format!(
                "Environment variable {name:?}: expected a letter and then at least one letter, digit or '_'"
            )));
        }
    }
    let bytes: usize = all.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MOST_ENVIRONMENT {
        return Err(ApiError::invalid(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the {MOST_ENVIRONMENT} byte limit: they have {bytes}"
        )));
    }
    Ok(all)
}

fn image(fields: &Map<String, Value>) -> Result<ImageConfig, ApiError> {
    let words = |name: &str| -> Result<Vec<String>, ApiError> {
        let wrong = || ApiError::invalid(format!("ImageConfig.{name}: expected a list of texts"));
        match fields.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(all)) => {
                all.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
            }
            Some(_) => Err(wrong()),
        }
    };
    let working_directory = text(fields, "WorkingDirectory")?.filter(|directory| !directory.is_empty());
    if working_directory.as_ref().is_some_and(|directory| !directory.starts_with('/')) {
        return Err(ApiError::invalid("ImageConfig.WorkingDirectory must be an absolute path"));
    }
    Ok(ImageConfig { entry_point: words("EntryPoint")?, command: words("Command")?, working_directory })
}

/// The processor that code of this machine is for, by AWS's name.
fn own_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }
}

/// Code must be for this machine's processor.
pub(super) fn architecture(input: &Input, settings: &mut Settings) -> Result<(), ApiError> {
    let Some(asked) = input.body.get("Architectures").filter(|asked| !asked.is_null()) else { return Ok(()) };
    let own = own_architecture();
    match asked.as_array().map(Vec::as_slice) {
        Some([one]) if one == own => {
            settings.architecture = own.into();
            Ok(())
        }
        _ => Err(ApiError::invalid(format!("Architectures is {asked}: this machine runs [\"{own}\"]"))),
    }
}

/// What AWS has and we do not must not be taken for done.
pub(super) fn refuse_what_is_not_there(body: &Map<String, Value>, name: Option<&str>) -> Result<(), ApiError> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.values().all(|value| match value {
            Value::Array(all) => all.is_empty(),
            Value::String(text) => text.is_empty() || text == "None" || text == "PassThrough" || text == "Text",
            Value::Bool(flag) => !flag,
            other => other.is_null(),
        }),
        _ => false,
    };
    for name in [
        "VpcConfig",
        "Layers",
        "FileSystemConfigs",
        "CodeSigningConfigArn",
        "SnapStart",
        "TracingConfig",
        "TenancyConfig",
        "CapacityProviderConfig",
        "DurableConfig",
        "AcceleratorConfig",
        "KMSKeyArn",
        "RuntimeConfig",
        "PublishTo",
    ] {
        if body.get(name).is_some_and(|value| !is_empty(value)) {
            return Err(ApiError::invalid(format!("{name} is not supported: leave it out (docs/lambda-api.md)")));
        }
    }
    // Logs are one file for each function, as it writes them.
    if let Some(Value::Object(logging)) = body.get("LoggingConfig") {
        let named = body.get("FunctionName").and_then(Value::as_str).or(name);
        // A name may be the end of an ARN.
        let is_own = |group: &str| {
            let group = group.strip_prefix("/aws/lambda/").unwrap_or("");
            named.is_some_and(|named| named.rsplit(':').any(|part| part == group))
        };
        let text = |name: &str| logging.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let is_text = text("LogFormat").is_none_or(|format| format == "Text");
        let has_level = text("ApplicationLogLevel").is_some() || text("SystemLogLevel").is_some();
        if !is_text || has_level || text("LogGroup").is_some_and(|group| !is_own(group)) {
            return Err(ApiError::invalid(
                "LoggingConfig: only the LogFormat Text and the function's own LogGroup are supported, without levels (docs/lambda-api.md)",
            ));
        }
    }
    Ok(())
}

/// The image that a request names.
pub(super) fn image_uri(code: &Map<String, Value>) -> Result<String, ApiError> {
    if let Some(other) = ["ZipFile", "S3Bucket", "S3Key"].iter().find(|name| code.contains_key(**name)) {
        return Err(ApiError::invalid(format!("{other} is for functions of PackageType Zip: give ImageUri")));
    }
    let uri = text(code, "ImageUri")?.ok_or_else(|| input::missing("ImageUri"))?;
    if uri.is_empty() || uri.len() > 1024 || uri.starts_with('-') || uri.chars().any(|c| c.is_control() || c == ' ') {
        return Err(ApiError::invalid(format!("ImageUri {uri:?}: expected such as registry.example/name:tag")));
    }
    Ok(uri)
}
