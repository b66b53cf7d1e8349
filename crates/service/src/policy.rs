//! Who else may invoke a function: statements of its resource policy, as AddPermission makes them.
//!
//! A tenant's own keys may do everything with its functions, whatever a policy says. Policies decide who may call a function's URL, and are
//! what clients read back.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::api::ApiError;
use crate::model::new_id;
use crate::url::UrlAuth;

/// Bytes of a policy, as in Lambda.
const MOST_POLICY: usize = 20_480;

/// The statements of a function, or of one of its versions and aliases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub(crate) revision: String,
    statements: Vec<Statement>,
}

/// One of them: all are of effect `Allow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statement {
    pub(crate) sid: String,
    pub(crate) action: String,
    pub(crate) principal: String,
    pub(crate) source_arn: Option<String>,
    pub(crate) source_account: Option<String>,
    pub(crate) organization: Option<String>,
    pub(crate) event_source_token: Option<String>,
    pub(crate) url_auth: Option<UrlAuth>,
    pub(crate) via_url: Option<bool>,
}

fn is_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl Statement {
    /// That it says what a statement may say.
    ///
    /// # Errors
    /// Invalid parameter, with its name.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=100).contains(&self.sid.len()) || !self.sid.bytes().all(word) {
            return Err(ApiError::invalid(format!(
                "StatementId {:?}: expected 1 to 100 letters, digits, '-' and '_'",
                self.sid
            )));
        }
        let is_action = self.action == "*"
            || self.action.strip_prefix("lambda:").is_some_and(|name| {
                name == "*" || (!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic()))
            });
        if !is_action {
            return Err(ApiError::invalid(format!("Action {:?}: expected such as lambda:InvokeFunction", self.action)));
        }
        self.show_principal()?;
        if let Some(arn) = &self.source_arn
            && (!arn.starts_with("arn:") || arn.split(':').count() < 6 || arn.chars().any(char::is_control))
        {
            return Err(ApiError::invalid(format!("SourceArn {arn:?}: expected an ARN")));
        }
        if let Some(account) = &self.source_account
            && !is_digits(account, 12)
        {
            return Err(ApiError::invalid(format!("SourceAccount {account:?}: expected twelve digits")));
        }
        if let Some(id) = &self.organization {
            let rest = id.strip_prefix("o-").unwrap_or("");
            let is_id = (10..=32).contains(&rest.len())
                && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            if !is_id {
                return Err(ApiError::invalid(format!("PrincipalOrgID {id:?}: expected such as o-a1b2c3d4e5")));
            }
        }
        if let Some(token) = &self.event_source_token
            && (token.len() > 256 || !token.bytes().all(|byte| word(byte) || byte == b'.'))
        {
            return Err(ApiError::invalid("EventSourceToken: expected up to 256 letters, digits, '.', '-' and '_'"));
        }
        if self.url_auth.is_some() && self.action != "lambda:InvokeFunctionUrl" {
            return Err(ApiError::invalid("FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action"));
        }
        if self.via_url.is_some() && self.action != "lambda:InvokeFunction" {
            return Err(ApiError::invalid("InvokedViaFunctionUrl is only supported for lambda:InvokeFunction action"));
        }
        Ok(())
    }

    fn show_principal(&self) -> Result<Value, ApiError> {
        let principal = self.principal.as_str();
        let is_plain = !principal.is_empty()
            && principal.len() <= 2048
            && !principal.chars().any(|c| c.is_whitespace() || c.is_control());
        match principal {
            "*" => Ok(json!("*")),
            account if is_digits(account, 12) => Ok(json!({ "AWS": format!("arn:aws:iam::{account}:root") })),
            arn if is_plain && arn.starts_with("arn:") => Ok(json!({ "AWS": arn })),
            service if is_plain && service.contains('.') => Ok(json!({ "Service": service })),
            _ => {
                Err(ApiError::invalid("The provided principal was invalid. Please check the principal and try again."))
            }
        }
    }

    /// As AWS writes it.
    pub(crate) fn show(&self, resource: &str) -> Value {
        let mut conditions = Map::new();
        let mut condition = |operator: &str, key: &str, value: Option<&str>| {
            if let Some(value) = value {
                let of_operator = conditions.entry(operator).or_insert_with(|| json!({}));
                of_operator[key] = json!(value);
            }
        };
        condition("ArnLike", "AWS:SourceArn", self.source_arn.as_deref());
        condition("StringEquals", "AWS:SourceAccount", self.source_account.as_deref());
        condition("StringEquals", "aws:PrincipalOrgID", self.organization.as_deref());
        condition("StringEquals", "lambda:EventSourceToken", self.event_source_token.as_deref());
        condition("StringEquals", "lambda:FunctionUrlAuthType", self.url_auth.map(UrlAuth::name));
        let via_url = self.via_url.map(|via| if via { "true" } else { "false" });
        condition("Bool", "lambda:InvokedViaFunctionUrl", via_url);
        let mut all = json!({
            "Sid": self.sid,
            "Effect": "Allow",
            "Principal": self.show_principal().unwrap_or(Value::Null),
            "Action": self.action,
            "Resource": resource,
        });
        if !conditions.is_empty() {
            all["Condition"] = Value::Object(conditions);
        }
        all
    }

    /// Whether it lets anybody call the function's URL, who has no key.
    fn allows_everybody(&self) -> bool {
        let is_action = ["lambda:InvokeFunctionUrl", "lambda:*", "*"].contains(&self.action.as_str());
        // What a request without a key has to show: nothing but the way that it came.
        let is_bound = self.source_arn.is_some()
            || self.source_account.is_some()
            || self.organization.is_some()
            || self.event_source_token.is_some();
        self.principal == "*" && is_action && !is_bound && self.url_auth.is_none_or(|auth| auth == UrlAuth::None)
    }
}

