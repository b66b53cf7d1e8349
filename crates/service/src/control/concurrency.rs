//! How many invocations of a function there may be at once, and how many sandboxes are kept for it.

use std::sync::{Mutex, PoisonError};

use chrono::Utc;
use serde_json::{Value, json};

use super::functions::with_marker;
use super::input::missing;
use super::{Act, Success};
use crate::api::ApiError;
use crate::model::{Function, Provisioned};
use crate::provisioning::Progress;
use crate::{FunctionName, Qualifier};

/// What functions may have for themselves is found and taken in turn.
static TURN: Mutex<()> = Mutex::new(());
/// What must stay for all that have nothing for themselves; less where a tenant has few.
const LEAST_UNRESERVED: u32 = 100;

/// What a function has for itself.
pub(super) fn set_aside(function: &Function) -> u32 {
    function.reserved_concurrency.unwrap_or_else(|| function.provisioned_total())
}

impl Act<'_> {
    fn least_unreserved(&self) -> u32 {
        LEAST_UNRESERVED.min(self.service.options.account_concurrency / 10)
    }

    /// What others of the tenant leave to a function and to all that share.
    fn left_by_others(&self, name: &str) -> u32 {
        let functions = self.service.registry.list(&self.input.tenant);
        let others = functions.iter().filter(|function| function.name != name).map(|function| set_aside(function));
        self.service.options.account_concurrency.saturating_sub(others.sum())
    }

    fn check_unreserved(&self, what: &str, name: &str, wanted: u32) -> Result<(), ApiError> {
        let (left, least) = (self.left_by_others(name), self.least_unreserved());
        if wanted > left.saturating_sub(least) {
            return Err(ApiError::invalid(format!(
                "Specified {what} for function decreases account's UnreservedConcurrentExecution below its minimum value of [{least}]."
            )));
        }
        Ok(())
    }

    pub(super) fn put_concurrency(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        let most = self.service.options.account_concurrency;
        let reserved = self.input.number("ReservedConcurrentExecutions", 0, most)?;
        let reserved = reserved.ok_or_else(|| missing("ReservedConcurrentExecutions"))?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let provisioned = self.find(&name)?.provisioned_total();
        if reserved < provisioned {
            return Err(ApiError::invalid(format!(
                "Requested Reserved Concurrency should not be less than the function's Provisioned Concurrency [{provisioned}]"
            )));
        }
        self.check_unreserved("ReservedConcurrentExecutions", &name, reserved)?;
        let (function, ()) = self.service.registry.change(&self.input.tenant, &name, |function| {
            function.reserved_concurrency = Some(reserved);
            Ok(())
        })?;
        self.service.set_aside(&function);
        Ok(Success::ok(json!({ "ReservedConcurrentExecutions": reserved })))
    }

    pub(super) fn get_concurrency(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        let reserved = function.reserved_concurrency;
        Ok(Success::ok(
            reserved.map_or_else(|| json!({}), |reserved| json!({ "ReservedConcurrentExecutions": reserved })),
        ))
    }

    pub(super) fn delete_concurrency(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, ()) = self.service.registry.change(&self.input.tenant, &name, |function| {
            function.reserved_concurrency = None;
            Ok(())
        })?;
        self.service.set_aside(&function);
        Ok(Success::no_content())
    }

    /// The version or alias of which sandboxes are kept, which must be there.
    fn provisioned_target(&self) -> Result<(FunctionName, Qualifier), ApiError> {
        let named = self.input.function(&self.service.options.place)?;
        let qualifier = named.qualifier.clone().ok_or_else(|| missing("Qualifier"))?;
        if qualifier == Qualifier::Latest {
            return Err(ApiError::invalid(
                "Provisioned Concurrency Configs cannot be applied to unpublished function versions.",
            ));
        }
        let function = self.find(&named.name)?;
        if function.resolve_first(&qualifier).is_none() {
            let arn = self.service.options.place.arn(&named.name, Some(&qualifier));
            return Err(match qualifier {
                Qualifier::Alias(_) => ApiError::not_found(format!("Cannot find alias arn: {arn}")),
                _ => ApiError::not_found(format!("Function not found: {arn}")),
            });
        }
        Ok((named, qualifier))
    }

    fn show_provisioned(&self, function: &Function, qualifier: &Qualifier, provisioned: &Provisioned) -> Value {
        let Progress { allocated, available, failure } = self.service.progress(function, qualifier);
        let requested = provisioned.requested as usize;
        let status = match &failure {
            _ if available >= requested => "READY",
            Some(_) => "FAILED",
            None => "IN_PROGRESS",
        };
        let mut all = json!({
            "RequestedProvisionedConcurrentExecutions": requested,
            "AllocatedProvisionedConcurrentExecutions": allocated.min(requested),
            "AvailableProvisionedConcurrentExecutions": available.min(requested),
            "Status": status,
            "LastModified": provisioned.modified.format("%Y-%m-%dT%H:%M:%S+0000").to_string(),
        });
        if let Some(failure) = failure.filter(|_| status == "FAILED") {
            all["StatusReason"] = json!(failure);
        }
        all
    }

    pub(super) fn put_provisioned(&self) -> Result<Success, ApiError> {
        let (named, qualifier) = self.provisioned_target()?;
        let most = self.service.options.account_concurrency;
        let requested = self.input.number("ProvisionedConcurrentExecutions", 1, u32::MAX)?;
        let requested = requested.ok_or_else(|| missing("ProvisionedConcurrentExecutions"))?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.find(&named.name)?;
        let before = found.provisioned.get(&qualifier.to_string()).map_or(0, |provisioned| provisioned.requested);
        let total = found.provisioned_total().saturating_sub(before).saturating_add(requested);
        match found.reserved_concurrency {
            Some(reserved) if total > reserved => {
                return Err(ApiError::invalid(
                    "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for function",
                ));
            }
            Some(_) => {}
            None if total > most => {
                let left = self.left_by_others(&named.name);
                return Err(ApiError::invalid(format!(
                    "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency [{left}]."
                )));
            }
            None => self.check_unreserved("ConcurrentExecutions", &named.name, total)?,
        }
        let provisioned = Provisioned { requested, modified: Utc::now() };
        let (function, ()) = self.service.registry.change(&self.input.tenant, &named.name, |function| {
            check_others(function, &qualifier)?;
            function.provisioned.insert(qualifier.to_string(), provisioned.clone());
            Ok(())
        })?;
        self.service.set_aside(&function);
        let shown = self.show_provisioned(&function, &qualifier, &provisioned);
        Ok(Success { status: 202, body: Some(shown) })
    }

    pub(super) fn get_provisioned(&self) -> Result<Success, ApiError> {
        let (named, qualifier) = self.provisioned_target()?;
        let function = self.find(&named.name)?;
        let provisioned = function.provisioned.get(&qualifier.to_string());
        let provisioned = provisioned
            .ok_or_else(|| ApiError::not_provisioned("No Provisioned Concurrency Config found for this function"))?;
        Ok(Success::ok(self.show_provisioned(&function, &qualifier, provisioned)))
    }

    pub(super) fn delete_provisioned(&self) -> Result<Success, ApiError> {
        let (named, qualifier) = self.provisioned_target()?;
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, ()) = self.service.registry.change(&self.input.tenant, &named.name, |function| {
            function.provisioned.remove(&qualifier.to_string());
            Ok(())
        })?;
        self.service.set_aside(&function);
        Ok(Success::no_content())
    }

    pub(super) fn list_provisioned(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        let all = function.provisioned.iter().filter_map(|(qualifier, provisioned)| {
            let qualifier = Qualifier::parse(qualifier).ok()?;
            let mut shown = self.show_provisioned(&function, &qualifier, provisioned);
            shown["FunctionArn"] = json!(self.service.options.place.arn(&function.name, Some(&qualifier)));
            Some(shown)
        });
        let (page, next) = self.input.page::<Value>(all.collect(), 50)?;
        Ok(Success::ok(with_marker(json!({ "ProvisionedConcurrencyConfigs": page }), next)))
    }
}

/// That a version is not asked for by two names.
fn check_others(function: &Function, qualifier: &Qualifier) -> Result<(), ApiError> {
    let number = function.resolve_first(qualifier).map(|(number, _)| number);
    for other in function.provisioned.keys() {
        let Ok(other) = Qualifier::parse(other) else { continue };
        if other == *qualifier || function.resolve_first(&other).map(|(number, _)| number) != number {
            continue;
        }
        return Err(ApiError::conflict(match qualifier {
            Qualifier::Alias(_) => {
                "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version"
            }
            _ => "Version is pointed by a Provisioned Concurrency alias",
        }));
    }
    Ok(())
}
