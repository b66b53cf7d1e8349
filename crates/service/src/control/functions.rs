//! Functions and their versions.

use std::collections::BTreeMap;

use chrono::Utc;
use serde_json::{Value, json};

use super::code::GivenCode;
use super::concurrency::set_aside;
use super::{Act, Success, settings};
use crate::api::ApiError;
use crate::assignment::Aside;
use crate::events::check_destination;
use crate::model::{Code, Function, Source, State, Update, Version, new_id};
use crate::{FunctionName, Qualifier};

/// Tags of a function.
const MOST_TAGS: usize = 50;

impl Act<'_> {
    fn place(&self) -> &crate::Place {
        &self.service.options.place
    }

    /// The function that the path names.
    fn named(&self) -> Result<FunctionName, ApiError> {
        self.input.function(self.place())
    }

    pub(super) fn name_alone(&self) -> Result<String, ApiError> {
        self.named()?.unqualified()
    }

    pub(super) fn find(&self, name: &str) -> Result<std::sync::Arc<Function>, ApiError> {
        let missing = || ApiError::not_found(format!("Function not found: {}", self.place().arn(name, None)));
        self.service.registry.find(&self.input.tenant, name).ok_or_else(missing)
    }

    /// That what could not be run can be sent to where it is to be sent.
    fn check_dead_letter(&self) -> Result<(), ApiError> {
        match settings::dead_letter(self.input)?.filter(|target| !target.is_empty()) {
            Some(target) => check_destination(self.service, &self.input.tenant, "DeadLetterConfig", &target),
            None => Ok(()),
        }
    }

    /// That nobody has changed it since the caller looked.
    fn check_revision(&self, version: &Version) -> Result<(), ApiError> {
        match self.input.text("RevisionId")? {
            Some(asked) if asked != version.revision => Err(ApiError::precondition(
                "The RevisionId provided does not match the latest RevisionId. Call the GetFunction/GetAlias API to retrieve the latest RevisionId",
            )),
            _ => Ok(()),
        }
    }

    /// That no change of it is under way.
    fn check_idle(&self, function: &Function) -> Result<(), ApiError> {
        if function.latest.is_changing() {
            return Err(ApiError::conflict(format!(
                "The operation cannot be performed at this time. An update is in progress for resource: {}",
                self.place().arn(&function.name, None)
            )));
        }
        Ok(())
    }

    pub(super) fn create_function(&self) -> Result<Success, ApiError> {
        let input = self.input;
        let name = FunctionName::parse(&input.needed("FunctionName")?, self.place())?.unqualified()?;
        let code = input.object("Code")?.ok_or_else(|| super::input::missing("Code"))?;
        let given = self.given_code(code, None)?;
        let tags = match input.object("Tags")? {
            None => BTreeMap::new(),
            Some(tags) => super::input::texts(tags, "tag")?,
        };
        check_tags(&tags)?;
        let settings = settings::new(input)?;
        self.check_dead_letter()?;
        let turn = self.service.packages.turn();
        if self.service.registry.find(&input.tenant, &name).is_some() {
            return Err(ApiError::conflict(format!("Function already exist: {name}")));
        }
        let source = self.keep(&turn, &name, given)?;
        let uri = match &source {
            Source::Image(uri) => uri.clone(),
            Source::Package(_) => String::new(),
        };
        let latest = Version {
            code: Code { image_uri: uri, image: None, manifest: None, bytes: 0, package: None },
            wanted: Some(source),
            settings,
            state: State::Pending,
            last_update: Update::InProgress,
            modified: Utc::now(),
            revision: new_id(),
        };
        let mut function = Function {
            tenant: input.tenant.clone(),
            name,
            latest,
            versions: BTreeMap::new(),
            aliases: BTreeMap::new(),
            tags,
            event_configs: BTreeMap::new(),
            policies: BTreeMap::new(),
            urls: BTreeMap::new(),
            provisioned: BTreeMap::new(),
            reserved_concurrency: None,
            next_version: 1,
            allows_recursion: false,
        };
        let number = input.flag("Publish")?.then(|| function.add_version(function.latest.clone()));
        let function = self.service.registry.create(function)?;
        drop(turn);
        self.service.publish(&function);
        Ok(Success::created(self.published(&function, number)?))
    }

    /// The version that was just made, or `$LATEST`.
    fn published(&self, function: &Function, number: Option<u64>) -> Result<Value, ApiError> {
        let Some(number) = number.map(Qualifier::Version) else {
            return Ok(self.configuration(function, &function.latest, &Qualifier::Latest, None));
        };
        let found = function.resolve(Some(&number), 0.0);
        let (_, version) = found.ok_or_else(|| ApiError::service("a version is gone that was just made"))?;
        Ok(self.configuration(function, version, &number, Some(&number)))
    }

    pub(super) fn configuration(
        &self,
        function: &Function,
        version: &Version,
        number: &Qualifier,
        asked: Option<&Qualifier>,
    ) -> Value {
        function.configuration(self.place(), version, number, asked)
    }

    pub(super) fn resolved(&self) -> Result<(std::sync::Arc<Function>, FunctionName), ApiError> {
        let named = self.named()?;
        let function = self.find(&named.name)?;
        if function.resolve(named.qualifier.as_ref(), 1.0).is_none() {
            let arn = self.place().arn(&named.name, named.qualifier.as_ref());
            return Err(ApiError::not_found(format!("Function not found: {arn}")));
        }
        Ok((function, named))
    }

    pub(super) fn get_configuration(&self) -> Result<Success, ApiError> {
        let (function, named) = self.resolved()?;
        let found = function.resolve(named.qualifier.as_ref(), 1.0);
        let (number, version) = found.ok_or_else(|| ApiError::not_found("Function not found"))?;
        Ok(Success::ok(self.configuration(&function, version, &number, named.qualifier.as_ref())))
    }

    pub(super) fn get_function(&self) -> Result<Success, ApiError> {
        let (function, named) = self.resolved()?;
        let found = function.resolve(named.qualifier.as_ref(), 1.0);
        let (number, version) = found.ok_or_else(|| ApiError::not_found("Function not found"))?;
        let code = self.show_code(&function, version);
        let mut all = json!({
            "Configuration": self.configuration(&function, version, &number, named.qualifier.as_ref()),
            "Code": code,
        });
        if !function.tags.is_empty() {
            all["Tags"] = json!(function.tags);
        }
        if let Some(reserved) = function.reserved_concurrency {
            all["Concurrency"] = json!({ "ReservedConcurrentExecutions": reserved });
        }
        Ok(Success::ok(all))
    }

    pub(super) fn list_functions(&self) -> Result<Success, ApiError> {
        let all_versions = match self.input.query("FunctionVersion") {
            None => false,
            Some("ALL") => true,
            Some(other) => return Err(ApiError::invalid(format!("FunctionVersion {other:?}: expected ALL"))),
        };
        let mut all = Vec::new();
        for function in self.service.registry.list(&self.input.tenant) {
            let latest = all_versions.then_some(&Qualifier::Latest);
            all.push(self.configuration(&function, &function.latest, &Qualifier::Latest, latest));
            for (number, version) in function.versions.iter().filter(|_| all_versions) {
                let number = Qualifier::Version(*number);
                all.push(self.configuration(&function, version, &number, Some(&number)));
            }
        }
        let (page, next) = self.input.page(all, 50)?;
        Ok(Success::ok(with_marker(json!({ "Functions": page }), next)))
    }

    pub(super) fn delete_function(&self) -> Result<Success, ApiError> {
        let named = self.named()?;
        let (tenant, registry) = (&self.input.tenant, &self.service.registry);
        match &named.qualifier {
            None => {
                let function = registry.remove(tenant, &named.name)?;
                self.service.assignment.set_aside(tenant, &named.name, Aside::default());
                self.service.logs.remove(tenant, &named.name);
                self.service.board.forget(tenant, &named.name);
                let versions = function.versions.values().chain([&function.latest]);
                self.remove_images(&named.name, versions.filter_map(|version| version.code.image.clone()).collect());
            }
            Some(Qualifier::Version(number)) => {
                let (function, removed) = registry.change(tenant, &named.name, |function| {
                    let users: Vec<&String> = function
                        .aliases
                        .iter()
                        .filter(|(_, alias)| {
                            alias.version == Qualifier::Version(*number) || alias.weights.contains_key(number)
                        })
                        .map(|(name, _)| name)
                        .collect();
                    if !users.is_empty() {
                        return Err(ApiError::conflict(format!("Version {number} is used by the aliases {users:?}")));
                    }
                    function.forget(&number.to_string());
                    Ok(function.versions.remove(number))
                })?;
                self.service.set_aside(&function);
                let image = removed.and_then(|removed| removed.code.image);
                self.remove_images(&named.name, image.into_iter().filter(|image| !function.uses(image)).collect());
            }
            Some(other) => {
                return Err(ApiError::invalid(format!(
                    "{other} cannot be deleted: name a version's number, or the function alone"
                )));
            }
        }
        Ok(Success::no_content())
    }

    fn remove_images(&self, function: &str, mut images: Vec<String>) {
        images.sort();
        images.dedup();
        let (service, tenant, function) =
            (std::sync::Arc::clone(self.service), self.input.tenant.clone(), function.to_owned());
        self.service.in_background(async move {
            service.remove_unused_packages(&tenant, &function).await;
            for image in images {
                service.remove_unused(&tenant, &function, &image).await;
            }
        });
    }

    pub(super) fn update_code(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        settings::refuse_what_is_not_there(&self.input.body, Some(&name))?;
        let (is_dry, is_published) = (self.input.flag("DryRun")?, self.input.flag("Publish")?);
        let found = self.find(&name)?;
        let given = self.given_code(&self.input.body, Some(&found.latest))?;
        if is_dry {
            self.check_revision(&found.latest)?;
            let mut dry = found.latest.clone();
            if let GivenCode::Package { package, .. } = given {
                dry.wanted = Some(Source::Package(package));
            }
            return Ok(Success::ok(self.configuration(&found, &dry, &Qualifier::Latest, None)));
        }
        // Those that would be refused are not kept.
        self.check_idle(&found)?;
        let turn = self.service.packages.turn();
        let source = self.keep(&turn, &name, given)?;
        let (function, number) = self.service.registry.change(&self.input.tenant, &name, |function| {
            self.check_revision(&function.latest)?;
            self.check_idle(function)?;
            let latest = &mut function.latest;
            settings::architecture(self.input, &mut latest.settings)?;
            // What runs goes on with the image that it has, until the new one is there.
            latest.wanted = Some(source);
            latest.last_update = Update::InProgress;
            latest.modified = Utc::now();
            // Its version has no code until then.
            let version = Version { state: State::Pending, ..latest.clone() };
            // A package that is the last version's is no new one; what an image has is known later.
            let last = function.versions.last_key_value().filter(|(_, last)| {
                last.package().is_some() && last.package() == version.package() && last.settings == version.settings
            });
            match last.map(|(number, _)| *number) {
                Some(number) => Ok(is_published.then_some(number)),
                None => Ok(is_published.then(|| function.add_version(version))),
            }
        })?;
        drop(turn);
        self.service.publish(&function);
        Ok(Success::ok(self.published(&function, number)?))
    }

    pub(super) fn update_configuration(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        self.check_dead_letter()?;
        let (function, ()) = self.service.registry.change(&self.input.tenant, &name, |function| {
            self.check_revision(&function.latest)?;
            self.check_idle(function)?;
            settings::change(self.input, &mut function.latest.settings)?;
            self.change_package(&mut function.latest)?;
            function.latest.modified = Utc::now();
            function.latest.revision = new_id();
            Ok(())
        })?;
        // Where its runtime is another one now.
        self.service.publish(&function);
        Ok(Success::ok(self.configuration(&function, &function.latest, &Qualifier::Latest, None)))
    }

    pub(super) fn publish_version(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        let description = self.input.text("Description")?;
        let code_sha = self.input.text("CodeSha256")?;
        let (function, number) = self.service.registry.change(&self.input.tenant, &name, |function| {
            self.check_revision(&function.latest)?;
            self.check_idle(function)?;
            if code_sha.as_ref().is_some_and(|code| function.latest.code_sha256() != *code) {
                return Err(ApiError::invalid("CodeSha256 does not match that of $LATEST"));
            }
            let mut version = function.latest.clone();
            if let Some(description) = description {
                version.settings.description = description;
            }
            // What has not changed is no new version.
            if let Some((number, last)) = function.versions.last_key_value()
                && last.code == version.code
                && last.settings == version.settings
            {
                return Ok(*number);
            }
            Ok(function.add_version(version))
        })?;
        Ok(Success::created(self.published(&function, Some(number))?))
    }

    pub(super) fn list_versions(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        let mut all =
            vec![self.configuration(&function, &function.latest, &Qualifier::Latest, Some(&Qualifier::Latest))];
        for (number, version) in &function.versions {
            let number = Qualifier::Version(*number);
            all.push(self.configuration(&function, version, &number, Some(&number)));
        }
        let (page, next) = self.input.page(all, 50)?;
        Ok(Success::ok(with_marker(json!({ "Versions": page }), next)))
    }

    pub(super) fn list_tags(&self) -> Result<Success, ApiError> {
        let function = self.find(&self.name_alone()?)?;
        Ok(Success::ok(json!({ "Tags": function.tags })))
    }

    pub(super) fn tag(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        let tags = self.input.object("Tags")?.ok_or_else(|| super::input::missing("Tags"))?;
        let tags = super::input::texts(tags, "tag")?;
        self.service.registry.change(&self.input.tenant, &name, |function| {
            function.tags.extend(tags);
            check_tags(&function.tags)
        })?;
        Ok(Success::no_content())
    }

    pub(super) fn untag(&self) -> Result<Success, ApiError> {
        let name = self.name_alone()?;
        let names: Vec<&String> =
            self.input.query.iter().filter(|(name, _)| name == "tagKeys").map(|(_, value)| value).collect();
        self.service.registry.change(&self.input.tenant, &name, |function| {
            function.tags.retain(|name, _| !names.contains(&name));
            Ok(())
        })?;
        Ok(Success::no_content())
    }

    pub(super) fn account_settings(&self) -> Success {
        let functions = self.service.registry.list(&self.input.tenant);
        let reserved: u32 = functions.iter().map(|function| set_aside(function)).sum();
        let code: u64 = functions.iter().map(|function| function.latest.code.bytes).sum();
        let most = self.service.options.account_concurrency;
        Success::ok(json!({
            "AccountLimit": {
                "TotalCodeSize": u64::from(u32::MAX) << 10,
                "CodeSizeUnzipped": 10_737_418_240_u64,
                "CodeSizeZipped": 52_428_800,
                "ConcurrentExecutions": most,
                "UnreservedConcurrentExecutions": most.saturating_sub(reserved),
            },
            "AccountUsage": { "TotalCodeSize": code, "FunctionCount": functions.len() },
        }))
    }
}

pub(super) fn with_marker(mut page: Value, next: Option<String>) -> Value {
    if let Some(next) = next {
        page["NextMarker"] = json!(next);
    }
    page
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if tags.len() > MOST_TAGS {
        return Err(ApiError::invalid(format!("a function has at most {MOST_TAGS} tags")));
    }
    match tags.iter().find(|(name, value)| name.is_empty() || name.len() > 128 || value.len() > 256) {
        Some((name, _)) => {
            Err(ApiError::invalid(format!("tag {name:?}: a name has 1 to 128 characters, a value up to 256")))
        }
        None => Ok(()),
    }
}
