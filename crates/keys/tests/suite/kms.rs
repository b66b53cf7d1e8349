//! AWS KMS, as moto has it. Its client is set up by the environment, so each question is asked by a process of its own, which
//! is this program again with the test [`child`].

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snowmelt_chunk::{Error, KeyService as _, KeyUse};
use snowmelt_keys::{AwsKms, Options};

use crate::canned::Canned;
use crate::servers::{nobody, post, variable};
use crate::{USE, check_moving, check_service, options};

/// An operator's request.
fn admin(operation: &str, body: &Value) -> Value {
    let target = format!("TrentService.{operation}");
    let authorization =
        "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/kms/aws4_request, SignedHeaders=host, Signature=0";
    let headers = [
        ("x-amz-target", target.as_str()),
        ("content-type", "application/x-amz-json-1.1"),
        ("authorization", authorization),
    ];
    post(&variable("SNOWMELT_TEST_KMS"), &headers, body)
}

/// A new key: its id and its ARN.
fn new_key() -> (String, String) {
    let made = admin("CreateKey", &json!({}));
    let text = |field: &str| made["KeyMetadata"][field].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    (text("KeyId"), text("Arn"))
}

/// Runs a question in a process that has this environment, and nothing else of AWS'.
fn ask(question: &str, key: &str, environment: &[(&str, &str)]) {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kms::child", "--ignored", "--nocapture", "--test-threads=1"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("HOME", home.path()).env("QUESTION", question).env("KEY", key).env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{question} of {key}:\n{text}");
}

const CREDENTIALS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
const REGION: (&str, &str) = ("AWS_REGION", "eu-west-1");

fn ask_with_endpoint(question: &str, key: &str, endpoint: &str) {
    ask(question, key, &[CREDENTIALS[0], CREDENTIALS[1], REGION, ("AWS_ENDPOINT_URL_KMS", endpoint)]);
}

