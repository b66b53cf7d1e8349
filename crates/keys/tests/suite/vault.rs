//! Vault's transit engine, as OpenBao has it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snowmelt_chunk::{Error, KeyService as _};
use snowmelt_keys::{Login, Options, Vault, VaultAccess};
use zeroize::Zeroizing;

use crate::canned::Canned;
use crate::servers::{nobody, post, variable};
use crate::{USE, check_moving, check_service, check_unreachable, options};

fn token(token: &str) -> Login {
    Login::Token(Zeroizing::new(token.into()))
}

/// An operator's request.
fn admin(path: &str, body: &Value) -> Value {
    let token = variable("SNOWMELT_TEST_VAULT_TOKEN");
    post(&format!("{}/v1/{path}", variable("SNOWMELT_TEST_VAULT")), &[("x-vault-token", &token)], body)
}

fn vault_as(login: Login, key: &str) -> Vault {
    let access = VaultAccess { address: variable("SNOWMELT_TEST_VAULT"), namespace: None, ca_file: None, login };
    Vault::new(access, "transit", key, options()).unwrap()
}

/// A key of that name, as the root token uses it. Each test has its own.
fn vault(key: &str, settings: &Value) -> Vault {
    admin(&format!("transit/keys/{key}"), settings);
    vault_as(token(&variable("SNOWMELT_TEST_VAULT_TOKEN")), key)
}

/// A token that may do nothing but what the policy says.
fn token_for(name: &str, policy: &str) -> String {
    admin(&format!("sys/policies/acl/{name}"), &json!({ "policy": policy }));
    let made = admin("auth/token/create", &json!({ "policies": [name] }));
    made["auth"]["client_token"].as_str().unwrap().to_owned()
}

fn at(address: &str) -> Vault {
    let access = VaultAccess { address: address.into(), namespace: None, ca_file: None, login: token("t") };
    Vault::new(access, "transit", "x", Options { patience: Duration::from_secs(3), ..options() }).unwrap()
}

#[test]
fn it_is_a_key_service() {
    check_service(&vault("plain", &json!({})), true);
    check_service(&vault("derived", &json!({ "derived": true })), true);
    check_service(&vault("chacha", &json!({ "type": "chacha20-poly1305" })), true);
}

#[test]
fn it_takes_over_from_files() {
    check_moving(Box::new(vault("moving", &json!({}))), Box::new(vault("moving", &json!({}))));
}

#[test]
fn another_key_of_the_same_engine_opens_nothing() {
    let (ours, theirs) = (vault("ours", &json!({})), vault("theirs", &json!({})));
    let (_, mut wrapped) = ours.generate_data_key(&USE).unwrap();
    assert_eq!(wrapped.key_id, "vault:transit/ours:v1");
    assert!(matches!(theirs.unwrap_data_key(&USE, &wrapped), Err(Error::NoKey { .. })));
    // Nor does it when the manifest says that it does.
    wrapped.key_id = "vault:transit/theirs:v1".into();
    assert!(matches!(theirs.unwrap_data_key(&USE, &wrapped), Err(Error::Unauthentic { .. })));
}

#[test]
fn versions_open_until_they_are_out_of_use() {
    let keys = vault("versions", &json!({}));
    let (key, first) = keys.generate_data_key(&USE).unwrap();
    admin("transit/keys/versions/rotate", &json!({}));
    let (_, second) = keys.generate_data_key(&USE).unwrap();
    assert_eq!(second.key_id, "vault:transit/versions:v2");
    assert_eq!(keys.unwrap_data_key(&USE, &first).unwrap().expose(), key.expose());
    admin("transit/keys/versions/config", &json!({ "min_decryption_version": 2 }));
    let refused = keys.unwrap_data_key(&USE, &first).unwrap_err();
    assert!(matches!(refused, Error::NoKey { .. }), "{refused}");
    assert!(refused.to_string().contains("vault:transit/versions:v1"), "{refused}");
    assert!(keys.unwrap_data_key(&USE, &second).is_ok());
}

