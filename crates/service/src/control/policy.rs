//! Resource policies.

use serde_json::json;

use super::{Act, Input, Success};
use crate::api::ApiError;
use crate::model::Function;
use crate::policy::{Policy, Statement};
use crate::url::UrlAuth;
use crate::{FunctionName, Qualifier};

impl Act<'_> {
    /// What a policy is of, by name, key and ARN.
    fn policy_target(&self) -> Result<(FunctionName, String, String), ApiError> {
        let named = self.input.function(&self.service.options.place)?;
        if named.qualifier == Some(Qualifier::Latest) {
            return Err(ApiError::invalid("We currently do not support adding policies for $LATEST."));
        }
        let arn = self.service.options.place.arn(&named.name, named.qualifier.as_ref());
        let key = named.qualifier.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok((named, key, arn))
    }

    fn check_is_there(&self, function: &Function, named: &FunctionName) -> Result<(), ApiError> {
        if function.resolve(named.qualifier.as_ref(), 0.0).is_none() {
            let arn = self.service.options.place.arn(&named.name, named.qualifier.as_ref());
            return Err(ApiError::not_found(format!("Function not found: {arn}")));
        }
        Ok(())
    }

    pub(super) fn add_permission(&self) -> Result<Success, ApiError> {
        let (named, key, arn) = self.policy_target()?;
        let input = self.input;
        let statement = statement(input)?;
        let shown = statement.show(&arn).to_string();
        let revision = input.text("RevisionId")?;
        self.service.registry.change(&input.tenant, &named.name, |function| {
            self.check_is_there(function, &named)?;
            let policy = function.policies.entry(key).or_insert_with(Policy::new);
            check_revision(policy, revision.as_deref())?;
            policy.add(statement, &arn)
        })?;
        Ok(Success::created(json!({ "Statement": shown })))
    }

    pub(super) fn get_policy(&self) -> Result<Success, ApiError> {
        let (named, key, arn) = self.policy_target()?;
        let function = self.find(&named.name)?;
        self.check_is_there(&function, &named)?;
        let policy = function.policies.get(&key).ok_or_else(no_policy)?;
        Ok(Success::ok(json!({ "Policy": policy.show(&arn), "RevisionId": policy.revision })))
    }

    pub(super) fn remove_permission(&self) -> Result<Success, ApiError> {
        let (named, key, _) = self.policy_target()?;
        let sid = self.input.parameter(1)?;
        self.service.registry.change(&self.input.tenant, &named.name, |function| {
            self.check_is_there(function, &named)?;
            let missing = || ApiError::not_found(format!("Statement {sid} is not found in resource policy."));
            let policy = function.policies.get_mut(&key).ok_or_else(no_policy)?;
            check_revision(policy, self.input.query("RevisionId"))?;
            if !policy.remove(sid) {
                return Err(missing());
            }
            if policy.is_empty() {
                function.policies.remove(&key);
            }
            Ok(())
        })?;
        Ok(Success::no_content())
    }
}

/// The statement that a request gives.
pub(super) fn statement(input: &Input) -> Result<Statement, ApiError> {
    let text = |name: &str| Ok::<_, ApiError>(input.text(name)?.filter(|text| !text.is_empty()));
    let via_url = input.body.contains_key("InvokedViaFunctionUrl").then(|| input.flag("InvokedViaFunctionUrl"));
    let url_auth = text("FunctionUrlAuthType")?;
    let statement = Statement {
        sid: input.needed("StatementId")?,
        action: input.needed("Action")?,
        principal: input.needed("Principal")?,
        source_arn: text("SourceArn")?,
        source_account: text("SourceAccount")?,
        organization: text("PrincipalOrgID")?,
        event_source_token: text("EventSourceToken")?,
        url_auth: url_auth.map(|name| UrlAuth::parse("FunctionUrlAuthType", &name)).transpose()?,
        via_url: via_url.transpose()?,
    };
    statement.check()?;
    Ok(statement)
}

fn no_policy() -> ApiError {
    ApiError::not_found("The resource you requested does not exist.")
}

fn check_revision(policy: &Policy, asked: Option<&str>) -> Result<(), ApiError> {
    if asked.is_some_and(|asked| asked != policy.revision) {
        return Err(ApiError::precondition(
            "The RevisionId provided does not match the latest RevisionId. Call the GetPolicy API to retrieve the latest RevisionId",
        ));
    }
    Ok(())
}
