//! What clients look up beside a function, of which there is little: that there is none, and AWS's defaults.

use serde_json::{Value, json};

use super::{Act, Success};
use crate::api::ApiError;

impl Act<'_> {
    /// What there can be none of here.
    pub(super) fn nothing(list: &str) -> Success {
        let mut all = json!({});
        all[list] = json!([]);
        Success::ok(all)
    }

    pub(super) fn list_event_source_mappings(&self) -> Result<Success, ApiError> {
        if let Some(name) = self.input.query("FunctionName") {
            let named = crate::FunctionName::parse(name, &self.service.options.place)?;
            self.find(&named.name)?;
        }
        Ok(Self::nothing("EventSourceMappings"))
    }

    pub(super) fn get_code_signing(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        if function.latest.package().is_none() {
            return Err(ApiError::invalid(
                "Code signing is not supported for functions created with container images.",
            ));
        }
        Ok(Success::ok(json!({ "FunctionName": function.name, "CodeSigningConfigArn": "" })))
    }

    pub(super) fn get_recursion_config(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        Ok(Success::ok(show_recursion(function.allows_recursion)))
    }

    pub(super) fn put_recursion_config(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        let allows = match self.input.needed("RecursiveLoop")?.as_str() {
            "Allow" => true,
            "Terminate" => false,
            other => return Err(ApiError::invalid(format!("RecursiveLoop {other:?}: expected Allow or Terminate"))),
        };
        self.service.registry.change(&self.input.tenant, &name, |function| {
            function.allows_recursion = allows;
            Ok(())
        })?;
        Ok(Success::ok(show_recursion(allows)))
    }

    pub(super) fn get_runtime_management(&self) -> Result<Success, ApiError> {
        let (_, named) = self.resolved()?;
        let arn = self.service.options.place.arn(&named.name, named.qualifier.as_ref());
        Ok(Success::ok(json!({ "UpdateRuntimeOn": "Auto", "FunctionArn": arn })))
    }
}

fn show_recursion(allows: bool) -> Value {
    json!({ "RecursiveLoop": if allows { "Allow" } else { "Terminate" } })
}
