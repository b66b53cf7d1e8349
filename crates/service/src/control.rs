//! The control API's actions on functions.

mod aliases;
mod code;
mod concurrency;
mod events;
mod functions;
mod input;
mod policy;
mod reads;
mod settings;
mod urls;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use self::input::Input;
use crate::api::ApiError;
use crate::service::Service;

/// A success: a status, and a body where there is one.
pub(crate) struct Success {
    pub(crate) status: u16,
    pub(crate) body: Option<Value>,
}

impl Success {
    fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body) }
    }

    fn created(body: Value) -> Self {
        Self { status: 201, body: Some(body) }
    }

    fn no_content() -> Self {
        Self { status: 204, body: None }
    }
}

/// Does what is asked.
///
/// # Errors
/// Those of the action; not implemented, by its name, for those that we do not have.
pub(crate) fn act(service: &Arc<Service>, action: &str, input: &Input) -> Result<Success, ApiError> {
    let act = Act { service, input };
    match action {
        "CreateFunction" => act.create_function(),
        "GetFunction" => act.get_function(),
        "GetFunctionConfiguration" => act.get_configuration(),
        "ListFunctions" => act.list_functions(),
        "DeleteFunction" => act.delete_function(),
        "UpdateFunctionCode" => act.update_code(),
        "UpdateFunctionConfiguration" => act.update_configuration(),
        "PublishVersion" => act.publish_version(),
        "ListVersionsByFunction" => act.list_versions(),
        "CreateAlias" => act.create_alias(),
        "GetAlias" => act.get_alias(),
        "ListAliases" => act.list_aliases(),
        "UpdateAlias" => act.update_alias(),
        "DeleteAlias" => act.delete_alias(),
        "PutFunctionConcurrency" => act.put_concurrency(),
        "GetFunctionConcurrency" => act.get_concurrency(),
        "DeleteFunctionConcurrency" => act.delete_concurrency(),
        "PutFunctionEventInvokeConfig" => act.put_event_config(false),
        "UpdateFunctionEventInvokeConfig" => act.put_event_config(true),
        "GetFunctionEventInvokeConfig" => act.get_event_config(),
        "DeleteFunctionEventInvokeConfig" => act.delete_event_config(),
        "ListFunctionEventInvokeConfigs" => act.list_event_configs(),
        "ListTags" => act.list_tags(),
        "TagResource" => act.tag(),
        "UntagResource" => act.untag(),
        "GetAccountSettings" => Ok(act.account_settings()),
        "AddPermission" => act.add_permission(),
        "GetPolicy" => act.get_policy(),
        "RemovePermission" => act.remove_permission(),
        "CreateFunctionUrlConfig" => act.create_url(),
        "GetFunctionUrlConfig" => act.get_url(),
        "UpdateFunctionUrlConfig" => act.update_url(),
        "DeleteFunctionUrlConfig" => act.delete_url(),
        "ListFunctionUrlConfigs" => act.list_urls(),
        "PutProvisionedConcurrencyConfig" => act.put_provisioned(),
        "GetProvisionedConcurrencyConfig" => act.get_provisioned(),
        "DeleteProvisionedConcurrencyConfig" => act.delete_provisioned(),
        "ListProvisionedConcurrencyConfigs" => act.list_provisioned(),
        "GetFunctionRecursionConfig" => act.get_recursion_config(),
        "PutFunctionRecursionConfig" => act.put_recursion_config(),
        "GetRuntimeManagementConfig" => act.get_runtime_management(),
        "ListEventSourceMappings" => act.list_event_source_mappings(),
        "ListLayers" => Ok(Act::nothing("Layers")),
        "ListLayerVersions" => Ok(Act::nothing("LayerVersions")),
        "ListCodeSigningConfigs" => Ok(Act::nothing("CodeSigningConfigs")),
        "GetFunctionCodeSigningConfig" => act.get_code_signing(),
        other => Err(ApiError::not_implemented(format!(
            "{other} is an action of AWS Lambda that snowmelt does not have: docs/lambda-api.md lists those that it has"
        ))),
    }
}

/// One action.
struct Act<'a> {
    service: &'a Arc<Service>,
    input: &'a Input,
}

/// Reads a request's settings and the statement in it, for fuzzing.
pub(crate) fn fuzz_settings(input: &Input) -> Result<crate::policy::Statement, ApiError> {
    let _ = settings::new(input);
    policy::statement(input)
}
