//! `fn logs`.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use reqwest::Method;

use super::client::{Asked, Client};
use crate::args::LogsArgs;

pub(super) async fn logs(client: &Client, args: &LogsArgs) -> Result<ExitCode> {
    let mut query = vec![("follow", args.follow.to_string())];
    match args.since {
        Some(since) => {
            let from = SystemTime::now().checked_sub(since.0).unwrap_or(SystemTime::UNIX_EPOCH);
            let ms = from.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
            query.push(("since", ms.to_string()));
        }
        None => query.push(("lines", args.lines.to_string())),
    }
    let path = vec!["_snowmelt", "functions", &args.name, "log"];
    let mut answer = client.ask(Method::GET, Asked { path, query, ..Asked::default() }).await?;
    let mut out = std::io::stdout().lock();
    let is_terminal = out.is_terminal();
    // What of a character has come.
    let mut begun = Vec::new();
    while let Some(bytes) = answer.chunk().await.context("the service has gone, or gives no more of the log")? {
        let written = if is_terminal {
            begun.extend_from_slice(&bytes);
            let whole = whole_characters(&begun);
            let text = String::from_utf8_lossy(&begun[..whole]).into_owned();
            begun.drain(..whole);
            out.write_all(shown(&text, true).as_bytes())
        } else {
            out.write_all(&bytes)
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            written => written?,
        }
    }
    if args.follow {
        eprintln!("snowmelt: {} was deleted, or its service ends: nothing more will come", args.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// How many bytes are whole characters, or will never be.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        // Cut off in its last character.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

/// What a function wrote must not steer a terminal.
pub(super) fn shown(text: &str, is_terminal: bool) -> String {
    let is_fit = |c: char| !is_terminal || !c.is_control() || matches!(c, '\n' | '\t');
    text.chars()
        .filter(|c| *c != '\r' || !is_terminal)
        .map(|c| if is_fit(c) { c } else { char::REPLACEMENT_CHARACTER })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole_and_steer_nothing() {
        assert_eq!(whole_characters("aü".as_bytes()), 3);
        assert_eq!(whole_characters(&"aü".as_bytes()[..2]), 1);
        assert_eq!(whole_characters(b"a\xffb"), 3);
        assert_eq!(shown("a\x1b[2J\r\n\tb", true), "a\u{fffd}[2J\n\tb");
        assert_eq!(shown("a\x1b[2J\r\n", false), "a\x1b[2J\r\n");
    }
}