#[test]
#[ignore = "the others run it, as a process of its own"]
fn child() {
    let key = std::env::var("KEY").unwrap();
    let kms = |key: &str| AwsKms::new(key, options());
    let service = kms(&key);
    let generated = || service.generate_data_key(&USE).map(drop).unwrap_err();
    match std::env::var("QUESTION").unwrap().as_str() {
        "suite" => check_service(&service, true),
        "moving" => check_moving(Box::new(kms(&key)), Box::new(kms(&key))),
        "generates" => assert!(service.generate_data_key(&USE).unwrap().1.key_id.starts_with("awskms:arn:aws:kms:")),
        "other key" => {
            let (first, second) = key.split_once(' ').unwrap();
            let (_, wrapped) = kms(first).generate_data_key(&USE).unwrap();
            // Its own service does not ask for another key than it was given, whatever the wrapped key is of.
            let refused = kms(second).unwrap_data_key(&USE, &wrapped).unwrap_err();
            assert!(matches!(refused, Error::NoKey { .. }), "{refused}");
            assert!(refused.to_string().contains(&wrapped.key_id), "{refused}");
            assert!(kms(first).unwrap_data_key(&USE, &wrapped).is_ok());
        }
        "no key" => {
            let refused = generated();
            assert!(matches!(refused, Error::NoKey { .. }), "{refused}");
            assert!(refused.to_string().contains(&key), "{refused}");
        }
        "credentials" => {
            let refused = generated();
            assert!(matches!(refused, Error::KeyService { .. }), "{refused}");
            assert!(refused.to_string().contains("credentials"), "{refused}");
        }
        "region" => assert!(generated().to_string().contains("AWS_REGION")),
        "unusable" => assert!(matches!(generated(), Error::KeyService { .. }), "{}", generated()),
        "tls" => {
            let refused = AwsKms::new(&key, Options::default()).generate_data_key(&USE).map(drop).unwrap_err();
            assert!(matches!(&refused, Error::KeyService { .. }), "{refused}");
            assert!(refused.to_string().contains("allow_http"), "{refused}");
        }
        "unavailable" => {
            let started = Instant::now();
            assert!(generated().is_unavailable(), "{}", generated());
            assert!(started.elapsed() < Duration::from_secs(35), "bounded: {:?}", started.elapsed());
        }
        "patience" => {
            let hurried = AwsKms::new(&key, Options { patience: Duration::from_millis(700), ..options() });
            let started = Instant::now();
            assert!(hurried.generate_data_key(&USE).map(drop).unwrap_err().is_unavailable());
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        }
        "logs" => crate::logs::check_logs(&service, &["the-secret-access-key", "the-session-token"]),
        "unauthentic" => {
            let wrapped = snowmelt_chunk::WrappedKey { key_id: "awskms:x".into(), bytes: vec![1; 100] };
            let use_ = KeyUse { image: "another:latest", ..USE };
            let refused = service.unwrap_data_key(&use_, &wrapped).unwrap_err();
            assert!(matches!(refused, Error::Unauthentic { .. }), "{refused}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn it_is_a_key_service() {
    let (id, arn) = new_key();
    admin("CreateAlias", &json!({ "AliasName": "alias/suite", "TargetKeyId": id }));
    for key in [id.as_str(), &arn, "alias/suite", &arn.replace(&format!("key/{id}"), "alias/suite")] {
        ask_with_endpoint("suite", key, &variable("SNOWMELT_TEST_KMS"));
    }
}

#[test]
fn it_takes_over_from_files() {
    ask_with_endpoint("moving", &new_key().1, &variable("SNOWMELT_TEST_KMS"));
}

#[test]
fn another_key_of_the_account_opens_nothing() {
    let keys = format!("{} {}", new_key().1, new_key().1);
    ask_with_endpoint("other key", &keys, &variable("SNOWMELT_TEST_KMS"));
}

#[test]
fn the_endpoint_region_and_credentials_are_found_where_aws_tools_do() {
    let (id, arn) = new_key();
    let kms = variable("SNOWMELT_TEST_KMS");
    let endpoint = ("AWS_ENDPOINT_URL", kms.as_str());
    ask("generates", &id, &[CREDENTIALS[0], CREDENTIALS[1], REGION, endpoint]);
    // The key's own region, without any setting; the setting of one service goes before that of all.
    let dead = nobody();
    let for_kms = ("AWS_ENDPOINT_URL_KMS", kms.as_str());
    ask("generates", &arn, &[CREDENTIALS[0], CREDENTIALS[1], for_kms, ("AWS_ENDPOINT_URL", &dead)]);

    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let profile = format!(
        "[profile images]\nregion = eu-west-1\naws_access_key_id = test\naws_secret_access_key = test\nservices = here\n\
         [services here]\nkms =\n  endpoint_url = {kms}\n"
    );
    std::fs::write(&config, profile).unwrap();
    ask("generates", &id, &[("AWS_CONFIG_FILE", config.to_str().unwrap()), ("AWS_PROFILE", "images")]);
}

#[test]
fn what_is_not_set_up_is_named() {
    let (id, arn) = new_key();
    let kms = variable("SNOWMELT_TEST_KMS");
    let endpoint = ("AWS_ENDPOINT_URL_KMS", kms.as_str());
    ask("credentials", &arn, &[endpoint]);
    ask("region", &id, &[CREDENTIALS[0], CREDENTIALS[1], endpoint]);
    ask_with_endpoint("tls", &arn, &kms);
    ask_with_endpoint("no key", "1234abcd-12ab-34cd-56ef-1234567890ab", &kms);
    ask_with_endpoint("no key", "alias/nothing", &kms);
}

#[test]
fn a_server_that_does_not_answer_is_unavailable_in_bounded_time() {
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1";
    ask_with_endpoint("unavailable", key, &nobody());
    ask_with_endpoint("patience", key, &Canned::new(0, "").url);
    ask_with_endpoint("unavailable", key, &Canned::new(502, "<html>").url);
}

#[test]
fn no_log_shows_what_kms_answers_and_credentials() {
    let server = Canned::new(200, &crate::logs::kms_answer());
    let secrets = [("AWS_SECRET_ACCESS_KEY", "the-secret-access-key"), ("AWS_SESSION_TOKEN", "the-session-token")];
    let endpoint = ("AWS_ENDPOINT_URL_KMS", server.url.as_str());
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1";
    ask("logs", key, &[CREDENTIALS[0], secrets[0], secrets[1], REGION, endpoint]);
}

/// Each error of KMS' reference by what it means here, in the form that KMS gives it. moto does not know all of them: it goes
/// on using a disabled key.
#[test]
fn errors_mean_what_their_reference_says() {
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1";
    for (question, code) in [
        ("no key", "NotFoundException"),
        ("no key", "DisabledException"),
        ("no key", "KMSInvalidStateException"),
        ("no key", "AccessDeniedException"),
        ("unauthentic", "InvalidCiphertextException"),
        ("credentials", "UnrecognizedClientException"),
        ("credentials", "ExpiredTokenException"),
        ("credentials", "InvalidSignatureException"),
        ("unavailable", "ThrottlingException"),
        ("unavailable", "KMSInternalException"),
        ("unavailable", "KeyUnavailableException"),
        ("unusable", "InvalidKeyUsageException"),
    ] {
        let status = if code == "KMSInternalException" || code == "KeyUnavailableException" { 500 } else { 400 };
        let server = Canned::new(status, &json!({ "__type": code, "message": "because" }).to_string());
        ask_with_endpoint(question, key, &server.url);
        assert!(server.times_asked() <= 6, "{code} is not asked for ever");
    }
}
