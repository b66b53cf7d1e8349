//! What services are asked and answer is secret, and so is how one logs in: no log shows it, whatever is switched on.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use snowmelt_chunk::KeyService;
use snowmelt_keys::{Login, Vault, VaultAccess};
use zeroize::Zeroizing;

use crate::canned::Canned;
use crate::captured_log::capture;
use crate::{USE, options};

/// What is logged at every level while a data key is made and unwrapped shows neither it nor any of `secrets`.
pub(crate) fn check_logs(service: &dyn KeyService, secrets: &[&str]) {
    let log = capture();
    let (made, wrapped) = service.generate_data_key(&USE).unwrap();
    let unwrapped = service.unwrap_data_key(&USE, &wrapped).unwrap();
    assert!(log.text().matches("TRACE").count() > 1, "everything is logged: {}", log.text());
    for secret in secrets.iter().map(|secret| secret.as_bytes()).chain([&made.expose()[..], unwrapped.expose()]) {
        log.assert_shows_nothing_of(secret);
    }
}

const KEY: [u8; 32] = *b"32 bytes that are a data key 123";

#[test]
fn no_log_shows_what_vault_is_asked_and_answers() {
    let data =
        json!({ "type": "aes256-gcm96", "ciphertext": "vault:v1:AAAA", "plaintext": BASE64_STANDARD.encode(KEY) });
    let server = Canned::new(200, &json!({ "data": data }).to_string());
    let login = Login::Token(Zeroizing::new("hvs.a-token-of-vault".into()));
    let access = VaultAccess { address: server.url.clone(), namespace: None, ca_file: None, login };
    let vault = Vault::new(access, "transit", "x", options()).unwrap();
    check_logs(&vault, &["hvs.a-token-of-vault"]);
}

/// An answer of KMS to everything.
pub(crate) fn kms_answer() -> String {
    let arn = "arn:aws:kms:eu-west-1:111122223333:key/1";
    let (plain, wrapped) = (BASE64_STANDARD.encode(KEY), BASE64_STANDARD.encode([1; 100]));
    json!({ "KeyId": arn, "Plaintext": plain, "CiphertextBlob": wrapped }).to_string()
}
