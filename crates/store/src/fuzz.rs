//! Entry points for fuzzers: bytes from outside in, no panic out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::names::Entry;
use crate::{ImageName, State, intents, leases, salts};

/// The state of the roots. What is read is written the same, and can be asked everything.
pub fn fuzz_state(input: &[u8]) {
    let Ok(state) = State::decode(input) else { return };
    for root in state.roots.keys() {
        let _ = state.heir_of(root);
    }
    assert_eq!(state.state_of(&state.fresh_root_name()), None);
    let bytes = serde_json::to_vec(&state).expect("it is JSON");
    assert_eq!(State::decode(&bytes).expect("it was read before"), state);
}

/// What is under a name: a record, a tombstone, or anything.
pub fn fuzz_name(input: &[u8]) {
    let entry = Entry::decode("a name", input);
    let _ = entry.generation() + 1;
    let bytes = match &entry {
        Entry::Image(record) => {
            record.manifest_id().expect("it was checked");
            serde_json::to_vec(record)
        }
        Entry::Removed(tombstone) => serde_json::to_vec(tombstone),
        Entry::Absent | Entry::Damaged(_) => return,
    };
    // Words that this version does not know are left out, which may make it as short as what is refused.
    let again = Entry::decode("a name", &bytes.expect("it is JSON"));
    assert!(again == entry || matches!(again, Entry::Damaged(_)));
}

/// An object below a root's leases and intents: the first line is its path, the rest its bytes.
pub fn fuzz_listed(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
    let (path, body) = (String::from_utf8_lossy(&input[..end]), input.get(end + 1..).unwrap_or_default());
    for time in [UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1 << 40), SystemTime::now()] {
        if let Some(lease) = leases::parse(&path, time) {
            let _ = lease.is_live(SystemTime::now());
            assert!(!lease.tenant.contains(['/', '.']));
        }
    }
    if let Some(name) = intents::name_of(&path, body) {
        assert_eq!(name.to_string().parse::<ImageName>().ok(), Some(name));
    }
    if let Some((folder, tag)) = path.rsplit_once('/')
        && let Some(name) = ImageName::from_path(folder, tag)
    {
        assert!(!name.folder().contains('/') && !name.folder().starts_with('.') && !name.tag().contains('/'));
    }
}

/// The salt secret as it lies in the store.
pub fn fuzz_salt_secret(input: &[u8]) {
    let _ = salts::decode(input);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATE: &str = r#"{"version":1,"sequence":3,"nonce":"0","active":"r1","roots":{"main":{"state":"retired","since":5,"successor":"r1"},"r1":{"state":"active","since":6,"alarms":[{"at":1,"tenant":"t","manifest":"m","by":"b"}],"alarm_count":1}},"salt":{"epoch":1,"since":2},"lease":{"holder":"h","token":"t","until":9}}"#;
    const TOMBSTONE: &str = r#"{"version":2,"removed":true,"generation":3,"removed_at":1700000000,"fence":1}"#;
    const SECRET: &str = r#"{"version":1,"key_id":"vault:transit/salt:v1","wrapped":"AAAA"}"#;
    const LISTED: &str =
        "a/0000000000000000000000000000000000000000000000000000000000000000/1-3600\n{\"name\":\"a:b\",\"by\":\"x\"}";

    fn all(input: &[u8]) {
        fuzz_state(input);
        fuzz_name(input);
        fuzz_listed(input);
        fuzz_salt_secret(input);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn hostile_bytes_give_errors(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            all(&bytes);
        }

        #[test]
        fn damaged_records_give_errors(
            which in 0_usize..5,
            edits in proptest::collection::vec((any::<prop::sample::Index>(), "[0-9a-z{}\\[\\]\",:.+/\\-]{0,20}"), 1..4),
        ) {
            let name = serde_json::to_string(&crate::conformance::record(7)).expect("it is JSON");
            let mut text = [STATE, TOMBSTONE, SECRET, LISTED, &name][which].to_owned();
            all(text.as_bytes());
            for (at, put) in edits {
                let at = at.index(text.len());
                let end = (at + put.len() / 2).min(text.len());
                text.replace_range(at..end, &put);
                all(text.as_bytes());
            }
        }
    }
}