impl Policy {
    /// With its first statement.
    pub(crate) fn new() -> Self {
        Self { revision: new_id(), statements: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Adds a statement.
    ///
    /// # Errors
    /// Conflict where there is one of its id; too long.
    pub(crate) fn add(&mut self, statement: Statement, resource: &str) -> Result<(), ApiError> {
        if self.statements.iter().any(|other| other.sid == statement.sid) {
            return Err(ApiError::conflict(format!(
                "The statement id ({}) provided already exists. Please provide a new statement id, or remove the existing statement.",
                statement.sid
            )));
        }
        self.statements.push(statement);
        let length = self.show(resource).len();
        if length > MOST_POLICY {
            return Err(ApiError::policy_too_long(format!(
                "The final policy size ({length}) is bigger than the limit ({MOST_POLICY})."
            )));
        }
        self.revision = new_id();
        Ok(())
    }

    /// Removes a statement. False where there is none of that id.
    pub(crate) fn remove(&mut self, sid: &str) -> bool {
        let before = self.statements.len();
        self.statements.retain(|statement| statement.sid != sid);
        self.revision = new_id();
        self.statements.len() < before
    }

    /// The whole, as text of JSON.
    pub(crate) fn show(&self, resource: &str) -> String {
        let statements: Vec<Value> = self.statements.iter().map(|statement| statement.show(resource)).collect();
        json!({ "Version": "2012-10-17", "Id": "default", "Statement": statements }).to_string()
    }

    /// Whether it lets anybody call the function's URL, who has no key.
    pub(crate) fn allows_everybody(&self) -> bool {
        self.statements.iter().any(Statement::allows_everybody)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn statement() -> Statement {
        Statement {
            sid: "one".into(),
            action: "lambda:InvokeFunctionUrl".into(),
            principal: "*".into(),
            source_arn: None,
            source_account: None,
            organization: None,
            event_source_token: None,
            url_auth: Some(UrlAuth::None),
            via_url: None,
        }
    }

    #[test]
    fn conditions_are_written_as_aws_writes_them() {
        let mut all = statement();
        all.source_arn = Some("arn:aws:s3:::bucket".into());
        all.source_account = Some("123456789012".into());
        all.principal = "s3.amazonaws.com".into();
        all.url_auth = None;
        all.action = "lambda:InvokeFunction".into();
        all.via_url = Some(true);
        all.check().unwrap();
        assert_eq!(
            all.show("arn"),
            json!({
                "Sid": "one", "Effect": "Allow", "Principal": { "Service": "s3.amazonaws.com" }, "Resource": "arn",
                "Action": "lambda:InvokeFunction",
                "Condition": {
                    "ArnLike": { "AWS:SourceArn": "arn:aws:s3:::bucket" },
                    "StringEquals": { "AWS:SourceAccount": "123456789012" },
                    "Bool": { "lambda:InvokedViaFunctionUrl": "true" },
                },
            })
        );
        for (principal, shown) in [
            ("*", json!("*")),
            ("123456789012", json!({ "AWS": "arn:aws:iam::123456789012:root" })),
            ("arn:aws:iam::123456789012:role/x", json!({ "AWS": "arn:aws:iam::123456789012:role/x" })),
        ] {
            assert_eq!(Statement { principal: principal.into(), ..statement() }.show("arn")["Principal"], shown);
        }
    }

    #[test]
    fn only_who_is_everybody_without_bounds_opens_a_url() {
        let opens = |statement: Statement| {
            let mut policy = Policy::new();
            policy.add(statement, "arn").unwrap();
            policy.allows_everybody()
        };
        assert!(opens(statement()));
        assert!(opens(Statement { url_auth: None, action: "lambda:*".into(), ..statement() }));
        assert!(!opens(Statement { url_auth: Some(UrlAuth::Iam), ..statement() }));
        assert!(!opens(Statement { principal: "123456789012".into(), ..statement() }));
        assert!(!opens(Statement { source_account: Some("123456789012".into()), ..statement() }));
        assert!(!opens(Statement { url_auth: None, action: "lambda:InvokeFunction".into(), ..statement() }));
    }

    #[test]
    fn a_policy_has_a_bound_and_no_id_twice() {
        let mut policy = Policy::new();
        policy.add(statement(), "arn").unwrap();
        assert_eq!(policy.add(statement(), "arn").unwrap_err().status(), 409);
        let refused = (0..1000)
            .find_map(|number| policy.add(Statement { sid: format!("s{number}"), ..statement() }, "arn").err());
        assert_eq!(refused.unwrap().name(), "PolicyLengthExceededException");
        assert!(policy.remove("one") && !policy.remove("one"));
    }
}
