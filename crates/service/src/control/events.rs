//! What becomes of invocations that nobody waits for.

use serde_json::{Value, json};

use super::functions::with_marker;
use super::{Act, Success};
use crate::api::ApiError;
use crate::events::check_destination;
use crate::model::{EventConfig, Function};
use crate::{FunctionName, Qualifier};

impl Act<'_> {
    fn event_target(&self) -> Result<(FunctionName, Qualifier), ApiError> {
        let named = self.input.function(&self.service.options.place)?;
        let qualifier = named.qualifier.clone().unwrap_or_default();
        let function = self.find(&named.name)?;
        if function.resolve(Some(&qualifier), 0.0).is_none() {
            let arn = self.service.options.place.arn(&named.name, Some(&qualifier));
            return Err(ApiError::not_found(format!("Function not found: {arn}")));
        }
        Ok((named, qualifier))
    }

    fn show_event_config(&self, function: &Function, qualifier: &str, config: &EventConfig) -> Value {
        let place = &self.service.options.place;
        let arn = Qualifier::parse(qualifier)
            .map_or_else(|_| place.arn(&function.name, None), |qualifier| place.arn(&function.name, Some(&qualifier)));
        let destination =
            |to: &Option<String>| to.as_ref().map_or_else(|| json!({}), |to| json!({ "Destination": to }));
        json!({
            "LastModified": config.modified.timestamp() as f64,
            "FunctionArn": arn,
            "MaximumRetryAttempts": config.most_retries,
            "MaximumEventAgeInSeconds": config.most_age_seconds,
            "DestinationConfig": { "OnSuccess": destination(&config.on_success), "OnFailure": destination(&config.on_failure) },
        })
    }

    pub(super) fn put_event_config(&self, is_update: bool) -> Result<Success, ApiError> {
        let (named, qualifier) = self.event_target()?;
        let retries = self.input.number("MaximumRetryAttempts", 0, 2)?;
        let age = self.input.number("MaximumEventAgeInSeconds", 60, 21_600)?;
        let destinations = self.input.object("DestinationConfig")?;
        let destination = |which: &str| -> Result<Option<String>, ApiError> {
            let Some(Value::Object(to)) = destinations.and_then(|all| all.get(which)) else { return Ok(None) };
            let Some(to) = super::input::text(to, "Destination")?.filter(|to| !to.is_empty()) else { return Ok(None) };
            check_destination(self.service, &self.input.tenant, "Destination", &to)?;
            Ok(Some(to))
        };
        let (on_success, on_failure) = (destination("OnSuccess")?, destination("OnFailure")?);
        let (function, config) = self.service.registry.change(&self.input.tenant, &named.name, |function| {
            let before = function.event_configs.get(&qualifier.to_string()).filter(|_| is_update);
            let mut config = before.cloned().unwrap_or_default();
            config.modified = chrono::Utc::now();
            config.most_retries = retries.unwrap_or(config.most_retries);
            config.most_age_seconds = age.unwrap_or(config.most_age_seconds);
            if !is_update || destinations.is_some() {
                (config.on_success, config.on_failure) = (on_success, on_failure);
            }
            function.event_configs.insert(qualifier.to_string(), config.clone());
            Ok(config)
        })?;
        Ok(Success::ok(self.show_event_config(&function, &qualifier.to_string(), &config)))
    }

    fn no_event_config(&self, name: &str, qualifier: &Qualifier) -> ApiError {
        let arn = self.service.options.place.arn(name, Some(qualifier));
        ApiError::not_found(format!("The function {arn} doesn't have an EventInvokeConfig"))
    }

    pub(super) fn get_event_config(&self) -> Result<Success, ApiError> {
        let (named, qualifier) = self.event_target()?;
        let function = self.find(&named.name)?;
        let config = function.event_configs.get(&qualifier.to_string());
        let config = config.ok_or_else(|| self.no_event_config(&named.name, &qualifier))?;
        Ok(Success::ok(self.show_event_config(&function, &qualifier.to_string(), config)))
    }

    pub(super) fn delete_event_config(&self) -> Result<Success, ApiError> {
        let (named, qualifier) = self.event_target()?;
        self.service.registry.change(&self.input.tenant, &named.name, |function| {
            let removed = function.event_configs.remove(&qualifier.to_string());
            removed.map(drop).ok_or_else(|| self.no_event_config(&named.name, &qualifier))
        })?;
        Ok(Success::no_content())
    }

    pub(super) fn list_event_configs(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        let all = function.event_configs.iter();
        let all = all.map(|(qualifier, config)| self.show_event_config(&function, qualifier, config)).collect();
        let (page, next) = self.input.page::<Value>(all, 50)?;
        Ok(Success::ok(with_marker(json!({ "FunctionEventInvokeConfigs": page }), next)))
    }
}
