//! Aliases: names for versions.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::functions::with_marker;
use super::input::version;
use super::{Act, Success};
use crate::Qualifier;
use crate::api::ApiError;
use crate::model::{Alias, Function, new_id};

impl Act<'_> {
    fn alias_name(&self) -> Result<String, ApiError> {
        let name = self.input.parameter(1)?;
        Qualifier::alias(name).map(|_| name.to_owned())
    }

    /// Versions and weights that a request gives an alias.
    fn routing(&self) -> Result<Option<BTreeMap<u64, f64>>, ApiError> {
        let Some(routing) = self.input.object("RoutingConfig")? else { return Ok(None) };
        let mut weights = BTreeMap::new();
        for (number, weight) in routing.get("AdditionalVersionWeights").and_then(Value::as_object).into_iter().flatten()
        {
            let Qualifier::Version(number) = version(number)? else {
                return Err(ApiError::invalid(
                    "RoutingConfig: an alias with weights points to versions that were published",
                ));
            };
            let weight = weight.as_f64().filter(|weight| (0.0..=1.0).contains(weight));
            weights.insert(number, weight.ok_or_else(|| ApiError::invalid("RoutingConfig: a weight is from 0 to 1"))?);
        }
        if weights.len() > 1 {
            return Err(ApiError::invalid("RoutingConfig: an alias points to at most two versions"));
        }
        Ok(Some(weights))
    }

    fn check_versions(&self, function: &Function, alias: &Alias) -> Result<(), ApiError> {
        let versions = alias.weights.keys().map(|number| Qualifier::Version(*number)).chain([alias.version.clone()]);
        for number in versions {
            if function.resolve(Some(&number), 0.0).is_none() {
                let arn = self.service.options.place.arn(&function.name, Some(&number));
                return Err(ApiError::not_found(format!("Function not found: {arn}")));
            }
        }
        Ok(())
    }

    pub(super) fn create_alias(&self) -> Result<Success, ApiError> {
        let function = self.name_alone()?;
        let name = self.input.needed("Name")?;
        Qualifier::alias(&name)?;
        let alias = Alias {
            version: version(&self.input.needed("FunctionVersion")?)?,
            description: self.input.text("Description")?.unwrap_or_default(),
            weights: self.routing()?.unwrap_or_default(),
            revision: new_id(),
        };
        let (_, shown) = self.service.registry.change(&self.input.tenant, &function, |function| {
            self.check_versions(function, &alias)?;
            if function.aliases.contains_key(&name) {
                let arn = self.service.options.place.arn(&function.name, Some(&Qualifier::Alias(name.clone())));
                return Err(ApiError::conflict(format!("Alias already exists: {arn}")));
            }
            let shown = alias.show(&self.service.options.place, &function.name, &name);
            function.aliases.insert(name.clone(), alias);
            Ok(shown)
        })?;
        Ok(Success::created(shown))
    }

    fn no_alias(&self, function: &str, name: &str) -> ApiError {
        let arn = self.service.options.place.arn(function, Some(&Qualifier::Alias(name.to_owned())));
        ApiError::not_found(format!("Cannot find alias arn: {arn}"))
    }

    pub(super) fn get_alias(&self) -> Result<Success, ApiError> {
        let (function, name) = (self.find(&self.name_alone()?)?, self.alias_name()?);
        let alias = function.aliases.get(&name).ok_or_else(|| self.no_alias(&function.name, &name))?;
        Ok(Success::ok(alias.show(&self.service.options.place, &function.name, &name)))
    }

    pub(super) fn list_aliases(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        let of = self.input.query("FunctionVersion").map(version).transpose()?;
        let all = function.aliases.iter().filter(|(_, alias)| of.as_ref().is_none_or(|of| alias.version == *of));
        let all = all.map(|(name, alias)| alias.show(&self.service.options.place, &function.name, name)).collect();
        let (page, next) = self.input.page::<Value>(all, 50)?;
        Ok(Success::ok(with_marker(json!({ "Aliases": page }), next)))
    }

    pub(super) fn update_alias(&self) -> Result<Success, ApiError> {
        let (function, name) = (self.name_alone()?, self.alias_name()?);
        let number = self.input.text("FunctionVersion")?.map(|text| version(&text)).transpose()?;
        let (description, weights) = (self.input.text("Description")?, self.routing()?);
        let revision = self.input.text("RevisionId")?;
        let (_, shown) = self.service.registry.change(&self.input.tenant, &function, |function| {
            let found = function.aliases.get(&name).ok_or_else(|| self.no_alias(&function.name, &name))?;
            if revision.as_ref().is_some_and(|revision| *revision != found.revision) {
                return Err(ApiError::precondition("The RevisionId provided does not match that of the alias"));
            }
            let alias = Alias {
                version: number.unwrap_or_else(|| found.version.clone()),
                description: description.unwrap_or_else(|| found.description.clone()),
                weights: weights.unwrap_or_else(|| found.weights.clone()),
                revision: new_id(),
            };
            self.check_versions(function, &alias)?;
            let shown = alias.show(&self.service.options.place, &function.name, &name);
            function.aliases.insert(name.clone(), alias);
            Ok(shown)
        })?;
        Ok(Success::ok(shown))
    }

    pub(super) fn delete_alias(&self) -> Result<Success, ApiError> {
        let (function, name) = (self.name_alone()?, self.alias_name()?);
        let (function, ()) = self.service.registry.change(&self.input.tenant, &function, |function| {
            function.aliases.remove(&name);
            function.forget(&name);
            Ok(())
        })?;
        self.service.set_aside(&function);
        Ok(Success::no_content())
    }
}
