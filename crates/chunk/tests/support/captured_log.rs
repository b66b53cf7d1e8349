//! Everything that a process logs, and whether a secret is in it, however it is written.

use std::io::Write;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};

/// What was logged since [`capture`].
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Logs at every level from now on. Once in a process.
pub(crate) fn capture() -> CapturedLog {
    let captured = CapturedLog::default();
    let writer = captured.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    tracing::trace!("it is captured");
    assert!(captured.text().contains("it is captured"));
    captured
}

impl CapturedLog {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Fails the test where a secret is in the log, in any of its [`spellings`].
    #[track_caller]
    pub(crate) fn assert_shows_nothing_of(&self, secret: &[u8]) {
        let log = self.0.lock().unwrap();
        for spelling in spellings(secret) {
            let shown = log.windows(spelling.len()).any(|part| part == spelling);
            assert!(!shown, "{} is in the log", String::from_utf8_lossy(&spelling));
        }
    }
}

/// Bytes as logs may write them: as they are, in hexadecimal, in base64, as numbers.
pub(crate) fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hexadecimal = secret.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    // How it ends depends on what follows.
    let base64 = |encoded: String| encoded.into_bytes()[..secret.len()].to_vec();
    vec![
        secret.to_vec(),
        hexadecimal.to_uppercase().into_bytes(),
        hexadecimal.into_bytes(),
        base64(BASE64_STANDARD_NO_PAD.encode(secret)),
        base64(BASE64_URL_SAFE_NO_PAD.encode(secret)),
        format!("{secret:?}").trim_matches(['[', ']']).as_bytes().to_vec(),
    ]
}
