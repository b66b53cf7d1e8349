//! Against AWS's own signer for Rust.
#![allow(clippy::unwrap_used)]

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings, sign as sign_request,
};
use aws_sigv4::sign::v4;
use proptest::prelude::*;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_hours(498_800)
}

struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn new(method: &str, path: &str, query: &str, body: &[u8]) -> Self {
        let headers = vec![("host".to_owned(), "localhost:9001".to_owned())];
        Self { method: method.into(), path: path.into(), query: query.into(), headers, body: body.to_vec() }
    }

    fn signed(&self) -> Signed<'_> {
        Signed { method: &self.method, path: &self.path, query: &self.query, headers: &self.headers, body: &self.body }
    }

    /// As AWS's signer does it.
    fn sign(mut self, location: SignatureLocation, token: Option<&str>) -> Self {
        let identity = Credentials::new("AKIDEXAMPLE", SECRET, token.map(Into::into), None, "test").into();
        let mut settings = SigningSettings::default();
        settings.signature_location = location;
        if location == SignatureLocation::QueryParams {
            settings.expires_in = Some(Duration::from_mins(10));
        }
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name(SERVICE)
            .time(now())
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let url = format!("http://localhost:9001{}?{}", self.path, self.query);
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let signable = SignableRequest::new(&self.method, url, headers, SignableBody::Bytes(&self.body)).unwrap();
        let (instructions, _) = sign_request(signable, &params).unwrap().into_parts();
        let (headers, query) = instructions.into_parts();
        for header in headers {
            self.headers.push((header.name().to_owned(), header.value().to_owned()));
        }
        for (name, value) in query {
            let separator = if self.query.is_empty() { "" } else { "&" };
            self.query = format!("{}{separator}{name}={}", self.query, encoded(value.as_bytes()));
        }
        self
    }

    fn verify(&self, secret: &str, at: SystemTime) -> Result<(), ApiError> {
        Claim::read(&self.signed()).and_then(|claim| claim.verify(&self.signed(), secret, at))
    }
}

const PATHS: [&str; 4] = [
    "/2015-03-31/functions",
    "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello/invocations",
    "/2015-03-31/functions/",
    "/",
];

#[test]
fn what_aws_signs_is_believed_and_nothing_else() {
    for location in [SignatureLocation::Headers, SignatureLocation::QueryParams] {
        for path in PATHS {
            for query in ["", "Qualifier=%24LATEST&MaxItems=3", "tagKeys=a%20b&tagKeys=a&empty="] {
                for token in [None, Some("a/session+token==")] {
                    let request = Request::new("POST", path, query, b"{}").sign(location, token);
                    let claim = Claim::read(&request.signed()).unwrap();
                    assert_eq!((claim.access_key.as_str(), claim.session_token.as_deref()), ("AKIDEXAMPLE", token));
                    request.verify(SECRET, now()).unwrap();
                    assert!(request.verify("another", now()).is_err());
                    for change in [
                        Request { method: "PUT".into(), ..clone(&request) },
                        Request { path: format!("{path}x"), ..clone(&request) },
                        Request { query: format!("{}&x=1", request.query), ..clone(&request) },
                        Request { body: b"{ }".to_vec(), ..clone(&request) },
                    ] {
                        let error = change.verify(SECRET, now()).unwrap_err();
                        assert_eq!((error.name(), error.status()), ("InvalidSignatureException", 403), "{error}");
                    }
                }
            }
        }
    }
}

fn clone(request: &Request) -> Request {
    Request {
        method: request.method.clone(),
        path: request.path.clone(),
        query: request.query.clone(),
        headers: request.headers.clone(),
        body: request.body.clone(),
    }
}

#[test]
fn times_that_have_passed_or_not_come() {
    let request = Request::new("GET", "/", "", b"").sign(SignatureLocation::Headers, None);
    for (at, message) in
        [(now() + Duration::from_secs(301), "expired"), (now() - Duration::from_secs(301), "not yet current")]
    {
        let error = request.verify(SECRET, at).unwrap_err();
        assert!(error.message().contains(message), "{error}");
    }
    request.verify(SECRET, now() + Duration::from_mins(4)).unwrap();
    let request = Request::new("GET", "/", "", b"").sign(SignatureLocation::QueryParams, None);
    request.verify(SECRET, now() + Duration::from_mins(9)).unwrap();
    assert!(request.verify(SECRET, now() + Duration::from_mins(11)).is_err());
}

#[test]
fn what_is_not_signed_counts_for_nothing() {
    let request = Request::new("GET", "/", "", b"");
    assert_eq!(request.verify(SECRET, now()).unwrap_err().name(), "MissingAuthenticationTokenException");
    let mut request = Request::new("GET", "/", "", b"").sign(SignatureLocation::Headers, None);
    request.headers.push(("x-amz-invocation-type".into(), "Event".into()));
    assert!(request.verify(SECRET, now()).unwrap_err().message().contains("not signed"));
}

proptest! {
    #[test]
    fn any_header_is_a_claim_or_none(text in "\\PC{0,200}", query in "\\PC{0,200}") {
        let mut request = Request::new("GET", "/", &query, b"");
        let _ = Claim::read(&request.signed());
        for text in [text.clone(), format!("{ALGORITHM} {text}"), format!("{ALGORITHM} Credential=a/{text}/b, SignedHeaders=host, Signature=x")] {
            request.headers = vec![("authorization".into(), text), ("x-amz-date".into(), "20261126T080000Z".into())];
            if let Ok(claim) = Claim::read(&request.signed()) {
                prop_assert!(claim.verify(&request.signed(), SECRET, now()).is_err());
            }
        }
    }
}
