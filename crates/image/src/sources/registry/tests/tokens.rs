//! The token protocol, against a registry and a token server that write down what they were asked.

use std::sync::Arc;

use serde_json::json;

use super::{docker_config, message};
use crate::digest::Digest;
use crate::sources::fixtures::http::{Answer, Request, Server};
use crate::sources::fixtures::read_layer;
use crate::sources::registry::open_with;
use crate::{Error, Platform, Source};

/// An image with one plain layer, as a registry gives it.
#[derive(Clone)]
pub(super) struct Image {
    pub(super) manifest: String,
    config: String,
    pub(super) layer: Arc<Vec<u8>>,
}

impl Image {
    pub(super) fn new() -> Image {
        let layer: Vec<u8> = (0..400_000_u32).map(|i| (i % 251) as u8).collect();
        let digest = Digest::of(&layer).to_string();
        let config = json!({ "rootfs": { "diff_ids": [digest] } }).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "digest": Digest::of(config.as_bytes()).to_string(), "size": config.len() },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len() }],
        });
        Image { manifest: manifest.to_string(), config, layer: Arc::new(layer) }
    }

    pub(super) fn is_layer(&self, request: &Request) -> bool {
        request.target.ends_with(&format!("/blobs/{}", Digest::of(&self.layer)))
    }

    /// The right answer for any request.
    pub(super) fn answer(&self, request: &Request) -> Answer {
        let config = format!("/blobs/{}", Digest::of(self.config.as_bytes()));
        if request.target == "/v2/" {
            Answer::new(200, "{}")
        } else if request.target.contains("/manifests/") {
            Answer::new(200, self.manifest.clone())
        } else if request.target.ends_with(&config) {
            Answer::new(200, self.config.clone())
        } else if self.is_layer(request) {
            Answer::new(200, self.layer.to_vec())
        } else {
            Answer::new(404, "")
        }
    }
}

pub(super) fn open(server: &Server, docker_config: Option<&std::path::Path>) -> Result<Box<dyn Source>, Error> {
    let source = format!("docker://{}/some/image", server.address).parse()?;
    open_with(&source, &Platform::host(), false, docker_config)
}

/// A token server, and a registry that wants its token `good-N`, where N is how often tokens were given.
fn registry_with_tokens(image: &Image) -> (Server, Server) {
    let given = std::sync::atomic::AtomicUsize::new(0);
    let tokens = Server::start(move |_| {
        let number = given.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Answer::new(200, json!({ "token": format!("good-{number}") }).to_string())
    });
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="the registry",scope="repository:some/image:pull""#,
        tokens.address
    );
    let image = image.clone();
    let registry = Server::start(move |request| {
        // The second token is wanted for layers, as if the first had expired.
        let wanted = if image.is_layer(request) { "Bearer good-1" } else { "Bearer good-0" };
        if request.target == "/v2/" || request.header("authorization") == wanted {
            image.answer(request)
        } else {
            Answer::new(401, "").header("WWW-Authenticate", &challenge)
        }
    });
    (tokens, registry)
}

#[test]
fn anonymous_tokens_are_fetched_and_renewed() {
    let image = Image::new();
    let (tokens, registry) = registry_with_tokens(&image);
    let source = open(&registry, None).unwrap();
    assert_eq!(read_layer(&*source, 0).unwrap(), *image.layer);
    let asked = tokens.requests();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].target, "/token?scope=repository%3Asome%2Fimage%3Apull&service=the+registry");
    assert_eq!(asked[0].header("authorization"), "");
}

#[test]
fn tokens_for_a_password_and_for_an_identity() {
    let image = Image::new();
    let (tokens, registry) = registry_with_tokens(&image);
    // "me:secret"
    let config = docker_config(&json!({ "auths": { &registry.address: { "auth": "bWU6c2VjcmV0" } } }));
    open(&registry, Some(config.path())).unwrap();
    let asked = tokens.requests().remove(0);
    assert_eq!(asked.header("authorization"), "Basic bWU6c2VjcmV0");
    assert!(asked.target.ends_with("&account=me"), "{}", asked.target);
    // The password is for the token server alone.
    assert!(registry.requests().iter().all(|request| !request.header("authorization").starts_with("Basic")));

    let (tokens, registry) = registry_with_tokens(&image);
    let config = docker_config(&json!({ "auths": { &registry.address: { "identitytoken": "long lived" } } }));
    open(&registry, Some(config.path())).unwrap();
    let asked = tokens.requests().remove(0);
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/token"));
    assert!(asked.body.contains("grant_type=refresh_token") && asked.body.contains("refresh_token=long+lived"));
}

#[test]
fn a_redirect_takes_no_login_to_another_host() {
    let image = Image::new();
    let storage = {
        let image = image.clone();
        Server::start(move |request| match request.target.as_str() {
            "/stored?signature=1" => Answer::new(200, image.layer.to_vec()),
            _ => Answer::new(404, ""),
        })
    };
    let (target, from) = (format!("http://{}/stored?signature=1", storage.address), image.clone());
    let registry = Server::start(move |request| {
        if request.target == "/v2/" || request.header("authorization") == "Basic bWU6c2VjcmV0" {
            if from.is_layer(request) { Answer::new(307, "").header("Location", &target) } else { from.answer(request) }
        } else {
            Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"")
        }
    });
    let config = docker_config(&json!({ "auths": { &registry.address: { "auth": "bWU6c2VjcmV0" } } }));
    let source = open(&registry, Some(config.path())).unwrap();
    assert_eq!(read_layer(&*source, 0).unwrap(), *image.layer);
    let asked = storage.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), "");
}

#[test]
fn no_redirect_and_no_login_leaves_this_machine_in_the_clear() {
    let image = Image::new();
    let from = image.clone();
    let registry = Server::start(move |request| {
        let elsewhere = Answer::new(302, "").header("Location", "http://storage.example/x");
        if from.is_layer(request) { elsewhere } else { from.answer(request) }
    });
    let source = open(&registry, None).unwrap();
    let error = message(read_layer(&*source, 0));
    assert!(error.contains("the registry redirects to http://storage.example, which is not HTTPS"), "{error}");

    let registry = Server::start(|request| match request.target.as_str() {
        "/v2/" => Answer::new(200, ""),
        _ => Answer::new(401, "").header("WWW-Authenticate", "Bearer realm=\"http://tokens.example/\""),
    });
    let error = message(open(&registry, None));
    assert!(error.contains("the registry sends logins to http://tokens.example, which is not HTTPS"), "{error}");
}

#[test]
fn a_registry_that_refuses_every_token() {
    let tokens = Server::start(|_| Answer::new(200, r#"{"access_token":"x"}"#));
    let challenge = format!("Bearer realm=\"http://{}/\"", tokens.address);
    let registry = Server::start(move |request| match request.target.as_str() {
        "/v2/" => Answer::new(200, ""),
        _ => Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#)
            .header("WWW-Authenticate", &challenge),
    });
    let error = open(&registry, None).err().unwrap();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(error.to_string().contains("wants a login, or has no such image (no)"), "{error}");
    assert_eq!(tokens.requests().len(), 1);
}
