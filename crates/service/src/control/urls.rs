//! The settings of functions' URLs.

use chrono::Utc;
use serde_json::{Value, json};

use super::functions::with_marker;
use super::{Act, Success};
use crate::api::ApiError;
use crate::model::Function;
use crate::url::cors::Cors;
use crate::url::{UrlAuth, UrlConfig, new_id};
use crate::{FunctionName, Qualifier};

/// As far as the request says it.
struct Given {
    auth: Option<UrlAuth>,
    is_streamed: Option<bool>,
    cors: Option<Cors>,
}

fn no_url() -> ApiError {
    ApiError::not_found("The resource you requested does not exist.")
}

impl Act<'_> {
    /// What the URL is of: `$LATEST` or an alias. AWS has none of versions.
    fn url_target(&self) -> Result<(FunctionName, String), ApiError> {
        let named = self.input.function(&self.service.options.place)?;
        match &named.qualifier {
            None | Some(Qualifier::Alias(_)) => {}
            Some(_) => {
                return Err(ApiError::invalid("Qualifier: a function URL is of the function alone or of an alias"));
            }
        }
        let key = named.qualifier.clone().unwrap_or_default().to_string();
        Ok((named, key))
    }

    fn show_url(&self, name: &str, qualifier: Option<&Qualifier>, config: &UrlConfig) -> Value {
        let options = &self.service.options;
        config.show(&options.urls, &options.place.region, &options.place.arn(name, qualifier))
    }

    fn url_settings(&self) -> Result<Given, ApiError> {
        let auth = self.input.text("AuthType")?.map(|name| UrlAuth::parse("AuthType", &name)).transpose()?;
        let mode = self.input.text("InvokeMode")?;
        let is_streamed = match mode.as_deref() {
            None => None,
            Some("BUFFERED") => Some(false),
            Some("RESPONSE_STREAM") => Some(true),
            Some(other) => {
                return Err(ApiError::invalid(format!("InvokeMode {other:?}: expected BUFFERED or RESPONSE_STREAM")));
            }
        };
        let cors = match self.input.object("Cors")? {
            None => None,
            Some(fields) => {
                let cors: Cors = serde_json::from_value(Value::Object(fields.clone()))
                    .map_err(|error| ApiError::invalid(format!("Cors: {error}")))?;
                cors.check()?;
                Some(cors)
            }
        };
        Ok(Given { auth, is_streamed, cors })
    }

    pub(super) fn create_url(&self) -> Result<Success, ApiError> {
        let (named, key) = self.url_target()?;
        let Given { auth, is_streamed, cors } = self.url_settings()?;
        let auth = auth.ok_or_else(|| super::input::missing("AuthType"))?;
        let now = Utc::now();
        let is_streamed = is_streamed.unwrap_or(false);
        let config = UrlConfig { id: new_id(), auth, is_streamed, cors, created: now, modified: now };
        let (_, config) = self.service.registry.change(&self.input.tenant, &named.name, |function| {
            let arn = self.service.options.place.arn(&named.name, named.qualifier.as_ref());
            if function.resolve(named.qualifier.as_ref(), 0.0).is_none() {
                return Err(ApiError::not_found(format!("Function not found: {arn}")));
            }
            if function.urls.contains_key(&key) {
                return Err(ApiError::conflict(format!(
                    "Failed to create function url config for [functionArn = {arn}]. Error message:  FunctionUrlConfig exists for this Lambda function"
                )));
            }
            function.urls.insert(key, config.clone());
            Ok(config)
        })?;
        Ok(Success::created(self.show_url(&named.name, named.qualifier.as_ref(), &config)))
    }

    pub(super) fn get_url(&self) -> Result<Success, ApiError> {
        let (named, key) = self.url_target()?;
        let function = self.find(&named.name)?;
        let config = function.urls.get(&key).ok_or_else(no_url)?;
        Ok(Success::ok(self.show_url(&named.name, named.qualifier.as_ref(), config)))
    }

    pub(super) fn update_url(&self) -> Result<Success, ApiError> {
        let (named, key) = self.url_target()?;
        let Given { auth, is_streamed, cors } = self.url_settings()?;
        let (_, config) = self.service.registry.change(&self.input.tenant, &named.name, |function| {
            let config = function.urls.get_mut(&key).ok_or_else(no_url)?;
            config.auth = auth.unwrap_or(config.auth);
            config.is_streamed = is_streamed.unwrap_or(config.is_streamed);
            if let Some(cors) = cors {
                // An empty one takes the settings away.
                config.cors = (cors != Cors::default()).then_some(cors);
            }
            config.modified = Utc::now();
            Ok(config.clone())
        })?;
        Ok(Success::ok(self.show_url(&named.name, named.qualifier.as_ref(), &config)))
    }

    pub(super) fn delete_url(&self) -> Result<Success, ApiError> {
        let (named, key) = self.url_target()?;
        self.service.registry.change(&self.input.tenant, &named.name, |function| {
            function.urls.remove(&key).map(drop).ok_or_else(no_url)
        })?;
        Ok(Success::no_content())
    }

    pub(super) fn list_urls(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        let show = |function: &Function, key: &str, config: &UrlConfig| {
            let qualifier = Qualifier::parse(key).ok().filter(|qualifier| *qualifier != Qualifier::Latest);
            self.show_url(&function.name, qualifier.as_ref(), config)
        };
        let all = function.urls.iter().map(|(key, config)| show(&function, key, config)).collect();
        let (page, next) = self.input.page::<Value>(all, 50)?;
        Ok(Success::ok(with_marker(json!({ "FunctionUrlConfigs": page }), next)))
    }
}
