//! Entry points for fuzzers: bytes from outside in, no panic out.

use crate::worker::protocol::{Answer, Request};

/// What a sandbox may send its worker, and the worker a sandbox.
pub fn fuzz_worker(input: &[u8]) {
    if let Some(request) = Request::decode(input) {
        assert_eq!(request.encode(), input);
    }
    if let Some(answer) = Answer::decode(input) {
        let encoded = answer.encode();
        // Reasons that are too long, or no text, are not sent as they came.
        if let Answer::Here(_) | Answer::Asks(_) | Answer::Contains(_) = answer {
            assert_eq!(encoded, input);
        }
        assert!(Answer::decode(&encoded).is_some());
    }
}
