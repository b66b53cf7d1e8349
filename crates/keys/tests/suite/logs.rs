//! What services are asked and answer is secret, and so is how one logs in: no log shows it, whatever is switched on.

use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use snowmelt_chunk::KeyService;
use snowmelt_keys::{Login, Vault, VaultAccess};
use zeroize::Zeroizing;

use crate::canned::Canned;
use crate::{USE, options};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged at every level while a data key is made and unwrapped shows neither it nor any of `secrets`.
pub(crate) fn check_logs(service: &dyn KeyService, secrets: &[&str]) {
    let captured = Captured::default();
    let writer = captured.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let (made, wrapped) = service.generate_data_key(&USE).unwrap();
    let unwrapped = service.unwrap_data_key(&USE, &wrapped).unwrap();
    let log = String::from_utf8_lossy(&captured.0.lock().unwrap()).into_owned();
    assert!(log.contains("TRACE"), "everything is logged: {log}");
    let mut spellings: Vec<String> = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    for key in [made.expose(), unwrapped.expose()] {
        spellings.push(key.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")));
        spellings.push(BASE64_STANDARD.encode(key)[..40].to_owned());
        spellings.push(format!("{key:?}").trim_matches(['[', ']']).to_owned());
    }
    for spelling in spellings {
        let at = log.find(&spelling);
        let line = at.map(|at| &log[log[..at].rfind('\n').unwrap_or(0)..at]);
        assert!(line.is_none(), "{spelling} is in a log: {line:?}");
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
