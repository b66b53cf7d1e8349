//! Requests to a Vault server: token, waiting, trying again.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use snowmelt_chunk::Error;
use tokio::sync::{Mutex, OnceCell};
use url::Url;
use zeroize::Zeroizing;

use super::access::{Login, VaultAccess};
use crate::Options;

/// Waits before the second and third try, each with up to as much again.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// How long one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// More than any answer that is asked for here.
const MAX_ANSWER: usize = 1 << 20;

/// Why a request was not answered with what was asked for.
#[derive(Debug)]
pub(super) enum Refusal {
    /// 403.
    Denied(String),
    /// 404: no such thing, or no engine at all.
    NotThere { no_engine: bool, reason: String },
    /// 400 and what else is our request's fault, in the server's words.
    Said(String),
    /// The server was not reached, cannot answer, or cannot be asked.
    Failed(Error),
}

/// What is asked of a path of the API.
#[derive(Clone)]
struct Request<'a> {
    method: Method,
    path: &'a str,
    body: Option<&'a str>,
}

#[derive(Debug)]
pub(super) struct Server {
    service: String,
    access: VaultAccess,
    address: Url,
    client: OnceCell<Client>,
    /// What an AppRole was given.
    token: Mutex<Option<Token>>,
}

struct Token(Zeroizing<String>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl Server {
    pub(super) fn new(access: VaultAccess, service: String, options: &Options) -> Result<Self, Error> {
        let unusable = |reason: String| Error::KeyService { service: service.clone(), reason };
        let address = Url::parse(&access.address)
            .map_err(|error| unusable(format!("its address {:?} is no URL: {error}", access.address)))?;
        match address.scheme() {
            "https" => {}
            "http" if options.allow_http => {}
            "http" => {
                return Err(unusable(format!("its address {address} has no TLS, and allow_http is not set")));
            }
            scheme => return Err(unusable(format!("its address begins with {scheme}: expected https"))),
        }
        Ok(Self { service, access, address, client: OnceCell::new(), token: Mutex::default() })
    }

    pub(super) fn address(&self) -> &Url {
        &self.address
    }

    /// Reads a path of the API.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Refusal> {
        self.asked(&Request { method: Method::GET, path, body: None }).await
    }

    /// Sends JSON to a path of the API.
    pub(super) async fn post(&self, path: &str, body: &str) -> Result<Value, Refusal> {
        self.asked(&Request { method: Method::POST, path, body: Some(body) }).await
    }

    /// Whether the token is one that the server knows. Every token may ask that of itself.
    pub(super) async fn knows_token(&self) -> Result<bool, Refusal> {
        match self.get("auth/token/lookup-self").await {
            Ok(_) => Ok(true),
            Err(Refusal::Denied(_)) => Ok(false),
            Err(other) => Err(other),
        }
    }

    async fn asked(&self, request: &Request<'_>) -> Result<Value, Refusal> {
        if let Login::Token(token) = &self.access.login {
            return self.tried(request, Some(token)).await;
        }
        let (token, is_fresh) = self.app_role_token(None).await?;
        match self.tried(request, Some(&token)).await {
            // It may have expired; a new one tells whether that was it.
            Err(Refusal::Denied(_)) if !is_fresh => {
                let (token, _) = self.app_role_token(Some(&token)).await?;
                self.tried(request, Some(&token)).await
            }
            result => result,
        }
    }

    /// The token of the AppRole, and whether it was given just now; a new one where the one there is is `refused`.
    async fn app_role_token(&self, refused: Option<&str>) -> Result<(Zeroizing<String>, bool), Refusal> {
        let Login::AppRole { role_id, secret_id } = &self.access.login else {
            unreachable!("asked for an AppRole's token with another login");
        };
        let mut kept = self.token.lock().await;
        if let Some(Token(token)) = kept.as_ref().filter(|Token(token)| Some(token.as_str()) != refused) {
            return Ok((token.clone(), false));
        }
        let text = |text: &str| Value::from(text).to_string();
        let body = Zeroizing::new(match secret_id {
            Some(secret_id) => {
                format!(r#"{{"role_id":{},"secret_id":{}}}"#, text(role_id), &*Zeroizing::new(text(secret_id)))
            }
            None => format!(r#"{{"role_id":{}}}"#, text(role_id)),
        });
        let login = Request { method: Method::POST, path: "auth/approle/login", body: Some(&body) };
        let answer = self.tried(&login, None).await;
        let mut answer = answer.map_err(|refusal| match refusal {
            Refusal::Failed(error) => Refusal::Failed(error),
            Refusal::Denied(reason) | Refusal::Said(reason) | Refusal::NotThere { reason, .. } => {
                self.unusable(format!("its AppRole (VAULT_ROLE_ID, VAULT_SECRET_ID) is not accepted: {reason}"))
            }
        })?;
        let Value::String(token) = answer["auth"]["client_token"].take() else {
            return Err(self.unusable("its AppRole was given no token".into()));
        };
        let token = Zeroizing::new(token);
        *kept = Some(Token(token.clone()));
        Ok((token, true))
    }

    /// Sends a request until it is answered, three times at most.
    async fn tried(&self, request: &Request<'_>, token: Option<&str>) -> Result<Value, Refusal> {
        for wait in WAITS {
            match self.sent(request.clone(), token).await {
                Err(Refusal::Failed(error)) if error.is_unavailable() => {
                    tracing::debug!(%error, "trying again");
                    let jitter = wait.mul_f64(rand::random());
                    tokio::time::sleep(wait + jitter).await;
                }
                result => return result,
            }
        }
        self.sent(request.clone(), token).await
    }

    fn unusable(&self, reason: String) -> Refusal {
        Refusal::Failed(Error::KeyService { service: self.service.clone(), reason })
    }

    async fn sent(&self, Request { method, path, body }: Request<'_>, token: Option<&str>) -> Result<Value, Refusal> {
        let client = self.client.get_or_try_init(|| async { self.set_up() }).await.map_err(Refusal::Failed)?;
        let url = format!("{}/v1/{path}", self.address.as_str().trim_end_matches('/'));
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(token) = token {
            let mut value =
                HeaderValue::from_str(token).map_err(|_| self.unusable("its token has odd characters".into()))?;
            value.set_sensitive(true);
            headers.insert("x-vault-token", value);
        }
        if let Some(namespace) = &self.access.namespace {
            let value = HeaderValue::from_str(namespace);
            headers.insert(
                "x-vault-namespace",
                value.map_err(|_| self.unusable("its namespace has odd characters".into()))?,
            );
        }
        let mut request = client.request(method, url).headers(headers);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(Bytes::from_owner(Zeroizing::new(body.as_bytes().to_vec())));
        }
        let mut response = request.send().await.map_err(|error| self.not_sent(&error))?;
        let status = response.status();
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(part) = response.chunk().await.map_err(|error| self.not_sent(&error))? {
            if bytes.len() + part.len() > MAX_ANSWER {
                return Err(self.unusable("its answer is not one of Vault".into()));
            }
            bytes.extend_from_slice(&part);
        }
        self.understood(status, &bytes)
    }

    /// By the [status codes of Vault's API](https://developer.hashicorp.com/vault/api-docs#http-status-codes).
    fn understood(&self, status: StatusCode, bytes: &[u8]) -> Result<Value, Refusal> {
        let answer: Option<Value> = serde_json::from_slice(bytes).ok();
        if status.is_success()
            && let Some(answer) = answer
        {
            return Ok(answer);
        }
        let errors = answer.as_ref().and_then(|answer| answer["errors"].as_array());
        let said: Vec<&str> = errors.into_iter().flatten().filter_map(Value::as_str).map(str::trim).collect();
        // What stands in between, such as a proxy, has other words.
        let reason = if said.is_empty() { format!("status {status}") } else { said.join("; ") };
        let service = self.service.clone();
        Err(match status.as_u16() {
            403 => Refusal::Denied(reason),
            404 if errors.is_some() => Refusal::NotThere { no_engine: !said.is_empty(), reason },
            400 | 405 => Refusal::Said(reason),
            // 412: a standby that has not caught up; 429: too many requests; 472, 473: standbys; 5xx: sealed, or at fault.
            412 | 429 | 472 | 473 | 500.. => Refusal::Failed(Error::KeyServiceUnavailable { service, reason }),
            _ => Refusal::Failed(Error::KeyService {
                service,
                reason: format!("{} does not answer as Vault does: {reason}", self.address),
            }),
        })
    }

    fn not_sent(&self, error: &reqwest::Error) -> Refusal {
        let mut reason = String::new();
        let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(cause) = next {
            let message = cause.to_string();
            if !reason.contains(&message) {
                reason = if reason.is_empty() { message } else { format!("{reason}: {message}") };
            }
            next = cause.source();
        }
        let service = self.service.clone();
        let reason = format!("{}: {}", self.address, if reason.is_empty() { error.to_string() } else { reason });
        Refusal::Failed(if reason.contains("certificate") || error.is_redirect() {
            let hint = "; VAULT_CACERT names a file of authorities to trust";
            Error::KeyService { service, reason: format!("{reason}{}", if error.is_redirect() { "" } else { hint }) }
        } else {
            Error::KeyServiceUnavailable { service, reason }
        })
    }

    fn set_up(&self) -> Result<Client, Error> {
        let unusable = |reason: String| Error::KeyService { service: self.service.clone(), reason };
        let is_https = self.address.scheme() == "https";
        // A standby sends to the active server. The token goes with it, so not anywhere that has less protection.
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > 2 || (is_https && attempt.url().scheme() != "https") {
                attempt.error("it sends elsewhere without TLS, or in circles")
            } else {
                attempt.follow()
            }
        });
        let mut client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TRY_TIMEOUT)
            .redirect(redirects)
            .retry(reqwest::retry::never());
        if let Some(path) = &self.access.ca_file {
            let pem =
                std::fs::read(path).map_err(|error| unusable(format!("VAULT_CACERT {}: {error}", path.display())))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| unusable(format!("VAULT_CACERT {}: {error}", path.display())))?;
            client = client.tls_certs_merge(authorities);
        }
        client.build().map_err(|error| unusable(format!("no client for it: {error}")))
    }
}
