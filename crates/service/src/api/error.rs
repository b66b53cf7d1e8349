//! Errors in AWS's shape: a status, a type in a header, and a body whose message is called as the model has it for that type.

use serde_json::{Map, Value, json};

/// An answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    kind: Kind,
    message: String,
    /// Of throttling: why, and after how many seconds another try may go well.
    reason: Option<(&'static str, u64)>,
}

/// The errors of the model that are given here, by their names there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AccessDenied,
    InvalidParameterValue,
    InvalidRequestContent,
    InvalidRuntime,
    InvalidSignature,
    MissingAuthenticationToken,
    NotImplemented,
    PolicyLengthExceeded,
    PreconditionFailed,
    ProvisionedConcurrencyConfigNotFound,
    RequestTooLarge,
    ResourceConflict,
    ResourceNotFound,
    Service,
    TooManyRequests,
    UnknownOperation,
    UnrecognizedClient,
}

impl Kind {
    /// Name, status, and whether the body says `Message` rather than `message` (botocore's model, service-2.json).
    fn shape(self) -> (&'static str, u16, bool) {
        match self {
            Self::AccessDenied => ("AccessDeniedException", 403, true),
            Self::InvalidParameterValue => ("InvalidParameterValueException", 400, false),
            Self::InvalidRequestContent => ("InvalidRequestContentException", 400, false),
            Self::InvalidRuntime => ("InvalidRuntimeException", 502, true),
            Self::InvalidSignature => ("InvalidSignatureException", 403, false),
            Self::MissingAuthenticationToken => ("MissingAuthenticationTokenException", 403, false),
            Self::NotImplemented => ("NotImplementedException", 501, true),
            Self::PolicyLengthExceeded => ("PolicyLengthExceededException", 400, false),
            Self::PreconditionFailed => ("PreconditionFailedException", 412, false),
            Self::ProvisionedConcurrencyConfigNotFound => ("ProvisionedConcurrencyConfigNotFoundException", 404, false),
            Self::RequestTooLarge => ("RequestTooLargeException", 413, false),
            Self::ResourceConflict => ("ResourceConflictException", 409, false),
            Self::ResourceNotFound => ("ResourceNotFoundException", 404, true),
            Self::Service => ("ServiceException", 500, true),
            Self::TooManyRequests => ("TooManyRequestsException", 429, false),
            Self::UnknownOperation => ("UnknownOperationException", 404, true),
            Self::UnrecognizedClient => ("UnrecognizedClientException", 403, false),
        }
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        impl ApiError {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self {
                Self { kind: Kind::$kind, message: message.into(), reason: None }
            })*
        }
    };
}

constructors! {
    /// The caller may not do that.
    access_denied => AccessDenied;
    /// A parameter is not what it must be.
    invalid => InvalidParameterValue;
    /// The body is not what it must be.
    invalid_content => InvalidRequestContent;
    /// The image cannot be run.
    invalid_runtime => InvalidRuntime;
    /// The signature is not the caller's.
    invalid_signature => InvalidSignature;
    /// Nothing was signed.
    not_signed => MissingAuthenticationToken;
    /// AWS has this and we do not.
    not_implemented => NotImplemented;
    /// A policy has too much in it.
    policy_too_long => PolicyLengthExceeded;
    /// It is not as the caller took it to be.
    precondition => PreconditionFailed;
    /// No sandboxes are kept.
    not_provisioned => ProvisionedConcurrencyConfigNotFound;
    /// The body is too long.
    too_large => RequestTooLarge;
    /// Something is there already, or in the way.
    conflict => ResourceConflict;
    /// There is no such thing.
    not_found => ResourceNotFound;
    /// It is our fault.
    service => Service;
    /// AWS has no such operation.
    unknown_operation => UnknownOperation;
    /// There is no such access key.
    unknown_key => UnrecognizedClient;
}

impl ApiError {
    /// Too much at once. `reason` is the model's: such as `ReservedFunctionConcurrentInvocationLimitExceeded`.
    pub fn throttled(reason: &'static str, retry_after_seconds: u64) -> Self {
        Self {
            kind: Kind::TooManyRequests,
            message: "Rate Exceeded.".into(),
            reason: Some((reason, retry_after_seconds)),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.kind.shape().1
    }

    /// The value of `x-amzn-ErrorType`.
    pub fn name(&self) -> &'static str {
        self.kind.shape().0
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The value of `Retry-After`, where another try may help.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.reason.map(|(_, seconds)| seconds)
    }

    /// The body.
    pub fn body(&self) -> Value {
        let (_, status, is_capital) = self.kind.shape();
        let mut body = Map::new();
        body.insert("Type".into(), json!(if status >= 500 { "Service" } else { "User" }));
        body.insert(if is_capital { "Message" } else { "message" }.into(), json!(self.message));
        if let Some((reason, _)) = self.reason {
            body.insert("Reason".into(), json!(reason));
        }
        Value::Object(body)
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_called_as_the_model_has_them() {
        assert_eq!(ApiError::not_found("x").body(), json!({ "Type": "User", "Message": "x" }));
        assert_eq!(ApiError::invalid("x").body(), json!({ "Type": "User", "message": "x" }));
        assert_eq!(ApiError::service("x").body(), json!({ "Type": "Service", "Message": "x" }));
        let throttled = ApiError::throttled("ConcurrentInvocationLimitExceeded", 1);
        assert_eq!(throttled.body()["Reason"], "ConcurrentInvocationLimitExceeded");
        assert_eq!((throttled.status(), throttled.retry_after_seconds()), (429, Some(1)));
    }
}
