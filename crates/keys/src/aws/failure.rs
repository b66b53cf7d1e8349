//! What a failed request to KMS means to whoever asked.

use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};

use super::no_plain_http::REFUSAL;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such key.
    NotThere,
    /// The key is there and out of use.
    Disabled(String),
    /// The caller may not use it.
    Denied(String),
    /// The wrapped key is of another key than the one that was named.
    OtherKey,
    /// The wrapped key was made for another use, or damaged.
    Unauthentic,
    /// Later it may work.
    Unavailable(String),
    /// KMS does not know the caller.
    Credentials(String),
    /// Anything else.
    Other(String),
}

impl Failure {
    pub(super) fn of<E, R>(error: &SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        match error {
            SdkError::ServiceError(answer) => {
                let (code, message) = (answer.err().code(), answer.err().message().unwrap_or_default());
                return Self::of_code(code.unwrap_or_default(), message);
            }
            SdkError::TimeoutError(_) => return Self::Unavailable("it did not answer in time".into()),
            _ => {}
        }
        let reason = chain(error);
        if reason.contains(REFUSAL) {
            return Self::Other(REFUSAL.into());
        }
        match error {
            // The client looks for credentials while it makes the request, and tells that like a failed connection.
            _ if reason.contains("credentials") || reason.contains("identity") => Self::Credentials(reason),
            _ if reason.contains("certificate") => {
                Self::Other(format!("its TLS certificate is not accepted: {reason}"))
            }
            SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => Self::Unavailable(reason),
            _ => Self::Other(reason),
        }
    }

    /// By the codes of the [API reference](https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html#API_Decrypt_Errors) and
    /// the [errors that all services have](https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html).
    fn of_code(code: &str, message: &str) -> Self {
        let said = if message.is_empty() { code.to_owned() } else { format!("{code}: {message}") };
        match code {
            "NotFoundException" => Self::NotThere,
            "DisabledException" | "KMSInvalidStateException" => Self::Disabled(said),
            "AccessDeniedException" => Self::Denied(said),
            "IncorrectKeyException" => Self::OtherKey,
            "InvalidCiphertextException" => Self::Unauthentic,
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "IncompleteSignature"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "RequestExpired"
            | "OptInRequired"
            | "NotAuthorized" => Self::Credentials(said),
            "KeyUnavailableException"
            | "DependencyTimeoutException"
            | "KMSInternalException"
            | "InternalFailure"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
            | "Throttling"
            | "ThrottlingException"
            | "LimitExceededException" => Self::Unavailable(said),
            // What stands in between, such as a proxy, answers without a code that is known here.
            "" => Self::Unavailable("it gave an answer that is not one of KMS".into()),
            _ => Self::Other(said),
        }
    }
}

/// An error's message and those of its causes, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        if !text.contains(&message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&message);
        }
        next = error.source();
    }
    text
}
