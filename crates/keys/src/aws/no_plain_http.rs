//! Refuses to send a request without TLS, wherever the endpoint came from: a variable, a profile, a setting.

use aws_sdk_kms::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::BoxError;

/// What the error of a refused request says.
pub(super) const REFUSAL: &str = "its endpoint has no TLS, and allow_http is not set";

#[derive(Debug)]
pub(super) struct NoPlainHttp;

impl Intercept for NoPlainHttp {
    fn name(&self) -> &'static str {
        "NoPlainHttp"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if context.request().uri().starts_with("https://") { Ok(()) } else { Err(REFUSAL.into()) }
    }
}