#[test]
fn a_key_that_is_not_there_is_not_made() {
    let keys = vault_as(token(&variable("SNOWMELT_TEST_VAULT_TOKEN")), "missing");
    let refused = keys.generate_data_key(&USE).unwrap_err();
    assert!(matches!(refused, Error::NoKey { .. }) && refused.to_string().contains("vault write"), "{refused}");
    let (_, mut wrapped) = vault("there", &json!({})).generate_data_key(&USE).unwrap();
    wrapped.key_id = "vault:transit/missing:v1".into();
    assert!(matches!(keys.unwrap_data_key(&USE, &wrapped), Err(Error::NoKey { .. })));
    assert!(matches!(keys.generate_data_key(&USE), Err(Error::NoKey { .. })), "it is still not there");
}

#[test]
fn a_deleted_key_is_refused() {
    let keys = vault("deleted", &json!({}));
    let (_, wrapped) = keys.generate_data_key(&USE).unwrap();
    admin("transit/keys/deleted/config", &json!({ "deletion_allowed": true }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("{}/v1/transit/keys/deleted", variable("SNOWMELT_TEST_VAULT"));
    let token = variable("SNOWMELT_TEST_VAULT_TOKEN");
    runtime.block_on(async { reqwest::Client::new().delete(url).header("x-vault-token", token).send().await.unwrap() });
    let refused = keys.unwrap_data_key(&USE, &wrapped).unwrap_err();
    assert!(matches!(refused, Error::NoKey { .. }), "{refused}");
}

#[test]
fn a_key_that_cannot_bind_is_refused() {
    let refused = vault("rsa", &json!({ "type": "rsa-2048" })).generate_data_key(&USE).unwrap_err();
    assert!(matches!(refused, Error::KeyService { .. }) && refused.to_string().contains("aes256-gcm96"), "{refused}");
}

#[test]
fn an_engine_that_is_not_there_is_said_so() {
    let access = VaultAccess {
        address: variable("SNOWMELT_TEST_VAULT"),
        namespace: None,
        ca_file: None,
        login: token(&variable("SNOWMELT_TEST_VAULT_TOKEN")),
    };
    let refused = Vault::new(access, "nowhere", "x", options()).unwrap().generate_data_key(&USE).unwrap_err();
    assert!(matches!(refused, Error::KeyService { .. }), "{refused}");
    assert!(refused.to_string().contains("no transit engine at nowhere"), "{refused}");
}

#[test]
fn a_token_does_what_its_policy_says() {
    let all = vault("policy", &json!({}));
    let (_, wrapped) = all.generate_data_key(&USE).unwrap();
    // The least that publishing and running need: no right to look at the key, or to make one.
    let publisher = token_for("publisher", r#"path "transit/encrypt/policy" { capabilities = ["update"] }"#);
    let reader = token_for("reader", r#"path "transit/decrypt/policy" { capabilities = ["update"] }"#);
    let (publisher, reader) = (vault_as(token(&publisher), "policy"), vault_as(token(&reader), "policy"));
    assert!(publisher.generate_data_key(&USE).is_ok());
    assert!(reader.unwrap_data_key(&USE, &wrapped).is_ok());
    let refused = publisher.unwrap_data_key(&USE, &wrapped).unwrap_err();
    assert!(matches!(refused, Error::NoKey { .. }), "{refused}");
    assert!(refused.to_string().contains("update on transit/decrypt/policy"), "{refused}");
    let refused = reader.generate_data_key(&USE).unwrap_err();
    assert!(matches!(refused, Error::NoKey { .. }), "{refused}");
    assert!(refused.to_string().contains("update on transit/encrypt/policy"), "{refused}");
}

#[test]
fn a_token_that_is_not_known_is_told_apart_from_a_policy() {
    let keys = vault("bad-token", &json!({}));
    let (_, wrapped) = keys.generate_data_key(&USE).unwrap();
    let refused = vault_as(token("s.nonsense"), "bad-token").unwrap_data_key(&USE, &wrapped).unwrap_err();
    assert!(matches!(refused, Error::KeyService { .. }), "{refused}");
    assert!(
        refused.to_string().contains("token is not valid") && !refused.to_string().contains("nonsense"),
        "{refused}"
    );
}

#[test]
fn an_app_role_gets_its_own_token_and_another_when_that_has_ended() {
    let keys = vault("role", &json!({}));
    let (_, wrapped) = keys.generate_data_key(&USE).unwrap();
    admin("sys/auth/approle", &json!({ "type": "approle" }));
    let policy = r#"path "transit/decrypt/role" { capabilities = ["update"] }"#;
    admin("sys/policies/acl/role-reader", &json!({ "policy": policy }));
    // The token ends after one use, so that each request after the first needs another.
    admin("auth/approle/role/images", &json!({ "token_policies": ["role-reader"], "token_num_uses": 1 }));
    let url = format!("{}/v1/auth/approle/role/images/role-id", variable("SNOWMELT_TEST_VAULT"));
    let root = variable("SNOWMELT_TEST_VAULT_TOKEN");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = runtime.block_on(async {
        reqwest::Client::new().get(url).header("x-vault-token", root).send().await.unwrap().text().await.unwrap()
    });
    let role_id: Value = serde_json::from_str(&text).unwrap();
    let role_id = role_id["data"]["role_id"].as_str().unwrap().to_owned();
    let secret_id = admin("auth/approle/role/images/secret-id", &json!({}));
    let secret_id = Zeroizing::new(secret_id["data"]["secret_id"].as_str().unwrap().to_owned());

    let login = Login::AppRole { role_id: role_id.clone(), secret_id: Some(secret_id) };
    let machine = vault_as(login, "role");
    for _ in 0..3 {
        machine.unwrap_data_key(&USE, &wrapped).unwrap();
    }
    let login = Login::AppRole { role_id, secret_id: Some(Zeroizing::new("wrong".into())) };
    let refused = vault_as(login, "role").unwrap_data_key(&USE, &wrapped).unwrap_err();
    assert!(matches!(refused, Error::KeyService { .. }), "{refused}");
    assert!(refused.to_string().contains("VAULT_SECRET_ID"), "{refused}");
}

#[test]
fn a_server_that_does_not_answer_is_unavailable_in_bounded_time() {
    check_unreachable(&at(&nobody()));
    let started = Instant::now();
    check_unreachable(&at(&Canned::new(0, "").url));
    assert!(started.elapsed() < Duration::from_secs(5), "its patience is 3 s: {:?}", started.elapsed());
    for status in [412, 429, 472, 473, 500, 502, 503] {
        let server = Canned::new(status, r#"{"errors":["Vault is sealed"]}"#);
        check_unreachable(&at(&server.url));
        assert_eq!(server.times_asked(), 3, "{status} is tried again, and not for ever");
    }
}

#[test]
fn what_is_no_vault_is_said_so() {
    for (status, body) in [(404, "<html>"), (200, "<html>"), (302, ""), (401, "{}")] {
        let refused = at(&Canned::new(status, body).url).generate_data_key(&USE).unwrap_err();
        assert!(matches!(refused, Error::KeyService { .. }), "{status}: {refused}");
    }
    for answer in [
        "{}",
        "[]",
        "7",
        r#"{"data":{"ciphertext":"vault:v1:"}}"#,
        r#"{"data":{"ciphertext":["x"],"type":"aes256-gcm96"}}"#,
    ] {
        let refused = at(&Canned::new(200, answer).url).generate_data_key(&USE).unwrap_err();
        assert!(matches!(refused, Error::KeyService { .. }), "{answer}: {refused}");
    }
}
