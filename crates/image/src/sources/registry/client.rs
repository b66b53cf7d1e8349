//! Requests to one repository: login, redirects, and which failures are worth another try.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::Mutex;
use url::Url;

use super::auth::{Challenge, TokenAnswer, choose};
use super::credentials::Credentials;
use crate::Error;
use crate::digest::Digest;
use crate::reference::{host_of, is_loopback};
use crate::sources::documents::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

mod failure;
use failure::Again;
pub(super) use failure::{Backoff, Failure, printable};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that gives nothing for so long counts as broken.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;
const MAX_TOKEN_BYTES: u64 = 1 << 20;
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Registry of Docker, whose images have another host in their names.
const DOCKER_IO_HOST: &str = "registry-1.docker.io";

/// Speaks to one repository of one registry.
pub(crate) struct Client {
    http: reqwest::Client,
    /// Scheme, host and port; the path is `/`.
    base: Url,
    registry: String,
    repository: String,
    insecure_http: bool,
    credentials: Credentials,
    /// Something answered at least once, so the registry is where it should be.
    has_answered: AtomicBool,
    /// The header that worked last. Held while a new one is fetched, so that many layers fetch one token.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Client {
    /// Finds out whether the registry speaks HTTPS or, where that is allowed, plain HTTP. Sends no credentials.
    pub(crate) async fn connect(
        registry: &str,
        repository: &str,
        insecure_http: bool,
        credentials: Credentials,
        subject: &str,
    ) -> Result<Client, Error> {
        let loopback = is_loopback(host_of(registry));
        let authority = if registry == "docker.io" { DOCKER_IO_HOST } else { registry };
        // To this machine plain HTTP is the usual thing; elsewhere it is only the last resort.
        let schemes: &[&str] = match (loopback, insecure_http) {
            (true, _) => &["http", "https"],
            (false, true) => &["https", "http"],
            (false, false) => &["https"],
        };
        let mut bases = Vec::new();
        for scheme in schemes {
            let base = Url::parse(&format!("{scheme}://{authority}/"))
                .map_err(|error| Error::invalid(subject, format!("{authority:?} is no host: {error}")))?;
            bases.push(base);
        }
        let http = http_client(loopback, loopback || insecure_http).map_err(|error| Error::Unavailable {
            operation: "prepare HTTPS for",
            subject: subject.to_owned(),
            reason: "certificates of authorities could not be loaded: install ca-certificates".into(),
            source: Some(Box::new(error)),
        })?;
        let has_answered = AtomicBool::new(bases.len() > 1);
        let base = match bases.len() {
            1 => bases.remove(0),
            _ => probe(&http, bases, subject).await?,
        };
        Ok(Client {
            http,
            base,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            insecure_http,
            credentials,
            has_answered,
            authorization: Mutex::new(None),
        })
    }

