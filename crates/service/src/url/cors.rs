//! What pages of other origins may send to a function and read of its answers.
//!
//! A browser asks before it sends (a preflight), which is answered here and never reaches the function, and looks at the headers of the
//! answer before it shows it to the page. See the Fetch standard, "CORS protocol".

use serde::{Deserialize, Serialize};

use crate::api::ApiError;

/// Methods that may be named: those of AWS's documentation.
const METHODS: [&str; 7] = ["GET", "PUT", "HEAD", "POST", "PATCH", "DELETE", "*"];
/// Seconds that a browser may keep an answer to its question.
const MOST_AGE: u32 = 86_400;

/// As the caller set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub(crate) struct Cors {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_credentials: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_headers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_origins: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    expose_headers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_age: Option<u32>,
}

/// Headers of an answer, by name.
pub(crate) type Headers = Vec<(&'static str, String)>;

impl Cors {
    /// That it says what it may say.
    ///
    /// # Errors
    /// Invalid parameter, with its name.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        let is_token = |text: &String| {
            text == "*"
                || (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b",:;\"()".contains(&byte)))
        };
        for (what, all) in [("AllowHeaders", &self.allow_headers), ("ExposeHeaders", &self.expose_headers)] {
            if all.len() > 100 || !all.iter().all(is_token) {
                return Err(ApiError::invalid(format!("Cors.{what}: expected up to 100 names of headers, or \"*\"")));
            }
        }
        if self.allow_methods.len() > 6 || !self.allow_methods.iter().all(|method| METHODS.contains(&method.as_str())) {
            return Err(ApiError::invalid(format!("Cors.AllowMethods: expected up to 6 of {}", METHODS.join(", "))));
        }
        let is_origin = |text: &String| {
            let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or("");
            text == "*"
                || (!host.is_empty()
                    && text.len() <= 253
                    && !host.contains('/')
                    && host.bytes().all(|byte| byte.is_ascii_graphic()))
        };
        if self.allow_origins.len() > 100 || !self.allow_origins.iter().all(is_origin) {
            return Err(ApiError::invalid(
                "Cors.AllowOrigins: expected up to 100 such as https://example.org, without a path, or \"*\"",
            ));
        }
        if self.max_age.is_some_and(|age| age > MOST_AGE) {
            return Err(ApiError::invalid(format!("Cors.MaxAge: expected 0 to {MOST_AGE} seconds")));
        }
        Ok(())
    }

    /// What says to a browser that a page of `origin` may read the answer: nothing where it may not.
    pub(crate) fn of_answer(&self, origin: Option<&str>) -> Headers {
        let mut headers = self.origin(origin);
        if !headers.is_empty() && !self.expose_headers.is_empty() {
            headers.push(("access-control-expose-headers", self.expose_headers.join(",")));
        }
        headers
    }

    /// The answer to the question whether a page may send.
    pub(crate) fn of_preflight(&self, origin: &str) -> Headers {
        let mut headers = self.origin(Some(origin));
        if headers.is_empty() {
            return headers;
        }
        for (name, all) in [
            ("access-control-allow-methods", &self.allow_methods),
            ("access-control-allow-headers", &self.allow_headers),
        ] {
            if !all.is_empty() {
                headers.push((name, all.join(",")));
            }
        }
        if let Some(age) = self.max_age {
            headers.push(("access-control-max-age", age.to_string()));
        }
        headers
    }

    fn origin(&self, origin: Option<&str>) -> Headers {
        let Some(origin) = origin else { return Vec::new() };
        let is_any = self.allow_origins.iter().any(|allowed| allowed == "*");
        if !is_any && !self.allow_origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
            return Vec::new();
        }
        // Never any origin by its own name: a browser then refuses to send credentials there.
        let allowed = if is_any { "*".to_owned() } else { origin.to_owned() };
        let mut headers = vec![("access-control-allow-origin", allowed), ("vary", "Origin".to_owned())];
        if self.allow_credentials {
            headers.push(("access-control-allow-credentials", "true".to_owned()));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn cors(value: serde_json::Value) -> Cors {
        let cors: Cors = serde_json::from_value(value).unwrap();
        cors.check().unwrap();
        cors
    }

    fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
        headers.iter().find_map(|(found, value)| (*found == name).then_some(value.as_str()))
    }

    #[test]
    fn a_page_may_what_was_said_and_no_other_may() {
        let cors = cors(json!({
            "AllowOrigins": ["https://a.example"], "AllowMethods": ["GET", "POST"], "AllowHeaders": ["x-one"],
            "ExposeHeaders": ["x-two"], "MaxAge": 60, "AllowCredentials": true,
        }));
        let asked = cors.of_preflight("https://a.example");
        assert_eq!(value(&asked, "access-control-allow-origin"), Some("https://a.example"));
        assert_eq!(value(&asked, "access-control-allow-methods"), Some("GET,POST"));
        assert_eq!(value(&asked, "access-control-max-age"), Some("60"));
        assert_eq!(value(&asked, "access-control-allow-credentials"), Some("true"));
        assert_eq!(value(&cors.of_answer(Some("https://a.example")), "access-control-expose-headers"), Some("x-two"));
        assert!(cors.of_answer(Some("https://b.example")).is_empty() && cors.of_preflight("null").is_empty());
        assert!(cors.of_answer(None).is_empty());
    }

    #[test]
    fn any_origin_is_not_called_by_its_name() {
        let cors = cors(json!({ "AllowOrigins": ["*"], "AllowCredentials": true }));
        assert_eq!(value(&cors.of_answer(Some("https://evil.example")), "access-control-allow-origin"), Some("*"));
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for bad in [
            json!({ "AllowMethods": ["OPTIONS"] }),
            json!({ "AllowOrigins": ["example.org"] }),
            json!({ "AllowOrigins": ["https://example.org/path"] }),
            json!({ "AllowHeaders": ["a,b"] }),
            json!({ "MaxAge": 86_401 }),
        ] {
            let cors: Cors = serde_json::from_value(bad.clone()).unwrap();
            assert!(cors.check().is_err(), "{bad}");
        }
    }
}
