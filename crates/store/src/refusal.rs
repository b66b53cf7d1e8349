//! What a server's refusal means, and what to do about it. A refusal is not worth another try: the same request will be refused
//! again until somebody changes something.

use std::error::Error as StdError;

/// What is wrong, as far as a server said it: `(what, what to do)`.
pub(crate) fn of(error: &object_store::Error) -> Option<(&'static str, &'static str)> {
    let text = whole_text(error);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // The codes of S3 and of servers like it, of Google (JSON and XML) and of Azure.
    let known: [(&[&str], &str, &str); 8] = [
        (
            &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"],
            "there is no such bucket",
            "make it, or correct the store's URL",
        ),
        (
            &["RequestTimeTooSkewed", "RequestExpired", "RequestNotYetValid"],
            "this machine's clock differs too much from the server's",
            "set the clock (NTP)",
        ),
        (
            &["AuthorizationHeaderMalformed", "PermanentRedirect", "without LOCATION", "IllegalLocationConstraint"],
            "the bucket is in another region",
            "set AWS_REGION or `s3_region` to the bucket's",
        ),
        (
            &[
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "InvalidToken",
                "AuthenticationFailed",
                "UnauthorizedAccess",
            ],
            "the server does not accept the credentials",
            "check the access key, its secret and session token",
        ),
        (&["ExpiredToken"], "the credentials have expired", "renew them, such as by `aws sso login`"),
        (
            &[
                "InsufficientStorage",
                "XMinioStorageFull",
                "QuotaExceeded",
                "507 Insufficient Storage",
                "No space left on device",
                "EntityTooLarge",
            ],
            "the server has no room for it",
            "make room there, or ask for a larger quota",
        ),
        (
            &[
                "no credentials found in chain",
                "no providers in chain provided credentials",
                "CredentialsNotLoaded",
                "says how to find credentials",
            ],
            "there are no credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role",
        ),
        (
            &["AccessDenied", "403 Forbidden", "AuthorizationFailure", "AllAccessDisabled"],
            "the credentials do not allow it",
            "ask for the permission, or check the store's URL",
        ),
    ];
    if let Some((_, what, todo)) = known.into_iter().find(|(words, ..)| says(words)) {
        return Some((what, todo));
    }
    match error {
        object_store::Error::Unauthenticated { .. } => {
            Some(("the server does not accept the credentials", "check that they are set, and right"))
        }
        object_store::Error::PermissionDenied { .. } => {
            Some(("the credentials do not allow it", "ask for the permission, or check the store's URL"))
        }
        _ => None,
    }
}

/// What a server said, in one line: where it is a page of XML, its code and message; otherwise the first cause.
pub(crate) fn said(error: &object_store::Error) -> String {
    let text = whole_text(error);
    let field = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inner, _)| inner.replace("&#39;", "'").replace("&quot;", "\""))
    };
    match (field("Code"), field("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => {
            let mut innermost: &dyn StdError = error;
            while let Some(source) = innermost.source() {
                innermost = source;
            }
            let text = innermost.to_string();
            text.lines().next().unwrap_or_default().trim_end_matches([':', ' ']).to_owned()
        }
    }
}

/// Whether a server said that it does not do such a thing at all (405, 501), as plain web servers do where they are asked to
/// list or to write.
pub(crate) fn refused_method(error: &object_store::Error) -> bool {
    let text = whole_text(error);
    ["405 Method Not Allowed", "501 Not Implemented", "501 Unsupported method"].iter().any(|it| text.contains(it))
}

/// The causes of an error: the library keeps status and body of an answer in texts only. Without the path and URL that were asked
/// for, which may have any words in them.
fn whole_text(error: &object_store::Error) -> String {
    let mut text = String::new();
    // What has no cause says nothing of a path either.
    let mut next = Some(error.source().unwrap_or(error));
    while let Some(error) = next {
        text.push(' ');
        text.push_str(without_request(&error.to_string()));
        next = error.source();
    }
    text
}

/// What follows `Error performing GET https://… in 2.1ms, after 3 retries - `.
fn without_request(text: &str) -> &str {
    let begins = text.find("Error performing ");
    begins.and_then(|at| text[at..].split_once(" - ")).map_or(text, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: &str) -> object_store::Error {
        let path = "https://host/bucket/names/t/app/1507 in 2ms AccessDenied";
        let source = format!("Error performing GET {path} in 2ms - Server returned non-2xx status code: {status}: ");
        object_store::Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn a_refusal_is_told_by_the_answer_and_not_by_what_was_asked_for() {
        assert!(of(&answered("503 Service Unavailable")).is_none());
        assert_eq!(
            of(&answered("507 Insufficient Storage")).map(|(what, _)| what),
            Some("the server has no room for it")
        );
        let source = "no such object".into();
        let path = "names/t/app/1507 not found: AccessDenied".into();
        assert!(of(&object_store::Error::NotFound { path, source }).is_none());
    }
}