    /// A manifest or index by tag or digest, and the digest that the registry says it has. Reads one byte more than
    /// `size` at most, so that a longer one shows.
    pub(crate) async fn manifest(
        &self,
        name: &str,
        size: u64,
        subject: &str,
    ) -> Result<(Vec<u8>, Option<Digest>), Error> {
        let path = format!("v2/{}/manifests/{name}", self.repository);
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let mut backoff = Backoff::new();
        loop {
            let attempt = async {
                let mut response = self.get(&path, Some(&accept), 0, subject).await?;
                let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
                let said = said.and_then(|text| Digest::parse(text).ok());
                Ok((read(&mut response, size.saturating_add(1)).await?, said))
            };
            match attempt.await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::Again(again)) => {
                    let subject = format!("{subject}, manifest {name}");
                    if self.has_answered.load(Ordering::Relaxed) {
                        backoff.wait("fetch", &subject, again, "nothing came").await?;
                    } else {
                        backoff.wait_for_first_answer("fetch", &subject, again, "nothing came").await?;
                    }
                }
            }
        }
    }

    /// The head of the answer for a blob from byte `from` on; status 200 means that the whole blob follows.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64, subject: &str) -> Result<Response, Failure> {
        self.get(&format!("v2/{}/blobs/{digest}", self.repository), None, from, subject).await
    }

    /// Logs in where the registry asks for it, and follows redirects; the answer has status 200 or 206.
    async fn get(&self, path: &str, accept: Option<&str>, from: u64, subject: &str) -> Result<Response, Failure> {
        let invalid = |reason: String| Failure::Fatal(Error::invalid(subject, reason));
        let mut url = self.base.join(path).map_err(|error| invalid(format!("{path} makes no address: {error}")))?;
        let mut logged_in = false;
        let mut redirects = 0;
        loop {
            // Credentials are for the registry alone: storage it refers to has its own in the address.
            let ours = url.origin() == self.base.origin();
            let authorization = if ours { self.authorization.lock().await.clone() } else { None };
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(accept) = accept.and_then(|accept| HeaderValue::from_str(accept).ok()) {
                headers.insert(ACCEPT, accept);
            }
            if from > 0 {
                headers.insert(RANGE, HeaderValue::from_str(&format!("bytes={from}-")).expect("digits are a header"));
            }
            if let Some(value) = &authorization {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let request = self.http.get(url.clone()).headers(headers);
            let response =
                request.send().await.map_err(|error| Failure::from_http("the registry does not answer", error))?;
            self.has_answered.store(true, Ordering::Relaxed);
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if ours && !logged_in => {
                    let offered = response.headers().get_all(WWW_AUTHENTICATE).iter();
                    let challenge = choose(offered.filter_map(|value| value.to_str().ok()));
                    self.log_in(challenge, authorization.as_ref(), subject).await?;
                    logged_in = true;
                }
                status if is_redirect(status) => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(invalid(format!("the registry redirects more than {MAX_REDIRECTS} times")));
                    }
                    let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
                    let target = target.and_then(|target| url.join(target).ok());
                    url = target.ok_or_else(|| invalid("the registry redirects to no valid address".into()))?;
                    self.check_scheme(&url, "redirects", subject)?;
                }
                _ => return Err(self.refusal(response, subject).await),
            }
        }
    }

    /// HTTPS, unless plain HTTP is what the registry itself is allowed to speak.
    fn check_scheme(&self, url: &Url, verb: &str, subject: &str) -> Result<(), Failure> {
        let plain_allowed =
            self.insecure_http || (self.base.scheme() == "http" && url.host_str().is_some_and(is_loopback));
        if url.scheme() == "https" || (url.scheme() == "http" && plain_allowed) {
            return Ok(());
        }
        let host = url.host_str().unwrap_or("");
        let reason = format!(
            "the registry {verb} to {}://{host}, which is not HTTPS: allow plain HTTP if that is meant",
            url.scheme()
        );
        Err(Failure::Fatal(Error::denied(subject, reason)))
    }

    /// Gets a new value for the header, unless another request already replaced the one that was `used`.
    async fn log_in(
        &self,
        challenge: Option<Challenge>,
        used: Option<&HeaderValue>,
        subject: &str,
    ) -> Result<(), Failure> {
        let mut authorization = self.authorization.lock().await;
        if authorization.as_ref() != used {
            return Ok(());
        }
        let text = match challenge {
            Some(Challenge::Basic) => match &self.credentials {
                Credentials::Password { user, password } if used.is_none() => basic(user, password),
                _ => return Err(self.denied(subject, "")),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                format!("Bearer {}", self.token(&realm, service.as_deref(), &scope, subject).await?)
            }
            None => return Err(self.denied(subject, "it asks for a login of a kind that is not known")),
        };
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| self.denied(subject, "the token or password has characters that no header may have"))?;
        value.set_sensitive(true);
        *authorization = Some(value);
        Ok(())
    }

    /// Fetches a token (distribution's "Token Authentication" and "OAuth2" documents).
    async fn token(&self, realm: &str, service: Option<&str>, scope: &str, subject: &str) -> Result<String, Failure> {
        let mut url = Url::parse(realm).map_err(|_| self.denied(subject, "its token server's address is malformed"))?;
        self.check_scheme(&url, "sends logins", subject)?;
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let request = match &self.credentials {
            Credentials::Identity(token) => {
                fields.extend([("grant_type", "refresh_token"), ("client_id", "snowmelt"), ("refresh_token", token)]);
                let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                self.http.request(Method::POST, url).header(CONTENT_TYPE, form).body(body)
            }
            Credentials::Password { user, password } => {
                fields.push(("account", user));
                url.query_pairs_mut().extend_pairs(fields);
                self.http.get(url).basic_auth(user, Some(password))
            }
            Credentials::Anonymous => {
                url.query_pairs_mut().extend_pairs(fields);
                self.http.get(url)
            }
        };
        let mut response =
            request.send().await.map_err(|error| Failure::from_http("the token server does not answer", error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response, subject).await);
        }
        let body = read(&mut response, MAX_TOKEN_BYTES).await?;
        let answer = serde_json::from_slice::<TokenAnswer>(&body).ok().and_then(TokenAnswer::token);
        answer.ok_or_else(|| self.denied(subject, "its token server gave no token"))
    }

    fn denied(&self, subject: &str, said: &str) -> Failure {
        let registry = &self.registry;
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        let reason = match self.credentials {
            Credentials::Anonymous => format!(
                "the registry {registry} wants a login, or has no such image{said}: check the name, or log in with docker login {registry}"
            ),
            _ => format!(
                "the registry {registry} does not accept the login in Docker's configuration{said}: log in again with docker login {registry}"
            ),
        };
        Failure::Fatal(Error::denied(subject, reason))
    }

    /// What an answer without success means.
    async fn refusal(&self, mut response: Response, subject: &str) -> Failure {
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = read(&mut response, MAX_ERROR_BYTES).await.unwrap_or_default();
        let said = failure::message(&body);
        let host = response.url().host_str().unwrap_or("the registry").to_owned();
        match status {
            StatusCode::UNAUTHORIZED => self.denied(subject, &said),
            StatusCode::FORBIDDEN => Failure::Fatal(Error::denied(
                subject,
                format!("{host} forbids it ({status}) {said}").trim_end().to_owned(),
            )),
            StatusCode::NOT_FOUND => {
                let reason = format!("{host} has nothing of this name ({said}): check registry, repository and tag");
                Failure::Fatal(Error::not_found(subject, reason.replace(" ()", "")))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let hint =
                    if self.credentials == Credentials::Anonymous { "; logging in may raise the limit" } else { "" };
                Failure::Again(Again {
                    reason: format!("{host} limits the rate of requests{hint}"),
                    source: None,
                    after: after.map(Duration::from_secs),
                    is_refused: false,
                })
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => Failure::Again(Again {
                reason: format!("{host} answers {status} {said}").trim_end().to_owned(),
                source: None,
                after: after.map(Duration::from_secs),
                is_refused: false,
            }),
            status => {
                let reason = format!("{host} answers {status} {said}").trim_end().to_owned();
                Failure::Fatal(Error::unavailable("fetch", subject, reason))
            }
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// `loopback` keeps proxies out, as other container tools do. Where plain HTTP may be spoken, a machine without
/// certificates of authorities is no obstacle.
fn http_client(loopback: bool, plain_allowed: bool) -> Result<reqwest::Client, reqwest::Error> {
    let builder = || {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("snowmelt/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL_TIMEOUT)
            // Retries are ours; and a connection for each layer is faster than streams that share one.
            .retry(reqwest::retry::never())
            .http1_only();
        if loopback { builder.no_proxy() } else { builder }
    };
    match builder().build() {
        Err(_) if plain_allowed => builder().tls_certs_only([]).build(),
        result => result,
    }
}

/// The first base that answers as a registry, tried in order.
async fn probe(http: &reqwest::Client, bases: Vec<Url>, subject: &str) -> Result<Url, Error> {
    let mut backoff = Backoff::new();
    loop {
        let mut last = None;
        let mut answered = false;
        for base in &bases {
            let url = base.join("v2/").expect("a constant path joins any base");
            match http.get(url).send().await {
                // So servers of HTTPS answer plain HTTP.
                Ok(response) if base.scheme() == "http" && response.status() == StatusCode::BAD_REQUEST => {
                    answered = true;
                }
                Ok(_) => return Ok(base.clone()),
                Err(error) => last = Some(error),
            }
        }
        let Some(error) = last else {
            return Err(Error::unavailable("reach", subject, "the registry speaks neither HTTP nor HTTPS"));
        };
        let again = Again::from_http("the registry does not answer", error);
        if answered {
            let reason = format!("the registry wants HTTPS, and that fails: {}", again.reason);
            return Err(Error::Unavailable {
                operation: "reach",
                subject: subject.to_owned(),
                reason,
                source: again.source,
            });
        }
        backoff.wait_for_first_answer("reach", subject, again, "is it running?").await?;
    }
}

/// At most `limit` bytes of a body.
async fn read(response: &mut Response, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    while (body.len() as u64) < limit {
        let chunk = response.chunk().await;
        let Some(chunk) = chunk.map_err(|error| Failure::from_http("the connection broke", error))? else {
            break;
        };
        let room = limit - body.len() as u64;
        body.extend_from_slice(&chunk[..chunk.len().min(usize::try_from(room).unwrap_or(usize::MAX))]);
    }
    Ok(body)
}
