//! Where a function's code comes from: an image, or a package over the image of a runtime.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use super::input::text;
use super::{Act, settings};
use crate::api::ApiError;
use crate::model::{Function, Package, Source, Version};
use crate::package::{MOST_PACKAGE, Turn, write_layer};
use crate::publishing::no_runtime;

/// Code that a request gives.
pub(super) enum GivenCode {
    Image(String),
    /// It is well, and is not kept yet.
    Package {
        package: Package,
        bytes: Vec<u8>,
    },
}

impl Act<'_> {
    fn check_source(&self, uri: &str) -> Result<(), ApiError> {
        let is_local =
            ["oci:", "oci-archive:", "docker-archive:", "dir:", "/", "."].iter().any(|start| uri.starts_with(start));
        if is_local && !self.service.options.allows_local_images {
            return Err(ApiError::invalid(format!(
                "ImageUri {uri:?}: images from files of this machine are not allowed: `snowmelt serve --allow-local-images` allows them"
            )));
        }
        Ok(())
    }

    /// The code in a request; `latest` is what the function has, where it is there.
    pub(super) fn given_code(
        &self,
        code: &Map<String, Value>,
        latest: Option<&Version>,
    ) -> Result<GivenCode, ApiError> {
        let is_package = match latest {
            Some(latest) => latest.package().is_some(),
            // As in AWS, what is not said to be an image is a package.
            None => match self.input.text("PackageType")?.as_deref() {
                None | Some("Zip") => !(self.input.text("PackageType")?.is_none() && code.contains_key("ImageUri")),
                Some("Image") => false,
                Some(other) => return Err(ApiError::invalid(format!("PackageType {other:?}: expected Image or Zip"))),
            },
        };
        for unfit in ["S3ObjectStorageMode", "SourceKMSKeyArn"] {
            if text(code, unfit)?.is_some_and(|value| !value.is_empty() && value != "COPY") {
                return Err(ApiError::invalid(format!("{unfit} is not supported: leave it out (docs/lambda-api.md)")));
            }
        }
        if !is_package {
            for unfit in ["Runtime", "Handler"] {
                if latest.is_none() && self.input.text(unfit)?.is_some_and(|value| !value.is_empty()) {
                    return Err(ApiError::invalid(format!(
                        "Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image: {unfit}"
                    )));
                }
            }
            let uri = settings::image_uri(code)?;
            self.check_source(&uri)?;
            return Ok(GivenCode::Image(uri));
        }
        if text(code, "ImageUri")?.is_some() {
            return Err(ApiError::invalid(
                "Please don't provide ImageUri when creating or updating a function with packageType Zip.",
            ));
        }
        if text(code, "S3Bucket")?.is_some() || text(code, "S3Key")?.is_some() {
            return Err(ApiError::invalid(
                "S3Bucket: this service reaches no S3: send the package itself as ZipFile (docs/lambda-api.md)",
            ));
        }
        let runtime = match latest.and_then(Version::package) {
            Some(package) => package.runtime.clone(),
            None => self.new_runtime()?,
        };
        let encoded = text(code, "ZipFile")?.ok_or_else(|| super::input::missing("ZipFile"))?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
        let bytes = bytes.map_err(|error| ApiError::invalid(format!("ZipFile: expected base64: {error}")))?;
        if bytes.len() > MOST_PACKAGE {
            return Err(ApiError::too_large(format!("ZipFile: a package has at most {MOST_PACKAGE} bytes")));
        }
        write_layer(&bytes, std::io::sink()).map_err(|reason| ApiError::invalid(format!("ZipFile: {reason}")))?;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let sha256 = crate::sigv4::hex(hash.as_ref());
        Ok(GivenCode::Package { package: Package { runtime, sha256, bytes: bytes.len() as u64 }, bytes })
    }

    /// The runtime of a function that is made, which must have a handler too.
    fn new_runtime(&self) -> Result<String, ApiError> {
        let given = |name: &str| Ok::<_, ApiError>(self.input.text(name)?.filter(|value| !value.is_empty()));
        let (Some(runtime), Some(_)) = (given("Runtime")?, given("Handler")?) else {
            return Err(ApiError::invalid(
                "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
            ));
        };
        if self.input.object("ImageConfig")?.is_some_and(|config| !config.is_empty()) {
            return Err(ApiError::invalid("ImageConfig is for images: leave it out for packages"));
        }
        self.check_runtime(&runtime)?;
        Ok(runtime)
    }

    fn check_runtime(&self, runtime: &str) -> Result<(), ApiError> {
        if self.service.options.runtimes.contains_key(runtime) {
            return Ok(());
        }
        Err(ApiError::invalid(no_runtime(&self.service.options, runtime)))
    }

    /// Keeps a package, in whose turn its function comes to need it.
    pub(super) fn keep(&self, turn: &Turn<'_>, function: &str, given: GivenCode) -> Result<Source, ApiError> {
        match given {
            GivenCode::Image(uri) => Ok(Source::Image(uri)),
            GivenCode::Package { package, bytes } => {
                turn.put(&self.input.tenant, function, &package.sha256, &bytes).map_err(|error| {
                    tracing::error!(%error, "a package is not kept");
                    ApiError::service("the package cannot be kept: the service's log says why")
                })?;
                Ok(Source::Package(package))
            }
        }
    }

    /// What a change of settings says of a package: another runtime is another image.
    pub(super) fn change_package(&self, latest: &mut Version) -> Result<(), ApiError> {
        let runtime = self.input.text("Runtime")?.filter(|runtime| !runtime.is_empty());
        let Some(package) = latest.package().cloned() else {
            let unfit = runtime.map(|_| "Runtime").or(latest.settings.handler.as_ref().map(|_| "Handler"));
            return match unfit {
                None => Ok(()),
                Some(unfit) => Err(ApiError::invalid(format!("{unfit} is for packages: leave it out for images"))),
            };
        };
        if self.input.object("ImageConfig")?.is_some_and(|config| !config.is_empty()) {
            return Err(ApiError::invalid("ImageConfig is for images: leave it out for packages"));
        }
        if let Some(runtime) = runtime.filter(|runtime| *runtime != package.runtime) {
            self.check_runtime(&runtime)?;
            latest.wanted = Some(Source::Package(Package { runtime, ..package }));
            latest.last_update = crate::model::Update::InProgress;
        }
        Ok(())
    }

    /// Where code is, as clients see it.
    pub(super) fn show_code(&self, function: &Function, version: &Version) -> Value {
        if let Some(package) = version.package() {
            let place = format!("{}/{}/{}", function.tenant, function.name, package.sha256);
            let location = self.service.package_address(&self.input.base, &place);
            return json!({ "RepositoryType": "S3", "Location": location });
        }
        let mut code = json!({ "RepositoryType": "ECR", "ImageUri": version.code.image_uri });
        if let Some(manifest) = &version.code.manifest {
            code["ResolvedImageUri"] = json!(format!("{}@sha256:{manifest}", version.code.image_uri));
        }
        code
    }
}
