//! Which failures are final, and how long to wait before the next try at the others.

use std::time::Duration;

use serde::Deserialize;

use crate::Error;

/// Tries in a row that bring nothing before a request is given up: with the waits below some 6 seconds.
const MAX_RETRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait that a registry may ask for.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Longest message of a registry that is passed on, in characters.
const MAX_MESSAGE: usize = 300;

/// Why a request did not succeed.
pub(crate) enum Failure {
    /// It may, later.
    Again(Again),
    Fatal(Error),
}

/// A failure that may pass.
pub(crate) struct Again {
    pub(crate) reason: String,
    pub(crate) source: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// How long the registry asks to wait.
    pub(crate) after: Option<Duration>,
    /// Nothing listens where the registry should be.
    pub(crate) is_refused: bool,
}

impl Failure {
    pub(crate) fn again(reason: &str) -> Failure {
        Failure::Again(Again { reason: reason.to_owned(), source: None, after: None, is_refused: false })
    }

    pub(crate) fn from_http(reason: &str, error: reqwest::Error) -> Failure {
        Failure::Again(Again::from_http(reason, error))
    }
}

impl Again {
    pub(crate) fn from_http(reason: &str, error: reqwest::Error) -> Again {
        // Addresses of storage may hold secrets, and the innermost cause says the most.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let is_refused = cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        let reason = format!("{reason} ({})", printable(&cause.to_string()));
        Again { reason, source: Some(Box::new(error)), after: None, is_refused }
    }
}

/// Counts tries that brought nothing, and waits longer after each.
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { failures: 0 }
    }

    /// As [`wait`](Self::wait), while the registry has not answered anything yet: where nothing listens, trying for seconds
    /// helps nobody who mistyped a port. One more try is for a registry that is being restarted.
    pub(crate) async fn wait_for_first_answer(
        &mut self,
        operation: &'static str,
        subject: &str,
        again: Again,
        came: &str,
    ) -> Result<(), Error> {
        if again.is_refused && self.failures > 0 {
            let reason = format!("{}: check that it runs, and its name and port", again.reason);
            return Err(Error::Unavailable { operation, subject: subject.to_owned(), reason, source: again.source });
        }
        self.wait(operation, subject, again, came).await
    }

    /// Waits before the next try, or gives up. `came` says how far it got.
    pub(crate) async fn wait(
        &mut self,
        operation: &'static str,
        subject: &str,
        again: Again,
        came: &str,
    ) -> Result<(), Error> {
        if self.failures == MAX_RETRIES {
            let reason = format!(
                "{}; {came}, and {} tries in a row brought no more: check the registry and the network, then try again",
                again.reason,
                self.failures + 1
            );
            return Err(Error::Unavailable { operation, subject: subject.to_owned(), reason, source: again.source });
        }
        let wait = again.after.unwrap_or(FIRST_WAIT * 2_u32.pow(self.failures)).min(MAX_WAIT);
        self.failures += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// What registries put in the body of an error (distribution-spec, "Error codes").
#[derive(Deserialize)]
struct Errors {
    errors: Option<Vec<RegistryError>>,
    details: Option<String>,
}

#[derive(Deserialize)]
struct RegistryError {
    code: Option<String>,
    message: Option<String>,
}

/// The registry's message in one printable line; empty where there is none.
pub(super) fn message(body: &[u8]) -> String {
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else {
        return String::new();
    };
    let first = errors.errors.and_then(|errors| errors.into_iter().next());
    let text = first.and_then(|first| first.message.or(first.code)).or(errors.details);
    printable(&text.unwrap_or_default())
}

/// Text from outside, fit for a terminal: one line, no control characters, bounded.
pub(crate) fn printable(text: &str) -> String {
    let text = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, missing_docs)]
    use super::*;

    #[test]
    fn messages_of_registries() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown","detail":{}}]}"#;
        assert_eq!(message(body), "manifest unknown");
        assert_eq!(message(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(message(br#"{"details":"incorrect username"}"#), "incorrect username");
        assert_eq!(message(b"<html>"), "");
        assert_eq!(printable(&"x".repeat(1000)).len(), MAX_MESSAGE);
        assert_eq!(printable("a\x1b[31mb"), "a [31mb");
    }
}
