//! Entry points for fuzzers: bytes from outside in, no panic out.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;
use snowmelt_device::StartLog;

use crate::channel::Channel;
use crate::worker::{FromAgent, ToWorker};

/// Messages that a parser gets far with: fuzzers seldom come by names of fields.
const EXAMPLES: [&str; 7] = [
    r#"{"hello":{"sandbox":"0123456789ab"}}"#,
    r#"{"opened":{"version":1,"manifest":"00","root":"main","generation":1,"published_at":2,"source":"x","image_size":3,"stored_bytes":4,"chunk_count":5,"fence":6}}"#,
    r#"{"changed":{"runtime":{"pid":7,"start_ticks":8},"detached":true}}"#,
    r#"{"read":{"start":"snowmelt start log 2\nstarts 1\nchunk 1 2\n","expected":"snowmelt start log 2\n","same_command":false}}"#,
    r#"{"kill_container":{"runtime":null}}"#,
    r#"{"ended":"abandoned"}"#,
    r#"{"adopt":{"sandbox":"0123456789ab","handed_over":{"record":{"version":1,"manifest":"00","root":"main","generation":1,"published_at":2,"source":"x","image_size":3,"stored_bytes":4,"chunk_count":5},"device":{"version":1,"image":"x","size_bytes":9,"chunk_bytes":10,"sealed_key":[1,2]},"session":{"version":1,"mount_point":"/x","is_directory":false,"size_bytes":9,"writable":true,"negotiated":{"minor":40,"flags":3,"max_write":4096}},"mounter":11,"runtime":null,"detached":false}}}"#,
];

/// What an agent, which may be in a stranger's hands, sends its worker; and what a command sends it. The first byte says how: as it is, as
/// a message whose text is in the message or in a file, or as one of the examples that has the text in it, in the place of as much of it.
pub fn fuzz_worker_message(input: &[u8]) {
    let Some((way, text)) = input.split_first() else { return };
    match way % 4 {
        0 => received::<FromAgent>(text, None),
        1 => {
            received::<FromAgent>(&[b"i", text].concat(), None);
            received::<ToWorker>(&[b"i", text].concat(), None);
        }
        2 => received::<FromAgent>(b"m", Some(text)),
        _ => {
            let [which, low, high, text @ ..] = text else { return };
            let example = EXAMPLES[usize::from(*which) % EXAMPLES.len()].as_bytes();
            let at = usize::from(u16::from_le_bytes([*low, *high])) % example.len();
            let rest = example.get(at + text.len()..).unwrap_or_default();
            received::<FromAgent>(&[b"i", &example[..at], text, rest].concat(), None);
        }
    }
}

fn received<T: Serialize + DeserializeOwned>(bytes: &[u8], in_file: Option<&[u8]>) {
    let Ok((agent, worker)) = Channel::pair() else { return };
    let file = in_file.and_then(|text| {
        let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).ok()?);
        file.write_all(text).ok().map(|()| file)
    });
    let descriptors: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    if agent.send_bytes(bytes, &descriptors).is_err() {
        return;
    }
    drop(agent);
    let Ok(Some((message, descriptors))) = worker.receive::<T>() else { return };
    assert!(descriptors.is_empty(), "its file is not for whoever hears it");
    // What is understood is said in the same way.
    let said = serde_json::to_string(&message).expect("it is a message");
    let again: T = serde_json::from_str(&said).expect("it was written by us");
    assert_eq!(serde_json::to_string(&again).expect("it is a message"), said);
    if let Ok(FromAgent::Read(read)) = serde_json::from_str(&said) {
        for text in [&read.start, &read.expected] {
            let _ = StartLog::decode(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_messages() {
        for example in EXAMPLES {
            serde_json::from_str::<FromAgent>(example).unwrap_or_else(|error| panic!("{error}: {example}"));
            received::<FromAgent>(&[b"i", example.as_bytes()].concat(), None);
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_none() {
        for way in 0..4_u8 {
            for text in [&b""[..], b"{", b"\0\0\0", b"\x06\x10\0\"x\"", b"\x01\xff\xff{}"] {
                fuzz_worker_message(&[&[way], text].concat());
            }
        }
    }
}
