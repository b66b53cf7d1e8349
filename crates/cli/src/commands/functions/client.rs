//! Speaks to a service as AWS's clients do.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use url::Url;

/// How long a service may take to be reached.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A service, and who asks it.
pub(crate) struct Client {
    http: reqwest::Client,
    endpoint: Url,
    credentials: Credentials,
    region: String,
    /// Shows every tenant's functions.
    token: Option<String>,
}

/// What a service refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    kind: String,
    message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = crate::output::without_controls(&self.message);
        match self.status {
            StatusCode::FORBIDDEN if self.kind != "AccessDeniedException" => write!(
                f,
                "{message}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to a key that the service knows ({})",
                self.kind
            ),
            StatusCode::NOT_FOUND if self.kind == "ResourceNotFoundException" => {
                write!(f, "{message}: `snowmelt fn ls` lists the functions that there are")
            }
            _ => write!(f, "{message} ({})", self.kind),
        }
    }
}

impl std::error::Error for Refusal {}

/// What is asked for.
#[derive(Default)]
pub(crate) struct Asked<'a> {
    /// Parts of the path.
    pub(crate) path: Vec<&'a str>,
    pub(crate) query: Vec<(&'a str, String)>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn new(endpoint: &str, token: Option<String>) -> Result<Self> {
        let expected = || format!("--endpoint {endpoint}: expected such as http://127.0.0.1:9001");
        let url = Url::parse(endpoint).with_context(expected)?;
        ensure!(matches!(url.scheme(), "http" | "https") && url.has_host(), expected());
        let is_here = match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT_PATIENCE);
        if is_here {
            // No proxy leads to this machine.
            http = http.no_proxy();
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let key = variable("AWS_ACCESS_KEY_ID").zip(variable("AWS_SECRET_ACCESS_KEY"));
        let (id, secret, session) = match key {
            Some((id, secret)) => (id, secret, variable("AWS_SESSION_TOKEN")),
            // A service without access keys takes any.
            None => ("any".to_owned(), "any".to_owned(), None),
        };
        Ok(Self {
            http: http.build().context("setting up the HTTP client")?,
            endpoint: url,
            credentials: Credentials::new(id, secret, session, None, "environment"),
            region: variable("AWS_REGION")
                .or_else(|| variable("AWS_DEFAULT_REGION"))
                .unwrap_or_else(|| "us-east-1".into()),
            token,
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// Asks, and gives the answer where it is a success.
    ///
    /// # Errors
    /// [`Refusal`] for what the service refuses; where it is not there, that, and what to do.
    pub(crate) async fn ask(&self, method: Method, asked: Asked<'_>) -> Result<Response> {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(&asked.path);
        }
        if !asked.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&asked.query);
        }
        let mut request = self.http.request(method.clone(), url.clone());
        for (name, value) in &asked.headers {
            request = request.header(*name, value);
        }
        match &self.token {
            Some(token) => request = request.bearer_auth(token),
            None => {
                for (name, value) in self.sign(&method, &url, &asked)? {
                    request = request.header(name, value);
                }
            }
        }
        let answer = request.body(asked.body).send().await.map_err(|error| self.not_there(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let kind = answer.headers().get("x-amzn-errortype").and_then(|value| value.to_str().ok());
        let kind = kind.map_or_else(|| status.to_string(), str::to_owned);
        let body = answer.bytes().await.unwrap_or_default();
        let said = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        let message = said["Message"].as_str().or_else(|| said["message"].as_str()).unwrap_or("refused").to_owned();
        Err(Refusal { status, kind, message }.into())
    }

    fn sign(&self, method: &Method, url: &Url, asked: &Asked<'_>) -> Result<Vec<(String, String)>> {
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("lambda")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .context("signing")?
            .into();
        let headers = asked.headers.iter().map(|(name, value)| (*name, value.as_str()));
        let request = SignableRequest::new(method.as_str(), url.as_str(), headers, SignableBody::Bytes(&asked.body))
            .context("signing")?;
        let (instructions, _) = sign(request, &parameters).context("signing")?.into_parts();
        let (headers, _) = instructions.into_parts();
        Ok(headers.into_iter().map(|header| (header.name().to_owned(), header.value().to_owned())).collect())
    }

    fn not_there(&self, error: &reqwest::Error) -> anyhow::Error {
        let endpoint = self.endpoint();
        if error.is_connect() || error.is_timeout() {
            return anyhow!(
                "no service answers at {endpoint}: start it with `snowmelt serve`, or say with --endpoint where it is"
            );
        }
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        anyhow!("the service at {endpoint} gave no answer: {cause}")
    }

    /// The same, for an answer in JSON.
    ///
    /// # Errors
    /// Those of [`Client::ask`], and for what is no JSON.
    pub(crate) async fn json(&self, method: Method, asked: Asked<'_>) -> Result<Value> {
        let body = self.ask(method, asked).await?.bytes().await.map_err(|error| self.not_there(&error))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        let other = || format!("what answers at {} is no service of functions", self.endpoint());
        serde_json::from_slice(&body).with_context(other)
    }

    /// What the service is doing.
    ///
    /// # Errors
    /// Those of [`Client::json`].
    pub(crate) async fn status(&self) -> Result<Value> {
        let status = self.json(Method::GET, Asked { path: vec!["_snowmelt", "status"], ..Asked::default() }).await?;
        ensure!(
            status["functions"].is_array(),
            "what answers at {} does not say what it is doing: is it `snowmelt serve`?",
            self.endpoint()
        );
        Ok(status)
    }
}
